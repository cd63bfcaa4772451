"""The native vector environment of `llm_env/Routing-v0` for Stable-Baselines3."""

from __future__ import annotations

from collections.abc import Sequence

from gymnasium import spaces

from agents.vec_env import ServingVecEnv
from llm_env.routing_env import routing_feature_names, routing_space
from llm_env.routing_systems import Base, RoutingSystems
from llm_env.spaces import Given, resolve_scenarios
from llm_env.systems import Workload


class RoutingVecEnv(ServingVecEnv):
    """`num_envs` systems whose arrivals are routed by actions; everything else is as in `ServingVecEnv`.

    Args:
        scenario: name, TOML file or settings; or a list of these, one of which each episode draws.
        num_envs: how many.
        base: parameters of the adaptive rule that forms the batches.
        workloads: seed -> requests, of each scenario; by default drawn from it.
    """

    def __init__(
        self,
        scenario: Given,
        num_envs: int,
        base: Base | None = None,
        workloads: Sequence[Workload] | None = None,
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs: expected at least 1, got {num_envs}")
        systems = RoutingSystems(resolve_scenarios(scenario, None), num_envs, base, workloads)
        workers = systems.num_workers
        self._make(systems, routing_space(workers), spaces.Discrete(workers), routing_feature_names(workers))
