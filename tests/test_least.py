"""llm_env/least.py: who goes first equals a look at everybody who waits, and few are looked at."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from toy import check_queue, members, toy_requests, toy_scenario, toy_script, toy_state

import llm_env.least
from llm_env.build import load, new_states, single, with_capacity
from llm_env.config import Scenario, with_changes
from llm_env.core import step
from llm_env.dtypes import ACTIVE
from llm_env.jit import IN_PLAIN_PYTHON
from llm_env.least import first_by_ratio, first_least, response_ratio
from llm_env.orders import first_waiting
from llm_env.queue import leave
from llm_env.records import (
    FAIR_CLIENTS,
    KEY_PREDICTED,
    KEY_WEIGHT,
    LEAST_ATTAINED,
    PREDICTED_SHORTEST,
    PRIORITY,
    QUEUE_ORDERS,
    RESPONSE_RATIO,
    SET_ARRIVAL,
    Decision,
    State,
    decision,
)

pytestmark = pytest.mark.kernel
nojit = pytest.mark.nojit

ORDERS = (PREDICTED_SHORTEST, RESPONSE_RATIO, FAIR_CLIENTS, LEAST_ATTAINED, PRIORITY)


# ---- a look at everybody -------------------------------------------------------------------------------------------
def plain_key(state: State, i: int, d: Decision) -> float:
    """What the order sorts request i by, who has no token yet."""
    r, now_s = state.requests[i], float(state.system[0]["now_s"])
    prefill_s = float(r["prefill_s"])
    if d.order == RESPONSE_RATIO:
        return -(now_s - float(r["arrival_s"]) + prefill_s) / prefill_s if prefill_s > 0 else -math.inf
    if d.order == FAIR_CLIENTS:
        return float(state.clients[r["tenant"]]["service"])
    if d.order == PRIORITY:
        return -float(r["weight"])
    if 0 < d.starve_s < now_s - float(r["arrival_s"]):
        return -math.inf
    if d.order == PREDICTED_SHORTEST:
        return math.inf if math.isnan(r["predicted_tokens"]) else float(r["predicted_tokens"])
    level = 0
    while d.quantum_s > 0 and level < 30 and d.quantum_s * 2**level < prefill_s:
        level += 1
    return float(level)


def plain_first(state: State, q: int, d: Decision) -> int:
    """Who stands first in queue q; -1 if nobody waits."""
    if state.queues[q]["num_resumed"] > 0:
        return int(state.queues[q]["front"])
    return min(members(state, SET_ARRIVAL, q), key=lambda i: (plain_key(state, i, d), i), default=-1)


# ---- crowds --------------------------------------------------------------------------------------------------------
STAIRS = {"system.service": {"form": "staircase", "setup_ms": 7.3, "step_ms": 0.7, "step_tokens": 4}}
FLAT = {"system.service": {"form": "table", "points": [[1, 5.0], [8, 5.0], [30, 9.1], [60, 9.1]]}}
FREE = {"system.service": {"setup_ms": 0.0, "per_token_ms": 1.0, "free_tokens": 12}}  # short prompts take no time
TWO_QUEUES = {"system.router": "round-robin", "system.workers": 2}
THREE_WORKERS = {"system.workers": 3}
CROWDS = {  # changes of the system, requests, clients, time between arrivals in ms, longest prompt
    "alone": ({}, 30, 4, 1.0, 40),
    "all at once": ({}, 300, 5, 0.0, 3),
    "one client": ({}, 200, 1, 2.0, 40),
    "everybody a client": ({}, 300, 300, 2.0, 40),
    "two queues": (TWO_QUEUES, 300, 12, 1.5, 40),
    "three workers": (THREE_WORKERS, 400, 40, 0.7, 200),
    "stairs": (STAIRS, 300, 6, 1.0, 60),
    "stairs, all at once": (STAIRS, 300, 6, 0.0, 60),
    "flat": (FLAT, 300, 6, 1.0, 90),
    "free": (FREE, 300, 6, 1.0, 40),
    "many": ({}, 1500, 20, 0.5, 40),
}


def crowd(
    rng: np.random.Generator, scenario: Scenario, n: int, clients: int, gap_ms: float, longest: int
) -> np.ndarray:
    arrivals_s = np.sort(np.round(rng.random(n) * n * gap_ms / 1e3, 2))
    requests = toy_requests([(t, 1, 1) for t in arrivals_s], scenario)
    requests["prompt_tokens"] = rng.integers(1, longest + 1, n)
    requests["output_tokens"] = rng.integers(1, 9, n)
    requests["declared_tokens"] = 9
    requests["predicted_tokens"] = np.where(rng.random(n) < 0.1, np.nan, rng.integers(0, 9, n))
    requests["weight"] = rng.choice([0.5, 1.0, 3.0], n)
    requests["client"] = rng.permutation(n) if clients == n else rng.integers(0, clients, n)
    return requests


def drawn_decision(rng: np.random.Generator, order: int) -> Decision:
    make: Any = getattr(decision, "py_func", decision)
    return make(
        int(rng.choice([5, 17, 60])),
        order=order,
        starve_s=float(rng.choice([0.0, 0.0, 0.1, 1.0])),
        quantum_s=float(rng.choice([0.0, 0.002, 0.011, 0.02])),
        victim=int(rng.integers(3)),
        packing=int(rng.integers(4)),
    )


def stages(state: State, rng: np.random.Generator, most: int) -> Iterator[int]:
    """Any decisions with any order, one after the other; yields before each."""
    for k in range(most):
        if state.system[0]["phase"] != ACTIVE:
            return
        yield k
        step(state, drawn_decision(rng, int(rng.integers(len(QUEUE_ORDERS)))))


def compare(state: State, rng: np.random.Generator, share: float = 0.7) -> None:
    """Some orders are asked for only now and then, and bounds are old."""
    for q in range(len(state.queues)):
        for order in ORDERS:
            if rng.random() < share:
                d = drawn_decision(rng, order)
                assert first_waiting(state, q, d) == plain_first(state, q, d), QUEUE_ORDERS[order]


def play(name: str, seed: int, most: int, blocks: int | None = None) -> State:
    changes, n, *shape = CROWDS[name]
    rng = np.random.default_rng(seed)
    kv = {"system.kv.blocks": blocks, "system.kv.block_tokens": 4} if blocks else {}
    scenario = with_changes(toy_scenario(), {**changes, **kv})
    state = single(load(new_states(scenario, 1, 1), 0, crowd(rng, scenario, n, *shape), 0))
    for k in stages(state, rng, most):
        compare(state, rng)
        if k % 10 == 0:
            check_queue(state)
    return state


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", CROWDS)
def test_an_order_puts_somebody_else_first(name, seed):
    state = play(name, seed, 600)
    assert state.system[0]["num_finished"] > 20


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["alone", "one client", "everybody a client", "two queues", "three workers"])
def test_an_order_puts_somebody_else_first_where_memory_is_short(name, seed):
    state = play(name, seed, 800, blocks=64 if name == "three workers" else 16)
    assert state.system[0]["num_evictions"] > 0


@nojit
@pytest.mark.parametrize("name", ["alone", "all at once", "two queues", "stairs", "free"])
def test_plain_python_puts_somebody_else_first(name):
    play(name, 5, 60, blocks=30)


@nojit
@pytest.mark.parametrize("changes", [{}, TWO_QUEUES, FREE])
def test_an_order_puts_somebody_else_first_in_a_closed_loop(changes):
    rng = np.random.default_rng(1)
    scenario = with_changes(toy_scenario(), changes)
    users = [[(float(rng.choice([0.01, 0.02, 0.1])), int(rng.integers(1, 30)), 2) for _ in range(8)] for _ in range(50)]
    requests = toy_script(users, scenario)
    requests["client"] = np.repeat(rng.permutation(50), 8)
    requests["weight"], requests["predicted_tokens"] = rng.choice([1.0, 2.0], 400), rng.integers(0, 9, 400)
    state = single(load(new_states(scenario, 1, 1), 0, requests, 0))
    for k in stages(state, rng, 120 if IN_PLAIN_PYTHON else 1500):
        compare(state, rng, 0.3 if IN_PLAIN_PYTHON else 0.7)
        if k % 25 == 0:
            check_queue(state)
    assert state.system[0]["num_finished"] > 20


@nojit
def test_nobody_waits():
    state = toy_state([(0.0, 1, 3)])
    step(state, decision(10))
    assert [first_waiting(state, 0, decision(10, order=order)) for order in ORDERS] == [-1] * 5


# ---- response ratios -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("jitter", [0.0, 1e-16, 1e-13, 1e-6])
def test_nearly_equal_ratios_are_mixed_up(jitter):
    """Prompts that came the earlier the longer they are, at the moment at which all ratios are 2 or nearly so."""
    rng, n = np.random.default_rng(3), 2000
    prompts = np.arange(n, 0, -1)
    rows = [(0.01 * (n - k) * (1 + jitter * rng.standard_normal()), int(k), 1) for k in prompts]
    rows.sort()
    scenario = with_changes(
        toy_scenario(), {"system.service": {"setup_ms": 0.0, "per_token_ms": 10.0, "free_tokens": 0}}
    )
    state = single(load(new_states(scenario, 1, n), 0, toy_requests(rows, scenario), 0))
    while state.system[0]["next_arrival"] < n:
        step(state, decision(10, hold_s=1.0))
    for now_s in (0.01 * n, 0.01 * n * (1 + 1e-15), 30.0, 1e5):
        state.system["now_s"] = now_s
        assert first_by_ratio(state, 0) == plain_first(state, 0, decision(1, order=RESPONSE_RATIO))


def turned_pair(wait_s: float) -> tuple[float, float]:
    """Two services next to each other of which the longer has the higher rounded ratio."""
    longer = 0.7
    while True:
        shorter, longer = longer, float(np.nextafter(longer, 1.0))
        if response_ratio(wait_s, longer) > response_ratio(wait_s, shorter):
            return shorter, longer


@nojit
@pytest.mark.parametrize("place", [0, 31, 32, 70, 99])
@pytest.mark.parametrize("wait_s", [0.3, 1 / 3, 7.7])
def test_services_that_differ_by_rounding_are_mixed_up(place, wait_s):
    state = toy_state([(0.0, 1, 1)] * 100)
    state.requests["prefill_s"][:100], longer = turned_pair(wait_s)
    state.requests["prefill_s"][place] = longer
    state.system["prefill_gap"] = 2.0**-53
    state.system["now_s"] = wait_s
    assert [first_by_ratio(state, 0) for _ in range(2)] == [place] * 2, "the second search knows bounds"


@nojit
@pytest.mark.parametrize(
    ("prompts", "gap"),
    [([5], 1.0), ([5, 5], 1.0), ([10, 5], 5 / 20), ([4, 10, 5], 1 / 20)],  # S(b) = 10 + b ms
)
def test_the_gap_between_prefill_times_is_another(prompts, gap):
    state = toy_state([(0.0, tokens, 1) for tokens in prompts])
    assert state.requests["prefill_s"].tolist() == pytest.approx([(10 + tokens) / 1e3 for tokens in prompts])
    assert state.system[0]["prefill_gap"] == pytest.approx(gap)


# ---- how many are looked at ----------------------------------------------------------------------------------------
def looks(monkeypatch: pytest.MonkeyPatch, name: str, act: Callable[[], object]) -> int:
    """How often a function of the module is called."""
    calls, function = [0], getattr(llm_env.least, name)

    def counted(*args: Any) -> Any:
        calls[0] += 1
        return function(*args)

    monkeypatch.setattr(llm_env.least, name, counted)
    act()
    monkeypatch.undo()
    return calls[0]


@nojit
@pytest.mark.skipif(not IN_PLAIN_PYTHON, reason="counts calls in plain Python")
@pytest.mark.parametrize("key", [KEY_WEIGHT, KEY_PREDICTED])
def test_a_search_looks_at_everybody(key, monkeypatch):
    n, rng = 3000, np.random.default_rng(0)
    fields = {"weight": rng.permutation(n) + 1.0, "predicted_tokens": rng.permutation(n) + 0.0}
    state = toy_state([(0.0, 5, 1)] * n, fields=fields)
    assert looks(monkeypatch, "key_of", lambda: first_least(state, 0, key)) >= n, "at first nothing is known"
    for _ in range(20):
        assert looks(monkeypatch, "key_of", lambda: leave(state, first_least(state, 0, key))) <= 96


@nojit
@pytest.mark.skipif(not IN_PLAIN_PYTHON, reason="counts calls in plain Python")
@pytest.mark.parametrize("longest", [1, 30, 100_000])
def test_a_search_for_the_highest_ratio_looks_at_everybody(longest, monkeypatch):
    n, rng = 3000, np.random.default_rng(0)
    rows = [(0.0, int(tokens), 1) for tokens in rng.integers(1, longest + 1, n)]
    state = toy_state(rows)
    state.system["now_s"] = 100.0
    first_by_ratio(state, 0)
    for _ in range(20):
        assert looks(monkeypatch, "response_ratio", lambda: leave(state, first_by_ratio(state, 0))) <= 400


# ---- room ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("order", ORDERS)
def test_a_system_that_is_made_larger_puts_somebody_else_first(order):
    rng, scenario = np.random.default_rng(9), toy_scenario()
    states = load(new_states(scenario, 2, 1), 0, crowd(rng, scenario, 60, 4, 1.0, 40), 0)
    d = drawn_decision(rng, order)
    for _ in range(5):
        step(single(states), d)
    states = with_capacity(states, 5000)
    state = single(states)
    for _ in range(20):
        assert first_waiting(state, 0, d) == plain_first(state, 0, d)
        step(state, d)
    check_queue(state)
