"""Statistics of comparisons: closed forms, exact small cases, and intervals that hold what they promise."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from llm_env.statistics import (
    EXACT_UP_TO,
    Comparison,
    compare,
    improvement_interval,
    interquartile_mean,
    iqm_interval,
    sign_flip_test,
)


def test_interquartile_mean_leaves_out_a_quarter_at_each_end():
    assert interquartile_mean(np.array([100.0, 1, 2, 3, 4, 5, 6, -100])) == pytest.approx(3.5)
    assert interquartile_mean(np.array([[1.0, 2], [3, 4]])) == pytest.approx(2.5)


def test_three_pairs_of_one_sign_have_a_p_value_of_a_quarter():
    assert sign_flip_test(np.array([0.1, 0.2, 0.3])) == pytest.approx(2 / 8)
    assert sign_flip_test(np.array([1.0, 1, 1, -1])) == pytest.approx(10 / 16)  # |sum| 4 in 2 ways, 2 in 8
    assert sign_flip_test(np.zeros(5)) == 1.0
    assert math.isnan(sign_flip_test(np.array([])))


@pytest.mark.parametrize("x", [[0.3, 0.3, 0.3, -0.1, -0.2, -0.3, -0.3], [0.7, 0.1, 0.1, -0.3, -0.3, -0.3]])
def test_differences_that_cancel_have_a_p_value_below_one(x):
    assert sign_flip_test(np.array(x)) == 1.0
    assert sign_flip_test(np.array([*x, *[0.0] * EXACT_UP_TO])) == 1.0


def test_random_signs_agree_with_all_signs():
    x = np.random.default_rng(1).normal(0.35, 1.0, EXACT_UP_TO + 2)
    signs = np.array(list(itertools.product((1, -1), repeat=x.size)))
    exact = np.mean(np.abs(signs @ x) >= abs(x.sum()) * (1 - 1e-12))
    assert sign_flip_test(x, draws=40_000) == pytest.approx(exact, abs=4 * math.sqrt(exact / 40_000))
    assert sign_flip_test(x) == sign_flip_test(x)


def test_the_sign_flip_test_is_right_as_often_as_it_says():
    rng = np.random.default_rng(2)
    wrong = np.mean([sign_flip_test(rng.normal(0, 1, 10)) <= 0.05 for _ in range(400)])
    assert 0.02 <= wrong <= 0.085  # 0.05 within 3 standard errors


def test_a_comparison_is_paired_and_counts_workloads():
    luck = np.array([0.1, 0.9, 0.4, 0.7])
    found = compare(luck + np.array([0.02, 0.02, 0.0, -0.01]), luck)
    t = stats.t.ppf(0.975, 3)
    gap = np.array([0.02, 0.02, 0.0, -0.01])
    assert found.difference.mean == pytest.approx(gap.mean())
    assert found.difference.half_width == pytest.approx(t * gap.std(ddof=1) / 2)
    assert (found.wins, found.ties, found.losses) == (2, 1, 1)
    rows = np.array([luck + 0.03, luck - 0.01])
    assert compare(rows, luck).difference.mean == pytest.approx(0.01)
    with pytest.raises(ValueError, match="pair"):
        compare(luck, luck[:3])


@pytest.mark.parametrize(("mean", "verdict"), [(0.2, "wins"), (0.05, "ties"), (-0.05, "ties"), (-0.2, "loses")])
def test_a_verdict_needs_an_interval_without_zero(mean, verdict):
    from llm_env.metrics import Interval

    assert Comparison(Interval(mean, 0.1), 0, 0, 0).verdict == verdict


def test_probability_of_improvement_is_the_mann_whitney_share():
    second = np.array([0.5, 0.5, 0.5, 0.5])
    first = np.array([[0.6, 0.5, 0.4, 0.6], [0.6, 0.6, 0.4, 0.4]])
    assert improvement_interval(first, second).value == pytest.approx((2 + 0.5 + 1 + 1) / 8)
    sure = improvement_interval(second + 0.1, second)
    assert (sure.value, sure.low, sure.high) == (1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="pair"):
        improvement_interval(first, second[:3])


def test_with_one_row_the_interval_is_that_of_a_binomial_share():
    better = np.r_[np.ones(60), np.zeros(40)]
    found = improvement_interval(better, np.full(100, 0.5), draws=4000)
    half = 1.96 * math.sqrt(0.6 * 0.4 / 100)
    assert (found.low, found.high) == pytest.approx((0.6 - half, 0.6 + half), abs=0.015)


def test_a_bootstrap_is_the_same_with_the_same_seed():
    scores = np.random.default_rng(3).normal(size=(3, 10))
    assert iqm_interval(scores, 300, seed=1) == iqm_interval(scores, 300, seed=1) != iqm_interval(scores, 300, seed=2)
    alone = iqm_interval(scores[:, :1])
    assert math.isnan(alone.low)


def test_the_interval_of_the_iqm_holds_the_true_value_as_often_as_it_says():
    """Training and workload effects, both random: an interval over workloads alone would be far too narrow."""
    rng = np.random.default_rng(4)
    held = []
    for _ in range(150):
        scores = rng.normal(0, 0.5, (6, 1)) + rng.normal(0, 1.0, (1, 30)) + rng.normal(0, 0.5, (6, 30))
        found = iqm_interval(scores, draws=250)
        held.append(found.low <= 0.0 <= found.high)
    assert 0.86 <= np.mean(held) <= 0.995


def test_more_trainings_narrow_the_interval():
    rng = np.random.default_rng(5)
    few, many = (rng.normal(0, 1, (n, 1)) + rng.normal(0, 0.1, (n, 40)) for n in (4, 64))
    width = [found.high - found.low for found in (iqm_interval(few, 500), iqm_interval(many, 500))]
    assert width[1] < 0.6 * width[0]
