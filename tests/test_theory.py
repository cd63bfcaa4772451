"""What queueing theory knows exactly: recursions on every sample path, identities, and stationary closed forms.

The checks are the cases of `python -m llm_env validate`; here are also the numbers that its formulas must give.
Stationary values: mean over 30 replications with the first tenth deleted, tolerance 4 standard errors of that mean.
"""

from __future__ import annotations

import numpy as np
import pytest

from llm_env import theory
from llm_env.validation_cases import (
    gap_alone,
    gated,
    kiefer_wolfowitz,
    lindley,
    littles_law,
    longest_gap,
    memory_time,
    tandem,
    tokens_and_time,
)
from llm_env.validation_rows import OK, SETUP_S, Row, seconds
from llm_env.validation_stationary import (
    CAPACITIES,
    CURVES,
    FAST,
    LOADS,
    STATIONARY,
    capacity_row,
    curve_points,
    curve_theory,
    stationary_rows,
)


def holds(*rows: Row) -> bool:
    """All rows are in order."""
    assert all(row.verdict == OK for row in rows), rows
    return True


# ---- every sample path ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(3))
def test_one_server_breaks_lindleys_recursion(seed):
    assert holds(lindley(seed))


@pytest.mark.parametrize("workers", [2, 4, 7])
def test_k_servers_break_the_kiefer_wolfowitz_recursion(workers):
    assert holds(kiefer_wolfowitz(workers))


def test_whole_prompts_in_batches_break_the_gated_recursion():
    assert holds(gated())


def test_a_prefill_worker_that_feeds_a_decode_worker_breaks_the_tandem_recursion():
    assert holds(tandem())


@pytest.mark.parametrize(
    "policy",
    [
        "fcfs",
        "request-level",
        "orca",
        "vllm-v0",
        "vllm-v1",
        "sarathi",
        "sarathi-spf",
        "decode-first",
        "slack-fill",
        "moore-hodgson",
        "random",
    ],
)
@pytest.mark.kernel
@pytest.mark.parametrize("workers", [1, 3])
def test_tokens_or_busy_time_are_lost_or_made_up(policy, workers):
    assert holds(tokens_and_time(policy, workers))


def test_littles_law_fails():
    assert holds(littles_law())


def test_a_gap_of_a_request_that_runs_alone_is_not_the_setup_time():
    assert holds(gap_alone())


@pytest.mark.parametrize("budget", [128, 512])
def test_a_gap_under_sarathi_is_longer_than_a_batch_of_the_budget(budget):
    assert holds(longest_gap(budget))


def test_decodes_that_run_alone_hold_more_or_less_memory():
    assert holds(memory_time())


# ---- stationary ----------------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("name", STATIONARY)
def test_a_stationary_value_is_more_than_four_standard_errors_off(name):
    assert holds(*stationary_rows(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", CAPACITIES)
def test_the_backlog_grows_below_capacity_or_not_above_it(name):
    assert holds(capacity_row(name))


def test_the_fast_rows_of_the_long_run_do_not_hold():
    assert set(FAST) <= {*STATIONARY, *CAPACITIES}
    assert holds(*stationary_rows("batches of 2, exp."))
    assert holds(capacity_row("Orca"))


def test_a_curve_of_the_picture_leaves_its_theory():
    for point in curve_points("M/D/1", fast=True):
        assert abs(point.mean_s - curve_theory("M/D/1", np.array([point.load]))[0]) <= 4 * point.error_s
    assert all(np.all(np.diff(curve_theory(name, np.array(LOADS))) > 0) for name in CURVES)


# ---- the formulas --------------------------------------------------------------------------------------------------
def known_stationary() -> list[tuple[str, str, float, int]]:
    """System, statistic, value and its digits: the published table, in seconds."""
    return [
        ("M/M/1", "sojourn", 3.33333, 6),
        ("M/M/1", "P95 sojourn", 9.98577, 6),
        ("M/D/1", "sojourn", 2.16667, 6),
        ("M/D/1", "P95 wait", 4.10290, 6),
        ("M/M/2", "sojourn", 2.77778, 6),
        ("M/M/4", "sojourn", 1.74554, 6),
        ("batches of 2, exp.", "sojourn", 4.53499, 6),
        ("batches of 4, exp.", "sojourn", 4.18062, 6),
        ("batches of 2, fixed", "sojourn", 2.31926, 6),
        ("batches of 4, fixed", "sojourn", 1.87954, 6),
        ("batches of 400 tokens", "sojourn", 0.119209, 6),
        ("run to completion", "mean TTFT", 0.994567, 6),
        ("run to completion", "mean E2E", 1.388444, 6),
        ("run to completion", "P95 TTFT", 3.4209, 4),
        ("two exponential terms", "sojourn", 0.413820, 6),
        ("Cobham priority", "wait, 64 tokens", 0.0472295, 6),
        ("Cobham priority", "wait, 260 tokens", 0.215857, 6),
    ]


@pytest.mark.parametrize(("name", "label", "value", "digits"), known_stationary())
def test_a_formula_gives_another_number_than_is_known(name, label, value, digits):
    model = STATIONARY[name]()
    assert model is not None
    found = {label: expected for label, _, expected in model.expected}
    assert found[label] == pytest.approx(value, rel=10.0 ** (1 - digits))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Sarathi", 11.1173),
        ("Orca", 11.1173),
        ("vLLM v0 within its budget", 10.2460),
        ("request-level", 0.66623),
        ("run to completion", 0.16982),
    ],
)
def test_a_capacity_is_another_than_is_known(name, value):
    assert CAPACITIES[name].per_s() == pytest.approx(value, rel=3e-5)


def test_the_other_formulas_give_other_numbers_than_are_known():
    assert theory.erlang_c(1.6, 1.0, 2) == pytest.approx(0.711111, abs=1e-6)
    assert theory.erlang_c(3.2, 1.0, 4) == pytest.approx(0.596432, abs=1e-6)
    assert theory.accessible_batch_sojourn(1.6, 2, 1.0) == pytest.approx(3.84398, abs=1e-5)
    assert theory.tandem_sojourn_quantile(0.7, 1.0, 1.25, 0.95) == pytest.approx(12.5338, abs=1e-4)
    assert theory.mm1_sojourn(0.7, 1.25) == pytest.approx(1.81818, abs=1e-5)
    for budget, tokens_per_s in ((128, 1978.36), (256, 2483.03), (512, 2846.03), (1024, 3070.47), (2048, 3196.50)):
        assert theory.mixed_capacity(budget, seconds, 1.0) == pytest.approx(tokens_per_s, abs=0.01)


def test_special_cases_of_the_formulas_disagree():
    assert theory.batch_sojourn(0.7, 1, lambda n: 1.0, exponential=True) == pytest.approx(theory.mm1_sojourn(0.7, 1.0))
    assert theory.batch_sojourn(0.7, 1, lambda n: 1.0) == pytest.approx(1.0 + theory.mg1_wait(0.7, 1.0, 1.0))
    assert theory.mmk_sojourn(0.7, 1.0, 1) == pytest.approx(theory.mm1_sojourn(0.7, 1.0))
    assert theory.cobham_waits([0.7], [1.0], [2.0])[0] == pytest.approx(theory.mg1_wait(0.7, 1.0, 2.0))
    rng = np.random.default_rng(0)
    arrival = np.cumsum(rng.exponential(1.0, 500))
    service = rng.exponential(0.8, 500)
    starts = theory.lindley_starts(arrival, service)
    np.testing.assert_allclose(theory.kiefer_wolfowitz_starts(arrival, service, 1), starts, rtol=1e-12)
    np.testing.assert_allclose(theory.tandem_finishes(arrival, service), starts + service, rtol=1e-12)
    alone = theory.gated_finishes(arrival, np.ones(500, np.int64), 1, lambda tokens: 0.8)
    np.testing.assert_allclose(alone, theory.lindley_starts(arrival, np.full(500, 0.8)) + 0.8, rtol=1e-12)


@pytest.mark.slow
def test_the_standard_error_of_a_simulated_mean_is_another():
    # 300 runs of 20,000 customers of an M/M/1 queue by Lindley's recursion: the spread of their means
    means = []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        gaps, service, wait, total = rng.exponential(1 / 0.7, 20_000), rng.exponential(1.0, 20_000), 0.0, 0.0
        for gap, work in zip(gaps.tolist(), service.tolist(), strict=True):
            total += wait
            wait = max(0.0, wait + work - gap)
        means.append(total / 20_000)
    expected = theory.mm1_standard_error(0.7, 1.0, 20_000)
    assert np.std(means, ddof=1) == pytest.approx(expected, rel=4 / np.sqrt(600))


def test_the_setup_time_of_the_cases_is_not_that_of_the_curve():
    assert seconds(64) == SETUP_S
    assert seconds(512) == pytest.approx(0.1799)
