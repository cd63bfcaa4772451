"""Easy traffic first: the highest load that episodes draw rises while a policy learns.

Source: Bengio et al., "Curriculum learning" (ICML 2009).
"""

from __future__ import annotations

import math

import numpy as np

from llm_env.config import Scenario
from llm_env.spaces import workload_of
from llm_env.systems import Workload
from llm_env.workload import Traffic

STEPS = 10  # in which the highest load rises: a workload's capacity is worked out once for each


class Course:
    """How far the training is, and the loads that this stands for.

    Args:
        share: of the training, over which the highest load rises from the lowest to its own; 0 for none.

    Attributes:
        done: share of the training that is over; whoever trains sets it.
    """

    def __init__(self, share: float) -> None:
        self.share, self.done = share, 0.0

    def highest(self, low: float, high: float) -> float:
        """The highest load now, of those from low to high."""
        risen = 1.0 if self.share <= 0 else min(1.0, self.done / self.share)
        return low + (high - low) * math.ceil(STEPS * risen) / STEPS

    def workload(self, scenario: Scenario, load_range: tuple[float, float] | None, traffic: Traffic | None) -> Workload:
        """Seed -> requests at the loads of the moment (see `llm_env.spaces.workload_of`)."""
        if load_range is None or self.share <= 0:
            return workload_of(scenario, load_range, traffic)
        low, high = load_range
        known: dict[float, Workload] = {}

        def draw(seed: int) -> np.ndarray:
            highest = self.highest(low, high)
            if highest not in known:
                known[highest] = workload_of(scenario, (low, highest), traffic)
            return known[highest](seed)

        return draw
