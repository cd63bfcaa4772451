"""The kernel against the slow twin (`reference_simulator`) on thousands of small random systems: every time, batch and
view is equal. A failure prints a command that runs its shrunk case again:

    python tests/test_twin.py '<the case as JSON>'

TWIN_EXAMPLES=20000 runs more examples of each test.
"""

from __future__ import annotations

import json
import math
import os
import random
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numba
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from numba import config

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from reference_simulator import Simulator
from toy import toy_requests, toy_scenario
from twin_model import Request, Settings

from baselines import POLICIES, make_policy
from llm_env.config import Scenario
from llm_env.records import (
    DECIDE_SIGNATURE,
    KV_RULES,
    PACKINGS,
    QUEUE_ORDERS,
    SLO_RULES,
    UNLIMITED,
    Decision,
    State,
    View,
    decision,
)
from llm_env.rollout import rollout

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(config.DISABLE_JIT, reason="a policy in Python needs the compiler"),
]

Case = dict[str, Any]
EXAMPLES = int(os.environ.get("TWIN_EXAMPLES", "0"))
TOLERANCE = 1e-9
NOISE_ROWS = 1000  # iterations of a worker; more than any small system runs
REQUEST_FIELDS = (
    "first_scheduled_s",
    "first_token_s",
    "finish_s",
    "max_tbt_s",
    "evictions",
    "late_gaps",
    "late_tokens",
    "status",
    "emitted_tokens",
)
BATCH_FIELDS = ("worker", "start_s", "end_s", "num_requests", "prefill_tokens", "decode_tokens")

# After a hold the kernel says 0 tokens, yet the seconds of the batch before; what a policy should see is not stated.
UNCOMPARED = ()


# ---- any Python function as the kernel's policy --------------------------------------------------------------------
POLICY_MODULES = [m for name, m in list(sys.modules.items()) if name.startswith("baselines.") and hasattr(m, "policy")]
_asked: dict[str, Callable[[View], Decision]] = {}


def _ask(view: View) -> np.ndarray:
    return np.array(_asked["decide"](view), np.float64)


@cache
def compiled_question() -> Any:
    """A compiled policy that asks the Python function `_asked["decide"]`."""

    @numba.njit(DECIDE_SIGNATURE)
    def decide(view):
        with numba.objmode(r="float64[::1]"):
            r = _ask(view)
        return decision(
            r[0], r[1], r[2], r[3], r[4], r[5], r[6], r[7], r[8], r[9], r[10], r[11], r[12], r[13], r[14], r[15]
        )

    return decide


def uncompiled(name: str, parameters: dict[str, Any]) -> Callable[[View], Decision]:
    """A policy's `decide` as plain Python: compiling it for every drawn parameter would take most of the time."""
    with ExitStack() as stack:
        for module in POLICY_MODULES:
            stack.enter_context(patch.object(module, "policy", lambda function: function))
        return POLICIES[name](**parameters)


# ---- one case ------------------------------------------------------------------------------------------------------
def policy_of(case: Case) -> Callable[[View], Decision]:
    if "policy" in case:
        return uncompiled(case["policy"], case["parameters"])
    rows = [decision.py_func(**row) for row in case["decisions"]]
    return lambda view: rows[(view.epoch + view.worker) % len(rows)]


def run_kernel(case: Case, scenario: Scenario, decide: Any) -> State:
    requests = toy_requests([tuple(row[:3]) for row in case["requests"]], scenario)
    requests["ttft_target_s"] = [row[3] for row in case["requests"]]
    requests["tbt_target_s"] = [row[4] for row in case["requests"]]
    return rollout(scenario, decide, requests, case.get("seed", 0), record=True)


def run_twin(case: Case, scenario: Scenario, state: State, decide: Callable[[View], Decision]) -> Simulator:
    s, service, kv = scenario.system, scenario.system.service, scenario.system.kv
    noise = None
    if service.setup_noise != "none" or service.per_token_noise != "none":
        setup, per_token = service.setup_noise != "none", service.per_token_noise != "none"
        noise = [
            [(a if setup else 1.0, b if per_token else 1.0) for a, b in table[:NOISE_ROWS].tolist()]
            for table in state.noise
        ]
    system = Settings(
        workers=s.workers,
        max_running=s.max_running,
        max_hold_s=s.max_hold_ms / 1e3,
        setup_s=service.setup_ms / 1e3,
        per_token_s=service.per_token_ms / 1e3,
        free_tokens=service.free_tokens,
        decode_fixed_s=service.decode_fixed_ms / 1e3,
        cached_token_s=service.kv_ms_per_1k_cached_tokens / 1e6,
        token_context_s=service.prefill_attention_ms_per_1m_token_context / 1e9,
        kv_blocks=kv.blocks,
        block_tokens=kv.block_tokens,
        watermark=kv.watermark,
        slo_rule=SLO_RULES.index(scenario.slo.rule),
        ttft_target_s=scenario.slo.classes[0].ttft_ms / 1e3,
        tbt_target_s=scenario.slo.classes[0].tbt_ms / 1e3,
        horizon_s=scenario.episode.horizon_s,
        noise=noise,
    )
    twin = Simulator(system, [Request(*row, index=k) for k, row in enumerate(case["requests"])])
    twin.run(decide)
    return twin


def near(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b)) or abs(a - b) <= TOLERANCE


def difference(case: Case, compiled: Any = None) -> str:
    """Where the two simulators part, in words; "" if nowhere.

    Args:
        compiled: the policy to give to the kernel; without one it asks the same Python function as the twin.
    """
    scenario, decide = toy_scenario(**case["system"]), policy_of(case)
    if "max_hold_ms" in case:
        scenario = scenario.model_copy(
            update={"system": scenario.system.model_copy(update={"max_hold_ms": case["max_hold_ms"]})}
        )
    seen: tuple[list[View], list[View]] = ([], [])

    def watched(which: int) -> Callable[[View], Decision]:
        def ask(view: View) -> Decision:
            seen[which].append(view)
            return decide(view)

        return ask

    _asked["decide"] = watched(0)
    state = run_kernel(case, scenario, compiled or compiled_question())
    twin = run_twin(case, scenario, state, watched(1))
    if compiled is None:
        for k, (a, b) in enumerate(zip(*seen, strict=False)):
            for name, x, y in zip(View._fields, a, b, strict=True):
                if not near(x, y) and name not in UNCOMPARED:
                    return f"decision {k} at {a.now_s}: view.{name}: kernel {x}, twin {y}"
    logged = state.batch_log[: state.system[0]["num_batches"]]
    for k, batch in enumerate(twin.batches[: len(logged)]):
        values = (
            batch.worker,
            batch.start_s,
            batch.end_s,
            len(batch.entries),
            batch.prefill_tokens,
            batch.decode_tokens,
        )
        for name, y in zip(BATCH_FIELDS, values, strict=True):
            if not near(logged[k][name], y):
                return f"batch {k} at {batch.start_s}: {name}: kernel {logged[k][name]}, twin {y}"
    if len(logged) != len(twin.batches):
        return f"batches: kernel {len(logged)}, twin {len(twin.batches)}"
    for k, request in enumerate(twin.requests):
        for name in REQUEST_FIELDS:
            x, y = float(state.requests[k][name]), float(getattr(request, name))
            if not near(x, y):
                return f"request {k}: {name}: kernel {x}, twin {y}"
    if compiled is None and len(seen[0]) != len(seen[1]):
        return f"decisions: kernel {len(seen[0])}, twin {len(seen[1])}"
    return ""


def check(case: Case, compiled: Any = None) -> None:
    found = difference(case, compiled)
    if found:
        pytest.fail(f"{found}\nagain: python tests/test_twin.py '{json.dumps(case)}'", pytrace=False)


# ---- random cases --------------------------------------------------------------------------------------------------
def _some(*values: Any) -> SearchStrategy[Any]:
    return st.sampled_from(values)


times = st.one_of(st.integers(0, 40).map(lambda k: k / 100), st.floats(0, 0.4))  # the first make ties
ttft_s = st.one_of(_some(0.1, 0.05, 0.2, 0.4), st.floats(0.001, 0.4))
rows = st.tuples(times, st.integers(1, 40), st.integers(1, 14), ttft_s, _some(0.02, 0.04, 0.011))
workloads = st.lists(rows, min_size=1, max_size=14).map(sorted)
crowds = st.lists(st.tuples(_some(0.0), st.integers(1, 9), st.integers(1, 3), ttft_s, _some(0.02)), min_size=66).map(
    lambda crowd: crowd[:80]
)
systems = st.fixed_dictionaries(
    {},
    optional={
        "workers": st.integers(1, 3),
        "max_running": st.integers(1, 8),
        "blocks": st.integers(4, 24),
        "block_tokens": _some(1, 2, 3, 8, 16),
        "watermark": _some(0.0, 0.01, 0.1, 0.3, 0.6),
        "setup_ms": _some(10.0, 1.0, 7.3, 45.5, 0.0),
        "per_token_ms": _some(1.0, 0.3, 0.0),
        "free_tokens": _some(0, 4, 16),
        "decode_fixed_ms": _some(2.0),
        "kv_ms_per_1k_cached_tokens": _some(100.0),
        "prefill_attention_ms_per_1m_token_context": _some(10_000.0),
        "noise": _some("exponential", "gamma", "lognormal"),
        "ttft_ms": _some(100.0, 50.0, 400.0),
        "tbt_ms": _some(20.0, 40.0, 5.0),
        "rule": st.sampled_from(SLO_RULES),
    },
).filter(lambda s: s.get("setup_ms", 10.0) + s.get("per_token_ms", 1.0) > 0)
horizons = _some(1.5, 0.3, 0.05, 3.0)
limits = st.one_of(st.integers(0, 6), st.integers(0, 60), st.just(UNLIMITED))
counts = st.one_of(st.integers(0, 6), st.just(UNLIMITED))
decisions = st.fixed_dictionaries(
    {
        "token_budget": limits,
        "packing": st.integers(0, len(PACKINGS) - 1),
        "order": st.integers(0, len(QUEUE_ORDERS) - 1),
        "kv_rule": st.integers(0, len(KV_RULES) - 1),
    },
    optional={
        "prefill_tokens": limits,
        "chunk_tokens": limits,
        "max_decodes": counts,
        "max_running": counts,
        "whole_prompts": _some(1),
        "padded": _some(0, 0, 1),
        "margin": _some(0.5, 1.5, 3.0),
        "slack_weight": _some(0.0, 0.5, 0.9),
        "drop_weight": _some(0.0, 0.5, 3.0),
        "reserve_tokens": st.integers(0, 60),
        "watermark": _some(0.01, 0.1, 0.3),
        "hold_s": _some(0.0, 0.0, 0.001, 0.01, 0.03, 2.0),
    },
)
holds_ms = _some(1000.0, 50.0, 7.0)


def _cases(requests: SearchStrategy[Any], what: dict[str, SearchStrategy[Any]]) -> SearchStrategy[Case]:
    common = {"requests": requests, "seed": st.integers(0, 9), "max_hold_ms": holds_ms, "horizon_s": horizons}
    return st.fixed_dictionaries({"system": systems, **common, **what}).map(_with_horizon)


def _with_horizon(case: Case) -> Case:
    horizon_s = case.pop("horizon_s")
    return {**case, "system": {**case["system"], "horizon_s": horizon_s}}


raw = {"decisions": st.lists(decisions, min_size=1, max_size=6)}
raw_cases, crowded_cases = _cases(workloads, raw), _cases(crowds, raw)
budgets = st.one_of(st.integers(1, 60), st.just("slo"))
running = st.integers(1, 8)
PARAMETERS: dict[str, dict[str, SearchStrategy[Any]]] = {
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
policy_cases = st.sampled_from(sorted(PARAMETERS)).flatmap(
    lambda name: _cases(
        workloads, {"policy": st.just(name), "parameters": st.fixed_dictionaries({}, optional=PARAMETERS[name])}
    )
)


def many(default: int) -> Any:
    return settings(
        max_examples=EXAMPLES or default, deadline=None, suppress_health_check=list(HealthCheck), print_blob=False
    )


# ---- tests ---------------------------------------------------------------------------------------------------------
def test_every_policy_is_compared():
    assert set(PARAMETERS) == set(POLICIES)


@many(1000)
@given(raw_cases)
def test_any_decisions(case):
    check(case)


@many(600)
@given(policy_cases)
def test_policies_with_any_parameters(case):
    check(case)


@many(30)
@given(crowded_cases)
def test_more_requests_than_moore_hodgson_looks_at(case):
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
