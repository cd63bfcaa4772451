"""llm_env/bounds.py: the bound is what the reference says, and no policy or schedule passes it on any system."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import toy_requests, toy_scenario

from baselines import POLICIES
from llm_env.bounds import DECODE_TOKENS, UNLIMITED_TOKENS, cheapest_token_s, most_on_time, slo_bound
from llm_env.config import KVSettings, Scenario, ServiceSettings, SLOClass, SLOSettings, SystemSettings
from llm_env.dtypes import SLO_RULES
from llm_env.errors import UserError
from llm_env.metrics import slo_marks
from llm_env.service import mean_seconds, service_curve
from llm_env.simulate import simulate
from llm_env.validation_cases import BOUND_RATES, bound_values
from llm_env.validation_rows import ENDLESS, OK, workload


# ---- the reference values ------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("rate_per_s", BOUND_RATES)
def test_the_known_bound_is_no_sample_of_ours_or_a_policy_passes_it(rate_per_s):
    value, policies = bound_values(rate_per_s)
    assert (value.verdict, policies.verdict) == (OK, OK), (value, policies)
    assert abs(value.standard_errors) < 2.5, value


# ---- the price of a token ------------------------------------------------------------------------------------------
CURVES = {
    "linear": ServiceSettings(),
    "little setup": ServiceSettings(setup_ms=1.0, per_token_ms=0.5, free_tokens=40),
    "staircase": ServiceSettings(form="staircase", setup_ms=10.0, step_ms=8.0, step_tokens=32),
    "table": ServiceSettings(form="table", points=((8, 20.0), (64, 25.0), (128, 60.0), (256, 80.0))),
    "no time per token": ServiceSettings(setup_ms=10.0, per_token_ms=0.0),
}


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("most", [1, 7, 64, 100, 512])
@pytest.mark.parametrize("limit_s", [0.021, 0.05, 0.0999, 10.0])
def test_some_batch_has_cheaper_tokens(name, most, limit_s):
    curve = service_curve(CURVES[name], 1e3)
    prices = [mean_seconds(curve, b) / b for b in range(1, most + 1) if mean_seconds(curve, b) <= limit_s]
    price = cheapest_token_s(curve, limit_s, most)
    assert price <= min(prices, default=np.inf) * (1 + 1e-12)
    assert price >= min(prices, default=np.inf) * 0.9, "needlessly low"


def test_the_price_in_the_reference_differs():
    curve = service_curve(ServiceSettings(), 1e3)
    assert cheapest_token_s(curve, 10.0, 512) == pytest.approx(0.1799 / 512)
    assert cheapest_token_s(curve, 0.2, 10**6) == pytest.approx(0.2 / 579)  # b with S(b) = 200 ms
    assert cheapest_token_s(curve, 0.04, 512) == np.inf
    assert cheapest_token_s(curve, 1e9, UNLIMITED_TOKENS) == pytest.approx(0.0003, rel=1e-6)  # the slope


# ---- the relaxed machine -------------------------------------------------------------------------------------------
def by_hand(release, work, due) -> int:
    """The largest set that is on time when served in order: deadlines are in order, so no other order is better."""
    n = len(release)
    for size in range(n, 0, -1):
        for chosen in combinations(range(n), size):
            now = -np.inf
            for j in chosen:
                now = max(now, release[j]) + work[j]
                if now > due[j]:
                    break
            else:
                return size
    return 0


@pytest.mark.kernel
@pytest.mark.nojit
@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(1, 6), st.integers(1, 9)), min_size=1, max_size=8))
def test_more_or_fewer_jobs_fit_than_trying_every_set_finds(jobs):
    release, work, window = np.array(sorted(jobs), np.float64).T
    due = np.maximum.accumulate(release + window)
    assert most_on_time(release.copy(), work.copy(), due) == by_hand(release, work, due)


@pytest.mark.kernel
@pytest.mark.nojit
def test_infinite_work_is_done_or_nothing_to_do_fails():
    assert most_on_time(np.zeros(3), np.array([1.0, np.inf, 1.0]), np.full(3, 5.0)) == 2
    assert most_on_time(np.zeros(0), np.zeros(0), np.zeros(0)) == 0


# ---- no policy passes it -------------------------------------------------------------------------------------------
def scenario_of(
    service: ServiceSettings, workers: int, classes: int, blocks: int | None, system: dict[str, Any] | None = None
) -> Scenario:
    targets = ((400.0, 90.0), (1500.0, 200.0))[:classes]
    slo = SLOSettings(
        classes=tuple(SLOClass(name=f"{k}", ttft_ms=t, tbt_ms=g, share=1 / classes) for k, (t, g) in enumerate(targets))
    )
    more = {"kv": KVSettings(blocks=blocks), **(system or {})}
    return Scenario(system=SystemSettings(workers=workers, service=service, **more), slo=slo, episode=ENDLESS)


def crowd(scenario: Scenario, seed: int) -> np.ndarray:
    """Three seconds and more of prompts that alone are twice the work that can be done."""
    rng = np.random.default_rng(seed)
    price_s = cheapest_token_s(service_curve(scenario.system.service, 1e3), 0.4, 10**6)
    alone_s = 350 * price_s / scenario.system.workers
    n = max(60, int(6.0 / alone_s))
    arrival_s = np.cumsum(rng.exponential(alone_s / 2, n))
    long = rng.random(n) < 0.1  # more than 100 output tokens: p99 forgives a gap
    output = np.where(long, rng.integers(101, 260, n), rng.integers(1, 30, n))
    requests = workload(arrival_s, rng.integers(1, 700, n), output)
    requests["session"] = np.arange(n) % 20  # conversations, whose turns share what the turn before has
    requests["previous"] = np.where(np.arange(n) < 20, -1, np.arange(n) - 20)
    for i in range(20, n):
        shared = int(requests["prompt_tokens"][i - 20] + requests["output_tokens"][i - 20])
        requests["shared_tokens"][i] = min(shared, int(requests["prompt_tokens"][i]) - 1)
    kind = rng.integers(0, len(scenario.slo.classes), n)
    requests["slo_class"] = kind
    requests["ttft_target_s"] = np.array([c.ttft_ms / 1e3 for c in scenario.slo.classes])[kind]
    requests["tbt_target_s"] = np.array([c.tbt_ms / 1e3 for c in scenario.slo.classes])[kind]
    return requests


SYSTEMS = {
    "one worker": (ServiceSettings(), 1, 1, None),
    "three workers": (ServiceSettings(), 3, 1, None),
    "two classes": (ServiceSettings(), 1, 2, None),
    "little memory": (ServiceSettings(), 2, 2, 90),
    "all terms": (
        ServiceSettings(
            decode_fixed_ms=2.0, kv_ms_per_1k_cached_tokens=0.5, prefill_attention_ms_per_1m_token_context=80.0
        ),
        1,
        1,
        None,
    ),
    "staircase": (CURVES["staircase"], 1, 2, None),
    "table": (CURVES["table"], 2, 1, None),
    "little setup": (CURVES["little setup"], 1, 1, None),
    "unequal workers": (ServiceSettings(), 3, 1, None, {"speeds": (1.0, 2.0, 0.5), "router": "least-tokens"}),
    "pools": (ServiceSettings(), 3, 1, None, {"layout": "disaggregated", "prefill_workers": 2}),
    "helpers": (ServiceSettings(), 3, 1, None, {"layout": "parallel-prefill"}),
    "prefix cache": (ServiceSettings(), 2, 1, None, {"kv": KVSettings(prefix_cache=True), "router": "session-sticky"}),
}


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("seed", range(3))
def test_a_policy_passes_the_bound(name, seed):
    scenario = scenario_of(*SYSTEMS[name])
    requests = crowd(scenario, seed)
    bounds = {rule: slo_bound(requests, scenario, rule) for rule in SLO_RULES}
    if not scenario.system.kv.prefix_cache:  # which makes prompts cheap
        assert min(bound.num_met for bound in bounds.values()) < len(requests), "the bound says nothing here"
    for policy in POLICIES:
        done = simulate(scenario, requests, policy, {"seed": seed} if policy == "random" else {}).requests
        for rule, bound in bounds.items():
            assert slo_marks(done, rule).sum() <= bound.num_met, (policy, rule)


@pytest.mark.parametrize("seed", range(3))
def test_a_policy_with_a_budget_passes_the_bound_of_that_budget(seed):
    scenario = scenario_of(ServiceSettings(), 1, 1, None)
    requests = crowd(scenario, seed)
    for budget in (128, 256):
        bounds = {rule: slo_bound(requests, scenario, rule, budget) for rule in SLO_RULES}
        for policy in ("sarathi", "sarathi-spf", "vllm-v1", "moore-hodgson"):
            parameters = {"token_budget": budget, "max_running": 128}
            state = simulate(scenario, requests, policy, parameters)
            log = state.batch_log[: state.system[0]["num_batches"]]
            assert (log["prefill_tokens"] + log["decode_tokens"]).max() <= budget
            for rule, bound in bounds.items():
                assert slo_marks(state.requests, rule).sum() <= bound.num_met, (policy, rule, budget)


def test_a_bound_rises_with_less_freedom():
    scenario = scenario_of(ServiceSettings(), 1, 1, None)
    requests = crowd(scenario, 7)
    by_budget = [slo_bound(requests, scenario, "max", budget).num_met for budget in (64, 128, 512, None)]
    assert by_budget == sorted(by_budget)
    assert slo_bound(requests, scenario, "max").num_met <= slo_bound(requests, scenario, "deadline").num_met
    relaxed = [slo_bound(requests, scenario, "max", decode_tokens=(tokens,)).num_met for tokens in DECODE_TOKENS]
    assert slo_bound(requests, scenario, "max").num_met == min(relaxed)


# ---- particular requests -------------------------------------------------------------------------------------------
def toy_bound(rows, rule="max", cap=None, **toy) -> int:
    scenario = toy_scenario(**toy)
    return slo_bound(toy_requests(rows, scenario), scenario, rule, cap).num_met


def test_what_one_request_can_get_is_not_what_the_bound_says():
    # S(b) = 10 + b ms, TTFT within 100 ms: a prompt of 90 tokens just fits, at 100/90 ms a token; one of 91 does not
    assert toy_bound([(0.0, 90, 1)]) == 1
    assert toy_bound([(0.0, 91, 1)]) == 0
    assert toy_bound([(0.0, 45, 1), (0.0, 45, 1)]) == 2
    assert toy_bound([(0.0, 45, 1), (0.0, 46, 1)]) == 1
    assert toy_bound([(0.0, 91, 1)], workers=2) == 1, "the relaxation shares a prompt between workers"
    assert toy_bound([(0.0, 90, 1)], cap=30) == 0, "in batches of 30 it takes 120 ms"


def test_a_gap_that_no_batch_is_short_enough_for_is_kept():
    rows = [(0.0, 10, 3)]
    assert toy_bound(rows, tbt_ms=11.0) == 1
    assert toy_bound(rows, tbt_ms=10.9) == 0
    assert toy_bound(rows, tbt_ms=10.9, rule="p99") == 0
    assert toy_bound(rows, tbt_ms=10.9, rule="deadline") == 1, "its tokens can all be early"
    assert toy_bound([(0.0, 10, 101)], tbt_ms=10.9, rule="p99") == 1, "of 100 gaps one is forgiven: no bound but TTFT"
    assert toy_bound([(0.0, 10, 1)], tbt_ms=10.9) == 1


def test_requests_outside_the_window_count_or_the_horizon_is_forgotten():
    scenario = toy_scenario(horizon_s=0.05)
    requests = toy_requests([(0.0, 10, 1), (0.01, 10, 1), (0.04, 10, 1)], scenario)
    assert slo_bound(requests, scenario) == (2, 3), "the last would end at 51 ms at the earliest"
    bound = slo_bound(requests, scenario, from_s=0.005, until_s=0.02)
    assert (bound, bound.share) == ((1, 1), 1.0)
    assert np.isnan(slo_bound(requests, scenario, from_s=7.0, until_s=8.0).share)


def test_a_noisy_system_or_a_wrong_argument_has_a_bound():
    scenario = toy_scenario(noise="exponential")
    requests = toy_requests([(0.0, 10, 1)], scenario)
    with pytest.raises(UserError, match="noisy"):
        slo_bound(requests, scenario)
    with pytest.raises(UserError, match="rule: expected one of max, p99, deadline, got 'p90'"):
        slo_bound(requests, toy_scenario(), "p90")
    with pytest.raises(UserError, match="max_batch_tokens: expected at least 1, got 0"):
        slo_bound(requests, toy_scenario(), "max", 0)
