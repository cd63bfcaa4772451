"""Many seeded episodes side by side, of one scenario or of several: what Env, VectorEnv, training and evaluation share.

Holds the arrays, loads workloads and calls `step_all`. Knows nothing of Gymnasium.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from llm_env.actions import (
    ACTION_KINDS,
    BOX,
    BOX_NAMES,
    DISCRETE,
    DISCRETE_TABLE,
    MASK_LENGTH,
    MULTIDISCRETE,
    NVEC,
    is_allowed,
)
from llm_env.build import single
from llm_env.config import Scenario
from llm_env.dtypes import ACTIVE, DRAINED, HORIZON, SLO_RULES
from llm_env.errors import UserError
from llm_env.features import NUM_FEATURES
from llm_env.part import Part, Workload
from llm_env.records import State
from llm_env.reward import NUM_TERMS, TERM_NAMES
from llm_env.rollout import new_exchange
from llm_env.slo import judged
from llm_env.workload import capacity_requests_per_s, draw_load, draw_scenario, draw_workload, refuse_rate

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
            Part(scenario, workload, rows, self.kind, record)
            for scenario, workload in zip(self.scenarios, workloads, strict=True)
        ]
        self.scenario_index = np.zeros(num_envs, np.int64)
        self._rows = np.arange(num_envs)  # of each system in the arrays of its scenario
        if len(self._parts) > 1:
            self._rows[:] = _NO_ROW
        self._horizons_s = np.array([scenario.reward.discount_horizon_s for scenario in self.scenarios])
        self._rngs: list[np.random.Generator | None] = [None] * num_envs
        lone = len(self._parts) == 1  # then row e is that of system e
        self._exchange = self._parts[0].exchange if lone else new_exchange(num_envs, np.zeros(NUM_TERMS))

    # ---- starting episodes -----------------------------------------------------------------------------------------
    def reset(self, e: int, seed: int) -> None:
        """Starts a new episode in system e with the scenario, the workload and the noise of a seed."""
        k = draw_scenario(seed, len(self._parts))
        part = self._parts[k]
        if len(self._parts) > 1:
            if self._rows[e] != _NO_ROW:
                self._parts[self.scenario_index[e]].free.append(int(self._rows[e]))
            self._rows[e] = part.take_row()
        self.scenario_index[e] = k
        part.load(int(self._rows[e]), seed)

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
        self._in_parts(which, Part.observe, observations)
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
        integers, floats = self._exchange.integers, self._exchange.floats
        if self.kind == BOX:
            floats[:] = actions
            if np.isnan(floats).any():
                raise ValueError(f"action: NaN in {actions!r}")
            return
        if self.kind == DISCRETE:
            integers[:, 0] = actions
            good = ((integers[:, 0] >= 0) & (integers[:, 0] < len(DISCRETE_TABLE))).all()
        else:
            integers[:] = actions
            good = ((integers >= 0) & (integers < _NVEC)).all()
        if not good:
            raise ValueError(f"action: expected {_ALLOWED[self.kind]}, got {actions!r}")

    def step(self, which: np.ndarray) -> Step:
        """One decision, with the actions set before, in every system of the mask `which`, (num_envs,) bool."""
        exchange, lone = self._exchange, len(self._parts) == 1
        observations = np.empty((self.num_envs, NUM_FEATURES), np.float32)
        if not (lone and which.all()):
            observations[:], exchange.results[:], exchange.counts[:] = 0.0, 0.0, 0
        if lone:
            exchange.todo[:] = which
            self._parts[0].step(observations)
        else:
            self._in_parts(which, _step_part, *exchange[:2], observations, exchange.results, exchange.counts)
        phase, tokens, prefill, waiting, running = exchange.counts.T.copy()
        rewards, dt_s, *terms = exchange.results.T.copy()
        infos = {
            "dt_s": dt_s,
            "batch_tokens": tokens,
            "prefill_share": prefill / np.maximum(tokens, 1),
            "num_waiting": waiting,
            "num_running": running,
        }
        infos |= {f"reward_{name}": term for name, term in zip(TERM_NAMES, terms, strict=True)}
        return Step(observations, rewards, which & (phase == DRAINED), which & (phase == HORIZON), infos)

    def step_alone(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """`set_actions` and `step` of the only system, with as little around the compiled call as can be.

        Args:
            action: (4,) levels, () index or (4,) floats.

        Returns:
            (NUM_FEATURES,) float32, reward, terminated, truncated, and the infos as Python numbers.

        Raises:
            ValueError: as `set_actions`.
        """
        part = self._parts[self.scenario_index[0]]
        exchange = part.exchange
        action = np.asarray(action)
        if not is_allowed(action, self.kind):
            self.set_actions(action[None])  # which says what is wrong
        if self.kind == MULTIDISCRETE:
            exchange.integers[0] = action
        elif self.kind == DISCRETE:
            exchange.integers[0, 0] = action
        else:
            exchange.floats[0] = action
        exchange.todo[0] = True
        observation = np.zeros((1, NUM_FEATURES), np.float32)
        part.step(observation)
        reward, dt_s, first_token, completion, token, queue = exchange.results.tolist()[0]
        phase, tokens, prefill, waiting, running = exchange.counts.tolist()[0]
        info = {  # as in `step`; written out, since this is a fifth of the time of a step
            "dt_s": dt_s,
            "batch_tokens": tokens,
            "prefill_share": prefill / (tokens or 1),
            "num_waiting": waiting,
            "num_running": running,
            "reward_first_token": first_token,
            "reward_completion": completion,
            "reward_token": token,
            "reward_queue": queue,
        }
        return observation[0], reward, phase == DRAINED, phase == HORIZON, info

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
        self._in_parts(everywhere, Part.mask, masks)
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


def _step_part(part: Part, mine, integers, floats, observations, results, counts) -> None:
    """Steps the systems of a scenario that the mask `mine` names; the arrays have one row a system of it."""
    exchange = part.exchange
    exchange.integers[:], exchange.floats[:], exchange.todo[:] = integers, floats, mine
    part.step(observations)
    results[:], counts[:] = exchange.results, exchange.counts


def _note_active(part: Part, mine: np.ndarray, active: np.ndarray) -> None:
    active[:] = mine & (part.states.system["phase"][:, 0] == ACTIVE)


_NO_ROW = -1  # of a system that has had no episode
_NVEC = np.array(NVEC)
_ALLOWED = {MULTIDISCRETE: f"levels below {NVEC}", DISCRETE: f"0 to {len(DISCRETE_TABLE) - 1}"}
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
