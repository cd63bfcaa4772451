"""Wrappers for agents of any library. Know the environments' `info` and `scenario`, nothing of the kernel.

A decision here lasts from tens of milliseconds to seconds, so a constant discount per step would value one second
differently depending on how it is cut. `info["discount"]` is the discount of the step just taken.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np


def _horizon_s(env: Any, horizon_s: float | None) -> float:
    found = env.unwrapped.scenario.reward.discount_horizon_s if horizon_s is None else horizon_s
    if not found > 0:
        raise ValueError(f"horizon_s: expected above 0, got {horizon_s!r}")
    return float(found)


class TimeDiscount(gym.Wrapper):
    """Adds info["discount"] = exp(-dt_s / H) to every step.

    Args:
        env: a `llm_env.env.ServingEnv`.
        horizon_s: H in seconds; the scenario's reward.discount_horizon_s if None.

    Raises:
        ValueError: horizon_s is not above 0.

    Source: Bradtke and Duff, "Reinforcement learning methods for continuous-time Markov decision problems" (NIPS 1994).
    """

    def __init__(self, env: gym.Env, horizon_s: float | None = None) -> None:
        super().__init__(env)
        self.horizon_s = _horizon_s(env, horizon_s)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """A step with its discount in the info."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return (
            observation,
            reward,
            terminated,
            truncated,
            {**info, "discount": float(np.exp(-info["dt_s"] / self.horizon_s))},
        )


class VectorTimeDiscount(gym.vector.VectorWrapper):
    """Adds infos["discount"], (num_envs,) float64, to every step; 0 and not in infos["_discount"] where none was taken.

    Under SAME_STEP the discount of a step that ended an episode is in infos["final_info"], as all of that step's info.

    Args:
        env: a `llm_env.vector.ServingVectorEnv`.
        horizon_s: H in seconds; the scenario's reward.discount_horizon_s if None.

    Raises:
        ValueError: horizon_s is not above 0.
    """

    def __init__(self, env: gym.vector.VectorEnv, horizon_s: float | None = None) -> None:
        super().__init__(env)
        self.horizon_s = _horizon_s(env, horizon_s)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """A step with its discounts in the infos."""
        observations, rewards, terminated, truncated, infos = self.env.step(actions)
        infos = self._with_discount(infos)
        if "final_info" in infos:
            infos["final_info"] = self._with_discount(infos["final_info"])
        return observations, rewards, terminated, truncated, infos

    def _with_discount(self, infos: dict[str, Any]) -> dict[str, Any]:
        taken = infos["_dt_s"]
        discount = np.where(taken, np.exp(-infos["dt_s"] / self.horizon_s), 0.0)
        return {**infos, "discount": discount, "_discount": taken.copy()}
