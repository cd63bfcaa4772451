"""What would have come of giving an arrival to each of the workers: for learning, never for deciding.

Every worker is tried in a copy of the system, in which the rule "score" routes all later arrivals, on the requests that
really come: the same for all workers, so that their differences have little noise. The true future is hidden from
whoever decides; a learner sees it only as the target of a regression on what can be observed, which averages over it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numba import types

from llm_env.adaptive import adaptive_decision
from llm_env.addresses import addresses, states_at
from llm_env.build import enlarge
from llm_env.core import route, step
from llm_env.dtypes import ACTIVE, NEEDS_ROOM, ROUTE_SCORE, ROUTING, WAITING
from llm_env.jit import njit
from llm_env.records import State, row
from llm_env.rollout import floats_at, new_exchange, results_at, todo_at
from llm_env.routing_reward import backlog_s, is_missed
from llm_env.view import make_view


def _look_all(table, ahead_s):
    states, todo, floats, results = states_at(table), todo_at(table), floats_at(table), results_at(table)
    left = 0
    for w in range(todo.shape[0]):
        if not todo[w]:
            continue
        state = row(states, w)
        system = state.system[0]
        if system.router != ROUTE_SCORE:  # else it had run out of room and goes on
            system.router = ROUTE_SCORE
            system.horizon_s = min(system.horizon_s, system.now_s + ahead_s)
            route(state, w)
        while system.phase == ACTIVE:
            step(state, adaptive_decision(make_view(state), floats[w]))
        if system.phase == NEEDS_ROOM:
            left += 1
            continue
        todo[w] = False
        results[w, 0] = _lost_weight(state)
        results[w, 1] = backlog_s(state)
    return left


@njit
def _lost_weight(state: State) -> float:
    """SLO weight of the requests that have missed their SLO, or wait and can no longer keep it."""
    system, lost = state.system[0], 0.0
    for i in range(system.first_open, system.next_arrival):
        r = state.requests[i]
        hopeless = r.status == WAITING and r.emitted_tokens == 0 and r.latest_start_s < system.now_s
        if hopeless or is_missed(r, system.slo_rule, system.now_s):
            lost += r.weight
    return lost


@cache
def _look() -> Callable[[Any, float], int]:
    """Compiled `_look_all`: (table, seconds to look ahead) -> how many rows ran out of room."""
    return njit(types.int64(types.int64[:, ::1], types.float64))(_look_all)


class LookAhead:
    """Room for one copy of a system for each worker.

    Args:
        num_workers: how many to try.
        base: (number of parameters,) of the adaptive rule that forms the batches.
        ahead_s: seconds to look ahead.
        backlog_price: what a second of queued live prefill at the end counts, in missed requests.
    """

    def __init__(self, num_workers: int, base: np.ndarray, ahead_s: float, backlog_price: float) -> None:
        self._num_workers, self._ahead_s, self._price = num_workers, ahead_s, backlog_price
        self._exchange = new_exchange(num_workers, np.zeros(2))
        self._exchange.floats[:, : len(base)] = base
        self._copies: State | None = None
        self._table: Any = None

    def costs(self, state: State, seed: int) -> np.ndarray:
        """(num_workers,) missed requests within `ahead_s` if the present arrival went to each worker.

        Args:
            state: one system in phase ROUTING, without a leading axis; it is not changed. It keeps no logs.
            seed: of its noise.

        Raises:
            ValueError: no arrival waits for its worker.
        """
        if state.system["phase"][0] != ROUTING:
            raise ValueError("state: no arrival waits for its worker")
        copies = self._copies
        if copies is None or any(mine.shape[1:] != array.shape for mine, array in zip(copies, state, strict=True)):
            self._take(State(*(np.repeat(array[None], self._num_workers, axis=0) for array in state)))
        else:
            for mine, array in zip(copies, state, strict=True):
                mine[:] = array
        self._exchange.todo[:] = True
        while _look()(self._table, self._ahead_s) > 0:
            assert self._copies is not None
            self._take(enlarge(self._copies, np.full(self._num_workers, seed)))
        return self._exchange.results[:, 0] + self._price * self._exchange.results[:, 1]

    def _take(self, copies: State) -> None:
        self._copies = copies
        self._table = addresses((*copies, *self._exchange))
