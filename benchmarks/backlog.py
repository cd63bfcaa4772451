"""What a batch costs with few and with very many waiting requests, for every queue order.

All requests are there at time 0, with prompts of nearly equal lengths and deadlines about a second apart: so a batch
holds much the same whoever is chosen, and what grows with the backlog is the choosing alone. The deadlines are far
away: none is hopeless, which is where Moore-Hodgson has most to do.
"""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import numpy as np

from baselines.sarathi import make_ordered
from benchmarks.kernel import busy_chat
from benchmarks.measure import Effort, Figure, Lap, Work, alternate, spread
from llm_env.build import load, new_states, single
from llm_env.config import Scenario, with_changes
from llm_env.records import KV_PROMPT, QUEUE_ORDERS, Decision, State, View, decision, policy, snapshot
from llm_env.rollout import compiled_rollout
from llm_env.workload import blank_requests

_TTFT_S = 1e6
_WARM = 2000  # requests that are admitted first, in order of arrival: then the number that run is steady
_MOST_S, _LOOK_S = 0.5, 0.02  # CPU time of a lap and between two looks at the clock, should an order take long
_FIRST = 5  # batches; the first with an order looks once at everybody who waits


def figures(effort: Effort) -> list[Figure]:
    """The cost of a batch at each backlog over that at the first, for each order."""
    scenario = patient_chat()
    times: dict[tuple[int, str], list[float]] = {}
    for backlog in effort.backlogs:
        states = with_backlog(scenario, backlog)
        mine = snapshot(states)
        works = {order: batches(states, mine, k, backlog) for k, order in enumerate(QUEUE_ORDERS)}
        for order, sample in alternate(works, effort).items():
            times[backlog, order] = [1 / ratio for ratio in sample.ratios]
    least = effort.backlogs[0]
    return [
        Figure(
            name=f"backlog/{order}, {backlog:,}",
            value=median(times[backlog, order]) / median(times[least, order]),
            unit=f"x {least}",
            ratio=median(times[backlog, order]) / median(times[least, order]),
            better="less",
            spread=spread(times[backlog, order]),
            note=f"{median(times[backlog, order]):,.0f} iterations",
        )
        for order in QUEUE_ORDERS
        for backlog in effort.backlogs
        if backlog != least
    ]


def patient_chat() -> Scenario:
    """Chat with unlimited memory and deadlines so late that nobody is hopeless."""
    changes = {"slo.classes": [{"name": "default", "ttft_ms": 1e3 * _TTFT_S}], "system.kv": {}}
    return with_changes(busy_chat(), changes | {"episode.horizon_s": 1e6})


def with_backlog(scenario: Scenario, backlog: int) -> State:
    """A system, with a leading axis, in which `backlog` requests wait and as many run as will."""
    n, rng = backlog + _WARM, np.random.default_rng(0)
    requests = blank_requests(n)
    requests["prompt_tokens"] = rng.integers(1150, 1251, n)
    requests["output_tokens"] = rng.integers(100, 301, n)
    requests["predicted_tokens"] = rng.integers(100, 301, n)  # of no use: whoever looks shorter is not
    requests["declared_tokens"] = 300
    requests["ttft_target_s"] = _TTFT_S + n * rng.random(n)
    requests["tbt_target_s"] = 0.4
    requests["weight"] = rng.integers(1, 4, n)
    requests["client"] = rng.integers(0, 10, n)
    states = load(new_states(scenario, 1, n), 0, requests, 0)
    decide, run, system = make_ordered(512, 128, 0), compiled_rollout(), single(states)
    while states.system["num_waiting"][0, 0] > backlog:
        run(system, decide, 1)
    return states


def ordered(order: int, quantum_s: float) -> Any:
    """Sarathi with a queue order, as `baselines.sarathi.make_ordered`, and with levels to tell apart."""

    @policy
    def decide(view: View) -> Decision:
        return decision(512, max_running=128, order=order, kv_rule=KV_PROMPT, watermark=0.01, quantum_s=quantum_s)

    return decide


def batches(states: State, mine: State, order: int, backlog: int) -> Work:
    """Batches of Sarathi with a queue order, from the same situation in every lap.

    Args:
        states: the situation, with a leading axis; not changed.
        mine: arrays of the same shapes to run in.
        order: the queue order.
        backlog: so many wait; a tenth as many batches count, at least 40, so that it hardly shrinks.
    """
    decide = ordered(order, float(np.median(states.requests["prefill_s"])) / 4)
    run, most = compiled_rollout(), min(50_000, max(40, backlog // 10))

    def lap() -> Lap:
        for array, given in zip(mine, states, strict=True):
            np.copyto(array, given)
        system, done, passed = single(mine), 0, 0.0
        run(system, decide, _FIRST)  # these do not count: the order is new, nothing is known of it, caches are cold
        began = time.process_time()
        run(system, decide, 1)
        chunk = max(1, min(1000, int(_LOOK_S / (time.process_time() - began))))
        while done < most and passed < _MOST_S:
            began = time.process_time()
            done += run(system, decide, min(chunk, most - done))
            passed += time.process_time() - began
        return Lap(done, passed)

    return lap
