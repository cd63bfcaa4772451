"""Length distributions: exact means against sums and samples, bounds, and draws that do not depend on how many."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from llm_env.config import (
    ChoiceLength,
    FixedLength,
    GeometricLength,
    LognormalLength,
    LognormalMixtureLength,
)
from llm_env.workload import draw_lengths, mean_length
from llm_env.workload.lengths import largest_length, length_probabilities

DISTRIBUTIONS = (
    FixedLength(tokens=7),
    LognormalLength(mu=5.99, sigma=0.9, min_tokens=16, max_tokens=4096),
    LognormalLength(mu=-1.0, sigma=2.0, min_tokens=1, max_tokens=30),
    LognormalLength(mu=2.0, sigma=0.0),
    LognormalMixtureLength(w=(0.74, 0.26), mu=(4.581, 6.006), sigma=(0.701, 0.049), min_tokens=7, max_tokens=1000),
    LognormalMixtureLength(w=(0.0, 1.0, 0.0), mu=(1.0, 3.0, 9.0), sigma=(0.1, 0.5, 0.1)),
    GeometricLength(p=0.02),
    GeometricLength(p=0.01, max_tokens=64),
    GeometricLength(p=1.0),
    ChoiceLength(),
    ChoiceLength(tokens=(5, 9, 13), probabilities=(0.0, 1.0, 0.0)),
)
each = pytest.mark.parametrize("lengths", DISTRIBUTIONS, ids=str)


@each
def test_sample_mean_is_off_the_exact_mean(lengths):
    x = draw_lengths(lengths, 200_000, np.random.default_rng(0))
    assert x.dtype == np.int64
    assert mean_length(lengths) == pytest.approx(x.mean(), abs=5 * x.std() / np.sqrt(x.size) + 1e-9)


@each
def test_lengths_leave_their_bounds(lengths):
    x = draw_lengths(lengths, 50_000, np.random.default_rng(1))
    low = getattr(lengths, "min_tokens", 1)
    assert low <= x.min()
    assert x.max() <= getattr(lengths, "max_tokens", 10_000)


@each
def test_the_first_lengths_depend_on_how_many_follow(lengths):
    few = draw_lengths(lengths, 10, np.random.default_rng(2))
    many = draw_lengths(lengths, 1000, np.random.default_rng(2))
    np.testing.assert_array_equal(many[:10], few)
    assert draw_lengths(lengths, 0, np.random.default_rng(2)).shape == (0,)


@each
def test_probabilities_are_not_those_of_the_lengths(lengths):
    size = min(20_000, largest_length(lengths) + 1)
    p = length_probabilities(lengths, size)
    assert p.shape == (size,)
    assert (p >= 0).all()
    assert p.sum() == pytest.approx(1.0, abs=1e-4 if size == 20_000 else 1e-12)
    if size < 20_000:
        assert p @ np.arange(size) == pytest.approx(mean_length(lengths), rel=1e-9)
        assert draw_lengths(lengths, 1000, np.random.default_rng(8)).max() <= largest_length(lengths)
    few = length_probabilities(lengths, 8)
    np.testing.assert_array_equal(few[: p.size], p[:8])
    drawn = np.bincount(draw_lengths(lengths, 100_000, np.random.default_rng(9)), minlength=size)[:size] / 100_000
    assert (abs(drawn - p) <= 6 * np.sqrt(p * (1 - p) / 100_000) + 1e-4).all()


@given(mu=st.floats(-3, 8), sigma=st.floats(0.01, 3), low=st.integers(1, 50), width=st.integers(0, 3000))
@settings(max_examples=40, deadline=None)
def test_lognormal_mean_is_not_the_sum_over_all_lengths(mu, sigma, low, width):
    """The plain definition: every length times the probability that the rounded, clipped value is that length."""
    high = low + width
    k = np.arange(low, high + 1)
    upper = stats.norm.cdf((np.log(k + 0.5) - mu) / sigma)
    upper[-1] = 1.0
    probabilities = np.diff(np.concatenate(([0.0], upper)))
    got = mean_length(LognormalLength(mu=mu, sigma=sigma, min_tokens=low, max_tokens=high))
    assert got == pytest.approx(float(k @ probabilities), rel=1e-9)


def test_lognormal_without_tight_bounds_misses_its_textbook_mean():
    got = mean_length(LognormalLength(mu=6.0, sigma=0.5))
    assert got == pytest.approx(np.exp(6.0 + 0.125), rel=1e-4)


def test_lognormal_quantiles_are_off():
    x = draw_lengths(LognormalLength(mu=6.0, sigma=1.0), 100_000, np.random.default_rng(3))
    for p, z in ((0.1, -1.2816), (0.5, 0.0), (0.9, 1.2816)):
        assert np.quantile(x, p) == pytest.approx(np.exp(6.0 + z), rel=0.03)


def test_mixture_takes_its_components_in_the_wrong_shares():
    lengths = LognormalMixtureLength(w=(0.2, 0.5, 0.3), mu=(2.0, 5.0, 8.0), sigma=(0.0, 0.0, 0.0))
    values, n = np.unique(draw_lengths(lengths, 100_000, np.random.default_rng(4)), return_counts=True)
    assert values.tolist() == [7, 148, 2981]
    np.testing.assert_allclose(n / n.sum(), (0.2, 0.5, 0.3), atol=5 * np.sqrt(0.25 / 100_000))
    assert mean_length(lengths) == pytest.approx(0.2 * 7 + 0.5 * 148 + 0.3 * 2981)


def test_mixture_component_and_length_are_correlated():
    """Picking a component by a normal draw must not bias the size within it."""
    lengths = LognormalMixtureLength(w=(0.5, 0.5), mu=(6.0, 6.0), sigma=(0.5, 0.5))
    x = np.log(draw_lengths(lengths, 100_000, np.random.default_rng(5)))
    assert x.mean() == pytest.approx(6.0, abs=5 * 0.5 / np.sqrt(x.size) + 1e-4)
    assert x.std() == pytest.approx(0.5, rel=0.02)


def test_geometric_mean_ignores_the_limit_or_a_tiny_p():
    assert mean_length(GeometricLength(p=0.25)) == pytest.approx(4.0)
    assert mean_length(GeometricLength(p=0.5, max_tokens=2)) == pytest.approx(1.5)
    assert mean_length(GeometricLength(p=5e-324, max_tokens=100)) == pytest.approx(100.0)
    assert draw_lengths(GeometricLength(p=5e-324, max_tokens=100), 3, np.random.default_rng(0)).tolist() == [100] * 3


def test_choice_takes_its_sizes_in_the_wrong_shares():
    values, n = np.unique(draw_lengths(ChoiceLength(), 100_000, np.random.default_rng(6)), return_counts=True)
    assert values.tolist() == [64, 256, 512]
    np.testing.assert_allclose(n / n.sum(), (0.5, 0.35, 0.15), atol=5 * np.sqrt(0.25 / 100_000))
    assert mean_length(ChoiceLength()) == pytest.approx(198.4)


def test_weights_that_sum_to_almost_1_fall_off_the_end():
    lengths = ChoiceLength(tokens=(1, 2), probabilities=(0.5, 0.4999995))
    assert set(draw_lengths(lengths, 1000, np.random.default_rng(7)).tolist()) == {1, 2}
    mixture = LognormalMixtureLength(w=(0.5, 0.4999995), mu=(1.0, 15.0), sigma=(0.1, 0.1), max_tokens=50)
    assert draw_lengths(mixture, 1000, np.random.default_rng(7)).max() == 50
    assert mean_length(mixture) == pytest.approx(0.5 * 50 + 0.5 * mean_length(LognormalLength(mu=1.0, sigma=0.1)), 1e-5)
