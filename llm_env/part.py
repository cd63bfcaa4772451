"""The systems of one scenario: their arrays, whose table compiled code reads, and their steps. Knows nothing of seeds'
scenarios or of Gymnasium.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from llm_env.addresses import addresses
from llm_env.build import enlarge, new_states, prepare
from llm_env.config import Scenario
from llm_env.features import NUM_FEATURES
from llm_env.records import State
from llm_env.reward import reward_weights
from llm_env.rollout import BEGIN, LOOK, Exchange, mask_all, new_exchange, step_all

Workload = Callable[[int], np.ndarray]  # seed -> REQUEST array
_FIRST_CAPACITY = 256  # requests; more when a workload needs it


class Part:
    """Systems of one scenario: their episodes run in arrays of their own, which have its shapes.

    Args:
        scenario: of all of them.
        workload: seed -> requests.
        rows: for how many systems there is room at first.
        kind: of the actions: MULTIDISCRETE, DISCRETE or BOX.
        record: keep logs of batches and gaps.

    Attributes:
        exchange: what goes into a step and comes out of it, one row a system.
        seeds: (rows,) int64, of the episodes.
        free: rows that no system has; at first all.
    """

    def __init__(self, scenario: Scenario, workload: Workload, rows: int, kind: int, record: bool = False) -> None:
        self.scenario = scenario
        self.workload = workload
        self.seeds = np.zeros(rows, np.int64)
        self.free = list(range(rows))[::-1]
        self._kind = kind
        self._weights = reward_weights(scenario.reward)
        self._make_exchange(rows)
        self.states = new_states(scenario, rows, _FIRST_CAPACITY, record)

    def _make_exchange(self, rows: int) -> None:
        self.exchange: Exchange = new_exchange(rows, self._weights)
        self._unread = np.zeros((rows, NUM_FEATURES), np.float32)

    @property
    def states(self) -> State:
        """The systems, with a leading axis of rows."""
        return self._states

    @states.setter
    def states(self, states: State) -> None:
        self._states = states
        self._table: Any = addresses((*states, *self.exchange))

    def take_row(self) -> int:
        """A row that was free; if there is none, the arrays get a quarter more rows.

        What a row holds does not matter: loading an episode overwrites it. So new rows are copies of the last one.
        """
        if not self.free:
            have = len(self.seeds)
            rows = np.arange(have + max(1, have // 4))
            source = np.minimum(rows, have - 1)
            self.seeds = self.seeds[source]
            self._make_exchange(len(rows))
            self.states = State(*(array[source] for array in self.states))
            self.free = rows[have:][::-1].tolist()
        return self.free.pop()

    def load(self, row: int, seed: int) -> None:
        """Starts the episode of a seed."""
        requests = self.workload(seed)
        self.seeds[row] = seed
        self.states = prepare(self.states, row, requests, seed)
        self.exchange.todo[row] = True
        step_all()(self._table, BEGIN, self._unread)

    def step(self, observations: np.ndarray) -> None:
        """One action in each system that `exchange.todo` names.

        Args:
            observations: (rows, NUM_FEATURES) float32, written for the systems that moved.
        """
        while step_all()(self._table, self._kind, observations) > 0:
            self.states = enlarge(self.states, self.seeds)

    def observe(self, which: np.ndarray, observations: np.ndarray) -> None:
        """Writes the features of the systems in the mask `which`, (rows,) bool."""
        self.exchange.todo[:] = which
        step_all()(self._table, LOOK, observations)

    def mask(self, which: np.ndarray, masks: np.ndarray) -> None:
        """Writes which levels make a difference now, (rows, MASK_LENGTH) bool, for the systems in the mask `which`."""
        mask_all()(self._table, which, masks)
