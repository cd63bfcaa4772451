"""Many seeded episodes side by side, of one scenario or of several: what Env, VectorEnv, training and evaluation share.

Holds the arrays, loads workloads and calls `step_all`. Knows nothing of Gymnasium.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from llm_env.actions import ACTION_KINDS, BOX, BOX_NAMES, DISCRETE, DISCRETE_TABLE, MASK_LENGTH, NVEC
from llm_env.build import load, new_states, single
from llm_env.config import Scenario
from llm_env.dtypes import ACTIVE, DRAINED, HORIZON, SLO_RULES
from llm_env.errors import UserError
from llm_env.records import State
from llm_env.reward import NUM_TERMS, TERM_NAMES, reward_weights
from llm_env.rollout import mask_all, observe_all, step_all
from llm_env.slo import judged
from llm_env.view import NUM_FEATURES
from llm_env.workload import capacity_requests_per_s, draw_load, draw_scenario, draw_workload, refuse_rate

Workload = Callable[[int], np.ndarray]  # seed -> REQUEST array
NUM_TRAINING_SEEDS = 1_000_000  # 0 ... 999,999; episodes that nobody seeds draw from these


def checked_load_range(load_range: tuple[float, float]) -> tuple[float, float]:
    """(low, high) if 0 < low <= high <= 10.

    Raises:
        UserError: it is no such pair.
    """
    try:
        low, high = (float(value) for value in load_range)
    except (TypeError, ValueError):
        low = high = float("nan")
    if not 0 < low <= high <= 10:
        raise UserError(f"load_range: expected (low, high) with 0 < low <= high <= 10, got {load_range!r}")
    return low, high


def drawn_from(scenario: Scenario, load_range: tuple[float, float] | None = None) -> Workload:
    """Workloads of a scenario; with a load range each seed also draws its load, uniformly.

    Raises:
        UserError: the range is not 0 < low <= high, or the scenario is a closed loop and has no load.
    """
    if load_range is None:
        return lambda seed: draw_workload(scenario, seed)
    low, high = checked_load_range(load_range)
    refuse_rate(scenario, "load_range")
    capacity = capacity_requests_per_s(scenario)
    return lambda seed: draw_workload(scenario, seed, capacity * draw_load(seed, low, high))


class Step(NamedTuple):
    """What one call of `Systems.step` gives; arrays of the environments, new at each call."""

    observations: np.ndarray  # (num_envs, NUM_FEATURES) float32
    rewards: np.ndarray  # (num_envs,) float64
    terminated: np.ndarray  # (num_envs,) bool: drained
    truncated: np.ndarray  # (num_envs,) bool: the horizon came first
    infos: dict[str, np.ndarray]  # (num_envs,) each


@dataclass
class _Part:
    """One scenario of the systems: its episodes run in arrays of their own, which have its shapes.

    So scenarios may differ in everything, and an episode among others is the one that it would be alone. A lone
    scenario has row e for system e. Of several, each has rows for the systems that are at it, with room for a few more.
    """

    scenario: Scenario
    workload: Workload
    states: State  # (rows, ...)
    weights: np.ndarray  # (NUM_TERMS,) float64 of the reward
    seeds: np.ndarray  # (rows,) int64, of the episodes
    free: list[int]  # rows that no system has

    def take_row(self) -> int:
        """A row that was free; if there is none, the arrays get a quarter more rows.

        What a row holds does not matter: loading an episode overwrites it. So new rows are copies of the last one.
        """
        if not self.free:
            have = len(self.seeds)
            rows = np.arange(have + max(1, have // 4))
            source = np.minimum(rows, have - 1)
            self.states, self.seeds = State(*(array[source] for array in self.states)), self.seeds[source]
            self.free = rows[have:][::-1].tolist()
        return self.free.pop()


class Systems:
    """`num_envs` systems of one scenario, or of several: then each episode draws its own, all equally likely.

    Args:
        scenarios: their settings; the seed of an episode draws its scenario (`llm_env.workload.draw_scenario`).
        num_envs: how many.
        action: "multidiscrete", "discrete" or "box".
        workloads: seed -> requests, of each scenario; by default drawn from the scenarios.
        record: keep logs of batches and gaps.

    Attributes:
        scenario_index: (num_envs,) int64, the place in `scenarios` of each present episode's.
    """

    def __init__(
        self,
        scenarios: Sequence[Scenario],
        num_envs: int,
        action: str = "multidiscrete",
        workloads: Sequence[Workload] | None = None,
        record: bool = False,
    ) -> None:
        if action not in ACTION_KINDS:
            raise UserError(f"action: expected one of {', '.join(ACTION_KINDS)}, got {action!r}")
        self.scenarios = tuple(scenarios)
        self.num_envs = num_envs
        self.kind = ACTION_KINDS.index(action)
        workloads = [drawn_from(scenario) for scenario in scenarios] if workloads is None else workloads
        rows = -(-num_envs // len(self.scenarios))  # as many as are at a scenario on average
        self._parts = [
            _Part(
                scenario,
                workload,
                new_states(scenario, rows, 256, record),
                reward_weights(scenario.reward),
                np.zeros(rows, np.int64),
                list(range(rows))[::-1],
            )
            for scenario, workload in zip(self.scenarios, workloads, strict=True)
        ]
        self.scenario_index = np.zeros(num_envs, np.int64)
        self._rows = np.arange(num_envs)  # of each system in the arrays of its scenario
        if len(self._parts) > 1:
            self._rows[:] = _NO_ROW
        self._horizons_s = np.array([scenario.reward.discount_horizon_s for scenario in self.scenarios])
        self._rngs: list[np.random.Generator | None] = [None] * num_envs
        self._integers = np.zeros((num_envs, 4), np.int64)
        self._floats = np.zeros((num_envs, 4), np.float64)

    # ---- starting episodes -----------------------------------------------------------------------------------------
    def reset(self, e: int, seed: int) -> None:
        """Starts a new episode in system e with the scenario, the workload and the noise of a seed."""
        k = draw_scenario(seed, len(self._parts))
        part = self._parts[k]
        requests = part.workload(seed)
        if len(self._parts) > 1:
            if self._rows[e] != _NO_ROW:
                self._parts[self.scenario_index[e]].free.append(int(self._rows[e]))
            self._rows[e] = part.take_row()
        self.scenario_index[e], row = k, int(self._rows[e])
        part.seeds[row] = seed
        part.states = load(part.states, row, requests, seed)

    def restart(self, e: int, seed: int | None) -> int:
        """Starts an episode as `ServingEnv.reset` does: with a seed, that workload, and a new stream of episodes.

        Without a seed the workload's seed is the next one of system e's stream, from 0 to NUM_TRAINING_SEEDS - 1.

        Returns:
            The seed of the workload.
        """
        rng = self._rngs[e]
        if seed is not None or rng is None:
            rng = self._rngs[e] = np.random.default_rng(seed)  # the generator that gymnasium.Env has
        episode_seed = int(rng.integers(NUM_TRAINING_SEEDS)) if seed is None else int(seed)
        self.reset(e, episode_seed)
        return episode_seed

    def observe(self, which: np.ndarray) -> np.ndarray:
        """Features of the systems in the mask `which`, (num_envs, NUM_FEATURES) float32, zero elsewhere."""
        observations = np.zeros((self.num_envs, NUM_FEATURES), np.float32)
        self._in_parts(which, lambda part, mine, out: observe_all(part.states, mine, out), observations)
        return observations

    def _in_parts(self, which: np.ndarray, act: Callable[..., object], *arrays: np.ndarray) -> None:
        """Calls act(part, mine, *arrays) for each scenario that systems of the mask `which` are at.

        A lone scenario gets the arrays themselves and a copy of the mask. One of several gets copies in the order of
        its rows, and what it writes into those of its systems is put back.

        Args:
            arrays: (num_envs, ...) each.
        """
        if len(self._parts) == 1:
            act(self._parts[0], which.copy(), *arrays)
            return
        for k, part in enumerate(self._parts):
            here = np.flatnonzero(which & (self.scenario_index == k) & (self._rows != _NO_ROW))
            if here.size == 0:
                continue
            rows, size = self._rows[here], len(part.seeds)
            mine = np.zeros(size, np.bool_)
            mine[rows] = True
            own = [np.zeros((size, *array.shape[1:]), array.dtype) for array in arrays]
            for array, copy in zip(arrays, own, strict=True):
                copy[rows] = array[here]
            act(part, mine, *own)
            for array, copy in zip(arrays, own, strict=True):
                array[here] = copy[rows]

    # ---- moving ----------------------------------------------------------------------------------------------------
    def set_actions(self, actions: np.ndarray) -> None:
        """Takes the actions of all systems: (num_envs, 4) levels, (num_envs,) indices or (num_envs, 4) floats.

        Raises:
            ValueError: wrong shape, or a level outside its range (a float outside [-1, 1] is clipped, NaN refused).
        """
        actions = np.asarray(actions)
        shape = (self.num_envs,) if self.kind == DISCRETE else (self.num_envs, 4)
        if actions.shape != shape:
            raise ValueError(f"action: expected shape {shape} with the systems first, got {actions.shape}")
        if self.kind != BOX and actions.dtype.kind not in "iu":
            raise ValueError(f"action: expected integers, got {actions!r}")
        if self.kind == BOX:
            self._floats[:] = actions
            if np.isnan(self._floats).any():
                raise ValueError(f"action: NaN in {actions!r}")
            return
        if self.kind == DISCRETE:
            self._integers[:, 0] = actions
            good = ((self._integers[:, 0] >= 0) & (self._integers[:, 0] < len(DISCRETE_TABLE))).all()
            allowed = f"0 to {len(DISCRETE_TABLE) - 1}"
        else:
            self._integers[:] = actions
            good = ((self._integers >= 0) & (self._integers < _NVEC)).all()
            allowed = f"levels below {NVEC}"
        if not good:
            raise ValueError(f"action: expected {allowed}, got {actions!r}")

    def step(self, which: np.ndarray) -> Step:
        """One decision, with the actions set before, in every system of the mask `which`, (num_envs,) bool."""
        n = self.num_envs
        observations = np.zeros((n, NUM_FEATURES), np.float32)
        rewards, dt_s = np.zeros(n), np.zeros(n)
        terms = np.zeros((n, NUM_TERMS))
        counts = np.zeros((n, 5), np.int64)
        arrays = (self._integers, self._floats, observations, rewards, terms, dt_s, counts)
        self._in_parts(which, self._move, *arrays)
        phase, tokens, prefill, waiting, running = counts.T
        infos = {
            "dt_s": dt_s,
            "batch_tokens": tokens,
            "prefill_share": prefill / np.maximum(tokens, 1),
            "num_waiting": waiting,
            "num_running": running,
        }
        for k, name in enumerate(TERM_NAMES):
            infos[f"reward_{name}"] = terms[:, k].copy()
        return Step(observations, rewards, which & (phase == DRAINED), which & (phase == HORIZON), infos)

    def _move(self, part, mine, integers, floats, observations, rewards, terms, dt_s, counts) -> None:
        """Steps the systems of a scenario that the mask `mine` names; see `step_all` for the arrays, one row a system.

        Args:
            counts: (rows, 5) int64, written for all rows: phase, and of the worker that decided tokens and prefill
                tokens of its batch; requests waiting and running.
        """
        workers = part.states.system["worker"][:, 0].copy()  # who decides now
        part.states = step_all(
            part.states, part.seeds, self.kind, integers, floats, part.weights, mine, observations, rewards, terms, dt_s
        )
        system = part.states.system[:, 0]
        decided = part.states.workers[np.arange(workers.size), workers]
        counts[:, 0] = system["phase"]
        counts[:, 1] = decided["batch_tokens"]
        counts[:, 2] = decided["batch_prefill"]
        counts[:, 3] = system["num_waiting"]
        counts[:, 4] = part.states.workers["num_running"].sum(axis=1)

    def masks(self) -> np.ndarray:
        """Which actions make a difference now (`llm_env.actions.mask_actions`), bool.

        Returns:
            (num_envs, MASK_LENGTH) of the MultiDiscrete levels; (num_envs, 18) of the Discrete combinations, allowed
            where all their levels are; (num_envs, 4) of True for Box.
        """
        if self.kind == BOX:
            return np.ones((self.num_envs, len(BOX_NAMES)), np.bool_)
        masks = np.ones((self.num_envs, MASK_LENGTH), np.bool_)
        everywhere = np.ones(self.num_envs, np.bool_)
        self._in_parts(everywhere, lambda part, mine, out: mask_all(part.states, mine, out), masks)
        if self.kind == DISCRETE:
            return np.all(masks[:, _DISCRETE_LEVELS], axis=2)
        return masks

    # ---- looking ---------------------------------------------------------------------------------------------------
    def state(self, e: int) -> State:
        """System e as views on its arrays."""
        return single(self._parts[self.scenario_index[e]].states, self._rows[e])

    def scenario(self, e: int) -> Scenario:
        """That of the present episode of system e."""
        return self.scenarios[self.scenario_index[e]]

    def discount_horizons_s(self) -> np.ndarray:
        """(num_envs,) reward.discount_horizon_s of the present episodes' scenarios."""
        return self._horizons_s[self.scenario_index]

    def active(self) -> np.ndarray:
        """(num_envs,) bool: which systems have a decision due."""
        active = np.zeros(self.num_envs, np.bool_)
        self._in_parts(np.ones(self.num_envs, np.bool_), _note_active, active)
        return active

    def outcome(self, e: int) -> dict[str, float]:
        """Scalars of the episode in system e, over the requests of its measured window (see `OUTCOME_KEYS`)."""
        state, scenario = self.state(e), self.scenario(e)
        requests = state.requests[: state.system["num_requests"][0]]
        arrivals = requests["arrival_s"]
        requests = requests[(arrivals >= scenario.episode.warmup_s) & (arrivals < scenario.episode.arrivals_s)]
        return {SCENARIO_INDEX: float(self.scenario_index[e]), **episode_outcome(requests, scenario)}


def _note_active(part: _Part, mine: np.ndarray, active: np.ndarray) -> None:
    active[:] = mine & (part.states.system["phase"][:, 0] == ACTIVE)


_NO_ROW = -1  # of a system that has had no episode
_NVEC = np.array(NVEC)
_DISCRETE_LEVELS = np.array(DISCRETE_TABLE) + np.concatenate([[0], np.cumsum(NVEC)[:-1]])  # places in the masks
EPISODE_KEYS = ("num_requests", "slo_attainment", "ttft_attainment", "goodput_per_s", "ttft_p50_s", "ttft_p99_s")
SCENARIO_INDEX = "scenario_index"  # which scenario an episode had
OUTCOME_KEYS = (SCENARIO_INDEX, *EPISODE_KEYS)  # of `Systems.outcome`


def episode_outcome(requests: np.ndarray, scenario: Scenario) -> dict[str, float]:
    """Scalars of an episode for `info`: shares of all requests given, percentiles of those with a first token.

    Args:
        requests: (n,) REQUEST, the measured ones. With none, only num_requests is returned: NaN has no place in info.
    """
    n = len(requests)
    if n == 0:
        return {"num_requests": 0.0}
    started = requests["emitted_tokens"] > 0
    ttft_s = requests["first_token_s"] - requests["arrival_s"]
    verdicts = judged(requests)
    on_time, good = verdicts[:, 0], verdicts[:, 1 + SLO_RULES.index(scenario.slo.rule)]
    window_s = scenario.episode.arrivals_s - scenario.episode.warmup_s
    outcome = {
        "num_requests": float(n),
        "slo_attainment": float(good.mean()),
        "ttft_attainment": float(on_time.mean()),
        "goodput_per_s": float(good.sum() / window_s),
    }
    if started.any():
        p50, p99 = np.quantile(ttft_s[started], (0.5, 0.99))
        outcome |= {"ttft_p50_s": float(p50), "ttft_p99_s": float(p99)}
    return outcome
