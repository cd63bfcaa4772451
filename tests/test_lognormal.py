"""The rounded and clipped log-normal: the fast mean of many against the plain sum, and the plain sum against theory."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_env.workload.lognormal import lognormal_below, lognormal_mean, lognormal_means


@pytest.mark.parametrize("sigma", [0.0, 1e-4, 0.01, 0.1, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("bounds", [(1, 131_072), (16, 4096), (200, 300), (7, 7), (1, 1_048_576)])
def test_the_fast_mean_errs_by_more_than_is_said(sigma, bounds):
    mu = np.concatenate((np.linspace(-30.0, 40.0, 8), np.random.default_rng(0).uniform(0.0, 13.0, 8)))
    exact = [lognormal_mean(m, sigma, *bounds) for m in mu]
    np.testing.assert_allclose(lognormal_means(mu, sigma, *bounds), exact, rtol=1e-10)


@given(mu=st.floats(-30, 40), sigma=st.floats(1e-5, 5), low=st.integers(1, 5000), width=st.integers(0, 50_000))
@settings(max_examples=60, deadline=None)
def test_some_fast_mean_errs_by_more_than_is_said(mu, sigma, low, width):
    got = lognormal_means(np.array([mu]), sigma, low, low + width)[0]
    assert got == pytest.approx(lognormal_mean(mu, sigma, low, low + width), rel=1e-10)


def test_many_means_depend_on_each_other():
    mu = np.random.default_rng(1).normal(6.0, 1.0, 3000)
    together = lognormal_means(mu, 0.7, 1, 131_072)
    assert together.shape == (3000,)
    for i in (0, 1023, 1024, 2999):
        assert together[i] == pytest.approx(lognormal_means(mu[i : i + 1], 0.7, 1, 131_072)[0], rel=1e-13)


def test_a_lognormal_of_no_width_is_not_one_length():
    assert lognormal_below(2.0, 0.0, 5, 10).tolist() == [0.0, 0.0, 1.0, 1.0, 1.0]  # exp(2) = 7.4
    assert lognormal_below(99.0, 0.0, 5, 8).tolist() == [0.0, 0.0, 0.0]
    assert lognormal_mean(800.0, 0.0, 5, 8) == 8.0
    assert lognormal_means(np.array([0.0, 2.0, 800.0]), 0.0, 5, 8).tolist() == [5.0, 7.0, 8.0]
