"""Rates that change in steps: what modulates an arrival process, and arrivals along it. Knows no settings.

Arrivals at a changing rate are those of a process of rate 1 on the operational time, the integral of the rate, mapped
back through its inverse, which is linear within each step. For a Poisson process this has the same law as thinning
(Lewis and Shedler, "Simulation of nonhomogeneous Poisson processes by thinning", Naval Research Logistics Quarterly 26
(1979) 403-413), wastes no draws, and keeps the pattern when only the rate changes.

Source: Cinlar, Introduction to Stochastic Processes (1975), section 4.7 (change of time).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from llm_env.workload.limits import check_amount


class RatePath(NamedTuple):
    """Steps in order of time, from 0 on; they reach beyond the end of the episode."""

    lasts_s: np.ndarray  # float64, any shape, read row by row
    rate_per_s: np.ndarray  # float64, broadcasts against `lasts_s`: arrivals per second, or a multiple of them

    def clock(self) -> tuple[np.ndarray, np.ndarray]:
        """Both times at the borders of the k steps, (k + 1,) each: seconds, and arrivals expected so far."""
        return (
            np.concatenate(((0.0,), np.cumsum(self.lasts_s))),
            np.concatenate(((0.0,), np.cumsum(self.lasts_s * self.rate_per_s))),
        )


def arrivals_along(path: RatePath, duration_s: float, pattern: Callable[[float], np.ndarray]) -> np.ndarray:
    """Arrivals in [0, duration_s) at the rate of `path`.

    Args:
        path: the rate, arrivals per second.
        duration_s: the path is at least as long.
        pattern: arrivals in [0, end) of a process of rate 1, given `end`.

    Raises:
        UserError: this path has more than 20,000,000 arrivals.
    """
    clock_s, operational = path.clock()
    end = float(np.interp(duration_s, clock_s, operational))
    check_amount("arrivals", end, "its rate happens to be that high; lower it or shorten episode.arrivals_s")
    times = np.maximum.accumulate(np.interp(pattern(end), operational, clock_s))  # rounding must not go back
    return times[: np.searchsorted(times, duration_s)]


def product(path: RatePath, other: RatePath, duration_s: float) -> RatePath:
    """The product of two rates over [0, duration_s]; each step of either begins a new one."""
    borders = [path.clock()[0], other.clock()[0]]
    merged = np.unique(np.concatenate(borders))
    merged = merged[: np.searchsorted(merged, duration_s) + 1]
    starts = merged[:-1]
    rates = [
        np.broadcast_to(each.rate_per_s, each.lasts_s.shape).ravel()[np.searchsorted(border, starts, side="right") - 1]
        for each, border in zip((path, other), borders, strict=True)
    ]
    return RatePath(np.diff(merged), rates[0] * rates[1])


def autoregression(z: np.ndarray, correlation: float) -> np.ndarray:
    """Stationary standard normal sequences with lag-one correlation `correlation` of independent normal draws.

    x[0] = z[0], x[k] = correlation * x[k - 1] + sqrt(1 - correlation^2) * z[k], along the last axis.
    """
    from scipy.signal import lfilter  # here, because scipy takes long to import

    noise = z * np.sqrt(1.0 - correlation**2)
    noise[..., :1] = z[..., :1]
    return np.asarray(lfilter((1.0,), (1.0, -correlation), noise))
