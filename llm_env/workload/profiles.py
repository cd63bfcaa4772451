"""Rates that follow a cycle, such as the hours of a day."""

from __future__ import annotations

import numpy as np

from llm_env.arrival_settings import ProfileArrivals
from llm_env.workload.limits import check_amount
from llm_env.workload.rate_paths import RatePath


def profile_path(settings: ProfileArrivals, duration_s: float, earlier_s: float, rng: np.random.Generator) -> RatePath:
    """Multiples of the mean rate of the cycle, equal parts of it one after the other.

    Args:
        settings: the cycle.
        duration_s: how long a path.
        earlier_s: it begins that long before `start_s`.
        rng: of the moment of the cycle at which it begins, if that is not given; else unused.

    Raises:
        UserError: more than 20,000,000 parts pass.
    """
    num_parts = len(settings.multipliers)
    part_s = settings.period_s / num_parts
    check_amount("changes of the rate", duration_s / part_s, "lengthen period_s or shorten episode.arrivals_s")
    relative = np.array(settings.multipliers) / np.mean(settings.multipliers)
    drawn = rng.random()
    phase = drawn if settings.start_s is None else (settings.start_s - earlier_s) / settings.period_s % 1.0
    begun = phase * num_parts
    first = min(int(begun), num_parts - 1)
    lasts_s = np.full(int(duration_s / part_s) + 2, part_s)
    lasts_s[0] *= first + 1 - begun
    return RatePath(lasts_s, relative[(first + np.arange(lasts_s.size)) % num_parts])
