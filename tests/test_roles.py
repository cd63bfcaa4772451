"""Workers that change role; by hand, S(b) = 10 + b ms, KV takes 1 ms a token at 1 GB/s after 5 ms of latency."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numba import config
from toy import batch_of, check_all, run, running_of, toy_requests, toy_scenario, toy_state, transfers_of

from llm_env.build import load, new_states, single
from llm_env.config import read_scenario, scenario_to_toml
from llm_env.core import step
from llm_env.dtypes import (
    ACTIVE,
    DRAINED,
    FINISHED,
    HORIZON,
    LINED_UP,
    MOVING,
    ROLE_DECODE,
    ROLE_PREFILL,
    RUNNING,
    SWAPPED,
    UNDER_WAY,
)
from llm_env.errors import UserError
from llm_env.features import FEATURE_NAMES, NUM_FEATURES, observe
from llm_env.records import NEVER_MIX, State, decision
from llm_env.scenarios import load_scenario
from llm_env.view import make_view

pytestmark = [pytest.mark.kernel, pytest.mark.nojit]

EXAMPLES = 6 if config.DISABLE_JIT else 80


def system_of(prefill: int, latency_ms: float = 5.0, gbytes_per_s: Any = 1.0, **roles: Any) -> dict[str, Any]:
    return {
        "layout": "disaggregated",
        "prefill_workers": prefill,
        "link": {"latency_ms": latency_ms, "gbytes_per_s": gbytes_per_s},
        "roles": {"change": True, "switch_ms": 100.0, **roles},
    }


def pools(rows, prefill=2, decode=1, latency_ms=5.0, gbytes_per_s: Any = 1.0, roles=None, **settings) -> State:
    system = system_of(prefill, latency_ms, gbytes_per_s, **(roles or {}))
    return toy_state(rows, workers=prefill + decode, system=system, **settings)


def played(state: State, wishes: dict[tuple[int, int], int], budget: int = 100, until_ms: float = 1e9) -> State:
    """Runs with Sarathi's packing to the first decision at or after `until_ms`, or to the end.

    Args:
        wishes: (worker, ms) -> the role that it asks for at its first decision from then on.
    """
    left = dict(wishes)
    s = state.system[0]
    while s["phase"] == ACTIVE and s["now_s"] < until_ms / 1e3 - 1e-9:
        check_all(state)
        w, now_ms = int(s["worker"]), s["now_s"] * 1e3 + 1e-6
        due = [wish for wish in left if wish[0] == w and wish[1] <= now_ms]
        step(state, decision(budget, role=left.pop(due[0]) if due else 0))
    check_all(state)
    return state


def ms(value) -> Any:
    return pytest.approx([v / 1e3 for v in value] if isinstance(value, list) else value / 1e3)


def roles_of(state: State) -> list[int]:
    return [int(role) for role in state.workers["role"]]


P, D = ROLE_PREFILL, ROLE_DECODE
POOLS = ["system.layout=disaggregated", "system.workers=3", "system.prefill_workers=1"]


# ---- from prefill to decode ----------------------------------------------------------------------------------------
def test_an_idle_prefill_worker_cannot_change_or_changes_in_no_time():
    # worker 1 has nothing to do at 0 ms: it is asked all the same, and switches until 100 ms, after request 0's end
    state = played(pools([(0.0, 10, 3)]), {(1, 0): D}, until_ms=46)
    assert roles_of(state) == [P, P, D]
    assert (state.workers[1]["next_role"], state.workers[1]["switching"], state.workers[1]["busy"]) == (D, 1, 1)
    state = played(state, {})
    assert state.requests[0]["finish_s"] == ms(57)  # 20 of prefill, 5 and 10 on the link, two decodes of 11
    assert roles_of(state) == [P, D, D]
    assert (state.system[0]["now_s"], state.system[0]["num_switches"]) == (ms(100), 1)
    assert state.system[0]["busy_s"] == ms(20 + 22)  # a change is no batch
    assert state.workers[1]["iteration"] == 0


def test_a_leaving_prefill_worker_admits_somebody_or_leaves_a_prompt_half_done():
    # Chunks of 10 for requests 0 and 1 in [0, 20]. Then worker 0 leaves: with a budget of 100 it takes the other 20
    # tokens of request 0, S(20) = 30 ms, and not request 2, which worker 1 takes.
    rows = [(0.0, 30, 1), (0.0, 30, 1), (0.001, 5, 1)]
    state = played(pools(rows), {}, budget=10, until_ms=20)
    step(state, decision(100, role=D))
    assert batch_of(state, 0) == [(0, 20)]
    step(state, decision(100))
    assert batch_of(state, 1) == [(1, 20), (2, 5)]
    state = played(state, {})
    assert [float(t) for t in state.requests["finish_s"]] == ms([50, 55, 55])
    assert state.system[0]["prefill_done"] == 65
    assert (roles_of(state), state.system[0]["now_s"]) == ([D, P, D], ms(150))


def test_a_prefilled_request_without_room_leaves_the_worker_that_is_to_decode():
    # One place each, a link that takes no time: request 0 moves to worker 2 at 20 ms, where it decodes until 108 ms.
    # Request 1, prefilled by worker 1, has no room there; worker 1 changes in [20, 50] and decodes it in [50, 61].
    rows = [(0.0, 10, 9), (0.0, 10, 2)]
    state = pools(rows, latency_ms=0.0, gbytes_per_s="unlimited", max_running=1, roles={"switch_ms": 30.0})
    state = played(state, {(1, 20): D}, budget=10, until_ms=30)
    assert (state.requests[1]["status"], transfers_of(state)[0]["phase"]) == (MOVING, LINED_UP)
    state = played(state, {}, until_ms=50)
    assert (state.requests[1]["status"], len(transfers_of(state))) == (RUNNING, 0)
    state = played(state, {})
    assert [float(t) for t in state.requests["finish_s"]] == ms([108, 61])
    assert state.requests["worker"].tolist() == [2, 1]


def test_kv_that_is_under_way_stays_on_the_worker_that_changes():
    # request 0 is on the link in [60, 95] while worker 0 changes in [60, 160]
    rows = [(0.0, 30, 3), (0.0, 30, 1)]
    state = played(pools(rows), {(0, 20): D}, budget=10, until_ms=60)
    step(state, decision(10))
    assert (transfers_of(state)["phase"].tolist(), state.workers[0]["switching"]) == ([UNDER_WAY], 1)
    state = played(state, {}, budget=10)
    assert state.requests[0]["worker"] == 2
    assert state.requests[0]["finish_s"] == ms(60 + 35 + 22)


# ---- from decode to prefill ----------------------------------------------------------------------------------------
def test_decodes_stay_or_jump_when_their_worker_is_to_prefill():
    # Request 0 is prefilled in [0, 20], on the link until 35, and decodes on worker 1 in [35, 46] and [46, 57]; request
    # 1 decodes on worker 2 from 55 on, in batches of 11 ms. At 57 worker 1 leaves: 12 tokens are on the link until 74,
    # worker 2's batch ends at 77, the next one holds both: 12 ms. Worker 1 changes in [57, 157] and prefills then.
    rows = [(0.0, 10, 20), (0.0, 10, 20), (0.160, 10, 1), (0.160, 10, 1)]
    state = pools(rows, prefill=1, decode=2)
    state = played(state, {(1, 57): P}, budget=10, until_ms=58)
    assert (state.requests[0]["status"], running_of(state, 1)) == (MOVING, [0])
    state = played(state, {}, budget=10, until_ms=77)
    assert running_of(state, 2) == [1, 0]
    assert state.workers[1]["free_blocks"] == state.system[0]["kv_blocks"]
    state = played(state, {}, budget=10)
    assert state.requests[0]["max_tbt_s"] == ms(32)  # from 57 to 89
    assert roles_of(state) == [P, P, D]
    assert [float(t) for t in state.requests["finish_s"][2:]] == ms([180, 180])
    assert sorted(state.requests["worker"][2:].tolist()) == [0, 1]


def test_a_decode_without_room_elsewhere_stops():
    # one place each: request 0 ends on worker 1 where it is, at 57 + 7 x 11 ms; then worker 1 changes
    rows = [(0.0, 10, 10), (0.0, 10, 20)]
    state = pools(rows, prefill=1, decode=2, max_running=1)
    state = played(state, {(1, 57): P}, budget=10, until_ms=133)
    assert (roles_of(state), state.workers[1]["next_role"], state.workers[1]["switching"]) == ([P, D, D], P, 0)
    state = played(state, {}, budget=10, until_ms=135)
    assert state.requests[0]["finish_s"] == ms(134)
    assert state.workers[1]["switching"] == 1
    assert state.workers[1]["end_s"] == ms(234)


def test_a_worker_changes_while_kv_is_on_its_way_to_it():
    # Request 0's KV is under way to worker 1 in [20, 80] when that is asked to prefill: it comes, and moves on at 80.
    state = pools([(0.0, 10, 3)], prefill=1, decode=2, latency_ms=50.0)
    state = played(state, {}, until_ms=20)
    step(state, decision(10, role=P))
    assert (state.workers[1]["num_incoming"], state.workers[1]["switching"]) == (1, 0)
    state = played(state, {}, until_ms=81)
    assert state.workers[1]["switching"] == 1
    state = played(state, {})
    assert state.requests[0]["worker"] == 2
    assert state.requests[0]["finish_s"] == ms(80 + 60 + 22)


def test_a_move_for_a_prefilled_request_comes_after_those_that_flee():
    # One place each. Request 2 is prefilled and waits for room since 60 ms; request 0 (on worker 1, which leaves at
    # 112 ms) must not take the place on worker 2 that request 1 leaves at 110 ms: it goes to request 2.
    rows = [(0.0, 10, 30), (0.0, 10, 6), (0.0, 10, 2)]
    state = pools(rows, prefill=1, decode=2, max_running=1)
    state = played(state, {(1, 100): P}, budget=10, until_ms=112)
    assert [int(t["request"]) for t in transfers_of(state)] == [2]
    assert state.requests[0]["status"] == RUNNING


# ---- who may -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("worker", "role", "roles"), [(0, D, {}), (1, P, {"min_decode_workers": 2})])
def test_a_pool_falls_below_its_minimum(worker, role, roles):
    state = played(pools([(0.0, 10, 9)] * 3, prefill=1, decode=2, roles=roles), {(worker, 0): role})
    assert state.system[0]["num_switches"] == 0
    assert roles_of(state) == [P, D, D]


def test_a_wish_is_taken_back_where_the_other_pool_would_be_too_small():
    # 2 prefill, 2 decode workers. Worker 0 drains to decode, then 2 and 3 ask to prefill: the first may, for the pool
    # is to have 3; the second too, for it is to have 2; then worker 0 may not stay, for nobody would be left to decode.
    rows = [(0.0, 60, 30)] * 2 + [(0.001, 60, 30)] * 2
    state = pools(rows, prefill=2, decode=2, latency_ms=0.0, gbytes_per_s="unlimited")
    for wanted in ((0, D, D), (2, P, P), (3, P, P), (0, P, D)):
        worker, role, expected = wanted
        while state.system[0]["worker"] != worker or state.workers[worker]["num_running"] == 0:
            step(state, decision(10))
        step(state, decision(10, role=role))
        found = state.workers[worker]
        assert int(found["next_role"] or found["role"]) == expected
    state = played(state, {})
    assert sorted(roles_of(state)) == [P, P, P, D]


def test_a_draining_worker_cannot_be_asked_back():
    state = pools([(0.0, 30, 1), (0.0, 30, 1)])
    state = played(state, {(0, 20): D, (0, 40): P}, budget=10)
    assert state.system[0]["num_switches"] == 0
    assert roles_of(state) == [P, P, D]


def test_roles_change_where_they_may_not():
    system = {"layout": "disaggregated", "prefill_workers": 2}
    state = toy_state([(0.0, 10, 9)] * 3, workers=3, system=system)
    run(state, lambda view: decision(10, role=D if view.role == P else P))
    assert (state.workers["role"] == [P, P, D]).all()


def test_who_may_change_role_but_does_not_is_served_otherwise():
    rng = np.random.default_rng(3)
    rows = list(zip(np.sort(rng.uniform(0, 0.5, 30)), rng.integers(1, 40, 30), rng.integers(1, 20, 30), strict=True))
    ends = []
    for change in (False, True):
        system = system_of(2, change=change)
        state = toy_state(rows, workers=4, system=system, blocks=60)
        run(state, lambda view: decision(20, swap=1))
        ends.append(state.requests.copy())
    assert ends[0].tobytes() == ends[1].tobytes()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["system.layout=replicas"], "roles.change is for layout 'disaggregated', got 'replicas'"),
        ([*POOLS, "system.router=least-tokens"], "needs router 'shared', whose queue any worker can pull from"),
        ([*POOLS, "system.roles.min_prefill_workers=2"], "min_prefill_workers: expected at most the 1 there are"),
        ([*POOLS, "system.roles.min_decode_workers=3"], "min_decode_workers: expected at most the 2 there are"),
        ([*POOLS, "system.roles.switch_ms=0"], "system.roles.switch_ms: expected at least 0.001, got 0"),
        ([*POOLS, "system.roles.min_decode_workers=0"], "min_decode_workers: expected at least 1, got 0"),
        ([*POOLS, "system.roles.swap=true"], "system.roles.swap: unknown setting"),
    ],
)
def test_settings_that_mean_nothing(changes, words):
    with pytest.raises(UserError, match=words):
        load_scenario("chat", ["system.roles.change=true", *changes])


def test_settings_survive_a_file(tmp_path):
    scenario = load_scenario("chat", ["system.roles.change=true", "system.roles.switch_ms=250", *POOLS])
    (tmp_path / "it.toml").write_text(scenario_to_toml(scenario), encoding="utf-8")
    assert read_scenario(tmp_path / "it.toml") == scenario


# ---- ends and beginnings -------------------------------------------------------------------------------------------
def test_the_horizon_waits_for_a_change():
    state = played(pools([(0.0, 10, 300)], horizon_s=0.05), {(1, 0): D})
    assert state.system[0]["phase"] == HORIZON
    assert state.system[0]["now_s"] == ms(50)
    assert (state.system[0]["num_switches"], roles_of(state)) == (0, [P, P, D])


def test_a_new_episode_begins_with_the_roles_in_which_the_last_one_ended():
    scenario = toy_scenario(workers=3, system=system_of(2))
    states = new_states(scenario, 1, 1)
    requests = toy_requests([(0.0, 10, 3)], scenario)
    states = load(states, 0, requests, 0)
    fresh = single(states).workers.copy()
    played(single(states), {(1, 0): D})
    assert roles_of(single(states)) == [P, D, D]
    states = load(states, 0, requests, 0)
    assert single(states).workers.tobytes() == fresh.tobytes()


# ---- what is seen --------------------------------------------------------------------------------------------------
def test_the_view_of_the_pools_by_hand():
    # At 57 ms worker 1 decodes request 0 and request 1 is on worker 2, as above; requests 2 to 4 have just come.
    rows = [(0.0, 10, 20), (0.0, 10, 20), (0.0565, 300, 1), (0.0565, 7, 1), (0.0565, 200, 1)]
    fields = {"predicted_tokens": [8.0, np.nan, 30.0, 5.0, 2.0], "declared_tokens": [20, 40, 25, 9, 9]}
    state = pools(rows, prefill=1, decode=2, blocks=100, fields=fields)
    state = played(state, {}, budget=10, until_ms=57)
    while state.system[0]["worker"] != 1:
        step(state, decision(10))
    view = make_view(state)
    assert view.now_s == ms(57)
    assert (view.role, view.next_role) == (D, 0)
    assert (view.num_waiting, view.num_workers, view.prefill_workers) == (0, 3, 1)
    # worker 0 has taken 10 tokens of request 2; the 200 tokens of request 4 take longer than its 100 ms
    assert view.pool_live_tokens == 7
    assert (view.pool_decodes, view.num_lined_up) == (2, 0)
    assert view.pool_kv_used == pytest.approx((3 + 3) / 200)  # 12 tokens, and 10 and one: blocks of 4
    old, new = np.exp(-0.057 / 20.0), np.exp(-0.0005 / 20.0)
    assert view.prompt_rate_per_s == pytest.approx((20 * old + 507 * new) / 20.0)
    assert view.output_rate_per_s == pytest.approx((48 * old + 32 * new) / 20.0)  # 8, 40 declared; 25, declared, 5, 2
    out = np.zeros(NUM_FEATURES, np.float32)
    observe(state, out)
    seen = dict(zip(FEATURE_NAMES, out, strict=True))
    assert (seen["role"], seen["next_role"], seen["prefill_share"]) == (-1.0, 0.0, pytest.approx(1 / 3))
    assert seen["pool_live_tokens"] == pytest.approx(np.log1p(7) / 12)
    assert seen["pool_decodes"] == pytest.approx(np.log1p(2) / 6)
    assert seen["output_rate_slow"] == pytest.approx(np.log1p(view.output_rate_per_s) / 12)
    old, new = np.exp(-0.057 / 3.0), np.exp(-0.0005 / 3.0)
    assert seen["prompt_rate_fast"] == pytest.approx(np.log1p((20 * old + 507 * new) / 3.0) / 12)
    assert seen["output_rate_fast"] == pytest.approx(np.log1p((48 * old + 32 * new) / 3.0) / 12)


def test_a_worker_that_is_about_to_change_counts_as_what_it_was():
    state = played(pools([(0.0, 30, 1), (0.0, 30, 1)]), {(0, 20): D}, budget=10, until_ms=40)
    view = make_view(state)
    assert (view.role, view.next_role, view.prefill_workers) == (P, D, 1)


# ---- any decisions -------------------------------------------------------------------------------------------------
@st.composite
def cases(draw):
    prefill, decode = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    times = sorted(draw(st.lists(st.floats(0, 0.4), min_size=1, max_size=14)))
    return {
        "rows": [(t, draw(st.integers(1, 40)), draw(st.integers(1, 12))) for t in times],
        "prefill": prefill,
        "decode": decode,
        "blocks": draw(st.sampled_from([None, 14, 30])),
        "max_running": draw(st.sampled_from([1, 2, 8])),
        "latency_ms": draw(st.sampled_from([0.0, 3.0, 60.0])),
        "gbytes_per_s": draw(st.sampled_from(["unlimited", 1.0, 0.2])),
        "roles": {
            "switch_ms": draw(st.sampled_from([0.001, 7.0, 150.0])),
            "min_prefill_workers": draw(st.integers(1, prefill)),
            "min_decode_workers": draw(st.integers(1, decode)),
        },
        "seed": draw(st.integers(0, 10_000)),
    }


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(case=cases())
def test_requests_tokens_or_blocks_get_lost_whatever_roles_are_asked_for(case):
    rng = np.random.default_rng(case.pop("seed"))
    state = pools(case.pop("rows"), **case)
    s, roles = state.system[0], case["roles"]
    swap, eager = int(rng.integers(2)), rng.uniform(0, 0.6)
    for _ in range(3000):
        if s["phase"] != ACTIVE:
            break
        role = int(rng.integers(1, 3)) if rng.random() < eager else 0
        hold_s = 0.01 if rng.random() < 0.1 else 0.0
        packing = NEVER_MIX if rng.random() < 0.5 else 0
        before_s = s["now_s"]
        step(state, decision(int(rng.integers(1, 60)), packing=packing, swap=swap, hold_s=hold_s, role=role))
        check_all(state)
        assert s["now_s"] >= before_s
        to_be = np.where(state.workers["next_role"] > 0, state.workers["next_role"], state.workers["role"])
        assert (to_be == P).sum() >= roles["min_prefill_workers"]
        assert (to_be == D).sum() >= roles["min_decode_workers"]
        switching = state.workers["switching"] == 1
        assert (state.workers["busy"][switching] == 1).all()
        assert (state.workers["num_running"][switching] == state.workers["num_moving"][switching]).all()
        assert (state.workers["num_incoming"][switching] == 0).all()
        running = [i for w in range(len(state.workers)) if roles_of(state)[w] == D for i in running_of(state, w)]
        here = state.requests[running]
        assert (here["computed_tokens"] >= here["prefill_tokens"])[here["status"] != SWAPPED].all()
    assert s["phase"] == DRAINED, "somebody is never served"
    r = state.requests
    assert (r["status"] == FINISHED).sum() + s["num_rejected"] == len(r)
    done = r[r["status"] == FINISHED]
    work = s["prefill_done"] + s["decode_done"]
    needed = (done["prompt_tokens"] + done["output_tokens"] - 1).sum()
    assert work >= needed if done["evictions"].any() else work == needed
    assert (state.workers["free_blocks"] == s["kv_blocks"]).all()
    assert s["num_transfers"] == 0
    assert (state.workers["next_role"] == 0).all()
