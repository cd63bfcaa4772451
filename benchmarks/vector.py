"""Steps of the native vector environment, with observations, rewards and infos. Resets are not counted."""

from __future__ import annotations

import time
from itertools import cycle

import gymnasium as gym

from benchmarks.measure import Effort, Figure, Lap, Work, alternate, rate_figure
from benchmarks.single import SERVING

NUM_ENVS = (1, 64, 1024)
_LAPS = 512  # env-steps, about, between two looks at the clock


def figures(effort: Effort) -> list[Figure]:
    """One for each number of environments."""
    notes: dict[str, str] = {}
    works = {f"vector/{n}": steps(n, effort.warm_steps, notes) for n in NUM_ENVS}
    samples = alternate(works, effort)
    return [rate_figure(name, "env-steps", sample, notes[name]) for name, sample in samples.items()]


def steps(num_envs: int, warm_steps: int, notes: dict[str, str]) -> Work:
    """Steps with random actions that were drawn beforehand. When an episode ends all begin anew, which does not count.

    Args:
        warm_steps: from the start of the episodes to what is measured: at first hardly anything runs.
        notes: where the mean number of running requests after them is put.
    """
    envs = gym.make_vec(SERVING, num_envs=num_envs)
    envs.action_space.seed(0)
    actions = cycle([envs.action_space.sample() for _ in range(64)])
    envs.reset(seed=0)

    def warm() -> None:
        running = 0.0
        for _ in range(warm_steps):
            infos = envs.step(next(actions))[4]
            running = float(infos["num_running"].mean())
        notes[f"vector/{num_envs}"] = f"{running:.0f} running"

    def lap() -> Lap:
        began = time.process_time()
        for k in range(_LAPS // num_envs + 1):
            _, _, terminated, truncated, _ = envs.step(next(actions))
            if terminated.any() or truncated.any():
                passed = time.process_time() - began
                envs.reset()
                warm()
                return Lap((k + 1) * num_envs, passed)
        return Lap((_LAPS // num_envs + 1) * num_envs, time.process_time() - began)

    warm()
    return lap
