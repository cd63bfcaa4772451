"""PPO end to end beside the same PPO on an environment that costs nothing: what the simulator takes of training."""

from __future__ import annotations

from typing import Any

import numpy as np

from agents.ppo import PPOSettings, make_ppo
from agents.vec_env import ServingVecEnv
from benchmarks.measure import Effort, Figure, Work, alternate, rate_figure, timed
from llm_env.features import NUM_FEATURES

NUM_ENVS = 256  # as train.py has it
_STAGGER_STEPS = 800  # about the decisions of an episode


class FreeVecEnv(ServingVecEnv):
    """The same spaces, and steps that do nothing."""

    def reset(self) -> np.ndarray:
        self._last = np.random.default_rng(0).normal(size=(self.num_envs, NUM_FEATURES)).astype(np.float32)
        self._nobody = np.zeros(self.num_envs, np.bool_)
        self.reset_infos = [{} for _ in range(self.num_envs)]
        return self._last

    def step_async(self, actions: np.ndarray) -> None:
        pass

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        return self._last, self.rewards, self._nobody, self.reset_infos


def figures(effort: Effort) -> list[Figure]:
    """Samples per CPU-second of whole rollouts with their updates."""
    works = {
        "serving": rollouts(ServingVecEnv("chat", NUM_ENVS, stagger_steps=_STAGGER_STEPS)),
        "free": rollouts(FreeVecEnv("chat", NUM_ENVS)),
    }
    samples = alternate(works, effort)
    return [
        rate_figure("ppo/Serving-v0", "steps", samples["serving"], "", "a free environment", samples["free"]),
        rate_figure("ppo/free environment", "steps", samples["free"]),
    ]


def rollouts(env: ServingVecEnv) -> Work:
    """One rollout and its update, with the settings of train.py."""
    model = make_ppo(env, PPOSettings(), 0)
    env.seed(0)
    size = PPOSettings().num_steps * env.num_envs

    def learn() -> float:
        model.learn(size, reset_num_timesteps=False)
        return size

    return timed(learn)
