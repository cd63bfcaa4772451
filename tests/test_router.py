"""Who gets a request: routers, unequal workers, and the queues that they fill; by hand, S(b) = 10 + b ms."""

from __future__ import annotations

import numpy as np
import pytest
from toy import check_all, formed, toy_state

from llm_env.core import step
from llm_env.records import (
    EARLIEST_DEADLINE,
    LEAST_ATTAINED,
    LEAST_SLACK,
    MOORE_HODGSON,
    RESPONSE_RATIO,
    decision,
)
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
