"""One case for the kernel and for the slow twin (`reference_simulator`), and where the two part.

A case is a dictionary that JSON can hold: "system", arguments of `toy_scenario`; "changes", further settings of the
scenario by their paths; "requests", rows of arrival, prompt, output, TTFT and TBT target, and a dictionary of what else
a request has (in a closed loop, its client and "think_s"); "decisions", taken in turn, or a "policy" and its
"parameters"; "seed" and "max_hold_ms".
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from typing import Any
from unittest.mock import patch

import numba
import numpy as np
import pytest
from numba.np.unsafe.ndarray import to_fixed_tuple
from reference_simulator import Simulator
from toy import toy_requests, toy_scenario
from twin_model import Request, Settings
from twin_service import Linear, Staircase, Table

from baselines import POLICIES
from llm_env.config import Scenario, ServiceSettings, with_changes
from llm_env.dtypes import FUTURE, SLO_RULES
from llm_env.records import DECIDE_SIGNATURE, Decision, State, View, decision
from llm_env.rollout import rollout

Case = dict[str, Any]
TOLERANCE = 1e-9
FIELDS = len(Decision._fields)
NOISE_ROWS = 1000  # iterations of a worker; more than any small system runs
REQUEST_FIELDS = (
    "arrival_s",
    "first_scheduled_s",
    "first_token_s",
    "finish_s",
    "max_tbt_s",
    "evictions",
    "late_gaps",
    "late_tokens",
    "status",
    "emitted_tokens",
    "worker",
    "home",
    "hit_tokens",
)
BATCH_FIELDS = ("worker", "start_s", "end_s", "num_requests", "prefill_tokens", "decode_tokens")


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
        return decision(*to_fixed_tuple(r, FIELDS))

    return decide


def uncompiled(name: str, parameters: dict[str, Any]) -> Callable[[View], Decision]:
    """A policy's `decide` as plain Python: compiling it for every drawn parameter would take most of the time."""
    with ExitStack() as stack:
        for module in POLICY_MODULES:
            stack.enter_context(patch.object(module, "policy", lambda function: function))
        return POLICIES[name](**parameters)


# ---- one case ------------------------------------------------------------------------------------------------------
def decisions_of(case: Case) -> list[Decision]:
    make: Any = getattr(decision, "py_func", decision)
    return [make(**row) for row in case["decisions"]]


def policy_of(case: Case) -> Callable[[View], Decision]:
    if "policy" in case:
        return uncompiled(case["policy"], case["parameters"])
    rows = decisions_of(case)
    return lambda view: rows[(view.epoch + view.worker) % len(rows)]


def scenario_of(case: Case) -> Scenario:
    changes = dict(case.get("changes", {}))
    if "max_hold_ms" in case:
        changes["system.max_hold_ms"] = case["max_hold_ms"]
    return with_changes(toy_scenario(**case["system"]), changes)


def requests_of(case: Case) -> list[Request]:
    return [Request(*row[:5], index=k, **(row[5] if len(row) > 5 else {})) for k, row in enumerate(case["requests"])]


def rows_of(case: Case, scenario: Scenario) -> np.ndarray:
    """The requests as the kernel has them."""
    requests = toy_requests([tuple(row[:3]) for row in case["requests"]], scenario)
    rows = requests_of(case)
    for name in (
        "ttft_target_s",
        "tbt_target_s",
        "declared_tokens",
        "predicted_tokens",
        "weight",
        "client",
        "session",
        "previous",
        "shared_tokens",
        "think_s",
    ):
        requests[name] = [getattr(row, name) for row in rows]
    return requests


def run_kernel(case: Case, scenario: Scenario, decide: Any) -> State:
    return rollout(scenario, decide, rows_of(case, scenario), case.get("seed", 0), record=True)


def curve_of(service: ServiceSettings) -> Linear | Staircase | Table:
    if service.points is not None:
        return Table([(tokens, ms / 1e3) for tokens, ms in service.points])
    if service.step_ms is not None and service.step_tokens is not None:
        return Staircase(service.setup_ms / 1e3, service.step_ms / 1e3, service.step_tokens)
    return Linear(service.setup_ms / 1e3, service.per_token_ms / 1e3, service.free_tokens)


def settings_of(scenario: Scenario, noise: np.ndarray | None) -> Settings:
    s, service, kv, link = scenario.system, scenario.system.service, scenario.system.kv, scenario.system.link
    setup, per_token = service.setup_noise != "none", service.per_token_noise != "none"
    rows = None
    if noise is not None and (setup or per_token):
        rows = [
            [(a if setup else 1.0, b if per_token else 1.0) for a, b in table[:NOISE_ROWS].tolist()] for table in noise
        ]
    return Settings(
        workers=s.workers,
        max_running=s.max_running,
        max_hold_s=s.max_hold_ms / 1e3,
        curve=curve_of(service),
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
        arrivals_s=scenario.episode.arrivals_s,
        noise=rows,
        layout=s.layout,
        prefill_workers=s.prefill_workers or 0,
        router=s.router,
        speeds=s.speeds,
        prefix_cache=kv.prefix_cache,
        bytes_per_token=kv.bytes_per_token,
        host_bytes_per_s=kv.host_gbytes_per_s * 1e9,
        link_latency_s=link.latency_ms / 1e3,
        link_bytes_per_s=math.inf if link.gbytes_per_s is None else link.gbytes_per_s * 1e9,
        change_roles=s.roles.change,
        switch_s=s.roles.switch_ms / 1e3,
        least_prefill=s.roles.min_prefill_workers,
        least_decode=s.roles.min_decode_workers,
        helped_by=s.parallel.max_workers,
        helped_from=s.parallel.min_tokens,
    )


def run_twin(
    case: Case, decide: Callable[[View], Decision], scenario: Scenario | None = None, noise: np.ndarray | None = None
) -> Simulator:
    twin = Simulator(settings_of(scenario or scenario_of(case), noise), requests_of(case))
    twin.run(decide)
    return twin


def near(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b)) or abs(a - b) <= TOLERANCE * max(1.0, abs(b))


def difference(case: Case, compiled: Any = None) -> str:
    """Where the two simulators part, in words; "" if nowhere.

    Args:
        compiled: the policy to give to the kernel; without one it asks the same Python function as the twin.
    """
    scenario, decide = scenario_of(case), policy_of(case)
    seen: tuple[list[View], list[View]] = ([], [])

    def watched(which: int) -> Callable[[View], Decision]:
        def ask(view: View) -> Decision:
            seen[which].append(view)
            return decide(view)

        return ask

    _asked["decide"] = watched(0)
    state = run_kernel(case, scenario, compiled or compiled_question())
    twin = run_twin(case, watched(1), scenario, state.noise)
    if compiled is None:
        for k, (a, b) in enumerate(zip(*seen, strict=False)):
            for name, x, y in zip(View._fields, a, b, strict=True):
                if not near(x, y):
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
    requests = sorted((r for r in twin.requests if not twin.closed or r.status != FUTURE), key=lambda r: r.index)
    if len(requests) != state.system[0]["num_requests"]:
        return f"requests: kernel {state.system[0]['num_requests']}, twin {len(requests)}"
    for k, request in enumerate(requests):
        if twin.requests.index(request) != state.requests[k]["row"]:
            return f"request {k}: row: kernel {state.requests[k]['row']}, twin {twin.requests.index(request)}"
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
