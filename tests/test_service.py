"""llm_env/service.py: S(b) and what follows from it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy import toy_state

from llm_env.service import batch_seconds, largest_batch, mean_seconds, prefill_seconds, prefill_times

pytestmark = [pytest.mark.kernel, pytest.mark.nojit]


@pytest.mark.parametrize(
    ("tokens", "expected_s"),
    [
        (1, 0.0455),
        (64, 0.0455),  # the last free token
        (65, 0.0455 + 0.0003),
        (412, 0.0455 + 348 * 0.0003),  # 149.9 ms
        (8192, 0.0455 + 8128 * 0.0003),  # 2.4839 s
    ],
)
def test_a_batch_takes_the_setup_and_each_token_beyond_the_free_ones(tokens, expected_s):
    assert batch_seconds(0.0455, 0.0003, 64, tokens, 1.0, 1.0) == pytest.approx(expected_s, abs=1e-15)


def test_noise_multiplies_its_own_term_only():
    # 2 x 10 ms + 3 x (12 - 2) x 1 ms = 50 ms; within the free tokens the second factor does nothing
    assert batch_seconds(0.010, 0.001, 2, 12, 2.0, 3.0) == pytest.approx(0.050)
    assert batch_seconds(0.010, 0.001, 2, 2, 2.0, 3.0) == pytest.approx(0.020)


def test_tau_star_of_the_default_model_is_412_tokens():
    # 64 + (150 - 45.5) / 0.3 = 412.33
    assert largest_batch(0.0455, 0.0003, 64, 0.150, 1 << 20) == pytest.approx(412.0 + 1 / 3)


@pytest.mark.parametrize(
    ("setup_s", "per_token_s", "limit_s", "cap", "expected"),
    [
        (0.05, 0.001, 0.04, 100, 1.0),  # even an empty batch is too slow: one token, or nobody is served
        (0.05, 0.001, 0.05, 100, 1.0),
        (0.05, 0.0, 0.06, 100, 100.0),  # tokens that cost no time: the cap
        (0.05, 0.001, 9.0, 100, 100.0),
        (0.05, 0.001, 1e9, 100, 100.0),
        (0.05, 0.001, -1e9, 100, 1.0),
    ],
)
def test_the_largest_batch_stays_between_one_and_the_cap(setup_s, per_token_s, limit_s, cap, expected):
    assert largest_batch(setup_s, per_token_s, 0, limit_s, cap) == expected


@given(
    setup=st.floats(0, 0.1),
    per_token=st.floats(1e-6, 1e-2),
    free=st.integers(0, 200),
    limit=st.floats(0.001, 1.0),
)
def test_the_largest_batch_keeps_the_limit_and_one_token_more_breaks_it(setup, per_token, free, limit):
    cap = 1 << 20
    batch = int(largest_batch(setup, per_token, free, limit, cap))
    assert 1 <= batch <= cap
    if limit > setup:
        assert batch_seconds(setup, per_token, free, batch, 1.0, 1.0) <= limit + 1e-9
        if batch < cap:
            assert batch_seconds(setup, per_token, free, batch + 1, 1.0, 1.0) > limit - 1e-9


def test_prefill_seconds_counts_whole_chunks_of_the_slo_budget_and_a_rest():
    state = toy_state([(0.0, 1, 1)])  # S(b) = 10 ms + b ms, SLO budget 10
    system = state.system[0]
    assert int(system["slo_budget"]) == 10
    for tokens, expected_s in ((1, 0.011), (10, 0.020), (11, 0.020 + 0.011), (20, 0.040), (25, 0.040 + 0.015)):
        seconds = prefill_times(state.system, np.array([tokens]), np.zeros(1))[0]
        assert seconds == pytest.approx(expected_s), tokens
        assert _prefill_seconds(state, tokens) == seconds
    assert _mean_seconds(state, 7) == pytest.approx(0.017)


def _prefill_seconds(state, tokens):
    return prefill_seconds(state.system[0], tokens)


def _mean_seconds(state, tokens):
    return mean_seconds(state.system[0], tokens)
