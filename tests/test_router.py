"""Who gets a request: routers, unequal workers, and the queues that they fill; by hand, S(b) = 10 + b ms."""

from __future__ import annotations

import numpy as np
import pytest
from toy import check_all, formed, toy_scenario, toy_script, toy_state

from llm_env.build import load, new_states, single
from llm_env.core import route, step
from llm_env.dtypes import ACTIVE, FINISHED, HORIZON, REJECTED, ROUTING
from llm_env.records import (
    EARLIEST_DEADLINE,
    LEAST_ATTAINED,
    LEAST_SLACK,
    MOORE_HODGSON,
    RESPONSE_RATIO,
    decision,
)
from llm_env.router import best_by_work
from llm_env.view import make_view

pytestmark = [pytest.mark.kernel, pytest.mark.nojit]


def routed(rows, router, workers=2, budget=100, **settings):
    """The workers that requests went to, after a run to the end."""
    state = toy_state(rows, workers=workers, system={"router": router, **settings.pop("system", {})}, **settings)
    while state.system[0]["phase"] == 0:
        check_all(state)
        step(state, decision(budget))
    check_all(state)
    return state.requests["worker"].tolist()


def test_round_robin_takes_turns_whatever_the_load():
    assert routed([(0.0, 500, 1), (0.0, 1, 1), (0.001, 1, 1), (0.5, 1, 1)], "round-robin") == [0, 1, 0, 1]


def test_a_rejected_request_takes_no_turn():
    rows = [(0.0, 4, 1), (0.0, 999, 1), (0.0, 4, 1)]
    state = toy_state(rows, workers=2, blocks=8, system={"router": "round-robin"})
    assert state.requests["home"].tolist() == [0, -1, 1]


def test_least_tokens_counts_prompts_and_kv():
    # 0: 30 tokens to worker 0; 1: 20 to worker 1; 2: worker 1 (20 < 30); 3: worker 0 (30 < 25 + 20)
    assert routed([(0.0, 30, 9), (0.0, 20, 9), (0.0, 25, 9), (0.0, 1, 9)], "least-tokens") == [0, 1, 1, 0]


def test_shortest_queue_counts_requests():
    assert routed([(0.0, 900, 9), (0.0, 1, 9), (0.0, 1, 9), (0.0, 1, 9)], "shortest-queue") == [0, 1, 0, 1]


def test_least_tokens_are_measured_by_speed():
    # worker 1 is four times as fast: 40 / 1 against (20 + 60) / 4
    rows = [(0.0, 40, 9), (0.0, 20, 9), (0.0, 60, 9), (0.0, 60, 9)]
    assert routed(rows, "least-tokens", system={"speeds": (1.0, 4.0)}) == [0, 1, 1, 1]


def test_a_session_sticks_to_its_worker():
    rows = [(0.0, 10, 2), (0.0, 10, 2), (0.5, 10, 2), (0.5, 10, 2), (0.6, 10, 2)]
    fields = {"session": [0, 1, 1, 2, 0], "previous": [-1, -1, 1, -1, 0]}
    assert routed(rows, "session-sticky", fields=fields) == [0, 1, 1, 0, 0]


def test_a_worker_does_not_take_what_another_was_given():
    # both to worker 0 by stickiness, though worker 1 is idle all the time
    state = toy_state(
        [(0.0, 10, 1), (0.0, 10, 1)],
        workers=2,
        system={"router": "session-sticky"},
        fields={"session": [0, 0], "previous": [-1, 0]},
    )
    while state.system[0]["phase"] == 0:
        step(state, decision(10))
    assert [float(t) for t in state.requests["finish_s"]] == pytest.approx([0.020, 0.040])


def test_a_view_shows_the_queue_of_its_worker():
    state = toy_state([(0.0, 10, 2), (0.0, 7, 2), (0.0, 5, 2)], workers=2, system={"router": "round-robin"})
    view = make_view(state)
    assert (view.worker, view.num_waiting, view.waiting_tokens, view.head_tokens) == (0, 2, 15, 10)
    assert formed(state, decision(100)) == [(0, 10), (2, 5)]
    step(state, decision(100))
    view = make_view(state)
    assert (view.worker, view.num_waiting, view.waiting_tokens, view.head_tokens) == (1, 1, 7, 7)


def test_an_evicted_request_returns_to_the_queue_of_its_worker():
    rows = [(0.0, 7, 9), (0.0, 7, 9), (0.0, 7, 9)]
    fields = {"session": [0, 0, 0], "previous": [-1, 0, 0]}
    state = toy_state(rows, workers=2, blocks=5, system={"router": "session-sticky"}, fields=fields)
    while state.system[0]["phase"] == 0:
        check_all(state)
        step(state, decision(100))
    assert state.requests["evictions"].sum() > 0
    assert state.requests["worker"].tolist() == [0, 0, 0]


# ---- unequal workers -----------------------------------------------------------------------------------------------
def test_a_fast_worker_takes_s_divided_by_its_speed():
    state = toy_state([(0.0, 10, 1), (0.0, 10, 1)], workers=2, system={"speeds": (1.0, 2.0)})
    while state.system[0]["phase"] == 0:
        step(state, decision(10))
    assert [float(t) for t in state.requests["finish_s"]] == pytest.approx([0.020, 0.010])


def test_a_view_shows_the_worker_at_hand():
    # target 20 ms: b with (10 + b) / 2 <= 20 is 30; at speed 1 it is 10
    state = toy_state([(0.0, 10, 1), (0.0, 10, 1)], workers=2, system={"speeds": (1.0, 2.0)})
    assert (make_view(state).speed, make_view(state).slo_budget) == (1.0, 10.0)
    step(state, decision(10))
    view = make_view(state)
    assert (view.worker, view.speed, view.slo_budget) == (1, 2.0, 30.0)
    assert (view.setup_s, view.per_token_s) == (0.005, 0.0005)


@pytest.mark.parametrize("order", [EARLIEST_DEADLINE, LEAST_SLACK, MOORE_HODGSON, RESPONSE_RATIO, LEAST_ATTAINED])
def test_a_worker_of_speed_four_is_no_worker_with_a_fourth_of_the_times(order):
    rng = np.random.default_rng(order)
    rows = [
        (float(t), int(a), int(b))
        for t, a, b in zip(
            np.sort(rng.integers(0, 4096, 80)) / 4096, rng.integers(1, 90, 80), rng.integers(1, 9, 80), strict=True
        )
    ]
    fast = toy_state(rows, system={"speeds": (4.0,)}, setup_ms=16.0, per_token_ms=2.0)
    short = toy_state(rows, setup_ms=4.0, per_token_ms=0.5)
    for state in (fast, short):
        while state.system[0]["phase"] == 0:
            step(state, decision(25, order=order, quantum_s=0.02))
    for name in ("first_token_s", "finish_s", "latest_start_s"):
        np.testing.assert_allclose(fast.requests[name], short.requests[name], rtol=1e-9)


# ---- more rules ----------------------------------------------------------------------------------------------------
def test_weighted_round_robin_is_smooth():
    # nginx's example of weights 5, 1, 1: a a b a c a a, and the same again
    rows = [(0.0, 1, 1)] * 14
    found = routed(rows, "weighted-round-robin", workers=3, system={"speeds": (5.0, 1.0, 1.0)})
    assert found == [0, 0, 1, 0, 2, 0, 0] * 2


def test_shortest_expected_work_is_measured_in_seconds_of_the_worker():
    # budgets 10 and 70 tokens in 20 ms: rates 500/s and 3,500/s; 40: .08 / .0114 s; 60: .12 / .0286; 20, then 9: .018
    rows = [(0.0, 40, 9), (0.0, 60, 9), (0.0, 20, 9), (0.0, 9, 9)]
    found = routed(rows, "shortest-expected-work", system={"speeds": (1.0, 4.0)})
    assert found == [1, 1, 1, 0]


def test_the_score_looks_at_live_work_alone():
    # the prompt of 3,000 tokens is hopeless at its arrival: worker 0 is as good as empty for the third
    rows = [(0.0, 3000, 1), (0.0, 8, 1), (0.0, 5, 1)]
    routing = {"running_ms": 0.0, "miss_ms": 0.0}
    assert routed(rows, "score", system={"routing": routing}) == [0, 0, 1]
    assert routed(rows, "shortest-expected-work") == [0, 1, 1]


@pytest.mark.parametrize(("router", "most"), [("random", 90), ("power-of-two", 40)])
def test_random_rules_use_every_worker_and_repeat_themselves(router, most):
    rows = [(0.02 * k, 1, 1) for k in range(320)]
    found = routed(rows, router, workers=8)
    assert found == routed(rows, router, workers=8)
    counts = np.bincount(found, minlength=8)
    assert counts.min() >= 20  # 40 are expected; 20 is 3.4 standard deviations away
    assert abs(counts - 40).max() <= most
    assert routed(rows, router, workers=1) == [0] * 320


def test_of_two_random_workers_the_less_loaded_is_taken():
    # everything stays: with two workers both are drawn each time, so that it is the shortest queue
    found = routed([(0.0, 1, 99)] * 8, "power-of-two", workers=2)
    assert sorted(found) == [0] * 4 + [1] * 4
    # with many workers the longest of 256 / 32 = 8 requests each is far below that of random ones
    rows = [(0.0, 1, 5)] * 256
    longest = {r: np.bincount(routed(rows, r, workers=32, max_running=16)).max() for r in ("random", "power-of-two")}
    assert longest["power-of-two"] <= 10 < 12 <= longest["random"]


@pytest.mark.parametrize(
    "router", ["random", "weighted-round-robin", "shortest-expected-work", "power-of-two", "score"]
)
def test_every_rule_routes_within_its_pool(router):
    split = {"router": router, "layout": "disaggregated", "prefill_workers": 2}
    rows = [(0.002 * k, 3 + k % 5, 4) for k in range(40)]
    state = toy_state(rows, workers=5, system=split)
    while state.system[0]["phase"] == 0:
        check_all(state)
        step(state, decision(20))
    assert set(state.requests["home"].tolist()) == {0, 1}
    assert set(state.requests["worker"].tolist()) <= {2, 3, 4}
    assert (state.requests["status"] == FINISHED).all()


# ---- an agent that routes ------------------------------------------------------------------------------------------
def follow(state, name):
    """Runs to the end; name(state, request) gives the worker of each arrival. Returns the requests asked for."""
    asked = []
    while state.system[0]["phase"] in (ACTIVE, ROUTING):
        check_all(state)
        if state.system[0]["phase"] == ACTIVE:
            step(state, decision(100))
            continue
        i = int(state.system[0]["next_arrival"])
        assert state.requests[i]["arrival_s"] == state.system[0]["now_s"]
        asked.append(i)
        route(state, name(state, i))
    return asked


def test_an_agent_is_asked_at_each_arrival_before_any_batch():
    rows = [(0.0, 500, 1), (0.0, 1, 1), (0.001, 1, 1), (0.5, 1, 1)]
    state = toy_state(rows, workers=2, system={"router": "agent"})
    assert state.system[0]["phase"] == ROUTING
    assert follow(state, lambda state, i: i % 2) == [0, 1, 2, 3]
    assert state.requests["worker"].tolist() == [0, 1, 0, 1]


def test_an_agent_is_asked_while_all_workers_are_busy():
    state = toy_state([(0.0, 50, 1), (0.01, 5, 1)], system={"router": "agent"})
    route(state, 0)
    step(state, decision(100))  # 60 ms
    assert (state.system[0]["phase"], state.system[0]["now_s"]) == (ROUTING, 0.01)
    assert state.workers[0]["busy"] == 1
    route(state, 0)
    assert (state.system[0]["phase"], state.system[0]["now_s"]) == (ACTIVE, pytest.approx(0.06))


def test_an_agent_is_not_asked_for_what_never_fits():
    state = toy_state([(0.0, 999, 1), (0.0, 4, 1), (0.0, 999, 1)], blocks=8, system={"router": "agent"})
    assert follow(state, lambda state, i: 0) == [1]
    assert state.requests["status"].tolist() == [REJECTED, FINISHED, REJECTED]


def test_the_horizon_comes_before_what_arrives_after_it():
    state = toy_state([(0.0, 4, 1), (5.0, 4, 1)], horizon_s=2.0, system={"router": "agent"})
    assert follow(state, lambda state, i: 0) == [0]
    assert (state.system[0]["phase"], state.system[0]["now_s"]) == (HORIZON, 2.0)


def _turns(state, i):
    """Round robin, as `router` counts it."""
    return int((state.requests["home"] >= 0).sum()) % int(state.system[0]["num_prefill_workers"])


def _scores(state, i):
    return best_by_work(state, i, 0, int(state.system[0]["num_prefill_workers"]), True)


def _home_or_first(state, i):
    before = int(state.requests[i]["previous"])
    return int(state.requests[before]["home"]) if before >= 0 else 0


BUSY = [(0.004 * (k // 2), 2 + 7 * k % 23, 1 + k % 6) for k in range(120)]
SESSIONS = {"session": [k % 40 for k in range(120)], "previous": [k - 40 for k in range(120)]} | {
    "shared_tokens": [min(BUSY[k][1] - 1, sum(BUSY[k - 40][1:])) if k >= 40 else 0 for k in range(120)]
}
SESSIONS["previous"][:40] = [-1] * 40


@pytest.mark.parametrize(
    ("router", "name", "system", "more"),
    [
        ("round-robin", _turns, {}, {}),
        ("score", _scores, {"speeds": (1.0, 0.5, 2.0)}, {"blocks": 12}),
        ("round-robin", _turns, {"layout": "disaggregated", "prefill_workers": 2}, {}),
        ("score", _scores, {"layout": "disaggregated", "prefill_workers": 2}, {"blocks": 30}),
        ("round-robin", _turns, {"layout": "parallel-prefill", "parallel": {"min_tokens": 4}}, {}),
        ("score", _scores, {}, {"kv": {"prefix_cache": True}, "fields": SESSIONS, "blocks": 60}),
        ("session-sticky", _home_or_first, {}, {"kv": {"prefix_cache": True}, "fields": SESSIONS, "blocks": 60}),
    ],
)
def test_an_agent_that_names_what_a_rule_would_gives_its_bytes(router, name, system, more):
    """Whatever is asked for in the middle of a moment goes on as if nobody had been asked."""
    if router == "session-sticky":  # first turns by least tokens, which are not what is compared
        rows = [(t, a, b) if k >= 40 else (0.0, a, b) for k, (t, a, b) in enumerate(BUSY)]
        rows = [(0.0, *row[1:]) if k < 40 else (0.2 + row[0], *row[1:]) for k, row in enumerate(rows)]
    else:
        rows = BUSY
    given = {"workers": 3, "setup_ms": 4.0, **more}
    ruled = toy_state(rows, system={**system, "router": router}, **given)
    asked = toy_state(rows, system={**system, "router": "agent"}, **given)
    while ruled.system[0]["phase"] == ACTIVE:
        step(ruled, decision(100))
    homes = ruled.requests["home"].copy()
    follow(asked, (lambda state, i: int(homes[i])) if router == "session-sticky" else name)
    decode_pool = ruled.system[0]["num_prefill_workers"] < 3
    fields = ("home", "status") if decode_pool and router == "round-robin" else ("home", "worker", "finish_s", "status")
    for field in fields:  # an agent's decode worker is the one with the least tokens, round robin's is not
        assert ruled.requests[field].tolist() == asked.requests[field].tolist(), field


def test_an_agent_routes_users_who_wait_for_answers():
    users = [[(0.01 * k, 5 + k, 3), (0.02, 7, 2), (0.03, 9, 1)] for k in range(6)]
    found = []
    for router in ("round-robin", "agent"):
        scenario = toy_scenario(workers=3, system={"router": router})
        script = toy_script(users, scenario)
        state = single(load(new_states(scenario, 1, 2 * len(script)), 0, script, 0))
        while state.system[0]["phase"] in (ACTIVE, ROUTING):
            if state.system[0]["phase"] == ROUTING:
                route(state, int(state.system[0]["next_arrival"]) % 3)
            else:
                step(state, decision(100))
        n = int(state.system[0]["num_requests"])
        found.append(state.requests[["arrival_s", "worker", "finish_s"]][:n].tolist())
    assert found[0] == found[1]
    assert len(found[0]) == 18
