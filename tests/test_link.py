"""KV that moves between workers: disaggregated prefill and decode, and parallel prefill; by hand, S(b) = 10 + b ms."""

from __future__ import annotations

from typing import Any

import pytest
from toy import check_all, run, running_of, toy_state, transfers_of

from llm_env.core import step
from llm_env.dtypes import FINISHED, LINED_UP, MOVING, ROLE_DECODE, ROLE_PREFILL, RUNNING, SWAPPED
from llm_env.records import State, decision
from llm_env.view import make_view

pytestmark = [pytest.mark.kernel, pytest.mark.nojit]


def pools(rows, prefill=1, decode=1, latency_ms=5.0, gbytes_per_s: Any = 1.0, **settings) -> State:
    """A disaggregated system; KV takes 1 ms a token at 1 GB/s."""
    system = {
        "layout": "disaggregated",
        "prefill_workers": prefill,
        "link": {"latency_ms": latency_ms, "gbytes_per_s": gbytes_per_s},
        **settings.pop("system", {}),
    }
    return toy_state(rows, workers=prefill + decode, system=system, **settings)


def played(state: State, budget: int = 100, swap: int = 0) -> State:
    """Runs it to the end with Sarathi's packing; every state on the way is whole."""
    while state.system[0]["phase"] == 0:
        check_all(state)
        step(state, decision(budget, swap=swap))
    check_all(state)
    return state


def ms(value) -> Any:
    return pytest.approx([v / 1e3 for v in value] if isinstance(value, list) else value / 1e3)


# ---- disaggregated -------------------------------------------------------------------------------------------------
def test_a_move_takes_its_latency_and_its_bytes():
    # prefill S(10) = 20 ms, 5 ms of latency, 10 ms of data, then two decodes of 11 ms
    state = played(pools([(0.0, 10, 3)]))
    r = state.requests[0]
    assert (r["first_token_s"], r["finish_s"]) == (ms(20), ms(57))
    assert r["max_tbt_s"] == ms(26)
    assert r["worker"] == 1


def test_an_unlimited_link_takes_its_latency_alone():
    state = played(pools([(0.0, 10, 3)], gbytes_per_s="unlimited"))
    assert state.requests[0]["finish_s"] == ms(47)


def test_moves_share_the_link_equally():
    # S(40) = 50 ms for both; from 55 ms on each has half the link: 10 tokens are over at 75, then 20 at full speed
    state = played(pools([(0.0, 10, 2), (0.0, 30, 2)]))
    first, second = state.requests[0], state.requests[1]
    assert first["finish_s"] == ms(75 + 11)
    assert second["last_token_s"] == ms(95 + 11)


def test_a_latency_that_ends_later_joins_the_sharing_later():
    # request 0: prefilled at 20, data 25 to 35 if alone. Request 1 (1 token): batch of 11 ms to 31, data from 36 on.
    state = played(pools([(0.0, 10, 2), (0.001, 1, 2)]))
    assert state.requests[0]["finish_s"] == ms(35 + 11)
    assert state.requests[1]["finish_s"] == ms(46 + 11)  # it arrives at 37, while the worker decodes request 0


def test_a_move_waits_for_a_place_and_keeps_its_own():
    # one place each: request 0 decodes until 64 ms; request 1, prefilled at 40 ms, must wait for it
    state = pools([(0.0, 10, 5), (0.0, 10, 2), (0.0, 10, 2)], max_running=1, latency_ms=0.0, gbytes_per_s="unlimited")
    while state.system[0]["now_s"] < 0.050:
        check_all(state)
        step(state, decision(100))
    assert state.requests[1]["status"] == MOVING
    assert transfers_of(state)[0]["phase"] == LINED_UP
    assert running_of(state, 0) == [1]
    state = played(state)
    assert [float(r["first_token_s"]) for r in state.requests] == ms([20, 40, 84])
    assert [float(r["finish_s"]) for r in state.requests] == ms([64, 75, 95])


def test_a_move_waits_for_memory_and_is_first_come_first_served():
    # 4 blocks of 4 on each worker: request 0 holds 3 there, so request 1 (2 blocks) must wait for its end
    state = pools([(0.0, 10, 2), (0.0, 6, 2), (0.0, 3, 2)], blocks=4, gbytes_per_s="unlimited", latency_ms=0.0)
    done = played(state).requests
    assert (done["status"] == FINISHED).all()
    assert done["finish_s"][0] < done["finish_s"][1]
    assert done["finish_s"][1] <= done["finish_s"][2]


def test_a_decode_worker_sees_no_queue_and_a_prefill_worker_no_decode():
    state = pools([(0.0, 10, 9), (0.0, 10, 9), (0.030, 50, 1), (0.030, 50, 1)], latency_ms=0.0)
    seen = {ROLE_PREFILL: set(), ROLE_DECODE: set()}
    while state.system[0]["phase"] == 0:
        view = make_view(state)
        seen[view.role].add((view.num_waiting > 0, view.num_decodes > 0))
        step(state, decision(60))
    assert seen[ROLE_DECODE] == {(False, True)}
    assert all(not decodes for _, decodes in seen[ROLE_PREFILL])


def test_an_evicted_decode_is_prefilled_again_by_the_prefill_worker():
    # 5 blocks of 4: two requests of 8 tokens take 3 blocks each on the decode worker sooner or later
    state = pools([(0.0, 7, 9), (0.0, 7, 9)], blocks=5, latency_ms=0.0, gbytes_per_s="unlimited")
    evicted = False
    while state.system[0]["phase"] == 0:
        check_all(state)
        step(state, decision(100))
        evicted = evicted or any(
            r["evictions"] > 0 and r["worker"] == 0 and r["status"] == RUNNING for r in state.requests
        )
    assert evicted
    assert (state.requests["status"] == FINISHED).all()
    assert (state.requests["worker"] == 1).all()


def test_the_shared_pool_moves_to_the_emptier_decode_worker():
    state = played(pools([(0.0, 10, 30), (0.0, 10, 30), (0.0, 10, 2)], decode=2, latency_ms=0.0))
    assert state.requests["worker"].tolist() == [1, 2, 1]


def test_a_request_of_one_token_never_moves():
    state = played(pools([(0.0, 10, 1)]))
    assert state.requests[0]["finish_s"] == ms(20)
    assert state.requests[0]["worker"] == 0


def test_a_prefill_pool_shares_one_queue():
    state = played(pools([(0.0, 10, 1), (0.0, 10, 1)], prefill=2), budget=10)
    assert [float(t) for t in state.requests["finish_s"]] == ms([20, 20])


# ---- parallel prefill ----------------------------------------------------------------------------------------------
def helpers(rows, workers=2, most=2, least=4, latency_ms=5.0, router="shared", **settings) -> State:
    system = {
        "router": router,
        "layout": "parallel-prefill",
        "parallel": {"max_workers": most, "min_tokens": least},
        "link": {"latency_ms": latency_ms, "gbytes_per_s": "unlimited"},
    }
    return toy_state(rows, workers=workers, system=system, **settings)


def test_an_idle_worker_helps_and_the_last_chunk_to_arrive_ends_the_prompt():
    # Worker 0 computes chunks of 10 in [0, 20] and [20, 40]. Worker 1 helps in [0, 20], gathered at 25, and in
    # [25, 45], gathered at 50: then all 40 tokens are there. Alone it would have taken 80 ms.
    state = played(helpers([(0.0, 40, 2)]), budget=10)
    r = state.requests[0]
    assert r["first_token_s"] == ms(50)
    assert r["finish_s"] == ms(61)
    assert state.system[0]["prefill_done"] == 40
    assert state.system[0]["num_batches"] == 0  # not recorded


@pytest.mark.parametrize(("most", "least", "first_ms"), [(2, 31, 80), (2, 4, 50), (3, 4, 45)])
def test_limits_on_helpers_are_kept(most, least, first_ms):
    # With a third worker: chunks in [0, 20] by all three, gathered at 25; the last 10 in [20, 40] by worker 0
    state = played(helpers([(0.0, 40, 1)], workers=3, most=most, least=least), budget=10)
    expected = {80: 80, 50: 50, 45: 40}[first_ms]
    assert state.requests[0]["finish_s"] == ms(expected)


def test_nobody_helps_with_whole_prompts():
    state = helpers([(0.0, 40, 1)])
    run(state, lambda view: decision(10, whole_prompts=1))
    assert state.requests[0]["finish_s"] == ms(50)


def test_a_helper_prefers_its_own_prompts():
    state = helpers([(0.0, 40, 1), (0.0, 10, 2)])
    step(state, decision(10))
    assert make_view(state).help_tokens == 30
    step(state, decision(10))
    assert running_of(state, 1) == [1]
    assert state.requests[0]["away_tokens"] == 0


def test_a_chunk_for_a_prompt_that_was_evicted_is_lost():
    # Both on worker 0 by stickiness, with 10 blocks of 4. The chunks of request 1 that worker 1 computes take a second
    # to come; meanwhile request 0, which decodes, needs a block and evicts it.
    rows, fields = [(0.0, 15, 24), (0.0, 24, 2)], {"session": [0, 0], "previous": [-1, 0]}
    state = helpers(rows, blocks=10, latency_ms=1000.0, router="session-sticky", fields=fields)
    lost = False
    while state.system[0]["phase"] == 0:
        check_all(state)
        step(state, decision(16))
        lost = lost or any(t["evictions"] < state.requests[t["request"]]["evictions"] for t in transfers_of(state))
    check_all(state)
    assert lost
    assert (state.requests["status"] == FINISHED).all()
    assert state.requests["emitted_tokens"].tolist() == [24, 2]


def test_nobody_moves_past_a_request_that_was_swapped_out():
    # 6 blocks of 4 on the decode worker: two requests of 7 + 9 tokens do not fit; the third must not take their place
    rows = [(0.0, 7, 10), (0.0, 7, 10), (0.030, 3, 9)]
    state = pools(rows, blocks=6, latency_ms=0.0, gbytes_per_s="unlimited")
    swapped = False
    while state.system[0]["phase"] == 0:
        check_all(state)
        before = state.requests[2]["worker"]
        waits = any(r["status"] == SWAPPED for r in state.requests)
        step(state, decision(100, swap=1))
        swapped = swapped or waits
        assert not (waits and before == 0 and state.requests[2]["worker"] == 1 and state.workers[1]["num_swapped"] > 0)
    assert swapped
    assert (state.requests["status"] == FINISHED).all()


def test_a_move_starts_when_the_swapped_request_returns():
    """With 5 blocks of 4 on the decode worker, where request 1 was swapped out at 39 ms and request 0 ends at 70 ms.

    Request 1 comes back then, for a batch of 11 ms that waits 9 ms for its KV. Room for request 2, in line since 43 ms,
    is left beside it. So its move starts at 70 ms, not at the next event, which is the batch's end at 90 ms: it is
    there at 72 ms, and decodes with request 1 from 90 to 102 ms, and alone until 113 ms.
    """
    rows = [(0.0, 7, 4), (0.0, 8, 4), (0.030, 3, 3)]
    state = played(pools(rows, blocks=5, latency_ms=2.0, gbytes_per_s="unlimited"), swap=1)
    assert state.requests["evictions"].tolist() == [0, 1, 0]
    assert [float(t) for t in state.requests["finish_s"]] == ms([70, 102, 113])


def test_a_move_that_ends_within_a_decision_ends_holds():
    """Over a link that takes no time: request 2 moves when request 1 comes back from the host, at 68 ms.

    Its 2 blocks on the prefill worker are free then, so request 3, which needs 4 of 5, is prefilled at once (23 ms):
    the prefill worker, which held since its own decision of that moment, asks again.
    """
    rows = [(0.0, 7, 4), (0.0, 8, 4), (0.030, 7, 3), (0.031, 13, 1)]
    state = played(pools(rows, blocks=5, latency_ms=0.0, gbytes_per_s="unlimited"), swap=1)
    assert [float(t) for t in state.requests["finish_s"]] == ms([68, 100, 111, 91])


def test_a_prompt_that_cannot_stay_goes_to_the_host_and_back_for_ever():
    """6 blocks of 4 on the prefill worker, of which request 0, which has no room to move to, holds 3.

    Request 1's first chunk of 8 takes 2; the second needs 2 more, so it is swapped out and comes back at once, and no
    batch is formed. The worker must wait for request 0 to go, not ask again and again while time stands still.
    """
    rows = [(0.0, 10, 2), (0.0, 10, 9), (0.0, 16, 2)]
    state = pools(rows, blocks=6, max_running=2, latency_ms=0.0, gbytes_per_s="unlimited")
    steps = run(state, lambda view: decision(8, swap=1), max_steps=300)
    assert (state.requests["status"] == FINISHED).all()
    assert steps < 100
