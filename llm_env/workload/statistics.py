"""Figures that describe traffic: rates, burstiness, and distances between distributions. Knows arrays only."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

SCALES_S = (1.0, 10.0, 60.0)  # at which burstiness is reported


def window_counts(arrival_s: np.ndarray, width_s: float, start_s: float, end_s: float) -> np.ndarray:
    """Arrivals in each whole window of `width_s` in [start_s, end_s), int64; the rest at the end is left out.

    Args:
        arrival_s: (n,) ascending.
    """
    edges = start_s + width_s * np.arange(whole_windows(end_s - start_s, width_s) + 1)
    return np.diff(np.searchsorted(arrival_s, edges))


def whole_windows(length_s: float, width_s: float) -> int:
    """How many windows of `width_s` fit into `length_s`; what rounding takes from the last one is forgiven."""
    return int(length_s / width_s * (1 + 1e-12))


def significant(value: float, digits: int = 4) -> float:
    """The value rounded to so many significant digits, as fitted numbers are given."""
    return float(f"{value:.{digits}g}")


def dispersion(counts: np.ndarray) -> float:
    """Index of dispersion for counts: variance (n - 1) over mean; 1 for Poisson. NaN with fewer than 2 or no arrivals.

    Source: Cox and Lewis, The Statistical Analysis of Series of Events (1966), section 4.6.
    """
    mean = float(np.mean(counts)) if len(counts) else 0.0
    return float(np.var(counts, ddof=1)) / mean if len(counts) > 1 and mean > 0 else math.nan


def coefficient_of_variation(values: np.ndarray) -> float:
    """Standard deviation (n - 1) over mean, NaN with fewer than 2 values or a mean of 0."""
    mean = float(np.mean(values)) if len(values) else 0.0
    return float(np.std(values, ddof=1)) / mean if len(values) > 1 and mean > 0 else math.nan


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's rank correlation with mean ranks for ties; NaN if one of them is constant."""
    from scipy.stats import rankdata  # here, because scipy takes long to import

    if len(x) < 2 or np.all(x == x[0]) or np.all(y == y[0]):
        return math.nan
    return float(np.corrcoef(rankdata(x), rankdata(y))[0, 1])


def ks_distance(sample: np.ndarray, other: np.ndarray | Callable[[np.ndarray], np.ndarray]) -> float:
    """Kolmogorov-Smirnov distance of a sample from another one, or from a distribution function.

    Both may have atoms: distribution functions are compared at the values themselves, where both are right-continuous,
    and just below them. A function takes float64[k] and returns P(X <= value).
    """
    sample = np.sort(sample)
    if callable(other):
        values = np.unique(sample).astype(np.float64)
        at, below = other(values), other(np.nextafter(values, -np.inf))
    else:
        other = np.sort(other)
        values = np.union1d(sample, other).astype(np.float64)
        at, below = (np.searchsorted(other, values, side=side) / other.size for side in ("right", "left"))
    mine_at, mine_below = (np.searchsorted(sample, values, side=side) / sample.size for side in ("right", "left"))
    return float(max(np.abs(mine_at - at).max(), np.abs(mine_below - below).max()))
