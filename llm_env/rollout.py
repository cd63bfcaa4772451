"""The only loops over `core.step`: `rollout` runs one policy to the end, `step_all` moves many systems by one action
each. Everything else (Env, VectorEnv, evaluation, simulation) calls one of the two.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numba import types

from llm_env.actions import MOST_FLOATS, mask_actions, to_decision
from llm_env.addresses import prefetch, reader, states_at
from llm_env.build import enlarge, load, new_states, single
from llm_env.config import Scenario, refuse_varying
from llm_env.core import advance, step
from llm_env.dtypes import ACTIVE, CACHE_LINE, NEEDS_ROOM, ROUTERS, SYSTEM, WORKER, offset_of
from llm_env.errors import UserError
from llm_env.features import NUM_FEATURES, observe
from llm_env.jit import njit
from llm_env.ranking import observe_candidates
from llm_env.records import DECIDE_TYPE, NUM_BUCKETS, SET_ARRIVAL, SET_FEASIBLE, STATE_TYPE, State, row
from llm_env.reward import reward_terms
from llm_env.view import make_view

Decide = Callable[[Any], Any]  # View -> Decision, compiled by `llm_env.records.policy`


def _rollout(state, decide, max_steps):
    system = state.system[0]
    steps = 0
    while system.phase == ACTIVE and steps < max_steps:
        step(state, decide(make_view(state)))
        steps += 1
    return steps


class Exchange(NamedTuple):
    """What goes into steps of many systems and what comes out, one row a system; the same arrays in every step."""

    integers: np.ndarray  # (rows, 4) int64 actions: see `llm_env.actions.to_decision`
    floats: np.ndarray  # (rows, MOST_FLOATS) float64 actions
    weights: np.ndarray  # (rows, number of terms) float64 of the reward terms
    todo: np.ndarray  # (rows,) bool: who is to move; all False afterwards
    results: np.ndarray  # (rows, 2 + number of terms) float64: reward, dt_s and the reward terms
    counts: np.ndarray  # (rows, 5) int64: phase, tokens and prefill tokens of the batch, requests waiting and running


def new_exchange(rows: int, weights: np.ndarray) -> Exchange:
    """Arrays of zeros. Args: weights: (number of terms,) of the reward terms."""
    return Exchange(
        integers=np.zeros((rows, 4), np.int64),
        floats=np.zeros((rows, MOST_FLOATS)),
        weights=np.tile(weights, (rows, 1)),
        todo=np.zeros(rows, np.bool_),
        results=np.zeros((rows, 2 + len(weights))),
        counts=np.zeros((rows, 5), np.int64),
    )


integers_at = reader(0, np.int64, 2)
floats_at = reader(1, np.float64, 2)
weights_at = reader(2, np.float64, 2)
todo_at = reader(3, np.bool_, 1)
results_at = reader(4, np.float64, 2)
counts_at = reader(5, np.int64, 2)


_SYSTEM_BYTES, _WORKER_BYTES = offset_of(SYSTEM, "points"), WORKER.itemsize
_REQUEST_BYTES = 2 * CACHE_LINE  # what every batch touches of a request comes first
_MANY = 32  # running requests whose places in lists are fetched before it is known how many there are


@njit
def _fetch(states, e):
    """Has the cache fetch what a step of system e + 1 will read, and what that reading needs of system e + 2."""
    last = states.requests.shape[0] - 1
    far, near = min(e + 2, last), min(e + 1, last)
    for byte in range(0, _SYSTEM_BYTES, CACHE_LINE):
        prefetch(states.system[far], 0, byte)
    prefetch(states.queues[far], 0, 0)
    prefetch(states.sets[far, 0, SET_ARRIVAL], 0, 0)
    prefetch(states.sets[far, 0, SET_FEASIBLE], 0, 0)
    prefetch(states.requests[near], states.system[near, 0].next_arrival, 0)
    for byte in range(0, 2 * NUM_BUCKETS * 8, CACHE_LINE):
        prefetch(states.buckets[far, 0, 0], 0, byte)
    for w in range(states.workers.shape[1]):
        for byte in range(0, _WORKER_BYTES, CACHE_LINE):
            prefetch(states.workers[far], w, byte)
        for byte in range(0, _MANY * 8, CACHE_LINE):
            prefetch(states.running[far, w], 0, byte)
            prefetch(states.batch[far, w, 0], 0, 2 * byte)
            prefetch(states.batch[far, w, 0], 0, 2 * byte + CACHE_LINE)
        for position in range(states.workers[near, w].num_running):
            for byte in range(0, _REQUEST_BYTES, CACHE_LINE):
                prefetch(states.requests[near], states.running[near, w, position], byte)


BEGIN, LOOK = -1, -2  # in place of a kind of action


def _step_all(table, kind, observations):
    states, todo = states_at(table), todo_at(table)
    integers, floats, weights = integers_at(table), floats_at(table), weights_at(table)
    results, counts = results_at(table), counts_at(table)
    left = 0
    for e in range(todo.shape[0]):
        if not todo[e]:
            continue
        state = row(states, e)
        if kind >= 0:
            _fetch(states, e)
            _act(state, kind, integers[e], floats[e], weights[e], results[e], counts[e])
            if state.system[0].phase == NEEDS_ROOM:
                left += 1
                continue
        elif kind == BEGIN:
            advance(state)
        todo[e] = False
        observe(state, observations[e])
        if observations.shape[1] > NUM_FEATURES:
            observe_candidates(state, observations[e, NUM_FEATURES:])
    return left


@njit
def _act(state, kind, integers, floats, weights, results, counts):
    """One step of one system; the arrays are its rows of an `Exchange`."""
    system = state.system[0]
    before_s, worker = system.now_s, state.workers[system.worker]
    step(state, to_decision(state, kind, integers, floats))
    results[0] = reward_terms(system, weights, results[2:])
    results[1] = system.now_s - before_s
    counts[1] = worker.batch_tokens
    counts[2] = worker.batch_prefill
    count(state, counts)


@njit
def count(state, counts):
    """Writes the phase, and how many requests wait and run, into a system's row of `Exchange.counts`."""
    counts[0] = state.system[0].phase
    counts[3] = state.system[0].num_waiting
    counts[4] = 0
    for w in range(state.workers.shape[0]):
        counts[4] += state.workers[w].num_running


def _mask_all(table, which, masks):
    states = states_at(table)
    for e in range(which.shape[0]):
        if which[e]:
            mask_actions(row(states, e), masks[e])


@cache
def compiled_rollout() -> Callable[..., int]:
    """`_rollout` compiled once for every policy: a policy is a typed function argument."""
    return njit(types.int64(STATE_TYPE, DECIDE_TYPE, types.int64))(_rollout)


_BOOL, _F4, _I8 = types.boolean, types.float32, types.int64


@cache
def step_all() -> Callable[[Any, int, np.ndarray], int]:
    """Compiled: one action in each system that is to move. The only entry for environments: each one more would have
    to be compiled, with all that it shares with this one.

    Args of the function:
        table: addresses of a vectorised State and of an `Exchange`.
        kind: of the actions, as `to_decision`; BEGIN: moves prepared systems to their first decision; LOOK: moves
            nobody.
        observations: (rows, n) float32, written for the systems that were to move: NUM_FEATURES, and if there is
            room for more those of the candidates.

    Returns:
        How many could not move because noise or log rows had run out; `todo` still names them.
    """
    return njit(_I8(_I8[:, ::1], _I8, _F4[:, ::1]))(_step_all)


@cache
def mask_all() -> Callable[[Any, np.ndarray, np.ndarray], None]:
    """Compiled: (table, which, masks) writes action masks, (rows, MASK_LENGTH) bool."""
    return njit(types.void(_I8[:, ::1], _BOOL[::1], _BOOL[:, ::1]))(_mask_all)


def continue_rollout(states: State, decide: Decide, seed: int, max_steps: int = 1 << 62) -> State:
    """Lets a policy decide in system 0 of `states` until it is drained, its horizon or `max_steps` is reached."""
    run = compiled_rollout()
    while True:
        max_steps -= run(single(states), decide, max_steps)
        if states.system["phase"][0, 0] != NEEDS_ROOM:
            return states
        max_steps += 1  # the step that found no room was not taken
        states = enlarge(states, np.array([seed]))


def refuse_agent(scenario: Scenario) -> None:
    """Raises:
    UserError: the scenario asks an agent for routes, where nobody is there to be asked.
    """
    if scenario.system.router == "agent":
        rules = ", ".join(rule for rule in ROUTERS if rule != "agent")
        raise UserError(f"system.router: 'agent' is for llm_env/Routing-v0 alone; expected one of {rules}")


def rollout(scenario: Scenario, decide: Decide, requests: np.ndarray, seed: int, record: bool = False) -> State:
    """Runs a policy over a workload to its end.

    Args:
        decide: a compiled policy (`llm_env.records.policy`).
        requests: (n,) REQUEST, not changed.
        seed: of the service noise.
        record: also log batches and gaps.

    Returns:
        The final State of the one system, without a leading axis.

    Raises:
        UserError: `refuse_agent`, or the scenario varies: take that of the seed (`llm_env.workload.concrete`).
    """
    refuse_agent(scenario)
    refuse_varying(scenario, "rollout")
    states = load(new_states(scenario, 1, max(1, len(requests)), record), 0, requests, seed)
    return single(continue_rollout(states, decide, seed))
