"""What one decision of a trained agent costs, in numpy: the forward pass of the default network and the choice."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from agents.network import OUTPUTS, NumpyAgent
from agents.ppo import PPOSettings
from benchmarks.measure import Effort, Figure, Work, alternate, time_figure, timed
from llm_env.features import NUM_FEATURES

BATCHES = (1, 256)
_CALLS = 100


def figures(effort: Effort) -> list[Figure]:
    """Time of one call for one observation and for many at once."""
    samples = alternate({f"decision/batch {n}": decisions(n) for n in BATCHES}, effort)
    return [time_figure(name, "us", sample, "a call of NumpyAgent.act") for name, sample in samples.items()]


def decisions(num_observations: int) -> Work:
    """Calls of an agent with random weights."""
    rng = np.random.default_rng(0)
    widths = (NUM_FEATURES, *PPOSettings().hidden, OUTPUTS["multidiscrete"])
    layers = tuple(
        (rng.normal(size=(out, inside)).astype(np.float32), np.zeros(out, np.float32))
        for inside, out in pairwise(widths)
    )
    agent = NumpyAgent(action="multidiscrete", activation="tanh", policy=layers)
    observations = rng.normal(size=(num_observations, NUM_FEATURES)).astype(np.float32)

    def act() -> float:
        for _ in range(_CALLS):
            agent.act(observations)
        return _CALLS

    return timed(act)
