"""Rates that change in steps, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from llm_env.errors import UserError
from llm_env.workload.rate_paths import RatePath, arrivals_along, autoregression, product


def every_half(end):
    return np.arange(0.25, end, 0.5)


def test_arrivals_are_not_where_the_integral_of_the_rate_is_theirs():
    path = RatePath(np.array((2.0, 1.0, 3.0)), np.array((0.5, 0.0, 1.0)))  # operational time 1 at 2 s and at 3 s
    np.testing.assert_allclose(arrivals_along(path, 5.0, every_half), (0.5, 1.5, 3.25, 3.75, 4.25, 4.75))
    np.testing.assert_allclose(arrivals_along(path, 2.5, every_half), (0.5, 1.5))


def test_a_stretch_without_arrivals_has_some():
    path = RatePath(np.array((1.0, 1.0, 1.0)), np.array((0.0, 100.0, 0.0)))
    times = arrivals_along(path, 3.0, lambda end: np.linspace(0.0, end, 1001)[:-1])
    assert times.size == 1000
    assert ((times >= 1.0) & (times < 2.0)).all()


def test_product_is_wrong_somewhere():
    first = RatePath(np.array((1.0, 2.0, 2.0)), np.array((1.0, 2.0, 3.0)))
    second = RatePath(np.array(((0.5, 1.0), (1.0, 9.0))), np.array((10.0, 20.0)))  # two rows of the same two rates
    both = product(first, second, 4.0)
    np.testing.assert_allclose(both.lasts_s, (0.5, 0.5, 0.5, 1.0, 0.5, 2.0))
    np.testing.assert_allclose(both.rate_per_s, (10.0, 20.0, 40.0, 20.0, 40.0, 60.0))


def test_a_path_with_too_many_arrivals_is_tried_anyway():
    with pytest.raises(UserError, match="about 1e\\+09 arrivals"):
        arrivals_along(RatePath(np.array((1.0,)), np.array((1e9,))), 1.0, every_half)


@pytest.mark.parametrize("correlation", [0.0, 0.6, 0.999])
def test_autoregression_is_not_its_recursion(correlation):
    z = np.random.default_rng(1).standard_normal((3, 50))
    x = z.copy()
    for k in range(1, 50):
        x[:, k] = correlation * x[:, k - 1] + np.sqrt(1 - correlation**2) * z[:, k]
    np.testing.assert_allclose(autoregression(z, correlation), x, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(autoregression(z[0], correlation), x[0], rtol=1e-9, atol=1e-12)
