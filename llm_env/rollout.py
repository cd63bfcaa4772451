"""The only loops over `core.step`: `rollout` runs one policy to the end, `step_all` moves many systems by one action
each. Everything else (Env, VectorEnv, evaluation, simulation) calls one of the two.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numba import types

from llm_env.actions import mask_actions, to_decision
from llm_env.build import enlarge, load, new_states, single
from llm_env.config import Scenario
from llm_env.core import step
from llm_env.dtypes import ACTIVE, NEEDS_ROOM
from llm_env.jit import njit
from llm_env.records import DECIDE_TYPE, STATE_TYPE, STATES_TYPE, State, row
from llm_env.reward import reward_terms
from llm_env.view import make_view, observe

Decide = Callable[[Any], Any]  # View -> Decision, compiled by `llm_env.records.policy`


def _rollout(state, decide, max_steps):
    system = state.system[0]
    steps = 0
    while system.phase == ACTIVE and steps < max_steps:
        step(state, decide(make_view(state)))
        steps += 1
    return steps


def _step_all(states, kind, integers, floats, weights, todo, observations, rewards, terms, dt_s):
    for e in range(todo.shape[0]):
        if not todo[e]:
            continue
        state = row(states, e)
        system = state.system[0]
        before_s = system.now_s
        step(state, to_decision(state, kind, integers[e], floats[e]))
        if system.phase == NEEDS_ROOM:
            continue
        todo[e] = False
        rewards[e] = reward_terms(system, weights, terms[e])
        dt_s[e] = system.now_s - before_s
        observe(state, observations[e])


def _observe_all(states, which, observations):
    for e in range(which.shape[0]):
        if which[e]:
            observe(row(states, e), observations[e])


def _mask_all(states, which, masks):
    for e in range(which.shape[0]):
        if which[e]:
            mask_actions(row(states, e), masks[e])


@cache
def compiled_rollout() -> Callable[..., int]:
    """`_rollout` compiled once for every policy: a policy is a typed function argument."""
    return njit(types.int64(STATE_TYPE, DECIDE_TYPE, types.int64))(_rollout)


_BOOL, _F4, _F8, _I8 = types.boolean, types.float32, types.float64, types.int64


@cache
def compiled_step_all() -> Callable[..., None]:
    return njit(
        types.void(
            STATES_TYPE,
            _I8,
            _I8[:, ::1],
            _F8[:, ::1],
            _F8[::1],
            _BOOL[::1],
            _F4[:, ::1],
            _F8[::1],
            _F8[:, ::1],
            _F8[::1],
        )
    )(_step_all)


@cache
def compiled_observe_all() -> Callable[..., None]:
    return njit(types.void(STATES_TYPE, _BOOL[::1], _F4[:, ::1]))(_observe_all)


@cache
def compiled_mask_all() -> Callable[..., None]:
    return njit(types.void(STATES_TYPE, _BOOL[::1], _BOOL[:, ::1]))(_mask_all)


def step_all(states: State, seeds, kind, integers, floats, weights, todo, observations, rewards, terms, dt_s) -> State:
    """One action in each system that `todo` names; see `llm_env.actions.to_decision` for the actions.

    Args:
        seeds: (num_envs,) int64, the seeds of the systems' noise, in case more of it must be drawn.
        kind: MULTIDISCRETE, DISCRETE or BOX.
        integers, floats: (num_envs, 4) int64 and float64 actions.
        weights: (NUM_TERMS,) float64 of the reward terms.
        todo: (num_envs,) bool; all False afterwards.
        observations, rewards, terms, dt_s: written for the systems that moved: (num_envs, NUM_FEATURES) float32,
            (num_envs,) float64, (num_envs, NUM_TERMS) float64, (num_envs,) float64 seconds.

    Returns:
        The states: the same arrays, or larger ones where noise or logs had run out.
    """
    while True:
        compiled_step_all()(states, kind, integers, floats, weights, todo, observations, rewards, terms, dt_s)
        if not todo.any():
            return states
        states = enlarge(states, seeds)


def observe_all(states: State, which: np.ndarray, observations: np.ndarray) -> None:
    """Writes the features of the systems that `which`, (num_envs,) bool, names."""
    compiled_observe_all()(states, which, observations)


def mask_all(states: State, which: np.ndarray, masks: np.ndarray) -> None:
    """Writes the action masks of the systems that `which` names into masks, (num_envs, MASK_LENGTH) bool."""
    compiled_mask_all()(states, which, masks)


def continue_rollout(states: State, decide: Decide, seed: int, max_steps: int = 1 << 62) -> State:
    """Lets a policy decide in system 0 of `states` until it is drained, its horizon or `max_steps` is reached."""
    run = compiled_rollout()
    while True:
        max_steps -= run(single(states), decide, max_steps)
        if states.system["phase"][0, 0] != NEEDS_ROOM:
            return states
        max_steps += 1  # the step that found no room was not taken
        states = enlarge(states, np.array([seed]))


def rollout(scenario: Scenario, decide: Decide, requests: np.ndarray, seed: int, record: bool = False) -> State:
    """Runs a policy over a workload to its end.

    Args:
        decide: a compiled policy (`llm_env.records.policy`).
        requests: (n,) REQUEST, not changed.
        seed: of the service noise.
        record: also log batches and gaps.

    Returns:
        The final State of the one system, without a leading axis.
    """
    states = load(new_states(scenario, 1, max(1, len(requests)), record), 0, requests, seed)
    return single(continue_rollout(states, decide, seed))
