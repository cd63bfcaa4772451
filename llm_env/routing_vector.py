"""The native vector form of `llm_env/Routing-v0`: N systems advanced by one compiled call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from llm_env.routing_env import routing_feature_names, routing_space
from llm_env.routing_systems import Base, RoutingSystems
from llm_env.spaces import Given, resolve_episodes
from llm_env.vector import ServingVectorEnv, check_vector
from llm_env.workload import WHOLE


class RoutingVectorEnv(ServingVectorEnv):
    """N independent `RoutingEnv`: sub-environment i with seed s is a single environment with seed s + i.

    Arguments are those of `RoutingEnv`, and `num_envs` and `autoreset_mode` of `ServingVectorEnv`.
    """

    def __init__(
        self,
        num_envs: int = 1,
        scenario: Given = "unequal-workers",
        base: Base | None = None,
        changes: dict[str, Any] | None = None,
        load_range: tuple[float, float] | None = None,
        trace: str | Path | None = None,
        time_scale: float = 1.0,
        trace_part: tuple[float, float] = WHOLE,
        render_mode: str | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
    ) -> None:
        check_vector(num_envs, render_mode)
        scenarios, workloads = resolve_episodes(scenario, changes, load_range, trace, time_scale, trace_part)
        systems = RoutingSystems(scenarios, num_envs, base, workloads)
        workers = systems.num_workers
        names = routing_feature_names(workers)
        self._make(systems, routing_space(workers), spaces.Discrete(workers), names, autoreset_mode)
