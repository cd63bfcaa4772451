"""Clients who are arrival processes of their own: shares, burstiness, changes of their rates, and who is who."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from llm_env.config import (
    ArrivalPart,
    ClientArrivals,
    ClientSettings,
    GammaArrivals,
    PoissonArrivals,
    SuperposedArrivals,
    WorkloadSettings,
)
from llm_env.workload.arrivals import draw_arrivals_of_clients
from llm_env.workload.client_arrivals import client_burstiness
from llm_env.workload.clients import population
from llm_env.workload.renewal import gamma_shape, weibull_shape
from llm_env.workload.seeds import streams
from llm_env.workload.statistics import window_counts


def draw(arrivals, clients, rate, duration, seed=1):
    return draw_arrivals_of_clients(WorkloadSettings(arrivals=arrivals, clients=clients), rate, duration, streams(seed))


def cv_is(cv):
    """All clients have gamma times with this cv."""
    return {"min_cv": cv, "max_cv": cv}


@pytest.mark.parametrize("weibull_share", [0.0, 1.0])
def test_clients_have_other_shares_or_other_burstiness(weibull_share):
    clients = ClientSettings(count=5, skew=0.5, population=3)
    settings = ClientArrivals(log_cv_mean=0.0, log_cv_sd=0.5, min_cv=0.3, max_cv=3.0, weibull_share=weibull_share)
    cvs, are_weibull = client_burstiness(settings, clients)
    assert (are_weibull == bool(weibull_share)).all()
    times, sender = draw(settings, clients, 10.0, 20_000.0)
    for k, (share, cv) in enumerate(zip(population(clients).shares, cvs, strict=True)):
        own = times[sender == k]
        mean = share * 200_000
        assert own.size == pytest.approx(mean, abs=5 * cv * math.sqrt(mean))  # a renewal process: the limit cv^2
        gaps = np.diff(own)
        # the standard error of a cv: kurtosis at most 3 + 6 cv^2 (gamma); a Weibull's below 60 at a cv of at most 2
        kurtosis = 3 + 6 * cv**2 if not weibull_share else 60.0
        error = cv * math.sqrt((kurtosis - 1) / 4 + cv**2) / math.sqrt(gaps.size)
        assert gaps.std() / gaps.mean() == pytest.approx(cv, abs=5 * error)
        shape = weibull_shape(cv) if weibull_share else gamma_shape(cv)
        law = stats.weibull_min(shape) if weibull_share else stats.gamma(shape)
        # Kolmogorov: exceeded with a probability of 1e-4
        assert stats.kstest(gaps * share * 10.0 * law.mean(), law.cdf).statistic < 2.23 / math.sqrt(gaps.size)
    assert cvs.max() < 2.0


def test_burstiness_of_the_population_has_another_law():
    clients = ClientSettings(count=10_000, log_rate_sd=1.3, population=5)
    settings = ClientArrivals(
        log_cv_mean=0.4, log_cv_sd=0.6, rate_cv_correlation=-0.5, min_cv=1e-3, max_cv=20.0, weibull_share=0.3
    )
    cvs, are_weibull = client_burstiness(settings, clients)
    logs = np.log(cvs)
    assert logs.mean() == pytest.approx(0.4, abs=5 * 0.6 / 100)
    assert logs.std() == pytest.approx(0.6, rel=5 / math.sqrt(20_000))
    found = np.corrcoef(logs, np.log(population(clients).shares))[0, 1]
    assert found == pytest.approx(-0.5, abs=5 * 0.75 / 100)  # (1 - r^2) / sqrt(n)
    assert are_weibull.mean() == pytest.approx(0.3, abs=5 * math.sqrt(0.21) / 100)
    cut = client_burstiness(settings.model_copy(update={"min_cv": 1.0, "max_cv": 2.0}), clients)[0]
    np.testing.assert_array_equal(cut, np.clip(cvs, 1.0, 2.0))


@pytest.mark.parametrize(("skew", "expected"), [(1.0, 0.9), (0.0, None)])
def test_clients_ranked_by_rate_are_not_bursty_by_rank(skew, expected):
    """By rank too the correlation is that of the logarithms; with equal rates it means nothing and costs no spread."""
    clients = ClientSettings(count=4000, skew=skew)
    settings = ClientArrivals(log_cv_mean=0.0, log_cv_sd=0.5, rate_cv_correlation=0.9, min_cv=1e-3, max_cv=20.0)
    logs = np.log(client_burstiness(settings, clients)[0])
    # log-rates by rank are not normal: their fourth power enters the error of the spread; kurtosis 9 (exponential)
    assert logs.std() == pytest.approx(0.5, rel=5 * math.sqrt(8 / 4 / 4000))
    if expected is not None:
        assert np.corrcoef(logs, np.log(population(clients).shares))[0, 1] == pytest.approx(expected, abs=0.02)


def test_one_more_client_changes_what_the_others_do():
    """With as much more in all as the new client sends, the others have the same rates of their own."""
    settings = ClientArrivals(window_sd=0.4, window_ac=0.5, window_s=20.0, weibull_share=0.5)
    few, more = ClientSettings(count=6), ClientSettings(count=7)
    rate = 5.0 * sum(1 / k for k in range(1, 8)) / sum(1 / k for k in range(1, 7))
    times, sender = draw(settings, few, 5.0, 200.0)
    again, senders = draw(settings, more, rate, 200.0)
    assert times.size > 500
    np.testing.assert_allclose(again[senders < 6], times, rtol=1e-12)
    np.testing.assert_array_equal(senders[senders < 6], sender)
    assert (senders == 6).sum() > 10


def test_rates_in_windows_have_another_spread_or_memory():
    """300 equal clients with nearly regular arrivals, 200 a window: counts show the rates but for less than 1 %.

    Log-rates are autoregressive with the spread 0.3 and the correlations 0.6^lag. Of 300 * 50 values, worth at least
    300 * 50 * (1 - 0.36) / (1 + 0.36) independent ones in second moments, the relative error of the variance is below
    sqrt(2 / 7000) and that of a correlation below 1 / sqrt(7000).
    """
    settings = ClientArrivals(**cv_is(0.01), window_s=10.0, window_sd=0.3, window_ac=0.6)
    times, sender = draw(settings, ClientSettings(count=300, skew=0.0), 6000.0, 500.0)
    counts = np.stack([window_counts(times[sender == k], 10.0, 0.0, 500.0) for k in range(300)])
    logs = np.log(counts / 200.0)
    assert logs.var() == pytest.approx(0.09, rel=5 * math.sqrt(2 / 7000) + 0.01)
    error = 0.3 * math.sqrt((1 + 0.6) / (1 - 0.6) / logs.size)
    assert logs.mean() == pytest.approx(-0.045, abs=5 * error)
    for lag in (1, 3):
        found = np.corrcoef(logs[:, :-lag].ravel(), logs[:, lag:].ravel())[0, 1]
        assert found == pytest.approx(0.6**lag, abs=5 / math.sqrt(7000))
    other = np.corrcoef(logs[:-1].ravel(), logs[1:].ravel())[0, 1]
    assert other == pytest.approx(0.0, abs=5 / math.sqrt(7000))


def test_requests_of_other_parts_have_no_client_or_the_wrong_one():
    """Half of the traffic is of clients who all but alternate, half Poisson and of any of them."""
    clients = ClientSettings(count=4, skew=1.0)
    parts = (
        ArrivalPart(share=0.5, arrivals=ClientArrivals(**cv_is(0.01))),
        ArrivalPart(share=0.5, arrivals=PoissonArrivals()),
    )
    times, sender = draw(SuperposedArrivals(parts=parts), clients, 20.0, 2000.0)
    assert times.size == sender.size
    assert sender.min() == 0
    # regular clients send share * 20,000 requests, give or take one; the others are Poisson with that mean
    expected = population(clients).shares * 40_000
    found = np.bincount(sender, minlength=4)
    assert (np.abs(found - expected) < 5 * np.sqrt(expected / 2) + 1).all()


def test_clients_of_an_ordinary_process_are_drawn_differently_than_before():
    """They come from the stream `clients`, one uniform a request."""
    clients = ClientSettings(count=9)
    times, sender = draw(GammaArrivals(), clients, 5.0, 100.0)
    steps = np.cumsum(population(clients).shares)
    drawn = streams(1).clients.random(times.size)
    np.testing.assert_array_equal(sender, np.searchsorted(steps / steps[-1], drawn, side="right"))
    assert draw(GammaArrivals(), None, 5.0, 100.0)[1] is None
