"""Random small systems for the comparison of the kernel with its slow twin (`twin_compare`), by groups of features."""

from __future__ import annotations

import math
import random
from itertools import accumulate
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from twin_compare import Case

from llm_env.dtypes import FAR, ROLE_DECODE, ROLE_PREFILL, SLO_RULES
from llm_env.records import (
    KV_DECLARED,
    KV_ESTIMATE,
    KV_RULES,
    MOORE_HODGSON,
    PACKINGS,
    PREDICTED_SHORTEST,
    QUEUE_ORDERS,
    UNLIMITED,
    VICTIMS,
)

OLD_ORDERS, OLD_RULES = MOORE_HODGSON + 1, KV_DECLARED
TWIN_ROUTERS = ("shared", "round-robin", "least-tokens", "shortest-queue", "session-sticky")  # that the twin knows
TICK_S = 1 / 1024  # of the systems in which sums of times are exact, so that ties are


def some(*values: Any) -> SearchStrategy[Any]:
    return st.sampled_from(values)


# ---- requests ------------------------------------------------------------------------------------------------------
times = st.one_of(st.integers(0, 40).map(lambda k: k / 100), st.floats(0, 0.4))  # the first make ties
ttft_s = st.one_of(some(0.1, 0.05, 0.2, 0.4), st.floats(0.001, 0.4))
rows = st.tuples(times, st.integers(1, 40), st.integers(1, 14), ttft_s, some(0.02, 0.04, 0.011))
workloads = st.lists(rows, min_size=1, max_size=14).map(sorted)
crowds = st.lists(st.tuples(some(0.0), st.integers(1, 9), st.integers(1, 3), ttft_s, some(0.02)), min_size=66).map(
    lambda crowd: crowd[:80]
)

exact_times = st.integers(0, 400).map(lambda k: k * TICK_S) | st.integers(0, 25).map(lambda k: k / 64)
exact_s = some(128 * TICK_S, 64 * TICK_S, 256 * TICK_S, 400 * TICK_S)
extras = st.fixed_dictionaries(
    {},
    optional={
        "declared_tokens": st.integers(0, 20),  # more than its output
        "predicted_tokens": st.integers(1, 14).map(float),
        "weight": some(1.0, 2.0, 0.5),
        "client": st.integers(-1, 3),
        "session": st.integers(0, 2),
        "shared_tokens": st.integers(0, 60),
    },
)
full_rows = st.tuples(
    exact_times, st.integers(1, 40), st.integers(1, 14), exact_s, some(32 * TICK_S, 64 * TICK_S, 8 * TICK_S), extras
)


def _consistent(drawn: list[Any]) -> list[Any]:
    """In order of arrival, with declared output that suffices and what a turn has in common with the one before."""
    found: list[Any] = []
    last: dict[int, int] = {}
    for k, row in enumerate(sorted(drawn, key=lambda row: row[0])):
        extra = dict(row[5])
        if "declared_tokens" in extra:
            extra["declared_tokens"] += row[2]
        session = extra.get("session", -1)
        shared = extra.pop("shared_tokens", 1000)
        if session in last:
            before = found[last[session]]
            extra["previous"] = last[session]
            extra["shared_tokens"] = min(shared, before[1] + before[2], row[1])
        if session >= 0:
            last[session] = k
        found.append([*row[:5], extra])
    return found


def _long_queue(drawn: tuple[int, int, int, int]) -> list[Any]:
    """So many requests within so many ticks of so many clients, drawn from a seed: long lists take long to draw."""
    seed, count, ticks, clients = drawn
    rng = random.Random(seed)
    found: list[Any] = []
    for arrival_s in sorted(rng.randint(0, ticks) * TICK_S for _ in range(count)):
        output = rng.randint(1, 6)
        extra = {
            "declared_tokens": rng.randint(output, 12),
            "predicted_tokens": float(rng.randint(1, 6)),
            "weight": rng.choice([1.0, 2.0, 0.5]),
            "client": rng.randint(0, clients - 1),
        }
        if rng.random() < 0.1:
            del extra["predicted_tokens"]
        targets = rng.choice([64, 128, 400]) * TICK_S, rng.choice([8, 32]) * TICK_S
        found.append([arrival_s, rng.randint(1, 40), output, *targets, extra])
    return found


long_queues = st.tuples(st.integers(0, 1 << 30), st.integers(40, 110), some(0, 40, 400), some(1, 3, 9, 110)).map(
    _long_queue
)
full_workloads = st.lists(full_rows, min_size=1, max_size=14).map(_consistent)
thoughts = exact_times | some(0.0, TICK_S, 4 * TICK_S)
scripts = st.lists(st.lists(st.tuples(thoughts, full_rows), min_size=1, max_size=6), min_size=1, max_size=5)


def _script(users: list[list[tuple[float, Any]]]) -> list[Any]:
    """The requests of a closed loop: no sessions, and a client is a user."""
    found: list[Any] = []
    for user, drawn in enumerate(users):
        for k, (think_s, row) in enumerate(drawn):
            think_s = think_s if k == 0 else max(think_s, TICK_S)  # nobody asks again at once
            extra = {"think_s": think_s, "client": user, "declared_tokens": row[5].get("declared_tokens", 0) + row[2]}
            extra |= {name: row[5][name] for name in ("predicted_tokens", "weight") if name in row[5]}
            found.append([think_s if k == 0 else math.inf, *row[1:5], extra])
    return found


# ---- systems -------------------------------------------------------------------------------------------------------
_systems: SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {},
    optional={
        "workers": st.integers(1, 3),
        "max_running": st.integers(1, 8),
        "blocks": st.integers(4, 24),
        "block_tokens": some(1, 2, 3, 8, 16),
        "watermark": some(0.0, 0.01, 0.1, 0.3, 0.6),
        "setup_ms": some(10.0, 1.0, 7.3, 45.5, 0.0),
        "per_token_ms": some(1.0, 0.3, 0.0),
        "free_tokens": some(0, 4, 16),
        "decode_fixed_ms": some(2.0),
        "kv_ms_per_1k_cached_tokens": some(100.0),
        "prefill_attention_ms_per_1m_token_context": some(10_000.0),
        "noise": some("exponential", "gamma", "lognormal"),
        "ttft_ms": some(100.0, 50.0, 400.0),
        "tbt_ms": some(20.0, 40.0, 5.0),
        "rule": st.sampled_from(SLO_RULES),
    },
)
systems = _systems.filter(lambda s: s.get("setup_ms", 10.0) + s.get("per_token_ms", 1.0) > 0)
TICK_MS = TICK_S * 1e3
EXACT = {"setup_ms": 16 * TICK_MS, "per_token_ms": TICK_MS, "ttft_ms": 128 * TICK_MS, "tbt_ms": 32 * TICK_MS}
exact_systems = st.fixed_dictionaries(
    {name: st.just(value) for name, value in EXACT.items()},
    optional={
        "max_running": st.integers(1, 8),
        "blocks": st.integers(4, 24),
        "block_tokens": some(1, 2, 3, 8, 16),
        "watermark": some(0.0, 0.1, 0.3, 0.6),
        "free_tokens": some(0, 4, 16),
        "decode_fixed_ms": some(2 * TICK_MS),
        "kv_ms_per_1k_cached_tokens": some(64 * TICK_MS),
        "prefill_attention_ms_per_1m_token_context": some(1e4),
        "noise": some("exponential"),
        "rule": st.sampled_from(SLO_RULES),
    },
)


@st.composite
def staircases(draw: Any) -> dict[str, Any]:
    return {
        "system.service": {
            "form": "staircase",
            "setup_ms": draw(some(0, 8, 16)) * TICK_MS,
            "step_ms": draw(some(2, 8, 5)) * TICK_MS,
            "step_tokens": draw(some(2, 8, 16)),
            **draw(noises),
        }
    }


@st.composite
def tables(draw: Any) -> dict[str, Any]:
    steps = draw(st.lists(some(1, 2, 4, 8, 16, 32), min_size=1, max_size=4))  # powers of two: the slopes are exact
    tokens = list(accumulate(steps, initial=draw(some(1, 2, 4, 8, 20))))
    ticks = sorted(draw(st.lists(st.integers(1, 60), min_size=len(tokens), max_size=len(tokens))))
    points = [[t, k * TICK_MS] for t, k in zip(tokens, ticks, strict=True)]
    return {"system.service": {"form": "table", "points": points, **draw(noises)}}


noises = some({}, {}, {"setup_noise": "exponential"}, {"per_token_noise": "gamma", "per_token_noise_cv": 0.5})
curves = st.one_of(staircases(), tables())
links = st.fixed_dictionaries(
    {"system.kv.bytes_per_token": some(1_000_000, 1_000_000, 0)},
    optional={
        "system.link.latency_ms": some(0.0, TICK_MS, 16 * TICK_MS, 5 * TICK_MS),
        "system.link.gbytes_per_s": some(1.024, 0.512, 0.128, 4.096, "unlimited"),
    },
)
hosts = st.fixed_dictionaries(
    {"system.kv.bytes_per_token": some(1_000_000), "system.kv.host_gbytes_per_s": some(1.024, 4.096)}
)
speeds = st.lists(some(1.0, 2.0, 0.5, 1.5), min_size=4, max_size=4)


def _pools(draw: Any, fewest: int) -> tuple[int, dict[str, Any]]:
    workers = draw(st.integers(fewest, 4))
    changes: dict[str, Any] = {"system.router": draw(some(*TWIN_ROUTERS)), "system.workers": workers}
    if draw(st.booleans()):
        changes["system.speeds"] = draw(speeds)[:workers]
    return workers, changes


@st.composite
def replicas(draw: Any) -> dict[str, Any]:
    _, changes = _pools(draw, 1)
    if draw(st.booleans()):
        changes["system.kv.prefix_cache"] = True
    return changes


@st.composite
def disaggregated(draw: Any) -> dict[str, Any]:
    workers, changes = _pools(draw, 2)
    prefill = {"system.layout": "disaggregated", "system.prefill_workers": draw(st.integers(1, workers - 1))}
    return {**changes, **prefill, **draw(links)}


@st.composite
def changing_roles(draw: Any) -> dict[str, Any]:
    changes = draw(disaggregated())
    prefill, workers = changes["system.prefill_workers"], changes["system.workers"]
    roles = {
        "change": True,
        "switch_ms": draw(some(TICK_MS, 5 * TICK_MS, 64 * TICK_MS)),
        "min_prefill_workers": draw(st.integers(1, prefill)),
        "min_decode_workers": draw(st.integers(1, workers - prefill)),
    }
    return {**changes, "system.router": "shared", "system.roles": roles}


@st.composite
def parallel(draw: Any) -> dict[str, Any]:
    _, changes = _pools(draw, 2)
    changes["system.layout"] = "parallel-prefill"
    changes["system.parallel.max_workers"] = draw(some(2, 3, 4))
    changes["system.parallel.min_tokens"] = draw(some(1, 2, 5, 12))
    return {**changes, **draw(links)}


# ---- decisions -----------------------------------------------------------------------------------------------------
limits = st.one_of(st.integers(0, 6), st.integers(0, 60), st.just(UNLIMITED))
counts = st.one_of(st.integers(0, 6), st.just(UNLIMITED))
OLD = {
    "prefill_tokens": limits,
    "chunk_tokens": limits,
    "max_decodes": counts,
    "max_running": counts,
    "whole_prompts": some(1),
    "padded": some(0, 0, 1),
    "margin": some(0.5, 1.5, 3.0),
    "slack_weight": some(0.0, 0.5, 0.9),
    "drop_weight": some(0.0, 0.5, 3.0),
    "reserve_tokens": st.integers(0, 60),
    "watermark": some(0.01, 0.1, 0.3),
    "hold_s": some(0.0, 0.0, 0.001, 0.01, 0.03, 2.0),
}
NEW = {
    "reserve_ratio": some(0.0, 0.5, 0.25),
    "victim": st.integers(0, len(VICTIMS) - 1),
    "swap": some(1),
    "decode_order": some(1),
    "decode_within_s": some(0.0, 4 * TICK_S, 16 * TICK_S, -32 * TICK_S, FAR),
    "gate_tokens": st.integers(1, 4),
    "gate_count": st.integers(1, 4),
    "fill_decodes": some(1),
    "quantum_s": some(0.0, 16 * TICK_S, 64 * TICK_S, TICK_S),
    "starve_s": some(0.0, 64 * TICK_S, 256 * TICK_S),
    "memory": some(1.0, -2.5),
    "class_weight": some(0.5, 1.0),
}
ROLE = {"role": some(ROLE_PREFILL, ROLE_DECODE)}
LIKELY = {"hold_s": some(0.0, 0.0, 0.0, 4 * TICK_S, 2.0), "chunk_tokens": some(3, 8, 16, UNLIMITED)}


def decisions_of(orders: Any, rules: Any, optional: dict[str, Any]) -> SearchStrategy[dict[str, Any]]:
    needed = {"token_budget": limits, "packing": st.integers(0, len(PACKINGS) - 1), "order": orders, "kv_rule": rules}
    return st.fixed_dictionaries(needed, optional=optional)


any_order, any_rule = st.integers(0, len(QUEUE_ORDERS) - 1), st.integers(0, len(KV_RULES) - 1)
old_decisions = decisions_of(st.integers(0, OLD_ORDERS - 1), st.integers(0, OLD_RULES - 1), OLD)
new_orders = decisions_of(
    st.integers(PREDICTED_SHORTEST, len(QUEUE_ORDERS) - 1), st.integers(0, OLD_RULES - 1), {**OLD, **NEW, **LIKELY}
)
memory_rules = decisions_of(any_order, some(KV_DECLARED, KV_ESTIMATE, *range(OLD_RULES)), {**OLD, **NEW, **LIKELY})
all_decisions = decisions_of(any_order, any_rule, {**OLD, **NEW, **LIKELY})
role_decisions = decisions_of(any_order, any_rule, {**OLD, **NEW, **LIKELY, **ROLE})

# ---- cases ---------------------------------------------------------------------------------------------------------
holds_ms = some(1000.0, 50.0, 7.0)
exact_holds_ms = some(1000.0, 64 * TICK_MS, 8 * TICK_MS)
horizons = some(1.5, 0.3, 0.05, 3.0)


def _with_horizon(case: Case) -> Case:
    horizon_s = case.pop("horizon_s")
    return {**case, "system": {**case["system"], "horizon_s": horizon_s}}


def cases(
    requests: SearchStrategy[Any], what: dict[str, SearchStrategy[Any]], system: SearchStrategy[Any] = systems
) -> SearchStrategy[Case]:
    common = {"requests": requests, "seed": st.integers(0, 9), "max_hold_ms": holds_ms, "horizon_s": horizons}
    return st.fixed_dictionaries({"system": system, **common, **what}).map(_with_horizon)


def full_cases(
    decisions: SearchStrategy[dict[str, Any]],
    changes: SearchStrategy[dict[str, Any]],
    requests: SearchStrategy[Any] = full_workloads,
    **system: SearchStrategy[Any],
) -> SearchStrategy[Case]:
    """Cases in which sums of times are exact. `system`: settings that are always given."""
    what = {
        "decisions": st.lists(decisions, min_size=1, max_size=5),
        "changes": changes,
        "max_hold_ms": exact_holds_ms,
    }
    always = st.fixed_dictionaries(system)
    settings = st.tuples(exact_systems, always).map(lambda both: {**both[0], **both[1]})
    return cases(requests, what, settings)


def merged(*parts: SearchStrategy[dict[str, Any]]) -> SearchStrategy[dict[str, Any]]:
    return st.tuples(*parts).map(lambda drawn: {path: value for part in drawn for path, value in part.items()})


raw = {"decisions": st.lists(old_decisions, min_size=1, max_size=6)}
raw_cases, crowded_cases = cases(workloads, raw), cases(crowds, raw)
few_blocks = st.integers(4, 16)
curve_cases = full_cases(all_decisions, curves)
replica_cases = full_cases(all_decisions, replicas())
order_cases = full_cases(new_orders, st.just({}))
long_queue_cases = full_cases(
    all_decisions, merged(st.one_of(st.just({}), replicas(), parallel()), st.one_of(st.just({}), curves)), long_queues
)
memory_cases = full_cases(memory_rules, hosts, blocks=few_blocks, block_tokens=some(1, 2, 4))
cache_cases = full_cases(
    all_decisions, merged(replicas(), st.just({"system.kv.prefix_cache": True})), block_tokens=some(1, 2, 4)
)
disaggregated_cases = full_cases(all_decisions, disaggregated())
role_cases = full_cases(
    role_decisions,
    merged(changing_roles(), hosts, st.one_of(st.just({}), curves)),
    blocks=some(4, 9, 16, 60),
    block_tokens=some(1, 2, 4),
)
parallel_cases = full_cases(all_decisions, parallel())
mixed_cases = full_cases(
    all_decisions,
    merged(st.one_of(replicas(), disaggregated(), parallel()), hosts, st.one_of(st.just({}), curves)),
    blocks=few_blocks,
    block_tokens=some(1, 2, 4),
)


def _with_end(drawn: tuple[Case, float]) -> Case:
    """Users who stop before the horizon."""
    case, share = drawn
    end_s = case["system"]["horizon_s"] * share
    return {**case, "changes": {**case["changes"], "episode.arrivals_s": end_s}}


closed_cases = st.tuples(
    full_cases(
        all_decisions,
        merged(st.one_of(replicas(), disaggregated(), parallel()), hosts, st.one_of(st.just({}), curves)),
        scripts.map(_script),
    ),
    some(1.0, 0.5, 0.125),
).map(_with_end)
