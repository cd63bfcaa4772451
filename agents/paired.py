"""Rewards as differences: what the agent earns less what a reference earns in the same time on the same episode.

Most of a return's noise is in the requests that come, which no action changes. The reference meets the same ones, so
its rewards carry that noise and take it away; they do not depend on the agent's actions: the gradient stays unbiased.
Source: Mao et al., "Variance reduction for reinforcement learning in input-driven environments" (ICLR 2019), whose
baseline is a function of the inputs to come; here it is measured, by a run of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from agents.stored import Stored
from agents.vec_env import ServingVecEnv
from llm_env.actions import BUDGET_LEVELS, CHUNK_LEVELS, DISCRETE_TABLE, MIX_FULL, ORDERS
from llm_env.records import MOORE_HODGSON
from llm_env.systems import Step, Systems, Workload

# budget tau*, the full mix, whole prompts, Moore-Hodgson order
MOORE_HODGSON_LEVELS = (BUDGET_LEVELS.index(1.0), MIX_FULL, len(CHUNK_LEVELS) - 1, ORDERS.index(MOORE_HODGSON))


class Twin:
    """A reference that takes one action everywhere, in systems of its own that follow the agent's clock.

    Args:
        scenarios, workloads, action: as `Systems` takes them.
        num_envs: how many.
        reference: the action of one system.
    """

    def __init__(
        self, scenarios: Any, num_envs: int, action: str, workloads: Sequence[Workload] | None, reference: np.ndarray
    ) -> None:
        self._systems = Systems(scenarios, num_envs, action, workloads)
        self._actions = np.tile(reference, (num_envs, *([1] * np.ndim(reference))))
        self._clock_s = np.zeros(num_envs)
        self._active = np.zeros(num_envs, np.bool_)
        self._systems.set_actions(self._actions)

    def begin(self, e: int, seed: int) -> None:
        """Starts the episode of a seed in system e."""
        self._systems.reset(e, seed)
        self._clock_s[e] = now_s(self._systems, e)
        self._active[e] = True

    def follow(self, clock_s: np.ndarray) -> np.ndarray:
        """Lets every system run until its clock is not behind the agent's; an infinite one, to its end.

        Args:
            clock_s: (num_envs,) of the agent.

        Returns:
            (num_envs,) what it earned on the way.
        """
        earned = np.zeros(len(clock_s))
        while (behind := self._active & (self._clock_s < clock_s)).any():
            step = self._systems.step(behind)
            earned += step.rewards
            self._clock_s += step.infos["dt_s"]
            self._active &= ~(step.terminated | step.truncated)
        return earned

    def saved(self) -> dict[str, Any]:
        """See `Systems.saved`."""
        return {"clock_s": self._clock_s, "active": self._active, **self._systems.saved()}

    def restore(self, stored: Stored) -> None:
        """Goes on as the one that had saved this. Raises: UserError: it does not fit."""
        shape = self._clock_s.shape
        self._clock_s = stored.array("clock_s", np.float64, shape).copy()
        self._active = stored.array("active", np.bool_, shape).copy()
        self._systems.restore(stored.values)
        self._systems.set_actions(self._actions)


def now_s(systems: Systems, e: int) -> float:
    """The clock of system e."""
    return float(systems.state(e).system["now_s"][0])


def moore_hodgson_action(action: str) -> np.ndarray:
    """The Moore-Hodgson rule at tau*, as an action of one system. Args: action: "multidiscrete" or "discrete"."""
    return np.array(DISCRETE_TABLE.index(MOORE_HODGSON_LEVELS) if action == "discrete" else MOORE_HODGSON_LEVELS)


class PairedVecEnv(ServingVecEnv):
    """A ServingVecEnv whose rewards are differences to a Twin's. Returns and outcomes of episodes stay the agent's own.

    Args:
        reference: the action that the twin takes everywhere.
    """

    def __init__(
        self,
        scenario: Any,
        num_envs: int,
        action: str,
        workloads: Sequence[Workload] | None,
        stagger_steps: int,
        reference: np.ndarray,
    ) -> None:
        super().__init__(scenario, num_envs, action, workloads, stagger_steps)
        self._twin = Twin(self.scenarios, num_envs, action, workloads, reference)
        self._clock_s = np.zeros(num_envs)

    def reset(self) -> np.ndarray:
        """See `ServingVecEnv.reset`; the twin comes to where the systems are."""
        observations = super().reset()
        self._clock_s = np.array([now_s(self._systems, e) for e in range(self.num_envs)])
        self._twin.follow(self._clock_s)
        return observations

    def _restart(self, e: int, seed: int | None) -> int:
        episode_seed = super()._restart(e, seed)
        self._twin.begin(e, episode_seed)
        self._clock_s[e] = now_s(self._systems, e)
        return episode_seed

    def _rewards_of(self, step: Step) -> np.ndarray:
        self._clock_s += step.infos["dt_s"]
        until_s = np.where(step.terminated | step.truncated, np.inf, self._clock_s)
        return step.rewards - self._twin.follow(until_s)

    def saved(self) -> dict[str, Any]:
        """See `ServingVecEnv.saved`."""
        twin = {f"twin.{name}": value for name, value in self._twin.saved().items()}
        return {**super().saved(), "clock_s": self._clock_s, **twin}

    def restore(self, stored: Stored) -> None:
        """See `ServingVecEnv.restore`."""
        super().restore(stored)
        self._clock_s = stored.array("clock_s", np.float64, (self.num_envs,)).copy()
        self._twin.restore(stored.below("twin"))
