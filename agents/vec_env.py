"""The native vector environment for Stable-Baselines3: N systems advanced by one compiled call, in SB3's conventions.

Stable-Baselines3 takes no Gymnasium vector environment; this one stands directly on `llm_env.systems.Systems`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from agents.stored import Stored
from llm_env.actions import BUDGET_LEVELS, CHUNK_LEVELS, DISCRETE_TABLE, MIX_FULL, MULTIDISCRETE, ORDERS
from llm_env.adaptive import BOX as ADAPTIVE_BOX
from llm_env.errors import UserError
from llm_env.ranking import observed
from llm_env.records import MOST_RANKED, SHORTEST_PREFILL, State
from llm_env.role_rule import BOX as ROLE_BOX
from llm_env.spaces import Given, action_space, observation_space, resolve_scenarios
from llm_env.systems import Step, Systems, Workload

Indices = int | Iterable[int] | None
# budget tau*, whole prompts, shortest first, in each form of action: what passes the time before training begins
_PLAIN_LEVELS = (BUDGET_LEVELS.index(1.0), MIX_FULL, len(CHUNK_LEVELS) - 1, ORDERS.index(SHORTEST_PREFILL))
_BY_LENGTH = {"slack_weight": 0.0, "drop": 0.25}  # on floats, as near as they come to it
_NUMBERS = tuple(ADAPTIVE_BOX.to_unit([_BY_LENGTH.get(p.name, p.neutral) for p in ADAPTIVE_BOX.parameters]))
_PLAIN = (
    _PLAIN_LEVELS,
    DISCRETE_TABLE.index(_PLAIN_LEVELS),
    (0.0, -1.0, -1.0, 0.0),
    _NUMBERS,
    (0.0,) * MOST_RANKED + _NUMBERS,
    tuple(ROLE_BOX.to_unit([0.0 if p.name == "slack_weight" else p.neutral for p in ROLE_BOX.parameters])),
)
_NOTHING: dict[str, Any] = {}  # the info of every step that ends no episode


class ServingVecEnv(VecEnv):
    """`num_envs` serving systems that reset in the step that ends their episode.

    Sub-environment i with seed s begins with episode s + i and then draws its episodes from 0 ... 999,999, exactly as
    `llm_env.vector.ServingVectorEnv` does. The info of a step is empty but at an episode's end: terminal_observation,
    TimeLimit.truncated (the horizon came before the queue was drained), episode = {r, l, t} and the outcome's scalars.

    Args:
        scenario: name, TOML file or settings; or a list of these, one of which each episode draws.
        num_envs: how many.
        action: one of `llm_env.actions.ACTION_KINDS`.
        workloads: seed -> requests, of each scenario; by default drawn from it (see `llm_env.spaces.workload_of`).
        stagger_steps: above 0, `reset` first takes up to so many steps in each system, a number drawn for each, so that
            their episodes do not run in lockstep and a rollout shows all parts of an episode.

    Attributes:
        action_kind: its place there.
        scenarios: the scenarios, in the order in which they were given.
        scenario_index: (num_envs,) int64, which of them the episodes of the last step were of.
        dt_s: (num_envs,) float64, duration of the last step in seconds, for a discount by time.
        rewards: (num_envs,) float32, rewards of the last step, a copy that nobody else writes.
        step_infos: arrays of the last step by name (see `llm_env.systems.Step`).
    """

    def __init__(
        self,
        scenario: Given,
        num_envs: int,
        action: str = "multidiscrete",
        workloads: Sequence[Workload] | None = None,
        stagger_steps: int = 0,
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs: expected at least 1, got {num_envs}")
        systems = Systems(resolve_scenarios(scenario, None), num_envs, action, workloads)
        names = tuple(name for name, *_ in observed(action))
        self._make(systems, observation_space(action), action_space(action), names, stagger_steps)

    def _make(
        self,
        systems: Systems,
        observations: gym.spaces.Box,
        actions: gym.Space[Any],
        feature_names: tuple[str, ...],
        stagger_steps: int = 0,
    ) -> None:
        """Takes the systems. Args: observations, actions, feature_names: of one of them."""
        num_envs = systems.num_envs
        self.scenarios = systems.scenarios
        self._systems = systems
        self.action_kind = systems.kind
        self._feature_names = feature_names
        super().__init__(num_envs, observations, actions)
        self.scenario_index = np.zeros(num_envs, np.int64)
        self.dt_s = np.zeros(num_envs)
        self.rewards = np.zeros(num_envs, np.float32)
        self.step_infos: dict[str, np.ndarray] = {}
        self._all = np.ones(num_envs, np.bool_)
        self._returns = np.zeros(num_envs)
        self._lengths = np.zeros(num_envs, np.int64)
        self._stagger_steps = stagger_steps
        self._begun = time.perf_counter()

    # ---- episodes --------------------------------------------------------------------------------------------------
    def reset(self) -> np.ndarray:
        """Starts an episode everywhere; those seeded since the last reset begin with their seed's workload.

        Returns:
            (num_envs, NUM_FEATURES) float32.
        """
        self.reset_infos = [{"episode_seed": self._restart(e, self._seeds[e])} for e in range(self.num_envs)]
        if self._stagger_steps > 0:
            self._stagger(self._seeds[0])
        self._reset_seeds()
        self._reset_options()
        return self._systems.observe(self._all)

    def _restart(self, e: int, seed: int | None) -> int:
        self._returns[e], self._lengths[e] = 0.0, 0
        return self._systems.restart(e, seed)

    def _stagger(self, seed: int | None) -> None:
        """Takes 0 to stagger_steps - 1 steps, drawn for each system, of Sarathi with shortest prompts first."""
        rng = np.random.default_rng(seed)
        remaining = rng.integers(0, self._stagger_steps, self.num_envs)
        self._systems.set_actions(np.array([_PLAIN[self.action_kind]] * self.num_envs))
        while remaining.any():
            step = self._systems.step(remaining > 0)
            remaining[remaining > 0] -= 1
            for e in np.flatnonzero(step.terminated | step.truncated):
                self._restart(int(e), None)

    # ---- steps -----------------------------------------------------------------------------------------------------
    def step_async(self, actions: np.ndarray) -> None:
        """Takes the actions of the next step (see `Systems.set_actions`)."""
        self._systems.set_actions(actions)

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """One decision in every system.

        Returns:
            (num_envs, NUM_FEATURES) float32 observations, of the new episode where one ended; (num_envs,) float32
            rewards; (num_envs,) bool ends of episodes; infos.
        """
        step = self._systems.step(self._all)
        self.scenario_index = self._systems.scenario_index.copy()  # before those that end begin anew
        self.dt_s, self.step_infos = step.infos["dt_s"], step.infos
        self.rewards = self._rewards_of(step).astype(np.float32)
        self._returns += step.rewards
        self._lengths += 1
        observations, ended = step.observations, step.terminated | step.truncated
        infos = [_NOTHING] * self.num_envs
        if ended.any():
            for e in np.flatnonzero(ended):
                infos[e] = self._final_info(int(e), observations[e].copy(), bool(step.truncated[e]))
                self._restart(int(e), None)
            observations = np.where(ended[:, None], self._systems.observe(ended), observations)
        return observations, self.rewards.copy(), ended, infos

    def _rewards_of(self, step: Step) -> np.ndarray:
        """(num_envs,) float64: what is learned from a step, before any episode begins anew."""
        return step.rewards

    def _final_info(self, e: int, observation: np.ndarray, truncated: bool) -> dict[str, Any]:
        elapsed_s = round(time.perf_counter() - self._begun, 6)
        return {
            "terminal_observation": observation,
            "TimeLimit.truncated": truncated,
            "episode": {"r": float(self._returns[e]), "l": int(self._lengths[e]), "t": elapsed_s},
            **self._systems.outcome(e),
        }

    def action_masks(self) -> np.ndarray:
        """(num_envs, sum(nvec)) bool: the MultiDiscrete levels that make a difference now."""
        return self._systems.masks()

    def state(self, e: int) -> State:
        """System e, without a leading axis (see `Systems.state`)."""
        return self._systems.state(e)

    def saved(self) -> dict[str, Any]:
        """All that the steps to come depend on: views on arrays, and JSON values (see `Systems.saved`)."""
        return {"returns": self._returns, "lengths": self._lengths, **self._systems.saved()}

    def restore(self, stored: Stored) -> None:
        """Goes on as the environment that had saved this: bit for bit.

        Raises:
            UserError: something is missing or does not fit; names it.
        """
        self._returns = stored.array("returns", np.float64, (self.num_envs,)).copy()
        self._lengths = stored.array("lengths", np.int64, (self.num_envs,)).copy()
        try:
            self._systems.restore(stored.values)
        except UserError as error:
            raise UserError(f"{stored.place}: {stored.prefix}{error}") from None

    def close(self) -> None:
        """Nothing is held that must be given back."""

    # ---- what SB3 asks of sub-environments -------------------------------------------------------------------------
    def _which(self, indices: Indices) -> list[int]:
        return list(self._get_indices(indices))

    def get_attr(self, attr_name: str, indices: Indices = None) -> list[Any]:
        """render_mode, scenario (of the present episode), feature_names; action_masks where actions are MultiDiscrete.

        Raises:
            AttributeError: anything else.
        """
        if attr_name == "action_masks" and self.action_kind == MULTIDISCRETE:
            return [lambda e=e: self.action_masks()[e] for e in self._which(indices)]
        if attr_name == "scenario":
            return [self._systems.scenario(e) for e in self._which(indices)]
        shared = {"render_mode": None, "feature_names": self._feature_names}
        if attr_name not in shared:
            raise AttributeError(f"the systems have no attribute {attr_name!r}")
        return [shared[attr_name] for _ in self._which(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Indices = None) -> None:
        """Nothing can be set.

        Raises:
            AttributeError: always.
        """
        raise AttributeError(f"{attr_name!r} cannot be set: make another environment")

    def env_method(
        self, method_name: str, *method_args: Any, indices: Indices = None, **method_kwargs: Any
    ) -> list[Any]:
        """action_masks() of the sub-environments, all computed by one call.

        Raises:
            AttributeError: another method, or the actions are not MultiDiscrete.
        """
        if method_name != "action_masks" or self.action_kind != MULTIDISCRETE:
            raise AttributeError(f"the systems have no method {method_name!r}")
        masks = self.action_masks()
        return [masks[e] for e in self._which(indices)]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: Indices = None) -> list[bool]:
        """No sub-environment is wrapped."""
        return [False for _ in self._which(indices)]
