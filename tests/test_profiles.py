"""Rates that follow a cycle: the shape, the moment at which an episode begins."""

from __future__ import annotations

import numpy as np
import pytest

from llm_env.config import CoxArrivals, GammaArrivals, ProfileArrivals
from llm_env.workload import draw_arrivals
from llm_env.workload.profiles import profile_path

HOURS = (1, 1, 0, 0, 0, 1, 2, 4, 6, 8, 9, 9, 8, 9, 9, 8, 7, 5, 4, 4, 3, 3, 2, 1)


def test_hours_have_another_share_of_the_requests():
    """In ten days of 24 hours of 100 s the requests of an hour are Poisson with its share of the mean."""
    day = ProfileArrivals(multipliers=HOURS, period_s=2400.0, start_s=0.0)
    times = draw_arrivals(day, 5.0, 24_000.0, np.random.default_rng(1))
    found = np.bincount((times % 2400.0 // 100.0).astype(int), minlength=24)
    expected = 5.0 * 24_000.0 * np.array(HOURS) / sum(HOURS)
    assert (np.abs(found - expected) <= 5 * np.sqrt(expected)).all()
    assert (found[2:5] == 0).all()


@pytest.mark.parametrize("base", [GammaArrivals(cv=0.3), CoxArrivals(sigma=0.4, tau_s=20.0)])
def test_another_base_has_another_profile(base):
    """Parts of 25 s with the rates 2 and 6. The counts of the Cox process have at most the index of dispersion
    1 + rate * 2 tau * (the sum of sigma^2k / (k k!)) = 1 + 6 * 40 * 0.167 = 41, that of long windows at the rate 6."""
    process = ProfileArrivals(multipliers=(1.0, 3.0), period_s=50.0, start_s=0.0, base=base)
    times = draw_arrivals(process, 4.0, 50_000.0, np.random.default_rng(2))
    late = np.count_nonzero(times % 50.0 >= 25.0)
    assert late == pytest.approx(150_000, abs=5 * np.sqrt(41 * 150_000))
    assert times.size - late == pytest.approx(50_000, abs=5 * np.sqrt(41 * 50_000))


@pytest.mark.parametrize(
    ("start_s", "earlier_s", "lasts_s", "rates"),
    [
        (0.0, 0.0, (10.0, 10.0, 10.0), (0.5, 1.0, 1.5)),
        (25.0, 0.0, (5.0, 10.0, 10.0), (1.5, 0.5, 1.0)),
        (30.0, 0.0, (10.0, 10.0, 10.0), (0.5, 1.0, 1.5)),
        (3012.0, 0.0, (8.0, 10.0, 10.0), (1.0, 1.5, 0.5)),
        (25.0, 20.0, (5.0, 10.0, 10.0), (0.5, 1.0, 1.5)),
    ],
)
def test_the_episode_begins_elsewhere_in_the_cycle(start_s, earlier_s, lasts_s, rates):
    process = ProfileArrivals(multipliers=(1.0, 2.0, 3.0), period_s=30.0, start_s=start_s)
    path = profile_path(process, 20.0, earlier_s, np.random.default_rng(0))
    np.testing.assert_allclose(path.lasts_s[:3], lasts_s, atol=1e-9)
    np.testing.assert_allclose(path.rate_per_s[:3], rates)
    assert path.lasts_s.sum() >= 20.0


def test_episodes_begin_at_one_moment_of_the_cycle_more_often_than_at_another():
    process = ProfileArrivals(multipliers=(1.0, 2.0, 3.0, 4.0), period_s=8.0)
    firsts = [profile_path(process, 1.0, 0.0, np.random.default_rng(seed)) for seed in range(4000)]
    begun = np.array([(p.rate_per_s[0] / 0.4 - 1.0) * 2.0 + 2.0 - p.lasts_s[0] for p in firsts])  # seconds
    found = np.histogram(begun, 16, (0.0, 8.0))[0]
    assert found.sum() == 4000
    assert (np.abs(found - 250) < 5 * np.sqrt(250)).all()
