"""The log-normal distribution rounded to the nearest token and clipped: distribution function and means.

Knows numbers only, no settings.
"""

from __future__ import annotations

import numpy as np

LEAST_SIGMA = 1e-12  # below it all draws are equal for any purpose, and dividing by it overflows
_SMOOTH = 100.0  # from here on, in tokens times min(sigma, 1), the sum over tokens is an integral and its correction
_BEYOND = 9.0  # deviations, outside which a normal variable is not found: 1e-19
_AT_ONCE = 1024  # locations, which bounds the memory


def lognormal_below(mu: float, sigma: float, lo: int, hi: int) -> np.ndarray:
    """(hi - lo,) P(X <= k) for k = lo .. hi - 1 of exp(Normal(mu, sigma)) rounded and clipped to [lo, hi]."""
    if sigma < LEAST_SIGMA:
        return np.where(np.arange(lo, hi) < lognormal_mean(mu, 0.0, lo, hi), 0.0, 1.0)
    from scipy.special import ndtr  # here, because scipy takes longer to import than the rest of this file

    return ndtr((np.log(np.arange(lo, hi) + 0.5) - mu) / sigma)


def lognormal_mean(mu: float, sigma: float, lo: int, hi: int) -> float:
    """The mean of the same: lo + the sum of P(X > k - 1/2) over k = lo + 1 .. hi, X not rounded."""
    if sigma < LEAST_SIGMA:
        with np.errstate(over="ignore"):  # an infinite length is clipped like any other
            return float(np.clip(np.rint(np.exp(mu)), lo, hi))
    from scipy.special import ndtr  # here, because scipy takes longer to import than the rest of this file

    edges = np.arange(lo + 1, hi + 1, dtype=np.float64) - 0.5
    return lo + float(ndtr((mu - np.log(edges)) / sigma).sum())


def lognormal_means(mu: np.ndarray, sigma: float, lo: int, hi: int) -> np.ndarray:
    """`lognormal_mean` of many `mu`, (n,) float64, at a cost that does not grow with hi.

    The sum is taken term by term up to 100 / min(sigma, 1) tokens, where the distribution may be steep. Beyond it is
    the midpoint rule of an integral with a closed form, corrected by the first term of the Euler-Maclaurin series, that
    is (f'(start) - f'(end)) / 24. The relative error is below 1e-10; where sigma is 0 or nothing is beyond, rounding.

    Source: Graham, Knuth and Patashnik, Concrete Mathematics (2nd ed., 1994), section 9.5 (Euler's summation formula).
    """
    if sigma < LEAST_SIGMA:
        with np.errstate(over="ignore"):
            return np.clip(np.rint(np.exp(mu)), lo, hi)
    parts = np.array_split(mu, -(-mu.size // _AT_ONCE))
    return np.concatenate([_means(part, sigma, lo, hi) for part in parts])


def _means(mu: np.ndarray, sigma: float, lo: int, hi: int) -> np.ndarray:
    from scipy.special import ndtr  # here, because scipy takes longer to import than the rest of this file

    smooth = int(np.clip(np.ceil(_SMOOTH / min(sigma, 1.0)), lo, hi))

    # 1. up to `smooth`: all terms are 1, then those that are summed, then all are 0
    first = np.clip(np.floor(np.exp(mu - _BEYOND * sigma)), lo, smooth).astype(np.int64)
    count = np.clip(np.ceil(np.exp(mu + _BEYOND * sigma)), first, smooth).astype(np.int64) - first
    place = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)  # 0, 1, ... for each location
    edges = np.repeat(first, count) + place + 0.5
    which = np.repeat(np.arange(mu.size), count)
    summed = np.bincount(which, ndtr((mu[which] - np.log(edges)) / sigma), mu.size)

    # 2. from there to hi
    def integral_and_slope(x: float) -> np.ndarray:
        z = (mu - np.log(x)) / sigma
        integral = x * ndtr(z) + np.exp(mu + sigma**2 / 2.0) * ndtr(-z - sigma)
        return integral + np.exp(-(z**2) / 2.0) / (np.sqrt(2.0 * np.pi) * sigma * x) / 24.0

    return first + summed + integral_and_slope(float(hi)) - integral_and_slope(float(smooth))
