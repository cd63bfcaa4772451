"""Batches per CPU-second of the compiled loop alone, for every baseline and every queue order, without logs."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import baselines
from baselines.sarathi import make_ordered
from benchmarks.measure import Effort, Figure, Lap, Work, alternate, rate_figure
from llm_env.build import load, new_states, single
from llm_env.config import Scenario, with_changes
from llm_env.records import QUEUE_ORDERS
from llm_env.rollout import compiled_rollout, rollout
from llm_env.scenarios import load_scenario
from llm_env.workload import draw_workload

# Chat lengths at load 0.8, with memory and a TBT target that let about 40 requests run at a time under Sarathi
CHANGES = {
    "workload.load": 0.8,
    "slo.classes": [{"name": "default", "ttft_ms": 2000.0, "tbt_ms": 400.0}],
    "system.kv.blocks": 8192,
    "episode.arrivals_s": 300.0,
    "episode.horizon_s": 1200.0,
}


def busy_chat() -> Scenario:
    """Chat with about 40 running requests."""
    return with_changes(load_scenario("chat"), CHANGES)


def figures(effort: Effort) -> list[Figure]:
    """One for each baseline with its defaults, one for each queue order of Sarathi."""
    scenario = busy_chat()
    requests = draw_workload(scenario, 0)
    policies = {f"kernel/{name}": baselines.make_policy(name) for name in baselines.POLICIES}
    policies |= {f"kernel/order {name}": make_ordered(512, 128, k) for k, name in enumerate(QUEUE_ORDERS)}
    samples = alternate({name: batches(scenario, decide, requests) for name, decide in policies.items()}, effort)
    return [
        rate_figure(name, "batches", samples[name], str(situation(scenario, decide, requests)))
        for name, decide in policies.items()
    ]


def batches(scenario: Scenario, decide: Any, requests: Any) -> Work:
    """Batches of a policy, one whole run a lap; loading its workload does not count."""
    states = new_states(scenario, 1, len(requests))
    run = compiled_rollout()

    def lap() -> Lap:
        nonlocal states
        states = load(states, 0, requests, 0)
        system = single(states)
        began = time.process_time()
        run(system, decide, 1 << 62)
        passed = time.process_time() - began
        return Lap(int(states.workers["iteration"].sum()), passed)

    return lap


class Situation(NamedTuple):
    """Means over the batches of a run."""

    num_running: float
    num_waiting: float

    def __str__(self) -> str:
        return f"{self.num_running:.0f} running, {self.num_waiting:,.0f} waiting"


def situation(scenario: Scenario, decide: Any, requests: Any) -> Situation:
    """How much there was to do in a policy's batches."""
    state = rollout(scenario, decide, requests, 0, record=True)
    log = state.batch_log[: int(state.system[0]["num_batches"])]
    return Situation(float(log["num_requests"].mean()), float(log["num_waiting"].mean()))
