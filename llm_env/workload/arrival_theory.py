"""What theory says of arrival processes: the index of dispersion of their counts, where it has a closed form."""

from __future__ import annotations

import math

import numpy as np

from llm_env.arrival_settings import (
    Arrivals,
    CoxArrivals,
    FlashCrowdArrivals,
    GammaArrivals,
    MMPP2Arrivals,
    MMPPArrivals,
    OnOffArrivals,
    PoissonArrivals,
    SuperposedArrivals,
    WeibullArrivals,
)
from llm_env.settings import MAX_TOKENS
from llm_env.workload.bursts import burst_sizes, mean_times
from llm_env.workload.lengths import length_probabilities
from llm_env.workload.modulated import calm_and_crowd, following_of, state_shares
from llm_env.workload.renewal import gamma_shape

_MANY = 1e4  # arrivals per window, from which on a renewal process is at the end of its expansion


def expected_dispersion(settings: Arrivals, rate_per_s: float, width_s: float) -> float | None:
    """Variance over mean of the arrivals in a window of a stationary process; 1 for Poisson.

    Args:
        settings: which process.
        rate_per_s: its mean rate.
        width_s: of the window; math.inf gives the limit of long windows.

    Returns:
        None where there is no closed form: for finite windows of weibull, on-off, flash-crowd and a Cox process whose
        `cv` is not 1; for a flash-crowd with a base whose rate changes; always for profiles, which are not stationary,
        and for clients, who are not in these settings.

    Raises:
        UserError: an on-off process without gaps.

    Source: Poisson and the limits of renewal processes: Cox, Renewal Theory (1962), sections 4.2 and 5.4. Others where
    they are computed.
    """
    if isinstance(settings, PoissonArrivals):
        return 1.0
    if isinstance(settings, GammaArrivals):
        return _gamma(settings.cv, rate_per_s * width_s)
    if isinstance(settings, WeibullArrivals):
        return settings.cv**2 if math.isinf(width_s) else None
    if isinstance(settings, MMPP2Arrivals | MMPPArrivals):
        return _modulated(*_chain(settings), rate_per_s, width_s)
    if isinstance(settings, CoxArrivals):
        if settings.cv != 1.0 and not math.isinf(width_s):
            return None
        return settings.cv**2 + rate_per_s * _cox_covariance(settings, width_s)
    if isinstance(settings, OnOffArrivals):
        return _on_off_limit(settings) if math.isinf(width_s) else None
    if isinstance(settings, FlashCrowdArrivals):
        return _crowd_limit(settings, rate_per_s) if math.isinf(width_s) else None
    if isinstance(settings, SuperposedArrivals):
        # variances of independent counts add, and so do their means
        whole = math.fsum(part.share for part in settings.parts)
        parts = [expected_dispersion(p.arrivals, p.share / whole * rate_per_s, width_s) for p in settings.parts]
        known = [part for part in parts if part is not None]
        weights = [part.share / whole for part in settings.parts]
        return float(np.dot(weights, known)) if len(known) == len(parts) else None
    return None


def _gamma(cv: float, mean: float) -> float:
    """Of a stationary gamma renewal process in a window of `mean` arrivals on average.

    The variance is the integral of 1 + 2 m(u) over the window, less mean^2; m, the renewal function, is the sum of the
    gamma distribution functions P(k shape, shape u), and their integrals are closed. Beyond 10,000 arrivals it is the
    asymptotic expansion, cv^2 mean + 1/6 + cv^4 / 2 - (third central moment) / 3.

    Source: Cox, Renewal Theory (1962), sections 4.5 and 4.6.
    """
    if math.isinf(mean):
        return cv**2
    shape = gamma_shape(cv)
    if mean > _MANY:
        return cv**2 + (1.0 / 6.0 + cv**4 / 2.0 - 2.0 * cv**4 / 3.0) / mean
    from scipy.special import gammainc  # here, because scipy takes long to import

    total, end = 0.0, mean * shape
    chunk = int(mean + 8.0 * cv * math.sqrt(mean)) + 64
    for first in range(1, 1 << 40, chunk):
        k_shape = shape * np.arange(first, first + chunk)
        integrals = end * gammainc(k_shape, end) - k_shape * gammainc(k_shape + 1.0, end)
        total += float(integrals.sum()) / shape
        if integrals[-1] <= 1e-12 * max(total * shape, 1e-300):
            break
    return 1.0 + 2.0 * total / mean - mean


def _chain(settings: MMPP2Arrivals | MMPPArrivals) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Generator (per second), shares of the time and relative rates of the states."""
    if isinstance(settings, MMPP2Arrivals):
        p = settings.busy_share
        leave = 1.0 / (np.array((1.0 - p, p)) * settings.cycle_s)
        return (
            np.array(((-1.0, 1.0), (1.0, -1.0))) * leave[:, None],
            np.array((1.0 - p, p)),
            np.array((1.0, settings.rate_ratio)),
        )
    leave = 1.0 / np.array(settings.dwell_s)
    generator = (following_of(settings) - np.eye(leave.size)) * leave[:, None]
    return generator, state_shares(settings), np.array(settings.rates)


def _modulated(
    generator: np.ndarray, shares: np.ndarray, rates: np.ndarray, rate_per_s: float, width_s: float
) -> float:
    """1 + 2 / (rate width) * integral over u from 0 to the width of (width - u) * covariance of the rate at lag u.

    With x the rates less their mean and Q the generator the covariance is shares * x' exp(Q u) x. Its integral is one
    block of an exponential of a larger matrix; in the limit of long windows it is the solution of Q y = -x.

    Source: Fischer and Meier-Hellstern, "The Markov-modulated Poisson process (MMPP) cookbook", Performance Evaluation
    18 (1993) 149-171, section 2; Van Loan, "Computing integrals involving the matrix exponential", IEEE Transactions on
    Automatic Control 23 (1978) 395-404.
    """
    from scipy.linalg import expm  # here, because scipy takes long to import

    excess = rates / (shares @ rates) - 1.0  # relative to the mean rate
    weights, n = shares * excess, shares.size
    if math.isinf(width_s):
        speed = -generator.diagonal().max()
        y = np.linalg.solve(generator - speed * np.outer(np.ones(n), shares), -excess)
        return 1.0 + 2.0 * rate_per_s * float(weights @ y)
    larger = np.zeros((n + 2, n + 2))
    larger[:n, :n] = generator * width_s
    larger[:n, n] = excess
    larger[n, n + 1] = 1.0
    # expm's corner is the integral over [0, 1] of (1 - v) exp(Q width v) x, for windows as the unit of time
    return 1.0 + 2.0 * rate_per_s * width_s * float(weights @ expm(larger)[:n, n + 1])


def _cox_covariance(settings: CoxArrivals, width_s: float) -> float:
    """2 / width * integral over u from 0 to the width of (width - u) * (exp(sigma^2 exp(-u / tau)) - 1), in seconds.

    The exponential is expanded and integrated term by term: the sum over k of sigma^2k / k! times the same with
    exp(-k u / tau). In the limit of long windows each term is 2 tau / k.

    Source: Moller, Syversveen and Waagepetersen, "Log Gaussian Cox processes", Scandinavian Journal of Statistics 25
    (1998) 451-482, section 2 (covariance).
    """
    total, weight = 0.0, 1.0
    for k in range(1, 80):  # sigma^2 is at most 9: 9^80 / 80! is below 1e-42
        weight *= settings.sigma**2 / k
        y = k * width_s / settings.tau_s
        if math.isinf(y):
            total += weight * 2.0 * settings.tau_s / k
        else:
            # the mean over the window of 1 - v at lag v, damped; by its series where the difference cancels
            share = 1.0 - y / 3.0 + y**2 / 12.0 if y < 1e-3 else 2.0 * (y + math.expm1(-y)) / y**2
            total += weight * width_s * share
    return total


def _on_off_limit(settings: OnOffArrivals) -> float:
    """Variance of N - C over E[N], where N are the requests and C the length of a cycle, in units of 1 / rate.

    Given N, C has N - 1 independent gaps and a silence. Source: Smith, "Regenerative stochastic processes", Proceedings
    of the Royal Society A 232 (1955) 6-31 (cumulative processes).
    """
    size, gap, silence = mean_times(settings)
    probabilities = length_probabilities(burst_sizes(settings), MAX_TOKENS + 1)
    spread = float(probabilities @ (np.arange(probabilities.size) - size) ** 2)
    gaps = (1.0 - gap) ** 2 * spread + (size - 1.0) * (gap * settings.gap_cv) ** 2
    return (gaps + silence**2 * math.expm1(settings.off_sigma**2)) / size


def _crowd_limit(settings: FlashCrowdArrivals, rate_per_s: float) -> float | None:
    """The base's limit, plus rate * E[R^2] / E[cycle]; R is the integral of the relative rate less 1 over a cycle.

    Source: Smith (1955), as above.
    """
    if isinstance(settings.base, MMPP2Arrivals | MMPPArrivals | CoxArrivals):
        return None
    base = expected_dispersion(settings.base, rate_per_s, math.inf)
    if base is None:
        return None
    low_s, high_s = settings.duration_s
    cycle_s, calm = calm_and_crowd(settings)
    crowd_s = (low_s + high_s) / 2.0
    excess = calm * np.array(settings.multipliers) - 1.0
    square_s2 = crowd_s**2 + (high_s - low_s) ** 2 / 12.0
    # the calm time is exponential: its variance is its mean squared, and R has mean 0
    variance = ((calm - 1.0) * settings.every_s) ** 2 + float((excess**2).mean()) * square_s2
    variance -= float(excess.mean() * crowd_s) ** 2
    return base + rate_per_s * variance / cycle_s
