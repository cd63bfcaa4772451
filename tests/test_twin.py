"""The kernel against the slow twin (`reference_simulator`) on thousands of small random systems: every time, batch and
view is equal. A failure prints a command that runs its shrunk case again:

    python tests/test_twin.py '<the case as JSON>'

TWIN_EXAMPLES=20000 runs more examples of each test.
"""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from numba import config

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

import twin_cases
from twin_cases import cases, workloads
from twin_compare import check, difference

from baselines import POLICIES, make_policy
from llm_env.records import QUEUE_ORDERS

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(config.DISABLE_JIT, reason="a policy in Python needs the compiler"),
]

EXAMPLES = int(os.environ.get("TWIN_EXAMPLES", "0"))

budgets = st.one_of(st.integers(1, 60), st.just("slo"))
running = st.integers(1, 8)
PARAMETERS: dict[str, dict[str, SearchStrategy[Any]]] = {  # the others have their defaults
    "fcfs": {},
    "request-level": {"token_budget": st.integers(1, 60), "max_running": running, "reserve_tokens": st.integers(0, 60)},
    "orca": {"max_running": running, "reserve_tokens": st.integers(0, 60)},
    "vllm-v0": {"max_batched_tokens": st.integers(1, 60), "max_running": running, "padded": st.booleans()},
    "vllm-v1": {"token_budget": budgets, "max_running": running, "long_prefill_threshold": st.integers(0, 20)},
    "sarathi": {"token_budget": budgets, "max_running": running},
    "sarathi-spf": {"token_budget": budgets, "max_running": running},
    "decode-first": {"token_budget": budgets, "max_running": running, "min_decodes": st.integers(1, 5)},
    "slack-fill": {"max_tokens": st.integers(1, 60), "max_running": running, "order": st.sampled_from(QUEUE_ORDERS)},
    "moore-hodgson": {"token_budget": budgets, "max_running": running, "margin": st.floats(0.1, 10)},
    "random": {"seed": st.integers(0, 99)},
}
policy_cases = st.sampled_from(sorted(POLICIES)).flatmap(
    lambda name: cases(
        workloads,
        {"policy": st.just(name), "parameters": st.fixed_dictionaries({}, optional=PARAMETERS.get(name, {}))},
    )
)


def many(default: int) -> Any:
    return settings(
        max_examples=EXAMPLES or default, deadline=None, suppress_health_check=list(HealthCheck), print_blob=False
    )


def test_parameters_are_those_of_policies():
    assert set(PARAMETERS) <= set(POLICIES)


@many(350)
@given(twin_cases.raw_cases)
def test_any_decisions(case):
    check(case)


@many(250)
@given(policy_cases)
def test_policies_with_any_parameters(case):
    check(case)


@many(30)
@given(twin_cases.crowded_cases)
def test_more_requests_than_moore_hodgson_looks_at(case):
    check(case)


@many(100)
@given(twin_cases.curve_cases)
def test_curves(case):
    check(case)


@many(200)
@given(twin_cases.order_cases)
def test_queue_orders(case):
    check(case)


@many(60)
@given(twin_cases.long_queue_cases)
def test_queue_orders_of_many(case):
    check(case)


@many(150)
@given(twin_cases.replica_cases)
def test_routers_and_speeds(case):
    check(case)


@many(200)
@given(twin_cases.memory_cases)
def test_kv_rules_victims_and_swap(case):
    check(case)


@many(150)
@given(twin_cases.cache_cases)
def test_prefix_cache(case):
    check(case)


@many(200)
@given(twin_cases.disaggregated_cases)
def test_disaggregated(case):
    check(case)


@many(200)
@given(twin_cases.role_cases)
def test_roles_that_change(case):
    check(case)


@many(200)
@given(twin_cases.parallel_cases)
def test_parallel_prefill(case):
    check(case)


@many(200)
@given(twin_cases.mixed_cases)
def test_everything_at_once(case):
    check(case)


@many(200)
@given(twin_cases.closed_cases)
def test_closed_loops(case):
    check(case)


@pytest.mark.parametrize("name", sorted(POLICIES))
@pytest.mark.parametrize("blocks", [None, 40])
def test_compiled_policies(name, blocks):
    """As they are run: the kernel calls the compiled policy and the twin the same function in Python."""
    rng = random.Random(name)
    arrivals_s = sorted(round(rng.uniform(0, 3), 2) for _ in range(60))
    requests = [[a, rng.randint(1, 60), rng.randint(1, 12), 0.3, 0.05] for a in arrivals_s]
    system = {"blocks": blocks, "workers": 2, "noise": "exponential", "ttft_ms": 300.0, "tbt_ms": 50.0}
    check({"system": system, "requests": requests, "policy": name, "parameters": {}}, make_policy(name))


if __name__ == "__main__":
    problem = difference(json.loads(sys.argv[1]))
    print(problem or "no difference")
    sys.exit(bool(problem))
