"""llm_env/optimum.py: the known best of a tiny instance, the same best by plain search, and nobody does better."""

from __future__ import annotations

import numpy as np
import pytest
from toy import toy_requests, toy_scenario

from llm_env.bounds import slo_bound
from llm_env.errors import UserError
from llm_env.optimum import OBJECTIVES, optimum
from llm_env.validation_cases import never_beaten, small_workload, tiny_best, tiny_policy, tiny_workload
from llm_env.validation_rows import OK, system


def test_the_known_best_is_not_found():
    assert [row.verdict for row in tiny_best()] == [OK, OK]


@pytest.mark.kernel
@pytest.mark.nojit
@pytest.mark.parametrize("policy", ["sarathi", "vllm-v0", "request-level"])
def test_the_tiny_instance_comes_out_differently(policy):
    assert tiny_policy(policy).verdict == OK


@pytest.mark.parametrize("seed", range(40))
def test_a_policy_is_better_than_the_best(seed):
    row = never_beaten(seed)
    assert row.verdict == OK, row


def search(requests: np.ndarray, scenario, objective: str, budget: int) -> float:
    """The same without dominance, bounds or tables: every batch at every start, one after the other."""
    curve = {b: 0.010 + 0.001 * b for b in range(100)}  # of toy_scenario
    arrival, prompt = requests["arrival_s"].tolist(), requests["prompt_tokens"].tolist()
    output, n = requests["output_tokens"].tolist(), len(requests)
    ttft, tbt = scenario.slo.classes[0].ttft_ms / 1e3, scenario.slo.classes[0].tbt_ms / 1e3

    def cost(times: list[list[float]]) -> float:
        if objective == "misses":
            late = [any(t > arrival[i] + ttft + j * tbt + 1e-9 for j, t in enumerate(ts)) for i, ts in enumerate(times)]
            return float(sum(late))
        return sum(ts[0 if objective == "ttft" else -1] - arrival[i] for i, ts in enumerate(times))

    def batches(done, there):
        if not there:
            yield []
            return
        i, *rest = there
        most = prompt[i] - done[i] if done[i] < prompt[i] else 1
        for tail in batches(done, rest):
            for tokens in range(most + 1):
                yield [(i, tokens), *tail] if tokens else tail

    def go(now: float, done: list[int], times: list[list[float]]) -> float:
        left = [i for i in range(n) if done[i] < prompt[i] + output[i] - 1]
        if not left:
            return cost(times)
        best = np.inf
        for start in {max(now, arrival[i]) for i in left}:
            for batch in batches(done, [i for i in left if arrival[i] <= start]):
                tokens = sum(t for _, t in batch)
                if not 1 <= tokens <= budget:
                    continue
                end, after, stamped = start + curve[tokens], list(done), [list(t) for t in times]
                for i, t in batch:
                    after[i] += t
                    if after[i] >= prompt[i]:
                        stamped[i].append(end)
                best = min(best, go(end, after, stamped))
        return best

    return go(0.0, [0] * n, [[] for _ in range(n)])


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("budget", [2, 9])
def test_dominance_or_a_bound_cuts_off_the_best(seed, budget):
    rng = np.random.default_rng(seed)
    scenario = toy_scenario(ttft_ms=30.0, tbt_ms=13.0)
    rows = [(float(t), int(rng.integers(1, 4)), int(rng.integers(1, 3))) for t in np.sort(rng.uniform(0, 0.03, 2))]
    if seed % 2:
        rows = [*rows, (0.035, 1, 1)]
    requests = toy_requests(rows, scenario)
    for objective in OBJECTIVES:
        expected = search(requests, scenario, objective, budget)
        assert optimum(requests, scenario, objective, budget) == pytest.approx(expected, abs=1e-12), objective


@pytest.mark.parametrize("seed", range(20))
def test_the_best_schedule_passes_the_bound(seed):
    scenario, requests = small_workload(seed)
    met = len(requests) - optimum(requests, scenario, "misses")
    assert met <= slo_bound(requests, scenario, "deadline").num_met


def test_a_finer_cut_or_a_larger_budget_is_worse():
    requests = tiny_workload()[:3]
    coarse, fine = (optimum(requests, system(), "ttft", 256, quantum) for quantum in (64, 32))
    assert fine <= coarse
    small, large = (optimum(requests, system(), "e2e", budget, 64) for budget in (128, 512))
    assert large <= small


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"workers": 2}, "one worker"),
        ({"blocks": 9}, "unlimited KV memory"),
        ({"noise": "exponential"}, "noisy"),
        ({"decode_fixed_ms": 1.0}, "no terms beside the curve"),
    ],
)
def test_a_system_that_is_not_searched_is_taken(changes, words):
    scenario = toy_scenario(**changes)
    with pytest.raises(UserError, match=words):
        optimum(toy_requests([(0.0, 1, 1)], scenario), scenario, "ttft")


def test_a_wrong_argument_is_taken():
    scenario = toy_scenario()
    requests = toy_requests([(0.0, 1, 1)] * 7, scenario)
    with pytest.raises(UserError, match="expected 1 to 6 requests, got 7"):
        optimum(requests, scenario, "ttft")
    with pytest.raises(UserError, match="objective"):
        optimum(requests[:1], scenario, "tpot")
    with pytest.raises(UserError, match="quantum"):
        optimum(requests[:1], scenario, "ttft", 4, 8)
