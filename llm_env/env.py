"""`llm_env/Serving-v0`: one serving system as a Gymnasium environment. A shell: one row of `Systems`, nothing more."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from llm_env.actions import ACTION_KINDS, BUDGET_LEVELS, DISCRETE_TABLE, NVEC
from llm_env.adaptive import BOX as ADAPTIVE_BOX
from llm_env.boxes import Box
from llm_env.config import Scenario
from llm_env.features import FEATURES
from llm_env.ranking import REQUEST_FEATURES, observed
from llm_env.records import MOST_RANKED, QUEUE_ORDERS
from llm_env.render import History, render_ansi, render_rgb, show_text
from llm_env.reward import REWARD_TERMS
from llm_env.role_rule import BOX as ROLE_BOX
from llm_env.spaces import Given, action_space, observation_space, resolve_episodes
from llm_env.systems import NUM_TRAINING_SEEDS, Systems
from llm_env.workload import WHOLE

PAGE = """
An LLM serving system, scheduled batch by batch: each step forms one GPU batch.

## Description
Requests arrive with a prompt to prefill and an unknown number of output tokens to decode. Workers run one batch at a
time; a batch of b tokens takes S(b) = c + a max(0, b - b0). Whenever a worker is idle and something waits or runs, the
agent decides how its next batch is formed: how many tokens, how they are shared between prefill and decode, in what
chunks prompts are cut, and in what order the queue is served. A large batch serves the queue sooner (TTFT) and makes
every running request wait longer for its next token (TBT). The system, its promises and its traffic are a scenario.
Given several scenarios, each episode is of one of them; features and actions mean the same in all.

## Action Space
`action="multidiscrete"` (llm_env/Serving-v0): MultiDiscrete({nvec})

| Num | Level | Values |
|---|---|---|
| 0 | token budget, times tau* = b0 + (TBT target - c) / a | {budgets} |
| 1 | prefill/decode mix | decode: decodes alone, if there are any; half: all decodes, prefill up to half the budget; full: all decodes, prefill up to the budget; prefill-first: prefill, then decodes in what is left |
| 2 | chunk: most prefill tokens of one prompt | 128, 512, no limit |
| 3 | queue order | {orders} |

`action="discrete"` (llm_env/ServingDiscrete-v0): Discrete({num_discrete}), a table of useful combinations.
`action="box"` (llm_env/ServingBox-v0): Box(-1, 1, (4,)), around Moore-Hodgson at tau*: log budget factor, weight of
deadlines against prefill time, distance of dropped requests, rate margin (`llm_env.actions.to_decision`).
`action="adaptive"` (llm_env/ServingAdaptive-v0): Box(-1, 1, ({num_parameters},)), the numbers of the policy `adaptive`;
-1 is the low end of a number's range and 1 its high end. `llm_env.adaptive.BOX.to_unit` gives the action of given
numbers.

| Num | Number | From | To | Neutral | Scale | Meaning |
|---|---|---|---|---|---|---|
{parameters}

`action="roles"` (llm_env/ServingRoles-v0): Box(-1, 1, ({num_role_numbers},)), for workers that may change role: the numbers of the
policy `role-switch` and two more, in the same way (`llm_env.role_rule`).

| Num | Number | From | To | Neutral | Scale | Meaning |
|---|---|---|---|---|---|---|
{role_numbers}

`action="ranked"` (llm_env/ServingRanked-v0): Box(-1, 1, ({num_ranked},)): scores of {most_ranked} candidates, then the numbers of
`adaptive`. Candidates are the prompts that are partly prefilled, then the most urgent that wait and can be on time. In
Moore-Hodgson order they share out their places by j - {half_ranked:g} x score, where j = 0, 1, ... is how they stand in it:
equal scores change nothing.

Every action is valid in every state and none can stop the service. `action_masks()` tells which levels make a
difference now.

## Observation Space
Box of {num_features} float32 features of order 1; a slack is the time left until a prefill must start to be on time.
The true number of output tokens is never among them. Names: `env.unwrapped.feature_names`.

| Num | Feature | Min | Max | Meaning |
|---|---|---|---|---|
{features}

Under `action="ranked"` these follow for each of the {most_ranked} candidates, as `request_0_present`:

| Feature | Min | Max | Meaning |
|---|---|---|---|
{request_features}

## Rewards
The sum of these terms, each times its weight in the scenario's `[reward]` (default: first_token 1, the others 0) and the
request's SLO weight; `info["reward_<term>"]` has each.

{rewards}

Steps last from milliseconds to seconds, so discount by exp(-info["dt_s"] / H) rather than per step
(`llm_env.wrappers.TimeDiscount`, agents in `agents/`).

## Starting State
`reset(seed=s)` draws the whole workload of seed s before anything is decided, moves to the first decision, and is the
same for every policy. What the scenario varies (`[[vary]]`, docs/families.md) is drawn with it, but for the load where
there is a load_range. Without a seed the next episode's seed is drawn from 0 to {last_seed}, the seeds for training.
Of several scenarios the seed draws one, all equally likely: the episode is the one that it would be in an environment
of that scenario alone. Of a trace the seed draws a window of `episode.arrivals_s` seconds, uniformly in time; one in a
silence holds no request. A trace, or a part, that is no longer than that at the load gives the same arrivals with every
seed: take a longer one, or a shorter `episode.arrivals_s`.

## Episode End
Terminated when all arrivals of the episode have been served. Truncated when the clock reaches the scenario's
`episode.horizon_s`. The last `info` has num_requests, slo_attainment, weighted_attainment (by the SLO weights of the
requests), ttft_attainment, goodput_per_s, ttft_p50_s and ttft_p99_s of the measured requests, and scenario_index, the place of the episode's scenario among those given. What is
not known is left out: without a measured request all but num_requests and scenario_index. An episode without any request
is terminated by its first step, whatever the action, with reward 0.

## Arguments
| Argument | Default | Meaning |
|---|---|---|
| scenario | "chat" | a shipped scenario's name, a TOML file or a `Scenario`; or a list of these, to draw from |
| action | by id | {action_kinds} |
| changes | None | settings to change (of every scenario), by dotted paths, {{"workload.load": 0.9}} |
| load_range | None | (low, high): each episode draws its load; a trace is stretched or squeezed in time to it |
| trace | None | a trace file: episodes are windows of it in place of drawn traffic |
| time_scale | 1.0 | factor on the trace's arrival times |
| trace_part | (0, 1) | shares of the trace's time: windows lie between them, so (0, 0.7) and (0.7, 1) have nothing in common |
| render_mode | None | "ansi": render() gives a text; "rgb_array": a picture; "human": each reset and step prints the text |

## Vectorized environment
`gym.make_vec("llm_env:llm_env/Serving-v0", num_envs=N)` advances N systems in one compiled call; sub-environment i with
seed s is a single environment with seed s + i. Autoreset NEXT_STEP; `autoreset_mode="SameStep"` or `"Disabled"` as a
further argument of make_vec for the others.

## Version History
- v0: first version.
"""


def _rows(box: Box) -> str:
    """A table's rows for the numbers of a form of action."""
    return "\n".join(
        f"| {k} | {p.name} | {p.low:g} | {p.high:g} | {p.neutral:g} | {p.scale} | {p.meaning} |"
        for k, p in enumerate(box.parameters)
    )


def _page() -> str:
    """The documentation of the environment, its tables made from the code's own."""
    features = (f"| {k} | {name} | {low:g} | {high:g} | {text} |" for k, (name, low, high, text) in enumerate(FEATURES))
    return PAGE.strip().format(
        nvec=list(NVEC),
        budgets=", ".join(f"{level:g}" for level in BUDGET_LEVELS),
        orders=", ".join(QUEUE_ORDERS),
        num_discrete=len(DISCRETE_TABLE),
        request_features="\n".join(
            f"| {name} | {low:g} | {high:g} | {text} |" for name, low, high, text in REQUEST_FEATURES
        ),
        most_ranked=MOST_RANKED,
        half_ranked=MOST_RANKED / 2,
        num_ranked=MOST_RANKED + len(ADAPTIVE_BOX.names),
        num_parameters=len(ADAPTIVE_BOX.names),
        parameters=_rows(ADAPTIVE_BOX),
        num_role_numbers=len(ROLE_BOX.names),
        role_numbers=_rows(ROLE_BOX),
        action_kinds=", ".join(f'"{kind}"' for kind in ACTION_KINDS),
        num_features=len(FEATURES),
        features="\n".join(features),
        rewards="\n".join(f"- {name}: {meaning}" for name, meaning in REWARD_TERMS),
        last_seed=f"{NUM_TRAINING_SEEDS - 1:,}",
    )


ONE = np.ones(1, np.bool_)  # the mask of the only system


class SystemEnv(gym.Env):
    """One row of `Systems` as an environment: what environments have in common, whatever is decided in them."""

    _systems: Systems
    _feature_names: tuple[str, ...]

    @property
    def scenarios(self) -> tuple[Scenario, ...]:
        """Those that episodes are drawn from."""
        return self._systems.scenarios

    @property
    def scenario(self) -> Scenario:
        """The scenario of the present episode, one of `scenarios`."""
        return self._systems.scenario(0)

    @property
    def discount_horizon_s(self) -> float:
        """H of the present episode's scenario."""
        return self.scenario.reward.discount_horizon_s

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Name of each entry of the observation."""
        return self._feature_names

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts an episode: with a seed, that seed's workload; without, the next one that the generator draws."""
        super().reset(seed=seed)
        episode_seed = int(self.np_random.integers(NUM_TRAINING_SEEDS)) if seed is None else seed
        self._systems.reset(0, episode_seed)
        return self._systems.observe(ONE)[0], {"episode_seed": episode_seed}


class ServingEnv(SystemEnv):
    __doc__ = _page()

    metadata: dict[str, Any] = {  # noqa: RUF012 - Gymnasium declares it so
        "render_modes": ["ansi", "rgb_array", "human"],
        "render_fps": 10,
    }

    def __init__(
        self,
        scenario: Given = "chat",
        action: str = "multidiscrete",
        changes: dict[str, Any] | None = None,
        load_range: tuple[float, float] | None = None,
        trace: str | Path | None = None,
        time_scale: float = 1.0,
        trace_part: tuple[float, float] = WHOLE,
        render_mode: str | None = None,
    ) -> None:
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ValueError(f"render_mode: expected one of {self.metadata['render_modes']}, got {render_mode!r}")
        scenarios, workloads = resolve_episodes(scenario, changes, load_range, trace, time_scale, trace_part)
        self.observation_space = observation_space(action)
        self._feature_names = tuple(name for name, *_ in observed(action))
        self.action_space = action_space(action)
        self.render_mode = render_mode
        self._systems = Systems(scenarios, 1, action, workloads)
        self._history: History | None = None

    def action_masks(self) -> np.ndarray:
        """The actions that make a difference now, bool: one row of `llm_env.systems.Systems.masks`."""
        return self._systems.masks()[0]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts an episode: with a seed, that seed's workload; without, the next one that the generator draws."""
        begun = super().reset(seed=seed, options=options)
        self._history = History() if self.render_mode is not None else None
        if self.render_mode == "human":
            self.render()
        return begun

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One decision: forms a batch (or none) on the worker that asks, and moves to the next decision."""
        systems, history = self._systems, self._history
        worker = int(systems.state(0).system["worker"][0]) if history is not None else 0
        step = systems.step_alone(action)
        if history is not None:
            history.note(systems.state(0), worker)
            if self.render_mode == "human":
                self.render()
        if step[2] or step[3]:
            step[4].update(systems.outcome(0))
        return step

    def render(self) -> Any:
        """The present state: text ("ansi"), a (height, width, 3) uint8 picture ("rgb_array"), or None ("human", for which
        the text is printed, as every reset and step does by itself).
        """
        if self.render_mode is None or self._history is None:
            return None
        if self.render_mode == "human":
            return show_text(render_ansi(self._systems.state(0), self._history), sys.stdout)
        draw = render_ansi if self.render_mode == "ansi" else render_rgb
        return draw(self._systems.state(0), self._history)
