"""Paths of the rate: states and their shares, the wandering rate of a Cox process, crowds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from arrival_cases import CYCLE

from llm_env.config import CoxArrivals, FlashCrowdArrivals, MMPPArrivals
from llm_env.workload.modulated import _walk, cox_path, crowd_path, mmpp_path, state_shares

CHAIN = MMPPArrivals(rates=(1.0, 0.0, 6.0), dwell_s=(4.0, 10.0, 2.0), following=CYCLE)


@pytest.mark.parametrize("settings", [CHAIN, MMPPArrivals(rates=range(1, 10), dwell_s=[0.5 * k for k in range(1, 10)])])
def test_shares_of_the_time_are_not_stationary(settings):
    n = len(settings.rates)
    following = np.array(settings.following) if settings.following else (1 - np.eye(n)) / (n - 1)
    generator = (following - np.eye(n)) / np.array(settings.dwell_s)[:, None]
    shares = state_shares(settings)
    assert shares.sum() == pytest.approx(1.0)
    np.testing.assert_allclose(shares @ generator, 0.0, atol=1e-15)


def test_a_rare_state_is_lost():
    """State 2 is visited once in 1e12 visits and lasts 1e12 times as long: it has a third of the time."""
    following = ((0.0, 1.0, 0.0), (1.0 - 1e-12, 0.0, 1e-12), (1.0, 0.0, 0.0))
    settings = MMPPArrivals(rates=(1.0, 1.0, 1.0), dwell_s=(1e-3, 1e-3, 1e9), following=following)
    np.testing.assert_allclose(state_shares(settings), 1 / 3, rtol=1e-6)


@pytest.mark.parametrize("m", [1, 2, 3, 7, 100, 1000])
def test_the_walk_in_stretches_is_another_one(m):
    steps = np.cumsum(CYCLE, axis=1)
    uniforms = np.random.default_rng(m).random(m)
    states = [1]
    for u in uniforms:
        states.append(int(np.searchsorted(steps[states[-1]], u, side="right")))
    np.testing.assert_array_equal(_walk(1, steps, uniforms), states)


def test_states_have_another_length_or_follow_in_another_order():
    path = mmpp_path(CHAIN, 1.0, 400_000.0, np.random.default_rng(1))
    levels, state = np.unique(path.rate_per_s, return_inverse=True)  # of states 1, 0 and 2
    np.testing.assert_allclose(levels / levels[1], (0.0, 1.0, 6.0))
    state = np.array((1, 0, 2))[state]
    for k, mean_s in enumerate(CHAIN.dwell_s):
        lasts_s = path.lasts_s[state == k]
        # exponential: the standard deviation is the mean; the variance of a sample variance is 8 mean^4 / n
        assert lasts_s.mean() == pytest.approx(mean_s, rel=5 / math.sqrt(lasts_s.size))
        assert lasts_s.var() == pytest.approx(mean_s**2, rel=5 * math.sqrt(8 / lasts_s.size))
        after = np.bincount(state[1:][state[:-1] == k], minlength=3) / (state[:-1] == k).sum()
        np.testing.assert_allclose(after, CYCLE[k], atol=5 * 0.5 / math.sqrt((state == k).sum()))


def test_the_first_state_is_not_stationary():
    n = 4000
    firsts = [mmpp_path(CHAIN, 1.0, 0.01, np.random.default_rng(seed)).rate_per_s[0] for seed in range(n)]
    found = np.array([np.mean(np.array(firsts) == level) for level in np.unique(firsts)])
    shares = state_shares(CHAIN)[[1, 0, 2]]  # in order of their rates
    np.testing.assert_allclose(found, shares, atol=5 * 0.5 / math.sqrt(n))


# ---- Cox process -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("sigma", [0.4, 1.5])
def test_log_rates_have_another_law_or_forget_at_another_pace(sigma):
    """At steps of one tau the log-rate is an autoregression with correlation 1/e. Of n such values, the variance has
    the relative standard error sqrt(2 / n * (1 + e^-2) / (1 - e^-2)), the mean
    sigma * sqrt((1 + e^-1) / (1 - e^-1) / n), an autocorrelation at most 1 / sqrt(n)."""
    n, rate = 20_000, 3.0
    path = cox_path(CoxArrivals(sigma=sigma, tau_s=2.0), rate, 2.0 * n, np.random.default_rng(2))
    per_tau = round(2.0 / path.lasts_s[0])
    assert per_tau == round(64 * max(1.0, sigma**2))
    x = np.log(path.rate_per_s[::per_tau] / rate)
    mean_error = sigma * math.sqrt((1 + math.exp(-1)) / (1 - math.exp(-1)) / n)
    # means of two neighbours lie above their geometric mean by up to s sigma^2 / 4, s the step in units of tau
    assert x.mean() == pytest.approx(-(sigma**2) / 2, abs=5 * mean_error + sigma**2 / 200)
    relative = math.sqrt(2 / n * (1 + math.exp(-2)) / (1 - math.exp(-2)))
    assert x.var() == pytest.approx(sigma**2, rel=5 * relative + 0.01)  # 1 - s / 2 for the mean of two neighbours
    for lag in (1, 2, 4):
        assert np.corrcoef(x[:-lag], x[lag:])[0, 1] == pytest.approx(math.exp(-lag), abs=5 / math.sqrt(n) + 0.005)


def test_a_cox_process_without_spread_is_not_at_a_constant_rate():
    path = cox_path(CoxArrivals(sigma=0.0), 3.0, 100.0, np.random.default_rng(0))
    assert (path.lasts_s.tolist(), path.rate_per_s.tolist()) == ([100.0], [3.0])


# ---- flash crowds ----------------------------------------------------------------------------------------------------
CROWDS = FlashCrowdArrivals(multipliers=(3.0, 8.0), every_s=40.0, duration_s=(5.0, 25.0))


def test_crowds_have_another_size_length_or_distance():
    path = crowd_path(CROWDS, 400_000.0, np.random.default_rng(3))
    levels, kind = np.unique(path.rate_per_s, return_inverse=True)
    np.testing.assert_allclose(levels / levels[0], (1.0, 3.0, 8.0))
    calm_s, crowd_s = path.lasts_s[kind == 0], path.lasts_s[kind > 0]
    assert calm_s.mean() == pytest.approx(40.0, rel=5 / math.sqrt(calm_s.size))
    assert calm_s.std() == pytest.approx(40.0, rel=5 * math.sqrt(2 / calm_s.size))  # kurtosis 9
    assert crowd_s.mean() == pytest.approx(15.0, abs=5 * 20 / math.sqrt(12 * crowd_s.size))
    assert crowd_s[1:].min() > 5.0  # the first may have begun before
    assert crowd_s.max() < 25.0
    assert (kind == 1).sum() / crowd_s.size == pytest.approx(0.5, abs=5 * 0.5 / math.sqrt(crowd_s.size))
    assert (np.diff(np.flatnonzero(kind == 0)) == 2).all()  # calm times and crowds in turn


def test_the_mean_over_a_cycle_is_not_1():
    """40 s of calm and 15 s of crowd at 5.5 times its rate: 55 / (40 + 82.5) in calm times."""
    assert crowd_path(CROWDS, 1e5, np.random.default_rng(4)).rate_per_s.min() == pytest.approx(55 / 122.5)


def test_an_episode_does_not_begin_at_an_arbitrary_moment():
    """It begins in a crowd with a probability of 15/55. What is left of that crowd has the mean E[D^2] / (2 E[D]), D
    uniform in [5, 25], and stays below 25 s."""
    n = 6000
    paths = [crowd_path(CROWDS, 1.0, np.random.default_rng(seed)) for seed in range(n)]
    left_s = np.array([p.lasts_s[0] for p in paths if p.rate_per_s[0] > 1.0])
    assert left_s.size / n == pytest.approx(15 / 55, abs=5 * 0.5 / math.sqrt(n))
    assert left_s.mean() == pytest.approx((225 + 400 / 12) / 30, abs=5 * left_s.std() / math.sqrt(left_s.size))
    assert left_s.max() < 25.0
