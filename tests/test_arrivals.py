"""Arrival processes against their theory. Tolerances are 5 standard errors of the fixed number of episodes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_env.config import GammaArrivals, MMPP2Arrivals, PoissonArrivals
from llm_env.errors import UserError
from llm_env.workload import draw_arrivals

PROCESSES = (
    PoissonArrivals(),
    GammaArrivals(cv=0.3),
    GammaArrivals(cv=4.0),
    MMPP2Arrivals(rate_ratio=4.0, busy_share=0.2, cycle_s=30.0),
    MMPP2Arrivals(rate_ratio=1000.0, busy_share=0.2, cycle_s=40.0),
)
by_name = pytest.mark.parametrize("process", PROCESSES, ids=str)


def counts(process, rate, duration, episodes, window=None):
    """Arrivals of each episode in [window[0], window[1])."""
    low, high = window or (0.0, duration)
    rng = np.random.default_rng(1)
    drawn = (draw_arrivals(process, rate, duration, rng) for _ in range(episodes))
    return np.array([np.searchsorted(t, high) - np.searchsorted(t, low) for t in drawn])


@by_name
@given(rate=st.floats(1e-3, 50), duration=st.floats(1e-3, 200), seed=st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_arrivals_are_sorted_and_within_the_episode(process, rate, duration, seed):
    times = draw_arrivals(process, rate, duration, np.random.default_rng(seed))
    assert times.dtype == np.float64
    assert times.ndim == 1
    assert (np.diff(times) >= 0).all()
    assert times.size == 0 or (times[0] >= 0 and times[-1] < duration)


@by_name
def test_mean_rate_is_the_one_asked_for_from_the_first_second(process):
    """A process that does not start in its stationary state has too many or too few arrivals in the first window."""
    for window in ((0.0, 60.0), (0.0, 3.0), (57.0, 60.0)):
        n = counts(process, 5.0, 60.0, 1500, window)
        assert n.mean() == pytest.approx(5.0 * (window[1] - window[0]), abs=5 * n.std() / np.sqrt(n.size))


def test_poisson_counts_have_variance_equal_to_their_mean():
    n = counts(PoissonArrivals(), 4.0, 25.0, 2000)
    assert n.var() / n.mean() == pytest.approx(1.0, abs=5 * np.sqrt(2 / n.size))


@pytest.mark.parametrize("cv", [0.05, 0.5, 1.0, 3.0])
def test_gamma_intervals_have_the_cv_asked_for(cv):
    gaps = np.diff(draw_arrivals(GammaArrivals(cv=cv), 10.0, 20_000.0, np.random.default_rng(2)))
    assert gaps.mean() == pytest.approx(0.1, rel=5 * cv / np.sqrt(gaps.size))
    # standard error of a sample cv, with the kurtosis 3 + 6 cv^2 of the gamma distribution
    error = cv * np.sqrt((2 + 6 * cv**2) / 4 + cv**2) / np.sqrt(gaps.size)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, abs=5 * error)


def test_gamma_with_cv_1_is_not_poisson():
    n = counts(GammaArrivals(cv=1.0), 4.0, 25.0, 2000)
    assert n.var() / n.mean() == pytest.approx(1.0, abs=5 * np.sqrt(2 / n.size))


def test_nearly_constant_intervals_overflow():
    for cv in (1e-300, 1e-9, 1e-6):
        times = draw_arrivals(GammaArrivals(cv=cv), 2.0, 100.0, np.random.default_rng(0))
        assert times.size in (199, 200, 201)
        np.testing.assert_allclose(np.diff(times), 0.5, rtol=1e-4)


@pytest.mark.parametrize("window", [1.0, 10.0, 100.0])
@pytest.mark.parametrize("process", PROCESSES[3:], ids=str)
def test_mmpp2_burstiness_is_off_the_closed_form(process, window):
    """Index of dispersion of counts of a stationary MMPP-2 (Fischer and Meier-Hellstern 1993, section 2)."""
    rate, p = 3.0, process.busy_share
    quiet = rate / (1 - p + p * process.rate_ratio)
    busy = quiet * process.rate_ratio
    leave_quiet, leave_busy = 1 / ((1 - p) * process.cycle_s), 1 / (p * process.cycle_s)
    speed = leave_quiet + leave_busy
    limit = 2 * (busy - quiet) ** 2 * p * (1 - p) / (speed * rate)
    expected = 1 + limit * (1 - (1 - np.exp(-speed * window)) / (speed * window))
    n = counts(process, rate, window, 4000)
    spread = (n - n.mean()) ** 2
    error = 5 * spread.std() / np.sqrt(n.size) / rate / window
    assert n.var() / (rate * window) == pytest.approx(expected, abs=error)


def test_mmpp2_with_equal_rates_is_not_poisson():
    n = counts(MMPP2Arrivals(rate_ratio=1.0), 4.0, 25.0, 2000)
    assert n.var() / n.mean() == pytest.approx(1.0, abs=5 * np.sqrt(2 / n.size))


def test_mmpp2_busy_periods_have_the_wrong_share_or_length():
    """With an all but silent quiet state, seconds with over 200 arrivals are the busy ones: they hold about 400."""
    process = MMPP2Arrivals(rate_ratio=1000.0, busy_share=0.25, cycle_s=40.0)
    times = draw_arrivals(process, 100.0, 40_000.0, np.random.default_rng(3))
    busy = np.bincount(times.astype(int), minlength=40_000) > 200
    assert busy.mean() == pytest.approx(0.25, abs=0.03)
    assert np.count_nonzero(busy[1:] & ~busy[:-1]) == pytest.approx(1000, rel=0.15)  # busy periods begun


@pytest.mark.parametrize("process", PROCESSES[:3], ids=str)
def test_a_higher_rate_is_not_the_same_pattern_more_densely(process):
    slow = draw_arrivals(process, 2.0, 100.0, np.random.default_rng(4))
    fast = draw_arrivals(process, 4.0, 100.0, np.random.default_rng(4))
    np.testing.assert_array_equal(fast[: slow.size], slow / 2)
    longer = draw_arrivals(process, 2.0, 150.0, np.random.default_rng(4))
    np.testing.assert_allclose(longer[: slow.size], slow, rtol=1e-12)


@pytest.mark.parametrize(
    ("process", "rate", "duration", "words"),
    [
        (PoissonArrivals(), 1e6, 1e9, "arrivals are expected"),
        (PoissonArrivals(), float("inf"), 1.0, "arrivals are expected"),
        (MMPP2Arrivals(cycle_s=1e-9), 1.0, 100.0, "changes of state are expected"),
    ],
)
def test_an_impossible_amount_is_tried_anyway(process, rate, duration, words):
    with pytest.raises(UserError, match=words):
        draw_arrivals(process, rate, duration, np.random.default_rng(0))
