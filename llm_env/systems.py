"""Many seeded episodes of one scenario, side by side: what Env, VectorEnv, training and evaluation of agents share.

Holds the arrays, loads workloads and calls `step_all`. Knows nothing of Gymnasium.
"""

from __future__ import annotations

from collections.abc import Callable
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
from llm_env.workload import capacity_requests_per_s, draw_load, draw_workload

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
        UserError: the range is not 0 < low <= high.
    """
    if load_range is None:
        return lambda seed: draw_workload(scenario, seed)
    low, high = checked_load_range(load_range)
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
    """`num_envs` systems of one scenario.

    Args:
        scenario: their settings.
        num_envs: how many.
        action: "multidiscrete", "discrete" or "box".
        workload: seed -> requests; by default drawn from the scenario.
        record: keep logs of batches and gaps.
    """

    def __init__(
        self,
        scenario: Scenario,
        num_envs: int,
        action: str = "multidiscrete",
        workload: Workload | None = None,
        record: bool = False,
    ) -> None:
        if action not in ACTION_KINDS:
            raise UserError(f"action: expected one of {', '.join(ACTION_KINDS)}, got {action!r}")
        self.scenario = scenario
        self.num_envs = num_envs
        self.kind = ACTION_KINDS.index(action)
        self.workload = workload or drawn_from(scenario)
        self.seeds = np.zeros(num_envs, np.int64)
        self.states = new_states(scenario, num_envs, 256, record)
        self._rngs: list[np.random.Generator | None] = [None] * num_envs
        self._weights = reward_weights(scenario.reward)
        self._integers = np.zeros((num_envs, 4), np.int64)
        self._floats = np.zeros((num_envs, 4), np.float64)

    # ---- starting episodes -----------------------------------------------------------------------------------------
    def reset(self, e: int, seed: int) -> None:
        """Starts a new episode in system e with the workload and noise of a seed."""
        self.seeds[e] = seed
        self.states = load(self.states, e, self.workload(seed), seed)

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
        observe_all(self.states, which, observations)
        return observations

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
        workers = self.states.system["worker"][:, 0].copy()  # who decides now
        self.states = step_all(
            self.states,
            self.seeds,
            self.kind,
            self._integers,
            self._floats,
            self._weights,
            which.copy(),
            observations,
            rewards,
            terms,
            dt_s,
        )
        phase = self.states.system["phase"][:, 0]
        decided = self.states.workers[np.arange(n), workers]
        tokens = decided["batch_tokens"]
        infos = {
            "dt_s": dt_s,
            "batch_tokens": tokens.astype(np.int64),
            "prefill_share": decided["batch_prefill"] / np.maximum(tokens, 1),
            "num_waiting": self.states.system["num_waiting"][:, 0].copy(),
            "num_running": self.states.workers["num_running"].sum(axis=1),
        }
        for k, name in enumerate(TERM_NAMES):
            infos[f"reward_{name}"] = terms[:, k].copy()
        return Step(observations, rewards, which & (phase == DRAINED), which & (phase == HORIZON), infos)

    def masks(self) -> np.ndarray:
        """Which actions make a difference now (`llm_env.actions.mask_actions`), bool.

        Returns:
            (num_envs, MASK_LENGTH) of the MultiDiscrete levels; (num_envs, 18) of the Discrete combinations, allowed
            where all their levels are; (num_envs, 4) of True for Box.
        """
        if self.kind == BOX:
            return np.ones((self.num_envs, len(BOX_NAMES)), np.bool_)
        masks = np.ones((self.num_envs, MASK_LENGTH), np.bool_)
        mask_all(self.states, masks)
        if self.kind == DISCRETE:
            return np.all(masks[:, _DISCRETE_LEVELS], axis=2)
        return masks

    # ---- looking ---------------------------------------------------------------------------------------------------
    def state(self, e: int) -> State:
        """System e as views on its arrays."""
        return single(self.states, e)

    def active(self) -> np.ndarray:
        """(num_envs,) bool: which systems have a decision due."""
        return self.states.system["phase"][:, 0] == ACTIVE

    def outcome(self, e: int) -> dict[str, float]:
        """Scalars of the episode in system e, over the requests of its measured window (see `EPISODE_KEYS`)."""
        state, episode = self.state(e), self.scenario.episode
        requests = state.requests[: state.system["num_requests"][0]]
        arrivals = requests["arrival_s"]
        requests = requests[(arrivals >= episode.warmup_s) & (arrivals < episode.arrivals_s)]
        return episode_outcome(requests, self.scenario)


_NVEC = np.array(NVEC)
_DISCRETE_LEVELS = np.array(DISCRETE_TABLE) + np.concatenate([[0], np.cumsum(NVEC)[:-1]])  # places in the masks
EPISODE_KEYS = ("num_requests", "slo_attainment", "ttft_attainment", "goodput_per_s", "ttft_p50_s", "ttft_p99_s")


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
