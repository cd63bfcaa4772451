"""The named reward terms of a step and their weighted sum. Knows the records only.

The events are booked by the kernel as they happen (`llm_env.slo.stamp_token`, `llm_env.core`), weighted by the
request's SLO weight; a step's terms are those between its decision and the next.
"""

from __future__ import annotations

import numpy as np

from llm_env.config import RewardSettings
from llm_env.jit import njit

# name, meaning
REWARD_TERMS = (
    ("first_token", "+1 for a first token on time, -1 if that request's TBT promise is later broken"),
    ("completion", "+1 for a request that finished and met its SLO"),
    ("token", "+1 for each token on time: token j by arrival + TTFT target + (j - 1) TBT target"),
    ("queue", "minus the integral of the queue length over the step, in request-seconds"),
)
TERM_NAMES = tuple(name for name, _ in REWARD_TERMS)
NUM_TERMS = len(TERM_NAMES)


def reward_weights(settings: RewardSettings) -> np.ndarray:
    """(NUM_TERMS,) float64 weights in the order of REWARD_TERMS."""
    return np.array([getattr(settings, name) for name in TERM_NAMES], np.float64)


@njit
def reward_terms(system, weights, out) -> float:
    """Writes the weighted terms of the last step into out, (NUM_TERMS,) float64, and returns their sum."""
    out[0] = weights[0] * system.step_first_token
    out[1] = weights[1] * system.step_completion
    out[2] = weights[2] * system.step_token
    out[3] = 0.0 - weights[3] * system.step_queue  # not -x: an empty queue costs 0, not -0
    return out[0] + out[1] + out[2] + out[3]
