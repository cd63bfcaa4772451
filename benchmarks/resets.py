"""What a reset costs in each shipped scenario: drawing the workload, loading it, the first observation."""

from __future__ import annotations

from itertools import count

import gymnasium as gym

from benchmarks.measure import Effort, Figure, Work, alternate, time_figure, timed
from benchmarks.single import SERVING
from llm_env.scenarios import load_scenario, scenario_names
from llm_env.workload import draw_workload


def figures(effort: Effort) -> list[Figure]:
    """One for each scenario."""
    samples = alternate({name: resets(name) for name in scenario_names()}, effort)
    return [time_figure(f"reset/{name}", "ms", sample, _size(name)) for name, sample in samples.items()]


def _size(name: str) -> str:
    return f"{len(draw_workload(load_scenario(name), 0))} requests"


def resets(scenario: str) -> Work:
    """Resets with one seed after the other."""
    env, seeds = gym.make(SERVING, scenario=scenario), count()

    def reset() -> float:
        env.reset(seed=next(seeds))
        return 1

    return timed(reset)
