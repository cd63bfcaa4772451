"""On/off traffic: sizes of bursts, gaps and silences, and the first moment."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from llm_env.config import OnOffArrivals
from llm_env.workload.bursts import _first_burst, burst_sizes, mean_times, on_off
from llm_env.workload.lengths import length_probabilities

# silences are far longer than gaps, so a threshold tells them apart but for a negligible part
CLEAR = OnOffArrivals(burst_requests=20.0, burst_sigma=0.7, off_share=0.99, off_sigma=0.2, gap_cv=0.5)


def draw(settings, end, seed):
    return on_off(settings, end, *np.random.default_rng(seed).spawn(2))


@pytest.mark.parametrize("settings", [CLEAR, OnOffArrivals(burst_requests=1.0, burst_sigma=1.0), OnOffArrivals()])
def test_a_cycle_does_not_have_as_many_requests_as_units_of_time(settings):
    size, gap, silence = mean_times(settings)
    assert (size - 1) * gap + silence == pytest.approx(size)
    assert silence / size == pytest.approx(settings.off_share)
    p = length_probabilities(burst_sizes(settings), 200_000)
    assert size == pytest.approx(p @ np.arange(p.size), rel=1e-6)


def test_mean_burst_is_not_that_of_the_settings():
    """Rounding does not move the mean of a smooth law, but for what is cut at 1."""
    assert mean_times(CLEAR)[0] == pytest.approx(20.0, rel=1e-3)
    assert mean_times(OnOffArrivals(burst_requests=7.4, burst_sigma=0.0))[0] == 7.0


def test_bursts_gaps_or_silences_have_another_law():
    size, gap, silence = mean_times(CLEAR)
    assert silence * math.exp(-5 * 0.2 - 0.02) > 8 * gap  # a gamma gap of cv 0.5 is 8 means with probability 1e-10
    between = np.diff(draw(CLEAR, 100_000.0, 1))
    is_off = between > 8 * gap
    n = int(is_off.sum())
    assert n == pytest.approx(100_000 / size, rel=5 * 0.25 / math.sqrt(n))  # the cycle's cv is about off_sigma + 0.05
    logs = np.log(between[is_off] / silence)
    assert logs.mean() == pytest.approx(-0.02, abs=5 * 0.2 / math.sqrt(n))
    assert logs.std() == pytest.approx(0.2, rel=5 / math.sqrt(2 * n))
    gaps = between[~is_off]
    assert gaps.mean() == pytest.approx(gap, rel=5 * 0.5 / math.sqrt(gaps.size))
    assert stats.kstest(gaps, stats.gamma(4.0, scale=gap / 4.0).cdf).statistic < 2.23 / math.sqrt(gaps.size)
    sizes = np.diff(np.flatnonzero(is_off))
    p = length_probabilities(burst_sizes(CLEAR), 100)
    found = np.bincount(sizes, minlength=100)[:100] / sizes.size
    assert (np.abs(found - p) <= 5 * np.sqrt(p * (1 - p) / sizes.size) + 1e-3).all()
    assert sizes.std() == pytest.approx(20 * math.sqrt(math.expm1(0.49)), rel=0.15)


@pytest.mark.parametrize("off_share", [0.02, 0.98])
def test_an_episode_does_not_begin_at_an_arbitrary_moment_of_a_cycle(off_share):
    """In a gap with a probability of 1 - off_share; then the burst has n requests with a probability proportional to
    n - 1 and from 1 to n - 1 of them are to come, equally likely: (E[(N - 1)^2] / E[N - 1] + 1) / 2 on average. What is
    left of an interval has the mean E[X^2] / (2 E[X]) (Cox 1962, section 5.2)."""
    settings = OnOffArrivals(burst_requests=6.0, burst_sigma=0.7, off_share=off_share, off_sigma=0.6, gap_cv=0.5)
    size, gap, silence = mean_times(settings)
    p, k, n = length_probabilities(burst_sizes(settings), 1000), np.arange(1000), 20_000
    in_gap = (p @ np.maximum(k - 1, 0) ** 2 / (size - 1) + 1) / 2
    rng = np.random.default_rng(4)
    to_come, waits = np.array([_first_burst(settings, gap, silence, rng) for _ in range(n)])[:, :, 0].T
    expected = off_share * size + (1 - off_share) * in_gap
    assert to_come.mean() == pytest.approx(expected, abs=5 * to_come.std() / math.sqrt(n))
    wait = off_share * silence * math.exp(0.36) / 2 + (1 - off_share) * gap * 1.25 / 2
    assert waits.mean() == pytest.approx(wait, abs=5 * waits.std() / math.sqrt(n))


def test_the_first_burst_is_not_the_one_to_come():
    """Silences of equal length above all gaps: the first burst ends where the first long break begins."""
    settings = OnOffArrivals(burst_requests=6.0, burst_sigma=0.5, off_share=0.6, off_sigma=0.0, gap_cv=0.1)
    _, gap, silence = mean_times(settings)
    assert silence > 2.5 * gap  # gaps of cv 0.1 lie within 1.8 means
    for seed in range(50):
        times = draw(settings, 60.0, seed)
        start = np.random.default_rng(seed).spawn(2)[1].spawn(3)[0]
        (to_come,), (wait,) = _first_burst(settings, gap, silence, start)
        assert times[0] == pytest.approx(wait)
        assert np.flatnonzero(np.diff(times) > 1.8 * gap)[0] + 1 == to_come


def test_extreme_spreads_are_not_drawn_or_take_for_ever():
    settings = OnOffArrivals(burst_requests=1.0, burst_sigma=5.0, off_sigma=5.0)
    assert burst_sizes(settings).mu == -12.5
    for seed in range(20):
        times = draw(settings, 100.0, seed)
        assert (np.diff(times) >= 0).all()
        assert times.size == 0 or times[-1] < 100.0
