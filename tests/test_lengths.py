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
    QuantileLength,
    UniformLength,
    ZipfLength,
)
from llm_env.workload import draw_lengths, mean_length
from llm_env.workload.lengths import largest_length, length_cdf, length_probabilities, length_quantiles
from llm_env.workload.statistics import ks_distance

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
    UniformLength(min_tokens=3, max_tokens=17),
    UniformLength(min_tokens=5, max_tokens=5),
    QuantileLength(tokens=(10, 10, 40, 41, 900), p=(0.0, 0.2, 0.5, 0.9, 1.0)),
    QuantileLength(tokens=(1, 4, 4, 4, 12)),
    QuantileLength(tokens=(8, 8)),
    ZipfLength(),
    ZipfLength(exponent=2.0, min_tokens=2, max_tokens=300),
    ZipfLength(exponent=0.0, min_tokens=4, max_tokens=9),
    ZipfLength(exponent=10.0, min_tokens=7, max_tokens=7),
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
    assert x.max() <= largest_length(lengths) <= getattr(lengths, "max_tokens", 10_000)


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


# ---- distribution functions ----------------------------------------------------------------------------------------
def dkw(n: int) -> float:
    """What the distance of n draws from their distribution function exceeds with a probability below 1e-6.

    Massart, Annals of Probability 18 (1990): P(distance > e) <= 2 exp(-2 n e^2), for any distribution.
    """
    return float(np.sqrt(np.log(2e6) / (2 * n)))


@each
def test_draws_or_quantiles_have_another_distribution_function(lengths):
    n = 50_000
    cdf = length_cdf(lengths)
    assert ks_distance(draw_lengths(lengths, n, np.random.default_rng(10)), cdf) < dkw(n)
    assert ks_distance(length_quantiles(lengths, np.random.default_rng(11).random(n)), cdf) < dkw(n)


@each
def test_the_distribution_function_is_not_the_sum_of_the_probabilities(lengths):
    size = min(5000, largest_length(lengths) + 1)
    sums = np.cumsum(length_probabilities(lengths, size))
    cdf, k = length_cdf(lengths), np.arange(size, dtype=np.float64)
    np.testing.assert_allclose(cdf(k), sums, atol=1e-12)
    np.testing.assert_allclose(cdf(k + 0.75), sums, atol=1e-12)
    assert cdf(np.array([-1e9, -1.0, 0.0])).tolist() == [0.0, 0.0, 0.0]
    assert cdf(np.array([largest_length(lengths), 1e9])).tolist() == [1.0, 1.0]


@each
def test_drawn_frequencies_fail_a_chi_square_test(lengths):
    n, size = 100_000, largest_length(lengths) + 1
    expected = n * length_probabilities(lengths, min(size, 20_000))
    drawn = np.bincount(draw_lengths(lengths, n, np.random.default_rng(12)), minlength=size)[: expected.size]
    assert drawn[expected == 0].sum() == 0
    often = expected >= 5
    rest = n - drawn[often].sum(), n - expected[often].sum()
    observed, theory = np.append(drawn[often], rest[0]), np.append(expected[often], rest[1])
    if rest[1] < 5:
        assert rest[0] <= 30  # Poisson of mean 5: beyond 30 with probability 1e-13
        observed, theory = observed[:-1], theory[:-1] * observed[:-1].sum() / theory[:-1].sum()
    if len(observed) > 1:
        assert stats.chisquare(observed, theory * observed.sum() / theory.sum()).pvalue > 1e-6


clips = st.tuples(st.integers(1, 400), st.integers(0, 2000)).map(
    lambda pair: {"min_tokens": pair[0], "max_tokens": sum(pair)}
)
knots = st.lists(st.integers(1, 1500), min_size=2, max_size=12).map(sorted)
grids = st.lists(st.integers(1, 99), min_size=0, max_size=8, unique=True).map(lambda p: [0, *sorted(p), 100])
any_lengths = st.one_of(
    st.integers(1, 2000).map(lambda tokens: FixedLength(tokens=tokens)),
    clips.map(lambda clip: UniformLength(**clip)),
    st.builds(
        lambda mu, sigma, clip: LognormalLength(mu=mu, sigma=sigma, **clip), st.floats(-3, 9), st.floats(0, 3), clips
    ),
    st.builds(
        lambda mu, sigma, clip: LognormalMixtureLength(w=(0.3, 0.7), mu=(mu, 5.0), sigma=(0.8, sigma), **clip),
        st.floats(-3, 9),
        st.floats(0, 3),
        clips,
    ),
    st.builds(lambda p, most: GeometricLength(p=p, max_tokens=most), st.floats(1e-6, 1), st.integers(1, 2000)),
    st.builds(
        lambda a, b, p: ChoiceLength(tokens=(a, b), probabilities=(p, 1 - p)),
        *[st.integers(1, 2000)] * 2,
        st.floats(0, 1),
    ),
    knots.map(lambda tokens: QuantileLength(tokens=tuple(tokens))),
    grids.flatmap(
        lambda p: st.lists(st.integers(1, 1500), min_size=len(p), max_size=len(p)).map(
            lambda tokens: QuantileLength(tokens=tuple(sorted(tokens)), p=tuple(x / 100 for x in p))
        )
    ),
    st.builds(lambda s, clip: ZipfLength(exponent=s, **clip), st.floats(0, 10), clips),
)


@given(lengths=any_lengths, seed=st.integers(0, 1000))
@settings(max_examples=150, deadline=None)
def test_some_setting_breaks_what_holds_for_all(lengths, seed):
    size = largest_length(lengths) + 1
    p = length_probabilities(lengths, size)
    assert (p >= 0).all()
    assert p.sum() == pytest.approx(1.0, abs=1e-12)
    assert p @ np.arange(size) == pytest.approx(mean_length(lengths), rel=1e-9)
    u = np.append(np.random.default_rng(seed).random(50), [0.0, 1.0])
    k, cdf = length_quantiles(lengths, u), length_cdf(lengths)
    assert k.dtype == np.int64
    assert (cdf(k) >= u).all()  # the smallest length with this property
    assert (cdf(k[:-2] - 1.0) < u[:-2]).all()
    assert p[k[-2]] > 0
    assert (p[: k[-2]] < 1e-300).all()  # what no draw of 53 bits can tell from 0
    drawn = draw_lengths(lengths, 50, np.random.default_rng(seed))
    assert (p[drawn] > 0).all()
    np.testing.assert_array_equal(draw_lengths(lengths, 9, np.random.default_rng(seed)), drawn[:9])


def test_the_quantile_at_0_or_1_is_a_length_that_never_comes():
    ends = np.array([0.0, 1.0])
    assert length_quantiles(ChoiceLength(tokens=(5, 9, 13), probabilities=(0.0, 1.0, 0.0)), ends).tolist() == [9, 9]
    assert length_quantiles(ChoiceLength(tokens=(13, 9, 5), probabilities=(0.5, 0.5, 0.0)), ends).tolist() == [9, 13]
    assert length_quantiles(LognormalLength(mu=7.0, sigma=0.0), ends).tolist() == [1097, 1097]


# ---- single kinds --------------------------------------------------------------------------------------------------
def test_uniform_lengths_are_not_equally_likely():
    p = length_probabilities(UniformLength(min_tokens=3, max_tokens=7), 10)
    np.testing.assert_allclose(p, [0, 0, 0, 0.2, 0.2, 0.2, 0.2, 0.2, 0, 0], atol=1e-15)
    assert mean_length(UniformLength(min_tokens=3, max_tokens=7)) == pytest.approx(5.0)
    assert length_quantiles(UniformLength(min_tokens=1, max_tokens=10), np.array([0.05, 0.1, 0.1001])).tolist() == [
        1,
        1,
        2,
    ]


def test_a_table_of_quantiles_is_rounded_or_interpolated_wrongly():
    """Half at 2 exactly, then evenly from 2 to 4: [2, 2.5) is 2, [2.5, 3.5) is 3, [3.5, 4] is 4."""
    p = length_probabilities(QuantileLength(tokens=(2, 2, 4), p=(0.0, 0.5, 1.0)), 6)
    np.testing.assert_allclose(p, [0, 0, 0.5 + 0.125, 0.25, 0.125, 0], atol=1e-15)
    np.testing.assert_allclose(length_probabilities(QuantileLength(tokens=(2, 2, 4)), 6), p, atol=1e-15)


@pytest.mark.parametrize("lengths", [QuantileLength(tokens=(3, 3, 50, 50, 700, 4000)), QuantileLength(tokens=(1, 9))])
def test_a_table_of_quantiles_is_not_what_it_says_at_its_knots(lengths):
    """Of n draws, the quantile at p lies between those of the table at p -+ dkw(n), and half a token."""
    n = 100_000
    x = np.sort(draw_lengths(lengths, n, np.random.default_rng(13)))
    for p in np.linspace(0.05, 0.95, 19):
        grid = np.linspace(0, 1, len(lengths.tokens))
        low, high = (np.interp(p + side * dkw(n), grid, lengths.tokens) for side in (-1, 1))
        assert low - 0.5 <= x[int(p * n)] <= high + 0.5


@pytest.mark.parametrize("exponent", [0.7, 1.2, 2.5])
def test_zipf_lengths_fall_off_with_another_slope(exponent):
    lengths, n = ZipfLength(exponent=exponent, min_tokens=2, max_tokens=2000), 100_000
    p = length_probabilities(lengths, 2001)
    k = np.arange(2, 1001)
    np.testing.assert_allclose(p[2 * k] / p[k], 2.0**-exponent, rtol=1e-9)
    # log k is the sufficient statistic of the exponent, so its mean is what maximum likelihood matches
    logs = np.log(np.arange(2, 2001))
    mean, square = p[2:] @ logs, p[2:] @ logs**2
    x = draw_lengths(lengths, n, np.random.default_rng(14))
    assert np.log(x).mean() == pytest.approx(mean, abs=5 * np.sqrt((square - mean**2) / n))
    tail = p[201:].sum()
    assert (x > 200).mean() == pytest.approx(tail, abs=5 * np.sqrt(tail * (1 - tail) / n))


@pytest.mark.parametrize("z", [1.0, 2.5, 3.2])
def test_the_tail_of_lognormal_lengths_is_too_thin_or_too_fat(z):
    lengths, n = LognormalLength(mu=6.0, sigma=1.2), 200_000
    k = int(np.exp(6.0 + 1.2 * z))
    tail = stats.norm.sf((np.log(k + 0.5) - 6.0) / 1.2)
    assert 1.0 - length_cdf(lengths)(np.array([float(k)]))[0] == pytest.approx(tail, rel=1e-9)
    x = draw_lengths(lengths, n, np.random.default_rng(15))
    assert (x > k).mean() == pytest.approx(tail, abs=5 * np.sqrt(tail * (1 - tail) / n))


def test_a_lognormal_by_mean_and_median_has_others():
    """Unclipped; the median of rounded draws is a token off at most, beside 5 standard errors of a sample median."""
    lengths, n = LognormalLength.model_validate({"mean": 900.0, "median": 300.0}), 200_000
    assert lengths.mu == pytest.approx(np.log(300.0))
    assert lengths.sigma == pytest.approx(np.sqrt(2 * np.log(3.0)))
    assert mean_length(lengths) == pytest.approx(900.0, rel=2e-3)  # the clip at 131,072 takes 1e-3 of the mean
    x = draw_lengths(lengths, n, np.random.default_rng(16))
    assert np.median(x) == pytest.approx(300.0, abs=1 + 5 * 300 * lengths.sigma * np.sqrt(np.pi / 2 / n))
    assert LognormalLength.model_validate({"mean": 50, "median": 50.0}).sigma == 0.0
