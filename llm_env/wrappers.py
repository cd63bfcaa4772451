"""Wrappers for agents of any library. Know the environments' `info` and horizons, nothing of the kernel.

A decision here lasts from tens of milliseconds to seconds, so a constant discount per step would value one second
differently depending on how it is cut. `info["discount"]` is the discount of the step just taken.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np


def _checked(horizon_s: float | None) -> float | None:
    if horizon_s is not None and not horizon_s > 0:
        raise ValueError(f"horizon_s: expected above 0, got {horizon_s!r}")
    return horizon_s


def _own_horizon_s(env: Any) -> Any:
    return env.unwrapped.discount_horizon_s


class TimeDiscount(gym.Wrapper):
    """Adds info["discount"] = exp(-dt_s / H) to every step.

    Args:
        env: a `llm_env.env.ServingEnv`.
        horizon_s: H in seconds; reward.discount_horizon_s of each episode's scenario if None.

    Raises:
        ValueError: horizon_s is not above 0.

    Source: Bradtke and Duff, "Reinforcement learning methods for continuous-time Markov decision problems" (NIPS 1994).
    """

    def __init__(self, env: gym.Env, horizon_s: float | None = None) -> None:
        super().__init__(env)
        self._given = _checked(horizon_s)

    @property
    def horizon_s(self) -> float:
        """H of the present episode."""
        return _own_horizon_s(self.env) if self._given is None else self._given

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """A step with its discount in the info."""
        horizon_s = self.horizon_s
        observation, reward, terminated, truncated, info = self.env.step(action)
        return (
            observation,
            reward,
            terminated,
            truncated,
            {**info, "discount": float(np.exp(-info["dt_s"] / horizon_s))},
        )


class VectorTimeDiscount(gym.vector.VectorWrapper):
    """Adds infos["discount"], (num_envs,) float64, to every step; 0 and not in infos["_discount"] where none was taken.

    Under SAME_STEP the discount of a step that ended an episode is in infos["final_info"], as all of that step's info.

    Args:
        env: a `llm_env.vector.ServingVectorEnv`.
        horizon_s: H in seconds; reward.discount_horizon_s of each episode's scenario if None.

    Raises:
        ValueError: horizon_s is not above 0.
    """

    def __init__(self, env: gym.vector.VectorEnv, horizon_s: float | None = None) -> None:
        super().__init__(env)
        self._given = _checked(horizon_s)

    @property
    def horizon_s(self) -> Any:
        """H of the present episodes: one for all if it was given, else (num_envs,) float64."""
        return _own_horizon_s(self.env) if self._given is None else self._given

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """A step with its discounts in the infos."""
        horizon_s = self.horizon_s  # before the step: what it ends may begin anew with another scenario
        observations, rewards, terminated, truncated, infos = self.env.step(actions)
        infos = self._with_discount(infos, horizon_s)
        if "final_info" in infos:
            infos["final_info"] = self._with_discount(infos["final_info"], horizon_s)
        return observations, rewards, terminated, truncated, infos

    def _with_discount(self, infos: dict[str, Any], horizon_s: Any) -> dict[str, Any]:
        taken = infos["_dt_s"]
        discount = np.where(taken, np.exp(-infos["dt_s"] / horizon_s), 0.0)
        return {**infos, "discount": discount, "_discount": taken.copy()}
