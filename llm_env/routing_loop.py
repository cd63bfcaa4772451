"""The loop of systems whose arrivals an agent routes: `route_all` moves many of them from arrival to arrival.

Between two arrivals the adaptive rule (`llm_env.adaptive`), with parameters that stay as they are, forms the batches.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numba import types

from llm_env.adaptive import adaptive_decision
from llm_env.addresses import states_at
from llm_env.core import advance, route, step
from llm_env.dtypes import ACTIVE, NEEDS_ROOM, ROUTING
from llm_env.jit import njit
from llm_env.records import row
from llm_env.rollout import BEGIN, count, counts_at, floats_at, integers_at, results_at, todo_at, weights_at
from llm_env.routing_features import observe_arrival
from llm_env.routing_reward import routing_terms
from llm_env.view import make_view

ROUTE = 0  # in place of a kind of action


def _route_all(table, kind, observations):
    states, todo = states_at(table), todo_at(table)
    integers, floats, weights = integers_at(table), floats_at(table), weights_at(table)
    results, counts = results_at(table), counts_at(table)
    left = 0
    for e in range(todo.shape[0]):
        if not todo[e]:
            continue
        state = row(states, e)
        system = state.system[0]
        if kind == BEGIN:
            advance(state)
            system.routed_s = system.now_s
        elif kind == ROUTE:
            if system.phase == ROUTING:
                route(state, integers[e, 0])
            while system.phase == ACTIVE:
                step(state, adaptive_decision(make_view(state), floats[e]))
            if system.phase == NEEDS_ROOM:
                left += 1
                continue
            _pay(state, weights[e], results[e], counts[e])
        todo[e] = False
        if system.phase == ROUTING:
            observe_arrival(state, observations[e])
        else:
            observations[e, :] = 0.0
    return left


@njit
def _pay(state, weights, results, counts):
    """What came of the last decision; the arrays are the system's rows of an `Exchange`."""
    system = state.system[0]
    results[0] = routing_terms(state, weights, results[2:])
    results[1] = system.now_s - system.routed_s
    system.routed_s = system.now_s
    counts[1] = system.epoch
    counts[2] = system.num_rejected
    count(state, counts)


@cache
def route_all() -> Callable[[Any, int, np.ndarray], int]:
    """Compiled: names a worker for the arrival of each system that is to move, and goes on to the next one.

    Args of the function:
        table: addresses of a vectorised State and of an `Exchange`, whose `integers` hold the worker in column 0 and
            whose `floats` the parameters of the adaptive rule.
        kind: ROUTE; BEGIN: moves prepared systems to their first arrival; LOOK: moves nobody.
        observations: (rows, num_routing_features) float32, written for the systems that were to move; zeros at an end.

    Returns:
        How many could not go on because noise or log rows had run out; `todo` still names them. Their worker has been
        named: calling again goes on.
    """
    return njit(types.int64(types.int64[:, ::1], types.int64, types.float32[:, ::1]))(_route_all)
