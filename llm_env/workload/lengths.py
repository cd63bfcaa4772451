"""Prompt and output lengths: draws from a length distribution, its exact mean, probabilities and largest length.

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


def largest_length(settings: Length) -> int:
    """The largest length that the settings allow, in tokens."""
    if isinstance(settings, FixedLength):
        return settings.tokens
    if isinstance(settings, ChoiceLength):
        return max(settings.tokens)
    return settings.max_tokens


def length_probabilities(settings: Length, size: int) -> np.ndarray:
    """Exact probabilities of what `draw_lengths` gives.

    Returns:
        float64[size]: of the lengths 0, 1, ..., size - 1. Those of `size` and more tokens are left out.
    """
    wide = np.zeros(max(size, largest_length(settings) + 1))
    if isinstance(settings, FixedLength):
        wide[settings.tokens] = 1.0
    elif isinstance(settings, ChoiceLength):
        np.add.at(wide, list(settings.tokens), np.array(settings.probabilities) / sum(settings.probabilities))
    elif isinstance(settings, GeometricLength):
        end = settings.max_tokens  # what is longer is cut to it
        longer = np.power(1.0 - settings.p, np.arange(end))  # P(length > k), k = 0 .. max_tokens - 1
        wide[1:end] = settings.p * longer[: end - 1]
        wide[end] = longer[end - 1]
    elif isinstance(settings, LognormalLength):
        _add_lognormal(wide, 1.0, settings.mu, settings.sigma, settings.min_tokens, settings.max_tokens)
    else:
        for w, mu, sigma in zip(settings.w, settings.mu, settings.sigma, strict=True):
            _add_lognormal(wide, w / sum(settings.w), mu, sigma, settings.min_tokens, settings.max_tokens)
    return wide[:size]


def _add_lognormal(probabilities: np.ndarray, share: float, mu: float, sigma: float, lo: int, hi: int) -> None:
    """Adds `share` times those of a rounded log-normal clipped to [lo, hi]."""
    if sigma == 0.0:
        probabilities[int(_lognormal_mean(mu, 0.0, lo, hi))] += share
        return
    from scipy.special import ndtr  # here, because scipy takes longer to import than the rest of this file

    below = ndtr((np.log(np.arange(lo, hi) + 0.5) - mu) / sigma)
    probabilities[lo : hi + 1] += share * np.diff(below, prepend=0.0, append=1.0)


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
