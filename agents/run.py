"""Runs an agent over many seeds at once, with batched forward passes: what validation and evaluation share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from agents.network import NumpyAgent
from llm_env.config import Scenario
from llm_env.systems import Systems, Workload

AnySystems = TypeVar("AnySystems", bound=Systems)


def run_agent(
    agent: NumpyAgent,
    scenario: Scenario,
    seeds: Sequence[int],
    workload: Workload | None = None,
    record: bool = True,
    deterministic: bool = True,
    rng: np.random.Generator | None = None,
) -> Systems:
    """Runs an agent over the workload of every seed until all are drained or at their horizon.

    The same arguments give the same bytes. Each system's arithmetic is its own, but a matrix product may round
    differently with another number of rows, so a seed alone can differ from the same seed among others in the last
    bit of its logits.

    Args:
        agent: who decides.
        scenario: the systems.
        seeds: of workloads and service noise, one system each.
        workload: seed -> requests; by default drawn from the scenario.
        record: keep the logs of batches and gaps that `llm_env.metrics.summarise` needs.
        deterministic: the most probable action; else drawn with rng.
        rng: for that, default_rng(0) if None.

    Returns:
        The systems, ended; `systems.state(e)` is that of seeds[e].
    """
    systems = Systems([scenario], len(seeds), agent.action, None if workload is None else [workload], record)
    if rng is None and not deterministic:
        rng = np.random.default_rng(0)
    return run_systems(systems, seeds, agent.deciding(systems, deterministic, rng))


def run_systems(systems: AnySystems, seeds: Sequence[int], act: Callable[[np.ndarray], np.ndarray]) -> AnySystems:
    """Runs the episode of each seed to its end, system e that of seeds[e], and returns the systems.

    Args:
        act: observations (num_envs, number of features) -> actions of all systems; of those that have ended, zeros ->
            whatever is valid.
    """
    for e, seed in enumerate(seeds):
        systems.reset(e, seed)
    active = systems.active()
    observations = systems.observe(active)
    while active.any():
        systems.set_actions(act(observations))
        observations = systems.step(active).observations
        active = systems.active()
    return systems
