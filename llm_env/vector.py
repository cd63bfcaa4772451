"""The native vector form of `llm_env/Serving-v0`: N systems advanced by one compiled call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from llm_env.config import Scenario
from llm_env.ranking import observed
from llm_env.spaces import Given, action_space, observation_space, resolve_episodes
from llm_env.systems import OUTCOME_KEYS, Systems
from llm_env.workload import WHOLE


def check_vector(num_envs: int, render_mode: str | None) -> None:
    """Raises:
    ValueError: no environment, or one that is to render.
    """
    if num_envs < 1:
        raise ValueError(f"num_envs: expected at least 1, got {num_envs}")
    if render_mode is not None:
        raise ValueError("the vector environment does not render; use gym.make for one that does")


class ServingVectorEnv(VectorEnv):
    """N independent `ServingEnv`: sub-environment i with seed s is a single environment with seed s + i.

    Arguments are those of `ServingEnv`, and:

    Args:
        num_envs: how many.
        autoreset_mode: NEXT_STEP (Gymnasium's default: the step after an episode's end resets and ignores the action),
            SAME_STEP (the step that ends an episode also resets; the last observation is in info["final_obs"]) or
            DISABLED (reset with options={"reset_mask": ...}).
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 - Gymnasium declares it so
        "render_modes": [],
        "render_fps": 10,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    def __init__(
        self,
        num_envs: int = 1,
        scenario: Given = "chat",
        action: str = "multidiscrete",
        changes: dict[str, Any] | None = None,
        load_range: tuple[float, float] | None = None,
        trace: str | Path | None = None,
        time_scale: float = 1.0,
        trace_part: tuple[float, float] = WHOLE,
        render_mode: str | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
    ) -> None:
        scenarios, workloads = resolve_episodes(scenario, changes, load_range, trace, time_scale, trace_part)
        check_vector(num_envs, render_mode)
        systems = Systems(scenarios, num_envs, action, workloads)
        names = tuple(name for name, *_ in observed(action))
        self._make(systems, observation_space(action), action_space(action), names, autoreset_mode)

    def _make(
        self,
        systems: Systems,
        observations: spaces.Box,
        actions: spaces.Space[Any],
        feature_names: tuple[str, ...],
        autoreset_mode: AutoresetMode | str,
    ) -> None:
        """Takes the systems. Args: observations, actions, feature_names: of one."""
        num_envs = self.num_envs = systems.num_envs
        self.scenarios = systems.scenarios
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {**type(self).metadata, "autoreset_mode": self.autoreset_mode}
        self.single_observation_space, self.single_action_space = observations, actions
        self._feature_names = feature_names
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._systems = systems
        self._ended = np.zeros(num_envs, np.bool_)
        self._begun = np.zeros(num_envs, np.bool_)  # who has had an episode
        self._all = np.ones(num_envs, np.bool_)

    @property
    def scenario(self) -> Scenario:
        """The scenario of all sub-environments; where it varies, each episode's is `llm_env.workload.concrete` of it.

        Raises:
            AttributeError: there are several (see `scenarios`), and each sub-environment has its own.
        """
        first, *others = self.scenarios
        if others:
            raise AttributeError("the environment has several scenarios: see its attribute scenarios")
        return first

    @property
    def discount_horizon_s(self) -> np.ndarray:
        """(num_envs,) float64: H of the present episodes' scenarios."""
        return self._systems.discount_horizons_s()

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Name of each entry of an observation."""
        return self._feature_names

    def action_masks(self) -> np.ndarray:
        """(num_envs, ...) bool: the actions that make a difference now (see `llm_env.systems.Systems.masks`)."""
        return self._systems.masks()

    # ---- reset -----------------------------------------------------------------------------------------------------
    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts episodes everywhere, or where options["reset_mask"], (num_envs,) bool, says.

        Raises:
            ValueError: the seeds or the mask do not have num_envs entries.
        """
        seeds = [None] * self.num_envs if seed is None else seed
        if isinstance(seeds, (int, np.integer)):
            seeds = [int(seeds) + e for e in range(self.num_envs)]
        if len(seeds) != self.num_envs:
            raise ValueError(f"seed: expected {self.num_envs} seeds, got {len(seeds)}")
        which = self._all
        if options is not None and "reset_mask" in options:
            which = np.asarray(options["reset_mask"])
            if which.shape != (self.num_envs,) or which.dtype != np.bool_ or not which.any():
                raise ValueError(f"reset_mask: expected ({self.num_envs},) bool with a True, got {which!r}")
        episode_seeds = np.zeros(self.num_envs, np.int64)
        for e in np.flatnonzero(which):
            episode_seeds[e] = self._systems.restart(int(e), seeds[e])
        self._ended &= ~which
        self._begun |= which
        return self._systems.observe(self._begun), {"episode_seed": episode_seeds, "_episode_seed": which.copy()}

    # ---- step ------------------------------------------------------------------------------------------------------
    def step(self, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One decision in every sub-environment."""
        which = self._all
        restarted: dict[int, int] = {}
        if self._ended.any() and self.autoreset_mode == AutoresetMode.DISABLED:
            raise ValueError("an episode has ended: reset it first with options={'reset_mask': ...}")
        self._systems.set_actions(actions)
        if self._ended.any():
            which = ~self._ended
            restarted = {int(e): self._systems.restart(int(e), None) for e in np.flatnonzero(self._ended)}
        step = self._systems.step(which)
        observations = step.observations
        infos: dict[str, Any] = {}
        for name, values in step.infos.items():
            infos[name], infos[f"_{name}"] = values, which.copy()
        if restarted:
            observations[~which] = self._systems.observe(~which)[~which]
            self._add_seeds(infos, restarted)
        ended = step.terminated | step.truncated
        self._ended = ended if self.autoreset_mode != AutoresetMode.SAME_STEP else np.zeros_like(ended)
        if ended.any():
            observations = self._end(ended, observations, infos)
        return observations, step.rewards, step.terminated, step.truncated, infos

    def _end(self, ended: np.ndarray, observations: np.ndarray, infos: dict[str, Any]) -> np.ndarray:
        """Outcomes of the episodes that ended; under SAME_STEP also their last observation and the next one's first."""
        outcome: dict[str, Any] = {}
        for key in OUTCOME_KEYS:
            outcome[key], outcome[f"_{key}"] = np.zeros(self.num_envs), np.zeros(self.num_envs, np.bool_)
        for e in np.flatnonzero(ended):
            for key, value in self._systems.outcome(int(e)).items():
                outcome[key][e], outcome[f"_{key}"][e] = value, True
        if self.autoreset_mode != AutoresetMode.SAME_STEP:
            infos |= outcome
            return observations
        last = np.full(self.num_envs, None, dtype=object)
        for e in np.flatnonzero(ended):
            last[e] = observations[e].copy()
        final = {name: values.copy() for name, values in infos.items()} | outcome
        for name in list(final):
            if name.startswith("_"):
                final[name] = final[name] & ended
        for name, values in infos.items():  # a sub-environment that ended shows the new episode's info, as single ones
            values[ended] = False if name.startswith("_") else 0
        self._add_seeds(infos, {int(e): self._systems.restart(int(e), None) for e in np.flatnonzero(ended)})
        infos |= {"final_obs": last, "_final_obs": ended.copy(), "final_info": final, "_final_info": ended.copy()}
        return np.where(ended[:, None], self._systems.observe(ended), observations)

    def _add_seeds(self, infos: dict[str, Any], restarted: dict[int, int]) -> None:
        seeds, mask = np.zeros(self.num_envs, np.int64), np.zeros(self.num_envs, np.bool_)
        for e, seed in restarted.items():
            seeds[e], mask[e] = seed, True
        infos |= {"episode_seed": seeds, "_episode_seed": mask}
