"""`llm_env/Routing-v0`: one serving system whose arrivals the agent routes, as a Gymnasium environment.

A shell: one row of `RoutingSystems`, nothing more.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from llm_env.adaptive import PARAMETERS
from llm_env.env import ONE, SystemEnv
from llm_env.routing_features import (
    GLOBAL_FEATURE_NAMES,
    GLOBAL_FEATURES,
    NUM_GLOBAL_FEATURES,
    NUM_WORKER_FEATURES,
    WORKER_FEATURE_NAMES,
    WORKER_FEATURES,
)
from llm_env.routing_reward import ROUTING_TERMS
from llm_env.routing_systems import Base, RoutingSystems
from llm_env.spaces import Given, resolve_episodes
from llm_env.systems import NUM_TRAINING_SEEDS
from llm_env.workload import WHOLE

PAGE = """
A fleet of LLM workers and a router: each step gives one request to a worker.

## Description
Requests arrive with a prompt to prefill and an unknown number of output tokens to decode. Each must be given to one
worker at its arrival and stays there. Workers may differ in speed, and each runs batches of what it has: prompts wait,
decodes get one token a batch, KV memory fills up. Between two arrivals the adaptive rule of the scheduler
(`llm_env.adaptive`, Moore-Hodgson at tau* by default) forms all batches. The agent sees each worker's queue, memory and
speed and names the worker. The system, its promises and its traffic are a scenario, whose `system.router` is replaced.

## Action Space
Discrete(number of workers that prefill): the worker that gets the request. Every action is valid in every state.

## Observation Space
Box of (number of workers x {num_worker} + {num_global},) float32 features of order 1: the features of worker 0, then
those of worker 1 and so on, then the global ones. Reshape the first part to (workers, {num_worker}). The last
observation of an episode, when no request is to be routed, is all zeros.

Of each worker:

| Num | Feature | Min | Max | Meaning |
|---|---|---|---|---|
{worker_features}

Global:

| Num | Feature | Min | Max | Meaning |
|---|---|---|---|---|
{global_features}

The score is that of `llm_env.worker_load` with the scenario's weights (`[system.routing]`).

## Rewards
The sum of these terms, each times its weight in the scenario's `[reward]` (default: miss 1, backlog 0);
`info["reward_<term>"]` has each.

{rewards}

A promise is missed from the moment on at which it cannot be kept any more: no first token by its deadline, the TBT
promise broken, rejected; at the end of the episode, not finished. The miss terms of an episode add up to minus the SLO
weight of all requests that did not meet their SLO. Steps last from 0 to many seconds: discount by
exp(-info["dt_s"] / H) rather than per step.

## Starting State
`reset(seed=s)` draws the whole workload of seed s and moves to its first arrival; it is the same for every router.
Without a seed the next episode's seed is drawn from 0 to {last_seed}, the seeds for training.

## Episode End
Terminated when all requests have been served: the last step ends there. Truncated when the clock reaches the
scenario's `episode.horizon_s`. The last `info` has what that of `llm_env/Serving-v0` has. An episode without any
request is terminated by its first step, with reward 0. Requests that can never fit are rejected and not asked for.

## Arguments
| Argument | Default | Meaning |
|---|---|---|
| scenario | "unequal-workers" | a shipped scenario's name, a TOML file or a `Scenario`; or several, alike in size |
| base | None | parameters of the adaptive rule by name ({parameters}) |
| changes | None | settings to change (of every scenario), by dotted paths, {{"workload.load": 0.9}} |
| load_range | None | (low, high): each episode draws its load |
| trace, time_scale, trace_part | None, 1.0, (0, 1) | as in `llm_env/Serving-v0` |

## Vectorized environment
`gym.make_vec("llm_env:llm_env/Routing-v0", num_envs=N)` advances N systems in one compiled call; sub-environment i with
seed s is a single environment with seed s + i.

## Version History
- v0: first version.
"""


def _table(features: tuple[tuple[str, float, float, str], ...]) -> str:
    return "\n".join(
        f"| {k} | {name} | {low:g} | {high:g} | {text} |" for k, (name, low, high, text) in enumerate(features)
    )


def _page() -> str:
    """The documentation of the environment, its tables made from the code's own."""
    return PAGE.strip().format(
        num_worker=NUM_WORKER_FEATURES,
        num_global=NUM_GLOBAL_FEATURES,
        worker_features=_table(WORKER_FEATURES),
        global_features=_table(GLOBAL_FEATURES),
        rewards="\n".join(f"- {name}: {meaning}" for name, meaning in ROUTING_TERMS),
        parameters=", ".join(p.name for p in PARAMETERS),
        last_seed=f"{NUM_TRAINING_SEEDS - 1:,}",
    )


def routing_space(num_workers: int) -> spaces.Box:
    """Box of the features' bounds for so many workers, float32, new at each call."""
    rows = (*(WORKER_FEATURES * num_workers), *GLOBAL_FEATURES)
    bounds = np.array([(low, high) for _, low, high, _ in rows], np.float32)
    return spaces.Box(bounds[:, 0], bounds[:, 1], dtype=np.float32)


def routing_feature_names(num_workers: int) -> tuple[str, ...]:
    """Name of each entry of an observation: those of a worker end in its number."""
    of_workers = (f"{name}_{w}" for w in range(num_workers) for name in WORKER_FEATURE_NAMES)
    return (*of_workers, *GLOBAL_FEATURE_NAMES)


class RoutingEnv(SystemEnv):
    __doc__ = _page()

    metadata: dict[str, Any] = {"render_modes": [], "render_fps": 10}  # noqa: RUF012 - Gymnasium declares it so

    def __init__(
        self,
        scenario: Given = "unequal-workers",
        base: Base | None = None,
        changes: dict[str, Any] | None = None,
        load_range: tuple[float, float] | None = None,
        trace: str | Path | None = None,
        time_scale: float = 1.0,
        trace_part: tuple[float, float] = WHOLE,
        render_mode: str | None = None,
    ) -> None:
        if render_mode is not None:
            raise ValueError(f"render_mode: this environment does not render, got {render_mode!r}")
        scenarios, workloads = resolve_episodes(scenario, changes, load_range, trace, time_scale, trace_part)
        systems = self._systems = RoutingSystems(scenarios, 1, base, workloads)
        self.observation_space = routing_space(systems.num_workers)
        self.action_space = spaces.Discrete(systems.num_workers)
        self._feature_names = routing_feature_names(systems.num_workers)
        self.render_mode = None

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Gives the request to a worker and moves to the next arrival."""
        self._systems.set_actions(np.asarray(action)[None])
        step = self._systems.step(ONE)
        info: dict[str, Any] = {name: values[0].item() for name, values in step.infos.items()}
        terminated, truncated = bool(step.terminated[0]), bool(step.truncated[0])
        if terminated or truncated:
            info |= self._systems.outcome(0)
        return step.observations[0], float(step.rewards[0]), terminated, truncated, info
