"""Renewal processes of rate 1, seen from an arbitrary moment: Poisson, gamma and Weibull. Knows no settings.

Draws are taken in order, so what comes before `end` does not depend on `end`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import cast

import numpy as np

LEAST_CV = 1e-6  # of interarrival times; below it they are equal for any purpose, and the shape overflows


def poisson(end: float, rng: np.random.Generator) -> np.ndarray:
    """Arrivals in [0, end) of a Poisson process of rate 1. Source: any text, e.g. Ross, Stochastic Processes, ch. 2."""
    return _sums(end, 1.0, rng.standard_exponential)


def gamma(cv: float, end: float, rng: np.random.Generator) -> np.ndarray:
    """Arrivals in [0, end) of a gamma renewal process of rate 1, seen from an arbitrary moment.

    The first arrival is the residual of a length-biased interval, uniform * Gamma(shape + 1), so that the process is
    stationary. Starting at an arrival instead would add (cv^2 - 1) / 2 requests to every episode.

    Source: Cox, Renewal Theory (1962), sections 2.1 and 5.2 (equilibrium renewal process).
    """
    shape = gamma_shape(cv)
    first = rng.random() * rng.standard_gamma(shape + 1.0) / shape
    return _after(first, end, cv, lambda n: rng.standard_gamma(shape, n) / shape)


def weibull(cv: float, end: float, rng: np.random.Generator) -> np.ndarray:
    """Arrivals in [0, end) of a Weibull renewal process of rate 1, seen from an arbitrary moment.

    An interval is E^(1/k) / Gamma(1 + 1/k), E exponential. Length-biased it has the density of E times E^(1/k), so E
    becomes Gamma(1 + 1/k); the first arrival is a uniform part of that, as in `gamma`.

    Source: Cox, Renewal Theory (1962), section 5.2; Weibull interarrival times of requests for language models: Xiang
    et al., "ServeGen", arXiv:2505.09999, section 3.
    """
    power = 1.0 / weibull_shape(cv)
    mean = math.gamma(1.0 + power)
    first = rng.random() * rng.standard_gamma(1.0 + power) ** power / mean
    return _after(first, end, cv, lambda n: rng.standard_exponential(n) ** power / mean)


def gamma_shape(cv: float) -> float:
    """Shape of a gamma distribution with this coefficient of variation."""
    return 1.0 / max(cv, LEAST_CV) ** 2


@lru_cache(maxsize=65_536)
def weibull_shape(cv: float) -> float:
    """Shape k of a Weibull distribution with this coefficient of variation, at most 20.

    Solves 1 + cv^2 = Gamma(1 + 2/k) / Gamma(1 + 1/k)^2, whose right side falls in k. Source: Johnson, Kotz and
    Balakrishnan, Continuous Univariate Distributions 1 (1994), section 21.2.
    """
    from scipy.optimize import brentq  # here, because scipy takes long to import

    target = math.log1p(max(cv, LEAST_CV) ** 2)

    def excess(log_shape: float) -> float:
        return _log_square(math.exp(-log_shape)) - target

    return math.exp(cast(float, brentq(excess, math.log(0.1), math.log(1e7), xtol=1e-14)))


def weibull_cv(shape: float) -> float:
    """Coefficient of variation of a Weibull distribution with this shape, at least 0.01."""
    return math.sqrt(max(math.expm1(_log_square(1.0 / shape)), 0.0))


def _log_square(power: float) -> float:
    """log(1 + cv^2) of a Weibull distribution of shape 1 / power, see `weibull_shape`."""
    return math.lgamma(1.0 + 2.0 * power) - 2.0 * math.lgamma(1.0 + power)


def _after(first: float, end: float, cv: float, draw: Callable[[int], np.ndarray]) -> np.ndarray:
    if first >= end:
        return np.empty(0)
    return np.concatenate(((first,), first + _sums(end - first, max(cv, 1.0), draw)))


def _sums(end: float, cv: float, draw: Callable[[int], np.ndarray]) -> np.ndarray:
    """Partial sums below `end` of draws of mean 1 and coefficient of variation `cv`."""
    chunk = int(end + 4.0 * cv * np.sqrt(end)) + 16  # nearly always enough at once
    sums = np.cumsum(draw(chunk))
    while sums[-1] < end:
        sums = np.concatenate((sums, sums[-1] + np.cumsum(draw(chunk))))
    return sums[: np.searchsorted(sums, end)]
