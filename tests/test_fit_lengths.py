"""Length distributions fitted to drawn lengths: parameters come back, and tables keep what they were made of."""

import numpy as np
import pytest

from llm_env.config import LognormalLength, LognormalMixtureLength
from llm_env.workload.fit_lengths import (
    MAX_KNOTS,
    TABLE_KS,
    choose_length,
    fit_lengths,
    fit_lognormal,
    fit_mixture,
    fit_quantiles,
    mixture_of,
)
from llm_env.workload.lengths import draw_lengths, length_cdf
from llm_env.workload.statistics import ks_distance

TWO = LognormalMixtureLength(w=(0.3, 0.7), mu=(4.0, 7.0), sigma=(0.5, 0.4), max_tokens=100_000)


def lengths(settings, n=20_000, seed=0):
    return draw_lengths(settings, n, np.random.default_rng(seed))


def with_atoms(n=20_000):
    """A third each: exactly 374 (a template), 512 or 513 (neighbours, a limit), and log-normal."""
    tokens = lengths(LognormalLength(mu=6.0, sigma=1.0, min_tokens=2, max_tokens=8000), n)
    tokens[: n // 3] = 374
    tokens[n // 3 : n // 2] = 512
    tokens[n // 2 : 2 * n // 3] = 513
    return np.random.default_rng(1).permutation(tokens)


def test_a_lognormal_does_not_come_back():
    found = fit_lognormal(lengths(LognormalLength(mu=6.0, sigma=0.8)))
    # standard errors: sigma / sqrt(n) and sigma / sqrt(2 n), n = 20,000
    assert found.mu == pytest.approx(6.0, abs=5 * 0.8 / np.sqrt(20_000))
    assert found.sigma == pytest.approx(0.8, abs=5 * 0.8 / np.sqrt(40_000))


def test_a_mixture_does_not_come_back():
    found = mixture_of(lengths(TWO), 2)
    # components six deviations apart hardly overlap: errors are those of n w draws of each
    n = 20_000 * np.array(TWO.w)
    assert np.all(np.abs(found.w - TWO.w) < 5 * np.sqrt(0.3 * 0.7 / 20_000))
    assert np.all(np.abs(found.mu - TWO.mu) < 5 * np.array(TWO.sigma) / np.sqrt(n))
    assert np.all(np.abs(found.sigma - TWO.sigma) < 5 * np.array(TWO.sigma) / np.sqrt(2 * n))


def test_the_number_of_components_is_not_that_of_the_mixture():
    tokens = lengths(TWO)
    assert len(fit_mixture(tokens[0::2], tokens[1::2]).w) == 2
    tokens = lengths(LognormalLength(mu=6.0, sigma=0.8))
    assert len(fit_mixture(tokens[0::2], tokens[1::2]).w) == 1


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_a_round_of_the_search_lowers_the_likelihood(k):
    history = np.array(mixture_of(lengths(TWO, 2000), k).history)
    assert np.all(np.diff(history) > -1e-12)


def test_a_length_that_never_varies_breaks_the_fit():
    found = fit_lengths(np.full(500, 128), np.full(500, 128))
    assert [row.held_ks for row in found] == [0.0, 0.0, 0.0]


def test_a_table_keeps_lengths_within_its_tolerance_atoms_too():
    tokens = with_atoms()
    table = fit_quantiles(tokens)
    assert ks_distance(tokens, length_cdf(table)) <= TABLE_KS + 1e-6
    assert len(table.tokens) <= MAX_KNOTS
    again = lengths(table)
    for atom, share in ((374, 1 / 3), (512, 1 / 6), (513, 1 / 6)):
        # the rest adds below 0.1 % at one length; five deviations of a share of 20,000 draws
        assert np.mean(again == atom) == pytest.approx(share, abs=5 * np.sqrt(share / 20_000) + 2 * TABLE_KS)


@pytest.mark.parametrize("tokens", [np.full(300, 7), np.array([3] * 200 + [4] * 100), np.arange(1, 400)])
def test_a_table_of_few_or_evenly_spread_lengths_is_valid(tokens):
    table = fit_quantiles(tokens)
    assert ks_distance(tokens, length_cdf(table)) <= max(TABLE_KS, 1.0 / 399) + 1e-6


def test_another_than_the_simplest_close_model_is_chosen():
    plain = lengths(LognormalLength(mu=6.0, sigma=0.8))
    assert choose_length(fit_lengths(plain, plain)).name == "lognormal"
    two = lengths(TWO)
    assert choose_length(fit_lengths(two, two)).name == "mixture"
    even = lengths(LognormalLength(mu=6.0, sigma=0.8))
    templates = np.array([1000, 1300, 1700, 2500, 3300, 4500, 6000])
    even[even > 400] = np.random.default_rng(0).choice(templates, int(np.sum(even > 400)))
    rows = fit_lengths(even, even)
    assert choose_length(rows).name == "quantiles"
    assert choose_length(rows, "lognormal").name == "lognormal"


def test_the_same_lengths_give_other_numbers():
    tokens = with_atoms(3000)
    assert fit_lengths(tokens, tokens) == fit_lengths(tokens, tokens)
