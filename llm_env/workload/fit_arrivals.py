"""Arrival processes fitted to pieces of a trace: renewal by likelihood, modulated by the dispersion of counts.

Every estimator sees the fitting part alone. `fit_all` fits every family; the comparison with what was held back is
that of `llm_env.workload.fit_compare`.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple, cast

import numpy as np

from llm_env.config import CoxArrivals, GammaArrivals, MMPPArrivals, PoissonArrivals, Stationary, WeibullArrivals
from llm_env.workload.arrival_theory import expected_dispersion
from llm_env.workload.fit_hmm import fit_mmpp
from llm_env.workload.fit_onoff import fit_onoff
from llm_env.workload.fit_split import Pieces, piece_counts, piece_dispersion, piece_gaps
from llm_env.workload.renewal import weibull_cv
from llm_env.workload.statistics import significant, whole_windows

WIDTHS_S = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0)  # of the windows whose dispersion is matched
MAX_LAGS = 64  # pieces whose covariance counts: beyond it a finite trace is as good as an endless one
LEAST_TAU_S = 0.5  # of a Cox process: windows of a second cannot tell shorter ones apart
LEAST_SIGMA = 0.01  # of a Cox process: below it the rate is constant
MAX_WEIBULL_SHAPE = 50.0  # a cv of 0.025, below CV_RANGE
CV_RANGE = (0.05, 20.0)  # of the settings


class Fitted(NamedTuple):
    """One family with its parameters."""

    name: str
    arrivals: Stationary


def fit_all(times: np.ndarray, pieces: Pieces, block_s: float = 60.0) -> list[Fitted]:
    """Every family, simplest first; on/off is left out where there are too few silences to measure it.

    Args:
        times: (n,) arrival times, ascending.
        pieces: of the time, to be fitted to; at least two requests follow each other in one of them.
        block_s: pieces are cut to this length for the hidden Markov model.
    """
    gaps = piece_gaps(times, pieces)
    dispersions = measured_dispersions(times, pieces)
    rate = mean_rate(times, pieces)
    fits = [
        Fitted("poisson", PoissonArrivals()),
        Fitted("gamma", fit_gamma(gaps)),
        Fitted("weibull", fit_weibull(gaps)),
        Fitted("mmpp, 2 states", fit_mmpp(times, pieces, 2, block_s)),
        Fitted("mmpp, 3 states", fit_mmpp(times, pieces, 3, block_s)),
        Fitted("cox", fit_cox(dispersions, rate, pieces)),
    ]
    bursts = fit_onoff(times, pieces, rate, dispersions)
    return fits if bursts is None else [*fits, Fitted("on-off", bursts)]


def mean_rate(times: np.ndarray, pieces: Pieces) -> float:
    """Requests per second within the pieces."""
    return float(piece_counts(times, pieces, pieces.length_s).sum()) / pieces.total_s


def measured_dispersions(times: np.ndarray, pieces: Pieces) -> dict[float, float]:
    """Index of dispersion by window (s), for those of `WIDTHS_S` with at least two windows."""
    found = {width: piece_dispersion(times, pieces, width) for width in WIDTHS_S if width <= pieces.length_s}
    return {width: value for width, value in found.items() if value > 0}  # neither NaN nor a count that never varies


def fit_gamma(gaps_s: np.ndarray) -> GammaArrivals:
    """Gamma renewal process by maximum likelihood; the shape solves log(k) - digamma(k) = log(mean) - mean(log).

    Source: Johnson, Kotz and Balakrishnan, Continuous Univariate Distributions 1 (1994), section 17.7.
    """
    from scipy.optimize import brentq  # here, because scipy takes long to import
    from scipy.special import digamma

    gaps_s = _positive(gaps_s)
    excess = max(math.log(gaps_s.mean()) - float(np.log(gaps_s).mean()), 1e-6)
    log_shape = cast(float, brentq(lambda x: x - float(digamma(math.exp(x))) - excess, -12.0, 15.0))
    return GammaArrivals(cv=_cv(math.exp(-log_shape / 2.0)))


def fit_weibull(gaps_s: np.ndarray) -> WeibullArrivals:
    """Weibull renewal process by maximum likelihood: k solves sum(x^k log x) / sum(x^k) - 1 / k = mean(log x).

    Source: Johnson, Kotz and Balakrishnan, Continuous Univariate Distributions 1 (1994), section 21.4.
    """
    from scipy.optimize import brentq  # here, because scipy takes long to import

    logs = np.log(_positive(gaps_s))
    logs -= logs.max()

    def slope(k: float) -> float:
        powers = np.exp(k * logs)
        return float(powers @ logs / powers.sum()) - 1.0 / k - float(logs.mean())

    if slope(MAX_WEIBULL_SHAPE) <= 0.0:  # all but equal gaps
        return WeibullArrivals(cv=CV_RANGE[0])
    shape = cast(float, brentq(slope, 0.02, MAX_WEIBULL_SHAPE))
    return WeibullArrivals(cv=_cv(weibull_cv(shape)))


def fit_cox(dispersions: dict[float, float], rate_per_s: float, pieces: Pieces) -> CoxArrivals:
    """Cox process with a log-Ornstein-Uhlenbeck rate whose dispersions of counts are those measured.

    Least squares on the logarithms over all window widths, each with the same weight; what is expected is that of
    pieces of a finite trace (`finite_dispersions`), which cannot show what is slower than the trace.

    Args:
        dispersions: measured, by window width (s).
        rate_per_s: mean rate.
        pieces: in which they were measured.

    Source: moment estimation of log-Gaussian Cox processes by minimum contrast: Moller, Syversveen and Waagepetersen,
    Scandinavian Journal of Statistics 25 (1998) 451-482, section 6.
    """
    from scipy.optimize import least_squares  # here, because scipy takes long to import

    measured = np.log(list(dispersions.values()))
    if not measured.size or max(dispersions.values()) <= 1.0:
        return CoxArrivals(sigma=0.0)

    def misses(x: np.ndarray) -> np.ndarray:
        settings = CoxArrivals(sigma=float(np.exp(x[0])), tau_s=float(np.exp(x[1])))
        return np.log(finite_dispersions(settings, rate_per_s, pieces, tuple(dispersions))) - measured

    low, high = np.log([1e-3, LEAST_TAU_S]), np.log([3.0, 10.0 * (pieces.starts_s[-1] + pieces.length_s)])
    starts = [np.clip(np.log(start), low + 0.01, high - 0.01) for start in ((0.3, 200.0), (1.0, 10.0), (0.5, 1.0))]
    found = [least_squares(misses, start, bounds=(low, high), x_scale=1.0, max_nfev=60) for start in starts]
    sigma, tau_s = np.exp(min(found, key=lambda result: result.cost).x)
    if sigma < LEAST_SIGMA:
        return CoxArrivals(sigma=0.0)
    return CoxArrivals(sigma=significant(sigma), tau_s=significant(tau_s))


def finite_dispersions(
    settings: PoissonArrivals | GammaArrivals | MMPPArrivals | CoxArrivals,
    rate_per_s: float,
    pieces: Pieces,
    widths_s: tuple[float, ...],
) -> np.ndarray:
    """Expected variance (n - 1) over expected mean of the counts of the windows in pieces of a finite trace, by width.

    With V(t) the variance of the count in t seconds, windows of n in all and T the count of all pieces together, it is
    n / (n - 1) * (V(width) - Var(T) / n^2) / (rate * width). Var(T) sums the covariances of all pairs of pieces; that
    of two stretches of t seconds whose starts are s > t apart is (V(s + t) - 2 V(s) + V(s - t)) / 2.

    Source: Cox and Lewis, The Statistical Analysis of Series of Events (1966), section 4.5 (variance-time curve).
    """

    @cache
    def variance(t: float) -> float:
        return cast(float, expected_dispersion(settings, rate_per_s, t)) * rate_per_s * t if t > 0 else 0.0

    k = min(pieces.starts_s.size, MAX_LAGS)
    lags = (pieces.starts_s[1:k] - pieces.starts_s[0]).tolist()  # equally spaced, so k - j pairs are j apart
    found = []
    for width in widths_s:
        num_windows = whole_windows(pieces.length_s, width)
        used, n = num_windows * width, k * num_windows
        pairs = [variance(lag + used) - 2.0 * variance(lag) + variance(lag - used) for lag in lags]
        total = k * variance(used) + float(np.dot(np.arange(k - 1, 0, -1), pairs))
        found.append(n / (n - 1) * (variance(width) - total / n**2) / (rate_per_s * width))
    return np.array(found)


def _positive(gaps_s: np.ndarray) -> np.ndarray:
    """Gaps of 0, requests at one instant, become half the smallest other one: their logarithm is asked for."""
    return np.maximum(gaps_s, gaps_s[gaps_s > 0].min() / 2.0)


def _cv(value: float) -> float:
    return significant(min(max(value, CV_RANGE[0]), CV_RANGE[1]))
