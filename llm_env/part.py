"""The systems of one scenario: their arrays, whose table compiled code reads, and their steps. Knows nothing of seeds'
scenarios or of Gymnasium.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from llm_env.addresses import addresses
from llm_env.build import enlarge, new_states, prepare, rebuild, system_record, worker_records
from llm_env.config import RewardSettings, Scenario
from llm_env.errors import UserError
from llm_env.indices import check_indices
from llm_env.records import State
from llm_env.rollout import BEGIN, LOOK, Exchange, mask_all, new_exchange
from llm_env.workload import concrete

Workload = Callable[[int], np.ndarray]  # seed -> REQUEST array
_FIRST_CAPACITY = 256  # requests; more when a workload needs it


class Form(NamedTuple):
    """What is decided in a step, seen of it and paid for it."""

    loop: Callable[[], Callable[[Any, int, np.ndarray], int]]  # the compiled one, as `llm_env.rollout.step_all`
    kind: int  # of the actions, for the loop
    num_features: int
    weights: Callable[[RewardSettings], np.ndarray]  # of the reward terms


class Part:
    """Systems of one scenario: their episodes run in arrays of their own, which have its shapes.

    Args:
        scenario: of all of them.
        workload: seed -> requests.
        rows: for how many systems there is room at first.
        form: of their steps.
        record: keep logs of batches and gaps.

    Attributes:
        exchange: what goes into a step and comes out of it, one row a system.
        seeds: (rows,) int64, of the episodes.
        scenarios: of the episode of each row: that of the part, with what varies drawn.
        free: rows that no system has; at first all.
    """

    def __init__(self, scenario: Scenario, workload: Workload, rows: int, form: Form, record: bool = False) -> None:
        self.scenario = scenario
        self.workload = workload
        self.seeds = np.zeros(rows, np.int64)
        self.free = list(range(rows))[::-1]
        self.scenarios = [scenario] * rows
        self._form = form
        self._weights = form.weights(scenario.reward)
        self._record = record
        self._make_exchange(rows)
        self.states = new_states(scenario, rows, _FIRST_CAPACITY, record)

    def _make_exchange(self, rows: int) -> None:
        self.exchange: Exchange = new_exchange(rows, self._weights)
        self._unread = np.zeros((rows, self._form.num_features), np.float32)

    @property
    def states(self) -> State:
        """The systems, with a leading axis of rows."""
        return self._states

    @states.setter
    def states(self, states: State) -> None:
        self._states = states
        self._table: Any = addresses((*states, *self.exchange))

    def saved(self) -> dict[str, np.ndarray]:
        """All that the steps to come depend on: views on the arrays, by name."""
        return {"seeds": self.seeds, "free": np.array(self.free, np.int64), **self.states._asdict()}

    def restore(self, saved: Mapping[str, np.ndarray]) -> None:
        """Takes over what another Part of this scenario had saved.

        Raises:
            UserError: an array is missing, does not fit, or holds a number that is no place in the array that it is
                used for; names it.
        """
        states = rebuild(self.scenario, saved, self._record)
        check_indices(states)
        rows = len(states.system)
        for name, most in (("seeds", np.iinfo(np.int64).max), ("free", rows - 1)):
            array = saved.get(name)
            if array is None or array.dtype != np.int64 or array.ndim != 1:
                raise UserError(f"{name}: expected a list of whole numbers")
            if array.size and not (array.min() >= 0 and array.max() <= most):
                raise UserError(f"{name}: expected numbers from 0 to {most}")
        if len(saved["seeds"]) != rows or len(np.unique(saved["free"])) != len(saved["free"]):
            raise UserError(f"seeds, free: do not fit {rows} systems")
        self.seeds, self.free = saved["seeds"].copy(), saved["free"].tolist()
        self._make_exchange(rows)
        self.scenarios = [concrete(self.scenario, int(seed)) for seed in self.seeds]
        for row, scenario in enumerate(self.scenarios):
            self.exchange.weights[row] = self._form.weights(scenario.reward)
        self.states = states

    def take_row(self) -> int:
        """A row that was free; if there is none, the arrays get a quarter more rows.

        What a row holds does not matter: loading an episode overwrites it. So new rows are copies of the last one.
        """
        if not self.free:
            have = len(self.seeds)
            rows = np.arange(have + max(1, have // 4))
            source = np.minimum(rows, have - 1)
            self.seeds = self.seeds[source]
            self.scenarios += [self.scenario] * (len(rows) - have)
            weights = self.exchange.weights
            self._make_exchange(len(rows))
            self.exchange.weights[:] = weights[source]
            self.states = State(*(array[source] for array in self.states))
            self.free = rows[have:][::-1].tolist()
        return self.free.pop()

    def load(self, row: int, seed: int) -> None:
        """Starts the episode of a seed."""
        if self.scenario.vary:
            self._refit(row, concrete(self.scenario, seed))
        requests = self.workload(seed)
        self.seeds[row] = seed
        self.states = prepare(self.states, row, requests, seed)
        self.exchange.todo[row] = True
        self._form.loop()(self._table, BEGIN, self._unread)

    def _refit(self, row: int, scenario: Scenario) -> None:
        """Gives a row the settings of its episode's scenario, as `new_states` would; `prepare` clears what ran."""
        self.scenarios[row] = scenario
        self.states.system[row] = system_record(scenario, self._record)
        self.states.workers[row] = worker_records(scenario)
        self.exchange.weights[row] = self._form.weights(scenario.reward)

    def step(self, observations: np.ndarray) -> None:
        """One action in each system that `exchange.todo` names.

        Args:
            observations: (rows, num_features) float32, written for the systems that moved.
        """
        while self._form.loop()(self._table, self._form.kind, observations) > 0:
            self.states = enlarge(self.states, self.seeds)

    def observe(self, which: np.ndarray, observations: np.ndarray) -> None:
        """Writes the features of the systems in the mask `which`, (rows,) bool."""
        self.exchange.todo[:] = which
        self._form.loop()(self._table, LOOK, observations)

    def mask(self, which: np.ndarray, masks: np.ndarray) -> None:
        """Writes which levels make a difference now, (rows, MASK_LENGTH) bool, for the systems in the mask `which`."""
        mask_all()(self._table, which, masks)


def stream_of(rng: np.random.Generator) -> list[int]:
    """The state of a PCG64 generator as four whole numbers."""
    state: Any = rng.bit_generator.state
    return [state["state"]["state"], state["state"]["inc"], state["has_uint32"], state["uinteger"]]


def generator_of(stream: Any) -> np.random.Generator:
    """The generator whose `stream_of` was saved.

    Raises:
        UserError: it is no such state.
    """
    limits = (1 << 128, 1 << 128, 2, 1 << 32)
    if not isinstance(stream, list) or len(stream) != 4 or not all(isinstance(number, int) for number in stream):
        raise UserError("streams: expected four whole numbers of each")
    if not all(0 <= number < limit for number, limit in zip(stream, limits, strict=True)) or stream[1] % 2 == 0:
        raise UserError("streams: is no state of a generator")
    rng = np.random.default_rng(0)
    state, inc, has_uint32, uinteger = stream
    rng.bit_generator.state = {
        "bit_generator": "PCG64",
        "state": {"state": state, "inc": inc},
        "has_uint32": has_uint32,
        "uinteger": uinteger,
    }
    return rng
