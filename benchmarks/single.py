"""`Env.step` through `gym.make`, beside CartPole-v1 in the same run. Resets are not counted."""

from __future__ import annotations

import time
from itertools import cycle
from typing import Any

import gymnasium as gym

import llm_env  # noqa: F401 - registers the environments
from benchmarks.measure import Effort, Figure, Lap, Work, alternate, rate_figure

SERVING = "llm_env/Serving-v0"
CARTPOLE = "CartPole-v1"
_IDS = (SERVING, CARTPOLE)
_ACTIONS, _STEPS = 4096, 250  # drawn beforehand; steps of a lap


def figures(effort: Effort) -> list[Figure]:
    """Each environment with and without Gymnasium's passive checker."""
    checkers = {"no checker": {"disable_env_checker": True}, "default": {}}
    works = {f"{env_id} {how}": steps(gym.make(env_id, **k)) for how, k in checkers.items() for env_id in _IDS}
    samples = alternate(works, effort)
    found = []
    for how in checkers:
        beside = samples[f"{CARTPOLE} {how}"]
        found.append(
            rate_figure(f"env/Serving-v0, {how}", "steps", samples[f"{SERVING} {how}"], "", "CartPole-v1", beside)
        )
        found.append(rate_figure(f"env/CartPole-v1, {how}", "steps", beside))
    return found


def steps(env: gym.Env[Any, Any]) -> Work:
    """Steps with random actions that were drawn beforehand."""
    env.action_space.seed(0)
    actions = cycle([env.action_space.sample() for _ in range(_ACTIONS)])
    env.reset(seed=0)

    def lap() -> Lap:
        step, paused_s, began = env.step, 0.0, time.process_time()
        for _ in range(_STEPS):
            _, _, terminated, truncated, _ = step(next(actions))
            if terminated or truncated:
                ended = time.process_time()
                env.reset()
                paused_s += time.process_time() - ended
        return Lap(_STEPS, time.process_time() - began - paused_s)

    return lap
