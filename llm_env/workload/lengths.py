"""Prompt and output lengths: draws from a length distribution, and its exact mean.

Each draw uses its generator request by request, so the first n lengths are the same however many follow: a run at a
higher load begins with the requests of a run at a lower one. Knows nothing of arrivals.
"""

from __future__ import annotations

from functools import lru_cache
from statistics import NormalDist
from typing import Any, cast

import numpy as np

from llm_env.config import (
    ChoiceLength,
    FixedLength,
    GeometricLength,
    Length,
    LognormalLength,
    LognormalMixtureLength,
)


def draw_lengths(settings: Length, n: int, rng: np.random.Generator) -> np.ndarray:
    """Independent lengths.

    Args:
        settings: the distribution.
        n: how many.
        rng: used by nothing else (see `llm_env.workload.streams`).

    Returns:
        int64[n], tokens, at least 1.
    """
    if isinstance(settings, FixedLength):
        return np.full(n, settings.tokens, np.int64)
    if isinstance(settings, LognormalLength):
        return _to_tokens(settings.mu + settings.sigma * rng.standard_normal(n), settings)
    if isinstance(settings, LognormalMixtureLength):
        picks, z = rng.standard_normal((n, 2)).T
        # The component is picked by a normal draw against the normal quantiles of the weights: a uniform draw would
        # need a second array, and the two together would depend on n.
        component = np.searchsorted(_thresholds(settings.w), picks, side="right")
        return _to_tokens(np.array(settings.mu)[component] + np.array(settings.sigma)[component] * z, settings)
    if isinstance(settings, GeometricLength):
        return np.minimum(rng.geometric(settings.p, n), settings.max_tokens).astype(np.int64)
    if isinstance(settings, ChoiceLength):
        steps = np.cumsum(settings.probabilities)
        return np.array(settings.tokens, np.int64)[np.searchsorted(steps / steps[-1], rng.random(n), side="right")]
    raise TypeError(f"not a length distribution: {settings!r}")


def mean_length(settings: Length) -> float:
    """Exact mean of what `draw_lengths` gives, after rounding and clipping, in tokens.

    For a log-normal X clipped to [lo, hi] it is lo + the sum of P(X > k - 1/2) over k = lo + 1 .. hi. Results are
    kept, because an episode asks for them at every reset.
    """
    return _mean(cast(Any, settings))  # settings are frozen and so hashable, which type checkers cannot see


@lru_cache(maxsize=256)
def _mean(settings: Length) -> float:
    if isinstance(settings, FixedLength):
        return float(settings.tokens)
    if isinstance(settings, LognormalLength):
        return _lognormal_mean(settings.mu, settings.sigma, settings.min_tokens, settings.max_tokens)
    if isinstance(settings, LognormalMixtureLength):
        bounds = (settings.min_tokens, settings.max_tokens)
        means = [_lognormal_mean(mu, sigma, *bounds) for mu, sigma in zip(settings.mu, settings.sigma, strict=True)]
        return float(np.dot(settings.w, means) / sum(settings.w))
    if isinstance(settings, GeometricLength):
        # the sum of (1 - p)^k over k = 0 .. max_tokens - 1
        if settings.p == 1.0:
            return 1.0
        return float(-np.expm1(settings.max_tokens * np.log1p(-settings.p)) / settings.p)
    if isinstance(settings, ChoiceLength):
        return float(np.dot(settings.probabilities, settings.tokens) / sum(settings.probabilities))
    raise TypeError(f"not a length distribution: {settings!r}")


def _to_tokens(logarithms: np.ndarray, settings: LognormalLength | LognormalMixtureLength) -> np.ndarray:
    with np.errstate(over="ignore"):  # an infinite length is clipped like any other
        return np.clip(np.rint(np.exp(logarithms)), settings.min_tokens, settings.max_tokens).astype(np.int64)


def _thresholds(weights: tuple[float, ...]) -> np.ndarray:
    """Normal quantiles that cut the real line into pieces with these probabilities, one fewer than weights."""
    steps = np.cumsum(weights)
    return np.array([_quantile(float(step)) for step in steps[:-1] / steps[-1]])


def _quantile(p: float) -> float:
    if p <= 0.0:
        return -np.inf
    return np.inf if p >= 1.0 else NormalDist().inv_cdf(p)


def _lognormal_mean(mu: float, sigma: float, lo: int, hi: int) -> float:
    if sigma == 0.0:
        with np.errstate(over="ignore"):
            return float(np.clip(np.rint(np.exp(mu)), lo, hi))
    from scipy.special import ndtr  # here, because scipy takes longer to import than the rest of this file

    edges = np.arange(lo + 1, hi + 1, dtype=np.float64) - 0.5
    return lo + float(ndtr((mu - np.log(edges)) / sigma).sum())
