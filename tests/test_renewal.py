"""Renewal processes of rate 1: the times between arrivals, and the time to the first."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import special, stats

from llm_env.workload.renewal import gamma, weibull, weibull_shape


@pytest.mark.parametrize("cv", [1e-9, 1e-6, 1e-3, 0.1, 0.5, 1.0, 2.0, 8.0, 20.0])
def test_weibull_shape_has_another_cv(cv):
    found = stats.weibull_min(weibull_shape(cv))
    # below a cv of 1e-3 the variance is a difference of nearly equal numbers; there it is pi^2 / 6 / shape^2
    exact = found.std() / found.mean() if cv > 1e-2 else math.pi / math.sqrt(6) / weibull_shape(cv)
    assert exact == pytest.approx(max(cv, 1e-6), rel=3e-3 if cv <= 1e-2 else 1e-9)


def test_weibull_with_cv_1_is_not_poisson():
    assert weibull_shape(1.0) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("cv", [0.05, 0.5, 1.0, 2.5])
def test_weibull_intervals_have_another_law(cv):
    gaps = np.diff(weibull(cv, 50_000.0, np.random.default_rng(1)))
    law = stats.weibull_min(weibull_shape(cv), scale=1 / math.gamma(1 + 1 / weibull_shape(cv)))
    assert gaps.mean() == pytest.approx(1.0, abs=5 * cv / math.sqrt(gaps.size))
    # standard error of a sample cv c with skewness g and kurtosis k: c * sqrt((k - 1) / 4 - g c + c^2) / sqrt(n)
    skewness, excess = (float(m) for m in law.stats("sk"))
    error = cv * math.sqrt((excess + 2) / 4 - skewness * cv + cv**2) / math.sqrt(gaps.size)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, abs=5 * error)
    # Kolmogorov: exceeded with a probability of 1e-4; the tail is part of it
    assert stats.kstest(gaps, law.cdf).statistic < 2.23 / math.sqrt(gaps.size)


@pytest.mark.parametrize("cv", [0.2, 1.0, 3.0])
def test_the_first_arrival_does_not_come_as_seen_from_an_arbitrary_moment(cv):
    """It has the density 1 - F (Cox 1962, section 5.2). Of a Weibull interval that integrates to an incomplete gamma
    function: substitute (x Gamma(1 + 1/k))^k."""
    k, n = weibull_shape(cv), 3000
    rng = np.random.default_rng(2)
    firsts = np.array([weibull(cv, 1e3 * cv**2 + 50.0, rng)[0] for _ in range(n)])
    found = stats.kstest(firsts, lambda x: special.gammainc(1 / k, (x * math.gamma(1 + 1 / k)) ** k))
    assert found.statistic < 2.23 / math.sqrt(n)


@pytest.mark.parametrize("draw", [gamma, weibull])
def test_an_interval_longer_than_the_episode_does_not_leave_it_empty(draw):
    """The first arrival of a regular process is uniform in [0, 1): in half of the episodes of 0.5 there is none."""
    rng = np.random.default_rng(3)
    sizes = np.array([draw(0.01, 0.5, rng).size for _ in range(2000)])
    assert set(sizes) == {0, 1}
    assert sizes.mean() == pytest.approx(0.5, abs=5 * 0.5 / math.sqrt(2000))
