"""Arrival times of an episode: Poisson, gamma renewal and two-state Markov-modulated Poisson.

All are made from unit-mean draws that are taken in order and stretched by the rate. So a Poisson or gamma process at
twice the rate is the same pattern twice as dense, and a longer episode begins with the arrivals of a shorter one. The
modulated process keeps its quiet and busy periods when only the rate changes. Knows nothing of lengths or classes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from llm_env.config import Arrivals, GammaArrivals, MMPP2Arrivals
from llm_env.errors import UserError

MAX_EXPECTED = 20_000_000  # arrivals or periods per episode: beyond it memory runs out before anything is simulated
LEAST_CV = 1e-6  # of gamma interarrival times; below it they are equal for any purpose, and the shape overflows


def draw_arrivals(settings: Arrivals, rate_per_s: float, duration_s: float, rng: np.random.Generator) -> np.ndarray:
    """Arrival times of a stationary process with mean rate `rate_per_s`.

    Args:
        settings: which process.
        rate_per_s: mean arrivals per second, above 0.
        duration_s: length of the interval, above 0.
        rng: used by nothing else (see `llm_env.workload.streams`).

    Returns:
        float64[n], seconds, ascending, in [0, duration_s). Their expected number is rate_per_s * duration_s.

    Raises:
        UserError: more than 20,000,000 arrivals, or changes of state, are expected.
    """
    _check_amount("arrivals", rate_per_s * duration_s)
    if isinstance(settings, GammaArrivals):
        unit = _gamma(settings.cv, rate_per_s * duration_s, rng)
    elif isinstance(settings, MMPP2Arrivals):
        return _mmpp2(settings, rate_per_s, duration_s, rng)
    else:
        unit = _poisson(rate_per_s * duration_s, rng)
    times = unit / rate_per_s
    return times[: np.searchsorted(times, duration_s)]  # division may round up to the end


def _poisson(end: float, rng: np.random.Generator) -> np.ndarray:
    """Arrivals in [0, end) of a Poisson process of rate 1. Source: any text, e.g. Ross, Stochastic Processes, ch. 2."""
    return _sums(end, 1.0, rng.standard_exponential)


def _gamma(cv: float, end: float, rng: np.random.Generator) -> np.ndarray:
    """Arrivals in [0, end) of a gamma renewal process of rate 1, seen from an arbitrary moment.

    The first arrival is the residual of a length-biased interval, uniform * Gamma(shape + 1), so that the process is
    stationary. Starting at an arrival instead would add (cv^2 - 1) / 2 requests to every episode.

    Source: Cox, Renewal Theory (1962), sections 2.1 and 5.2 (equilibrium renewal process).
    """
    shape = 1.0 / max(cv, LEAST_CV) ** 2
    first = rng.random() * rng.standard_gamma(shape + 1.0) / shape
    if first >= end:
        return np.empty(0)
    later = _sums(end - first, max(cv, 1.0), lambda n: rng.standard_gamma(shape, n) / shape)
    return np.concatenate(((first,), first + later))


def _mmpp2(settings: MMPP2Arrivals, rate_per_s: float, duration_s: float, rng: np.random.Generator) -> np.ndarray:
    """Arrivals in [0, duration_s) of a two-state MMPP that starts in its stationary state.

    The periods are drawn first. Arrivals are those of a unit-rate Poisson process on the operational time
    (the integral of the rate), mapped back through its inverse, which is linear within each period.

    Source: Fischer and Meier-Hellstern, "The Markov-modulated Poisson process (MMPP) cookbook", Performance
    Evaluation 18 (1993) 149-171; time change: Cinlar, Introduction to Stochastic Processes (1975), section 4.7.
    """
    p = settings.busy_share
    _check_amount("changes of state", 2.0 * duration_s / settings.cycle_s)
    quiet_rate = rate_per_s / (1.0 - p + p * settings.rate_ratio)

    starts_busy = rng.random() < p
    mean_s = np.array((p, 1.0 - p) if starts_busy else (1.0 - p, p)) * settings.cycle_s
    rates = np.array((settings.rate_ratio, 1.0) if starts_busy else (1.0, settings.rate_ratio)) * quiet_rate
    cycles = int(duration_s / settings.cycle_s * 1.2) + 8
    dwell_s = rng.standard_exponential((cycles, 2)) * mean_s  # exponential, so the first one is a residual too
    while dwell_s.sum() < duration_s:
        dwell_s = np.concatenate((dwell_s, rng.standard_exponential((cycles, 2)) * mean_s))

    clock_s = np.concatenate(((0.0,), np.cumsum(dwell_s)))
    operational = np.concatenate(((0.0,), np.cumsum(dwell_s * rates)))
    unit = _poisson(float(np.interp(duration_s, clock_s, operational)), rng)
    times = np.maximum.accumulate(np.interp(unit, operational, clock_s))  # rounding at a corner must not go back
    return times[: np.searchsorted(times, duration_s)]


def _sums(end: float, cv: float, draw: Callable[[int], np.ndarray]) -> np.ndarray:
    """Partial sums below `end` of draws of mean 1 and coefficient of variation `cv`."""
    chunk = int(end + 4.0 * cv * np.sqrt(end)) + 16  # nearly always enough at once
    sums = np.cumsum(draw(chunk))
    while sums[-1] < end:
        sums = np.concatenate((sums, sums[-1] + np.cumsum(draw(chunk))))
    return sums[: np.searchsorted(sums, end)]


def _check_amount(what: str, expected: float) -> None:
    if not expected <= MAX_EXPECTED:
        raise UserError(
            f"workload: about {expected:.3g} {what} are expected in one episode, at most {MAX_EXPECTED} are possible:"
            " lower the rate or shorten episode.arrivals_s"
        )
