"""Scenario families: capacities as stated, evictions and cache hits happen, neither everything nor nothing is met."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

import baselines
from llm_env.config import with_changes
from llm_env.evaluation import main
from llm_env.metrics import EVERYTHING, block_values, slo_marks, summarise
from llm_env.rollout import rollout
from llm_env.scenarios import load_scenario
from llm_env.slo import met_share
from llm_env.systems import episode_outcome
from llm_env.workload import capacity_requests_per_s, concrete, draw_workload, request_rate, slo_budget
from llm_env.workload.sessions import mean_work

# mean requests of an episode, and the standard deviation between episodes as a share of it
SIZES = {
    "classes-two": (328, 0.22),
    "classes-three": (328, 0.28),
    "noisy-kv": (481, 0.20),
    "prefix-sessions": (216, 0.21),
}
# what Moore-Hodgson keeps with this budget, at loads 0.6 and 1.0
BUDGETS = {"noisy-kv": 600}
each = pytest.mark.parametrize("name", SIZES)


def runs(name, policy="moore-hodgson", seeds=3, **changes):
    """Final States of some tuning seeds, and the scenario."""
    parameters = {"token_budget": BUDGETS[name]} if name in BUDGETS and policy == "moore-hodgson" else {}
    decide = baselines.make_policy(policy, **parameters)
    scenario = with_changes(load_scenario(name), {key.replace("__", "."): value for key, value in changes.items()})
    return scenario, [
        rollout(concrete(scenario, seed), decide, draw_workload(scenario, seed), seed, record=True)
        for seed in range(1_000_000, 1_000_000 + seeds)
    ]


@each
def test_the_capacity_is_another_one_than_the_description_states(name):
    scenario = load_scenario(name)
    text = " ".join(scenario.description.split())
    stated = re.search(r"= ([0-9.]+) / ([0-9]+) ms / ([0-9.,]+) = ([0-9.]+) requests/s", text)
    assert stated is not None
    tau, milliseconds, work, rate = (float(number.replace(",", "")) for number in stated.groups())
    tbt_ms = scenario.slo.tightest_tbt_ms
    assert tau == pytest.approx(slo_budget(scenario.system.service, tbt_ms, scenario.system.max_running), abs=0.06)
    assert milliseconds == tbt_ms
    assert work == pytest.approx(mean_work(scenario.workload), abs=0.5)
    assert rate == pytest.approx(capacity_requests_per_s(scenario), rel=0.006)


@each
def test_an_episode_has_other_numbers_of_requests_than_its_rate_says(name):
    scenario = load_scenario(name)
    size, deviation = SIZES[name]
    assert request_rate(scenario) * scenario.episode.arrivals_s == pytest.approx(size, rel=0.01)
    sizes = [draw_workload(scenario, seed).size for seed in range(40)]
    assert np.mean(sizes) == pytest.approx(size, rel=4 * deviation / np.sqrt(40))


@each
def test_everything_or_nothing_is_met(name):
    met = []
    for load in (0.6, 1.0):
        scenario, states = runs(name, workload__load=load)
        met.append(np.mean([summarise(state, scenario).weighted_attainment for state in states]))
    assert 0.6 < met[1] < met[0] - 0.02 < 0.96


@each
def test_it_makes_no_difference_which_scheduler_runs(name):
    met = {}
    for policy in ("vllm-v1", "moore-hodgson"):
        scenario, states = runs(name, policy)
        met[policy] = np.mean([summarise(state, scenario).weighted_attainment for state in states])
    assert met["vllm-v1"] + 0.3 < met["moore-hodgson"]


@pytest.mark.parametrize("name", ["classes-two", "classes-three"])
@pytest.mark.parametrize(("policy", "least"), [("vllm-v1", 0.05), ("moore-hodgson", 0.02)])
def test_nobody_is_evicted_where_memory_is_short(name, policy, least):
    scenario, states = runs(name, policy)
    assert scenario.slo.weighted
    summaries = [summarise(state, scenario) for state in states]
    evicted = sum(s.evictions for s in summaries) / sum(len(state.requests) for state in states)
    assert least < evicted < 0.5
    assert all(s.kv_used_max > 0.9 for s in summaries)


def test_the_tight_class_is_not_15_to_50_percent_of_the_traffic():
    for name, least in (("classes-two", 2), ("classes-three", 4)):
        tight = load_scenario(name).slo.classes[0]
        assert tight.ttft_ms == 1000
        assert tight.tbt_ms <= 100
        assert 0.15 <= tight.share <= 0.5
        assert tight.weight >= least


def test_time_does_not_depend_on_context_or_luck():
    scenario, states = runs("noisy-kv", seeds=1)
    assert scenario.system.service.setup_noise == "gamma"
    (state,) = states
    log = state.batch_log[: int(state.system[0]["num_batches"])]
    alone = log[(log["prefill_tokens"] == 0) & (log["decode_tokens"] > 0)]
    seconds = alone["end_s"] - alone["start_s"]
    assert seconds.std() > 0.003  # the noise of a setup of 10.5 ms: 3.7 ms


def test_the_cache_is_of_no_use():
    scenario, states = runs("prefix-sessions")
    requests = np.concatenate([state.requests for state in states])
    seen = requests["shared_tokens"].sum() / requests["prompt_tokens"].sum()
    started = requests[requests["emitted_tokens"] > 0]
    hit = started["hit_tokens"].sum() / started["prompt_tokens"].sum()
    assert 0.5 < seen < 0.8
    assert 0.1 < hit < seen - 0.1
    with_cache = np.mean([summarise(state, scenario).slo_attainment for state in states])
    scenario, states = runs("prefix-sessions", system__kv__prefix_cache=False)
    assert np.mean([summarise(state, scenario).slo_attainment for state in states]) < with_cache - 0.02


# ---- attainment by weight ------------------------------------------------------------------------------------------
def test_weight_met_is_not_the_share_of_the_weights():
    met, weights = np.array([True, False, True, False]), np.array([4.0, 2.0, 1.0, 1.0])
    assert met_share(met, weights) == 5 / 8
    assert met_share(met, np.full(4, 3.0)) == 0.5
    assert np.isnan(met_share(met[:0], weights[:0]))


def test_equal_weights_give_another_number_than_no_weights():
    """To the last bit: 0.7 * 3 / (0.7 * 3 + 0.7 * 4) is not 3 / 7."""
    rng = np.random.default_rng(0)
    for n in range(1, 200):
        met = rng.random(n) < 0.6
        assert met_share(met, np.full(n, 0.7)) == met.mean()


def test_weighted_attainment_of_a_run_is_not_that_of_its_requests():
    scenario, (state,) = runs("classes-two", seeds=1)
    summary = summarise(state, scenario)
    requests = state.requests[: int(state.system[0]["num_requests"])]
    arrived = requests["arrival_s"]
    requests = requests[(arrived >= scenario.episode.warmup_s) & (arrived < scenario.episode.arrivals_s)]
    met, whole = 0.0, 0.0
    for request, mark in zip(requests, slo_marks(requests, "p99"), strict=True):
        weight = scenario.slo.classes[int(request["slo_class"])].weight
        met, whole = met + weight * bool(mark), whole + weight
    assert summary.weighted_attainment == pytest.approx(met / whole, abs=1e-12)
    assert abs(summary.weighted_attainment - summary.slo_attainment) > 0.001
    found = episode_outcome(requests, scenario)
    assert found["weighted_attainment"] == summary.weighted_attainment
    equal = requests.copy()
    equal["weight"] = 0.7
    assert episode_outcome(equal, scenario)["weighted_attainment"] == summary.slo_attainment


def test_a_table_ranks_by_the_number_of_requests_where_weights_differ(tmp_path, capsys):
    """The fourth column and the differences are those by weight; without weights there is neither."""
    specs = ("sarathi-spf:slo", "moore-hodgson")
    for name, weighted in (("classes-two", True), ("chat-bursty", False)):
        out = tmp_path / name
        arguments = ["--scenario", name, "--baselines", *specs, "--seeds", "3", "--processes", "1", "--out", str(out)]
        assert main([*arguments, "--first-seed", "1000000"]) == 0
        assert ("by weight" in capsys.readouterr().out) == weighted
        rows = json.loads((out / "results.json").read_text())["rows"]
        assert [("weighted_attainment" in row) for row in rows] == [weighted] * 2
        key = "weighted_attainment" if weighted else "slo_attainment_p99"
        best, other = sorted(rows, key=lambda row: -row[key])
        assert best["difference_to_best_baseline"] is None
        assert other["difference_to_best_baseline"] == pytest.approx(other[key] - best[key])


def test_blocks_of_a_trace_are_not_weighted():
    scenario, (state,) = runs("classes-two", seeds=1)
    whole = summarise(state, scenario, *EVERYTHING)
    assert block_values(state, scenario, 1, *EVERYTHING, weighted=True) == [whole.weighted_attainment]
    assert block_values(state, scenario, 1, *EVERYTHING) == [whole.slo_attainment]
    assert len(block_values(state, scenario, 20, *EVERYTHING, weighted=True)) == 20
