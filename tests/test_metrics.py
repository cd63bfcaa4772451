"""Every measure against numbers worked out by hand, quantiles against numpy, intervals against their formulas."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from llm_env.config import EpisodeSettings, KVSettings, Scenario, ServiceSettings, SLOClass, SLOSettings, SystemSettings
from llm_env.dtypes import FINISHED, REJECTED, SYSTEM
from llm_env.metrics import (
    EVERYTHING,
    block_values,
    is_unstable,
    mean_ci,
    paired_ci,
    slo_marks,
    summarise,
    ttft_marks,
    weighted_quantiles,
)
from llm_env.records import State
from llm_env.rollout import rollout
from llm_env.simulate import simulate
from llm_env.workload import blank_requests

NAN = math.nan


def toy_requests(*rows):
    """REQUESTs from (arrival, prompt, output), with a TTFT target of 0.25 s and a TBT target of 0.11 s."""
    requests = blank_requests(len(rows))
    for name, column in zip(("arrival_s", "prompt_tokens", "output_tokens"), zip(*rows, strict=True), strict=True):
        requests[name] = column
    requests["ttft_target_s"], requests["tbt_target_s"] = 0.25, 0.11
    return requests


def toy_scenario(blocks, horizon_s=1.0, arrivals_s=1.0):
    """S(b) = 100 ms + 1 ms x b."""
    return Scenario(
        system=SystemSettings(
            service=ServiceSettings(setup_ms=100.0, per_token_ms=1.0, free_tokens=0), kv=KVSettings(blocks=blocks)
        ),
        slo=SLOSettings(rule="p99", classes=(SLOClass(ttft_ms=250.0, tbt_ms=110.0),)),
        episode=EpisodeSettings(warmup_s=0.0, arrivals_s=arrivals_s, horizon_s=horizon_s),
    )


def check(summary, expected):
    for name, value in expected.items():
        right = value if isinstance(value, str) else pytest.approx(value, rel=1e-9, nan_ok=True)
        assert getattr(summary, name) == right, name
    assert {f.name for f in dataclasses.fields(summary)} == set(expected), "a measure is not worked out here"


@pytest.mark.nojit
def test_a_measure_of_a_run_that_ends_empty_is_not_what_paper_and_pencil_give():
    # A (arrives 0, 100 prompt, 3 output), B (0.05, 50, 2), C (0.5, 10, 1); S(b) = 0.1 + 0.001 b, budget 512.
    # batch 0: 0     to 0.2    A prefills 100                             A token 1 at 0.2
    # batch 1: 0.2   to 0.351  A decodes, B prefills 50: 51 tokens        A gap 0.151, B token 1 at 0.351
    # batch 2: 0.351 to 0.453  A and B decode: 2 tokens                   gaps 0.102, both finish
    # batch 3: 0.5   to 0.61   C prefills 10                              C finishes
    scenario = toy_scenario(blocks=100)
    state = simulate(scenario, toy_requests((0.0, 100, 3), (0.05, 50, 2), (0.5, 10, 1)), "sarathi")
    expected = {
        "num_requests": 3,
        "finished": 3,
        "unfinished": 0,
        "rejected": 0,
        "num_without_first_token": 0,
        "window_s": 1.0,
        "slo_rule": "p99",
        # TTFT 0.2, 0.301, 0.11 against 0.25: A and C. A's gap 0.151 is above 0.11, but its tokens 2 and 3 come at
        # 0.351 and 0.453, before 0.36 and 0.47: it keeps the deadline rule alone.
        "slo_attainment": 1 / 3,
        "weighted_attainment": 1 / 3,
        "slo_attainment_max": 1 / 3,
        "slo_attainment_p99": 1 / 3,
        "slo_attainment_deadline": 2 / 3,
        "ttft_attainment": 2 / 3,
        "goodput_per_s": 1.0,
        "ttft_mean_s": 0.611 / 3,
        "ttft_p50_s": 0.2,
        "ttft_p95_s": 0.2 + 0.9 * 0.101,
        "ttft_p99_s": 0.2 + 0.98 * 0.101,
        # A: 0.253 / 2 gaps; B: 0.102 / 1; C has no gap
        "tpot_mean_s": (0.1265 + 0.102) / 2,
        "tpot_p50_s": (0.1265 + 0.102) / 2,
        "tpot_p99_s": 0.102 + 0.99 * 0.0245,
        # 0.453, 0.403, 0.11
        "e2e_mean_s": 0.966 / 3,
        "e2e_p50_s": 0.403,
        "e2e_p99_s": 0.403 + 0.98 * 0.05,
        # 0, 0.15, 0
        "queueing_mean_s": 0.05,
        "queueing_p95_s": 0.9 * 0.15,
        # 0.102, 0.102, 0.151
        "num_gaps": 3,
        "tbt_mean_s": 0.355 / 3,
        "tbt_p50_s": 0.102,
        "tbt_p95_s": 0.102 + 0.9 * 0.049,
        "tbt_p99_s": 0.102 + 0.98 * 0.049,
        "tbt_max_s": 0.151,
        "evictions": 0,
        "makespan_s": 0.61,
        "requests_per_s": 3 / 0.61,
        "tokens_per_s": 166 / 0.61,
        "output_tokens_per_s": 6 / 0.61,
        "utilisation": (0.2 + 0.151 + 0.102 + 0.11) / 0.61,
        # of batch 1, with 51 tokens, one is a decode
        "prefill_time_share": (0.2 + 0.151 * 50 / 51 + 0.11) / 0.61,
        "decode_time_share": (0.151 / 51 + 0.102) / 0.61,
        "idle_time_share": (0.5 - 0.453) / 0.61,
        "num_batches": 4,
        "mean_batch_tokens": (100 + 51 + 2 + 10) / 4,
        "mean_batch_requests": (1 + 2 + 2 + 1) / 4,
        "slo_budget_share": (100 + 51 + 2 + 10) / 4 / 10,  # 10 tokens take 110 ms
        "prefill_share": 160 / 163,
        "mean_num_waiting": 0.15 / 0.61,
        # of 100 blocks of 16 tokens A holds 7, B 4, C 1
        "kv_used_mean": (0.07 * 0.2 + 0.11 * 0.151 + 0.11 * 0.102 + 0.01 * 0.11) / 0.563,
        "kv_used_max": 0.11,
        "unstable": False,
    }
    check(summarise(state, scenario), expected)
    # every request of the trace: only the window, from 0 to 0.5, and with it goodput differ
    check(summarise(state, scenario, *EVERYTHING), expected | {"window_s": 0.5, "goodput_per_s": 2.0})


@pytest.mark.nojit
def test_unfinished_or_rejected_requests_are_not_misses():
    # As above without C, but time is up at 0.4, in the midst of batch 2; D (0.1, 200, 1) needs 13 of 12 blocks.
    scenario = toy_scenario(blocks=12, horizon_s=0.4, arrivals_s=0.4)
    state = simulate(scenario, toy_requests((0.0, 100, 3), (0.05, 50, 2), (0.1, 200, 1)), "sarathi")
    check(
        summarise(state, scenario),
        {
            "num_requests": 3,
            "finished": 0,
            "unfinished": 2,
            "rejected": 1,
            "num_without_first_token": 1,
            "window_s": 0.4,
            "slo_rule": "p99",
            "slo_attainment": 0.0,
            "weighted_attainment": 0.0,
            "slo_attainment_max": 0.0,
            "slo_attainment_p99": 0.0,
            "slo_attainment_deadline": 0.0,
            "ttft_attainment": 1 / 3,
            "goodput_per_s": 0.0,
            "ttft_mean_s": 0.2505,
            "ttft_p50_s": 0.2505,
            "ttft_p95_s": 0.2 + 0.95 * 0.101,
            "ttft_p99_s": 0.2 + 0.99 * 0.101,
            **dict.fromkeys(("tpot_mean_s", "tpot_p50_s", "tpot_p99_s", "e2e_mean_s", "e2e_p50_s", "e2e_p99_s"), NAN),
            "queueing_mean_s": 0.075,
            "queueing_p95_s": 0.95 * 0.15,
            "num_gaps": 1,
            **dict.fromkeys(("tbt_mean_s", "tbt_p50_s", "tbt_p95_s", "tbt_p99_s", "tbt_max_s"), 0.151),
            "evictions": 0,
            "makespan_s": 0.4,
            "requests_per_s": 0.0,
            "tokens_per_s": 153 / 0.4,  # A made 2 tokens, B 1
            "output_tokens_per_s": 3 / 0.4,
            "utilisation": 1.0,  # batch 2 counts as far as it came
            "prefill_time_share": (0.2 + 0.151 * 50 / 51) / 0.4,
            "decode_time_share": (0.151 / 51 + 0.049) / 0.4,
            "idle_time_share": 0.0,
            "num_batches": 2,
            "mean_batch_tokens": 151 / 2,
            "mean_batch_requests": 1.5,
            "slo_budget_share": 151 / 2 / 10,
            "prefill_share": 150 / 151,
            "mean_num_waiting": 0.15 / 0.4,
            "kv_used_mean": (7 * 0.2 + 11 * 0.151) / 0.351 / 12,
            "kv_used_max": 11 / 12,
            "unstable": False,
        },
    )


def test_requests_outside_the_window_are_measured():
    scenario = toy_scenario(blocks=100)
    state = simulate(scenario, toy_requests((0.0, 100, 3), (0.05, 50, 2), (0.5, 10, 1)), "sarathi")
    late = summarise(state, scenario, 0.05, 0.5)  # from included, until not: B alone
    assert (late.num_requests, late.ttft_mean_s, late.window_s) == (1, pytest.approx(0.301), pytest.approx(0.45))
    assert late.num_gaps == 3, "gaps are those of the whole run"


def test_a_run_without_requests_has_figures_or_no_summary():
    scenario = toy_scenario(blocks=100)
    summary = summarise(simulate(scenario, blank_requests(0), "sarathi"), scenario)
    assert (summary.num_requests, summary.num_batches, summary.unstable) == (0, 0, False)
    assert math.isnan(summary.slo_attainment)
    assert math.isnan(summary.utilisation)
    assert block_values(simulate(scenario, blank_requests(0), "sarathi"), scenario).size == 0


def test_a_run_without_logs_is_summarised():
    from baselines import make_policy

    state = rollout(toy_scenario(100), make_policy("sarathi"), toy_requests((0.0, 100, 3)), 0)
    with pytest.raises(ValueError, match="record=True"):
        summarise(state, toy_scenario(100))


def test_the_p99_rule_allows_other_than_one_late_gap_in_a_hundred():
    requests = toy_requests(*[(0.0, 1, n) for n in (100, 101, 101, 201)])
    requests["status"], requests["emitted_tokens"], requests["first_token_s"] = FINISHED, requests["output_tokens"], 0.1
    requests["late_gaps"] = (1, 1, 2, 2)
    assert slo_marks(requests, "p99").tolist() == [False, True, False, True]
    assert not slo_marks(requests, "max").any()
    assert slo_marks(requests, "deadline").all()
    requests["first_token_s"] = (0.25, 0.2500001, 0.25 + 1e-10, 3.0)
    assert ttft_marks(requests).tolist() == [True, False, True, False]


@pytest.mark.parametrize("seed", range(5))
def test_a_weighted_quantile_differs_from_numpy_on_the_expanded_values(seed):
    rng = np.random.default_rng(seed)
    values, counts = rng.integers(0, 20, 50) / 7, rng.integers(0, 9, 50)
    shares = (0.0, 0.01, 0.5, 0.95, 0.99, 1.0)
    np.testing.assert_allclose(
        weighted_quantiles(values, counts, shares), np.quantile(np.repeat(values, counts), shares), rtol=1e-12
    )
    assert np.isnan(weighted_quantiles(values, counts * 0, (0.5,))).all()


# ---- statistics ----------------------------------------------------------------------------------------------------
def test_the_t_interval_is_not_the_textbooks():
    # mean 2.5, s = sqrt(5/3), t(3; .975) = 3.182446, t(3; .95) = 2.353363
    mean, half = mean_ci([1.0, 2.0, 3.0, 4.0])
    assert (mean, half) == (pytest.approx(2.5), pytest.approx(3.182446305 * math.sqrt(5 / 3) / 2))
    assert mean_ci([1.0, 2.0, 3.0, 4.0], 0.9).half_width == pytest.approx(2.353363435 * math.sqrt(5 / 3) / 2)


def test_an_interval_of_too_few_or_equal_values_is_made_up():
    assert mean_ci([0.7, 0.7, 0.7]) == (0.7, 0.0)
    assert mean_ci([0.7])[0] == 0.7
    assert math.isnan(mean_ci([0.7]).half_width)
    assert np.isnan(mean_ci([])).all()
    assert np.isnan(mean_ci([0.5, NAN, 0.25])).all()


def test_a_paired_interval_forgets_the_pairs():
    a, b = np.array([0.1, 0.5, 0.9]), np.array([0.0, 0.4, 0.8])
    assert paired_ci(a, b).mean == pytest.approx(0.1)
    assert paired_ci(a, b).half_width == pytest.approx(0.0, abs=1e-12)
    assert paired_ci(a, b[::-1]).half_width > 0.5
    with pytest.raises(ValueError, match="pair"):
        paired_ci(a, b[:2])


def fake_state(arrival_s, finish_s):
    """What metrics reads of a State, for requests that finish at finish_s (never if inf)."""
    requests = toy_requests(*[(t, 1, 1) for t in arrival_s])
    done = np.isfinite(finish_s)
    requests["finish_s"][done] = finish_s[done]
    requests["first_token_s"] = requests["finish_s"]
    requests["emitted_tokens"] = done
    requests["status"][done] = FINISHED
    system = np.zeros(1, SYSTEM)
    system["num_requests"] = len(requests)
    return State(*[None] * len(State._fields))._replace(requests=requests, system=system)


def test_blocks_are_unequal_or_out_of_order():
    arrival = np.arange(23.0)
    finish = arrival + np.where(arrival < 13, 0.1, 1.0)  # the first 13 on time
    state = fake_state(arrival, finish)
    # 23 = 4 x 5 + 3: the first 3 are left out, then blocks of 5 from 3, 8, 13, 18
    assert block_values(state, Scenario(), 4, *EVERYTHING).tolist() == [1.0, 1.0, 0.0, 0.0]
    assert block_values(state, Scenario(), 100, *EVERYTHING).size == 23


# ---- stability -----------------------------------------------------------------------------------------------------
def single_server(load, n, seed):
    """M/D/1 by Lindley's recursion: arrivals at `load` per second, one second of work each."""
    rng = np.random.default_rng(seed)
    arrival = np.cumsum(rng.exponential(1 / load, n))
    ends = np.arange(1.0, n + 1)  # finish[k] = k + 1 + max over j <= k of (arrival[j] - j)
    return fake_state(arrival, ends + np.maximum.accumulate(arrival - np.arange(n)))


@pytest.mark.parametrize(("load", "n", "unstable"), [(0.8, 200, False), (0.8, 5000, False), (1.3, 400, True)])
def test_a_stable_queue_is_called_unstable_or_an_overloaded_one_stable(load, n, unstable):
    found = sum(is_unstable(single_server(load, n, seed), Scenario(), *EVERYTHING) for seed in range(20))
    assert found >= 18 if unstable else found == 0


def test_a_long_run_hides_a_small_overload():
    assert is_unstable(single_server(1.1, 10_000, 0), Scenario(), *EVERYTHING)


def test_rejected_requests_count_as_backlog():
    state = single_server(0.8, 200, 0)
    state.requests["status"][::2] = REJECTED
    state.requests["finish_s"][::2] = -1.0
    assert not is_unstable(state, Scenario(), *EVERYTHING)


def test_a_million_requests_cannot_be_summarised():
    state = single_server(0.8, 1_000_000, 0)
    assert not is_unstable(state, Scenario(), *EVERYTHING)
    assert block_values(state, Scenario(), 20, *EVERYTHING).shape == (20,)
