"""Runs a router over many seeds at once, with batched forward passes: what validation and evaluation share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from agents.network import NumpyAgent
from agents.routing_network import CHOICE, NumpyRouter, split_observations
from agents.run import run_agent, run_systems
from llm_env.config import Scenario, with_changes
from llm_env.routing_systems import Base, RoutingSystems
from llm_env.systems import Systems, Workload


class Routes(Protocol):
    """Whoever names workers."""

    def act(
        self, observations: np.ndarray, deterministic: bool = True, rng: np.random.Generator | None = None
    ) -> np.ndarray: ...


class ScoreRule:
    """The rule "score" as a router: the choice that the observation shows."""

    def act(
        self, observations: np.ndarray, deterministic: bool = True, rng: np.random.Generator | None = None
    ) -> np.ndarray:
        """(n,) int64 workers."""
        return split_observations(observations)[0][:, :, CHOICE].argmax(axis=1)


def scenario_of(router: NumpyRouter, scenario: Scenario) -> Scenario:
    """The scenario with the weights of the rule that the router builds on."""
    return with_changes(scenario, {f"system.routing.{name}": value for name, value in router.routing.items()})


def run_routes(
    router: Routes,
    scenario: Scenario,
    seeds: Sequence[int],
    base: Base | None = None,
    workload: Workload | None = None,
    record: bool = True,
    deterministic: bool = True,
    rng: np.random.Generator | None = None,
) -> RoutingSystems:
    """Lets somebody route the workload of every seed until all systems are drained or at their horizon.

    Args:
        router: who names workers.
        scenario: the systems.
        seeds: of workloads and service noise, one system each.
        base: parameters of the adaptive rule that forms the batches.
        workload: seed -> requests; by default drawn from the scenario.
        record: keep the logs of batches and gaps that `llm_env.metrics.summarise` needs.
        deterministic: the most probable worker; else drawn with rng, default_rng(0) if None.

    Returns:
        The systems, ended; `systems.state(e)` is that of seeds[e].
    """
    systems = RoutingSystems([scenario], len(seeds), base, None if workload is None else [workload], record)
    if rng is None and not deterministic:
        rng = np.random.default_rng(0)
    return run_systems(systems, seeds, lambda observations: router.act(observations, deterministic, rng))


def run_trained(
    agent: NumpyAgent | NumpyRouter,
    scenario: Scenario,
    seeds: Sequence[int],
    workload: Workload | None = None,
    record: bool = True,
    deterministic: bool = True,
    rng: np.random.Generator | None = None,
) -> Systems:
    """Runs an agent of either kind (see `agents.run.run_agent`); a router with the rule and the batches that it was
    trained with.
    """
    if isinstance(agent, NumpyAgent):
        return run_agent(agent, scenario, seeds, workload, record, deterministic, rng)
    return run_routes(agent, scenario_of(agent, scenario), seeds, agent.base, workload, record, deterministic, rng)
