"""The runs whose hashes `test_golden` keeps: systems, workloads, policies, and what of a run is hashed.

The hashes must be the same on every machine. So workloads come from a linear congruential generator in integers, times
are integers / 1024, noise is rounded to integers / 1024, and what `exp`, `log` or the order of a sum may change in its
last digit (observations, summaries) is rounded first. Everything else is hashed to the last bit, by the names of
fields: their order, width and neighbours may change.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

import baselines
from baselines.sarathi import make_ordered
from llm_env import build
from llm_env.build import load, new_states, single
from llm_env.config import Scenario, with_changes
from llm_env.dtypes import ROUTERS
from llm_env.metrics import EVERYTHING, summarise
from llm_env.records import QUEUE_ORDERS, State
from llm_env.rollout import continue_rollout
from llm_env.workload import blank_requests

TICK_S = 1 / 1024
TICK_MS = 1000 / 1024
EVERY_BASELINE = tuple(baselines.POLICIES)
EVERY_ORDER = tuple(f"order {name}" for name in QUEUE_ORDERS)


class Golden(NamedTuple):
    """A system with its workload, and what runs on it.

    Attributes:
        policies: names of baselines, "sarathi token_budget=256" with parameters, or "order NAME": Sarathi with a queue
            order.
        changes: settings of the scenario, by dotted path.
        workload: arguments of `workload`, or of `script` for a closed loop.
        logged: policies whose logs and summaries are hashed too.
    """

    policies: Sequence[str]
    changes: dict[str, Any]
    workload: dict[str, Any]
    logged: Sequence[str] = ()


# ---- workloads from integers ---------------------------------------------------------------------------------------
def integers(seed: int) -> Iterator[int]:
    """An endless stream of integers from 0 to 2^31 - 1: the upper bits of Knuth's MMIX generator."""
    x = seed
    while True:
        x = (x * 6364136223846793005 + 1442695040888963407) % 2**64
        yield x >> 33


def workload(
    scenario: Scenario,
    n: int = 160,
    gap: int = 160,
    prompt: int = 500,
    output: int = 60,
    together: int = 1,
    turns: int = 1,
    seed: int = 1,
) -> np.ndarray:
    """REQUEST[n] in order of arrival.

    Args:
        gap: ticks between arrivals, on average.
        prompt, output: tokens of most requests, on average; one in eight has four times as many.
        together: so many arrive at the same moment.
        turns: above 1: so many requests make a session; a turn's prompt goes on where the one before ended.
    """
    draw = integers(seed)
    requests = blank_requests(n)
    ticks, sessions = 0, max(1, n // turns)
    for k, r in enumerate(requests):
        if k % together == 0:
            ticks += next(draw) % (2 * gap * together)
        r["arrival_s"] = ticks * TICK_S
        _draw_request(r, draw, scenario, prompt, output)
        r["client"] = next(draw) % 6 - 1
        if turns > 1:
            r["session"] = r["client"] = k % sessions
            if k >= sessions:
                before = requests[k - sessions]
                r["previous"] = k - sessions
                r["shared_tokens"] = before["prompt_tokens"] + before["output_tokens"]
                r["prompt_tokens"] = r["shared_tokens"] + 1 + r["prompt_tokens"] % 256
    return requests


def script(scenario: Scenario, users: int = 12, each: int = 8, seed: int = 2) -> np.ndarray:
    """REQUEST[users x each] of a closed loop: thoughts of up to 4 s."""
    draw = integers(seed)
    requests = blank_requests(users * each)
    for k, r in enumerate(requests):
        _draw_request(r, draw, scenario, 500, 60)
        r["client"] = k // each
        r["think_s"] = (1 + next(draw) % 4096) * TICK_S
        r["arrival_s"] = r["think_s"] if k % each == 0 else np.inf
    return requests


def _draw_request(r: Any, draw: Iterator[int], scenario: Scenario, prompt: int, output: int) -> None:
    """Lengths, prediction, declared output and class of a request."""
    long = 4 if next(draw) % 8 == 0 else 1
    r["prompt_tokens"] = 1 + next(draw) % (2 * prompt) * long
    r["output_tokens"] = 1 + next(draw) % (2 * output)
    r["predicted_tokens"] = 1 + next(draw) % (2 * output)
    r["declared_tokens"] = r["output_tokens"] + next(draw) % output
    k = next(draw) % len(scenario.slo.classes)
    kind = scenario.slo.classes[k]
    r["slo_class"], r["weight"] = k, kind.weight
    r["ttft_target_s"], r["tbt_target_s"] = kind.ttft_ms / 1e3, kind.tbt_ms / 1e3


# ---- the systems ---------------------------------------------------------------------------------------------------
BASE: dict[str, Any] = {
    "episode.arrivals_s": 1000.0,
    "episode.warmup_s": 0.0,
    "episode.horizon_s": 1e5,
    "system.kv.blocks": 1500,
}
EXACT: dict[str, Any] = {  # sums of times are exact, so ties are
    "system.service.setup_ms": 16 * TICK_MS,
    "system.service.per_token_ms": TICK_MS / 4,
    "system.service.free_tokens": 16,
    "slo.classes": [{"name": "default", "ttft_ms": 512 * TICK_MS, "tbt_ms": 64 * TICK_MS}],
}
CLASSES = [
    {"name": "fast", "ttft_ms": 500.0, "tbt_ms": 100.0, "weight": 4.0, "share": 0.25},
    {"name": "plain", "ttft_ms": 2000.0, "tbt_ms": 150.0, "weight": 1.0, "share": 0.5},
    {"name": "batch", "ttft_ms": 10_000.0, "tbt_ms": 1000.0, "weight": 0.5, "share": 0.25},
]
EXACT_CLASSES = [
    {"name": "fast", "ttft_ms": 256 * TICK_MS, "tbt_ms": 64 * TICK_MS, "weight": 2.0, "share": 0.5},
    {"name": "plain", "ttft_ms": 512 * TICK_MS, "tbt_ms": 64 * TICK_MS, "weight": 1.0, "share": 0.5},
]
FEW = ("sarathi", "vllm-v0", "moore-hodgson")
LINK = {"system.link.latency_ms": 4 * TICK_MS, "system.link.gbytes_per_s": 0.5}
SPLIT = {"system.layout": "disaggregated", "system.workers": 4, "system.prefill_workers": 2, **LINK}
HELP = {"system.layout": "parallel-prefill", "system.workers": 3, "system.parallel.min_tokens": 64, **LINK}
TIGHT = {"system.kv.blocks": 180, "system.kv.host_gbytes_per_s": 2.0}


def noisy(family: str) -> dict[str, Any]:
    cv = 0.5 if family in ("gamma", "lognormal") else None
    given = {"setup_noise": family, "per_token_noise": family, "setup_noise_cv": cv, "per_token_noise_cv": cv}
    return {f"system.service.{name}": value for name, value in given.items() if value is not None}


SYSTEMS: dict[str, Golden] = {
    "one worker": Golden(
        (*EVERY_BASELINE, *EVERY_ORDER),
        {"slo.classes": CLASSES},
        {"gap": 210},
        ("sarathi", "vllm-v0", "slai", "nested-wait"),
    ),
    "small and exact": Golden(
        ("sarathi", "vllm-v1", "fastserve", "hrrn", *EVERY_ORDER),
        {**EXACT, "system.kv.blocks": 40, "system.max_running": 4},
        {"n": 24, "gap": 12, "prompt": 30, "output": 8, "together": 3},
        ("sarathi",),
    ),
    "ties": Golden(
        (*EVERY_BASELINE, *EVERY_ORDER),
        {**EXACT, "slo.classes": EXACT_CLASSES, "system.max_running": 6},
        {"n": 240, "gap": 40, "prompt": 6, "output": 12, "together": 8},
    ),
    "a long queue": Golden(
        (*EVERY_ORDER, "vtc", "slai", "fastserve", "fastserve starve_s=0.5", "predicted-shortest starve_iterations=5"),
        {"slo.classes": CLASSES},
        {"n": 1200, "gap": 4, "prompt": 120, "output": 20},
        ("order moore-hodgson",),
    ),
    "one class": Golden(FEW, {}, {"gap": 300}, FEW),
    "rule deadline": Golden(FEW, {"slo.rule": "deadline"}, {}, FEW),
    "rule max, the horizon comes first": Golden(
        FEW, {"slo.rule": "max", "episode.horizon_s": 15.0, "episode.arrivals_s": 15.0}, {}, FEW
    ),
    "evictions": Golden(
        (
            "vllm-v0",
            "vllm-v1",
            "sarathi",
            "sglang",
            "orca reserve_tokens=64",
            "tensorrt-llm",
            "distserve",
            "fastserve",
            "splitwise",
            "vtc",
        ),
        TIGHT,
        {"output": 120},
        ("vllm-v1", "distserve"),
    ),
    **{
        f"three workers, {router}": Golden(
            (*FEW, "order fair-clients", "order least-slack"),
            {"system.workers": 3, "system.router": router, "system.speeds": [1.0, 0.5, 2.0]},
            {"gap": 70},
            ("sarathi",),
        )
        for router in ROUTERS
        if router != "agent"  # who is somebody else
    },
    "disaggregated": Golden((*FEW, "distserve", "order shortest-prefill"), SPLIT, {"gap": 80}, ("distserve",)),
    "disaggregated, routed, tight": Golden(
        (*FEW, "distserve", "vllm-v1"), {**SPLIT, **TIGHT, "system.router": "least-tokens"}, {"gap": 80}
    ),
    "parallel prefill": Golden((*FEW, "order shortest-prefill"), HELP, {"gap": 100}, ("sarathi",)),
    "parallel prefill, routed, tight": Golden(
        (*FEW, "vllm-v1"), {**HELP, **TIGHT, "system.router": "shortest-queue"}, {"gap": 100}
    ),
    "prefix cache": Golden(
        (*FEW, "vllm-v1"), {"system.kv.prefix_cache": True}, {"turns": 5, "gap": 400, "prompt": 300}, ("sarathi",)
    ),
    "prefix cache, sticky": Golden(
        FEW,
        {"system.kv.prefix_cache": True, "system.workers": 2, "system.router": "session-sticky", **TIGHT},
        {"turns": 5, "gap": 300, "prompt": 80},
    ),
    **{
        f"noise, {family}": Golden(FEW, noisy(family), {}, ("sarathi",))
        for family in ("exponential", "gamma", "lognormal")
    },
    "noise, three workers": Golden(FEW, {"system.workers": 3, **noisy("exponential")}, {"gap": 60}),
    "closed loop": Golden(
        (*FEW, "order earliest-deadline", "order least-slack", "fastserve"), {}, {"users": 12}, ("sarathi",)
    ),
    "closed loop, three workers": Golden(
        FEW, {"system.workers": 3, "system.router": "shortest-queue", "episode.arrivals_s": 20.0}, {"users": 30}
    ),
    "staircase": Golden(
        FEW, {"system.service": {"form": "staircase", "setup_ms": 20.0, "step_ms": 12.5, "step_tokens": 64}}, {}
    ),
    "table": Golden(
        FEW, {"system.service": {"form": "table", "points": [[1, 30.0], [64, 33.0], [256, 70.0], [1024, 300.0]]}}, {}
    ),
    "further terms": Golden(
        FEW,
        {
            "system.service.decode_fixed_ms": 3.0,
            "system.service.kv_ms_per_1k_cached_tokens": 0.7,
            "system.service.prefill_attention_ms_per_1m_token_context": 11.0,
        },
        {},
        ("sarathi",),
    ),
    "short holds": Golden(("wait", "nested-wait", "fixed-batch", "dynamic-batch"), {"system.max_hold_ms": 7.0}, {}),
}


def scenario_of(golden: Golden) -> Scenario:
    return with_changes(Scenario(name="golden"), {**BASE, **golden.changes})


def requests_of(golden: Golden, scenario: Scenario) -> np.ndarray:
    return (script if "users" in golden.workload else workload)(scenario, **golden.workload)


def policy_of(text: str) -> Any:
    name, *given = text.split()
    if name == "order":
        return make_ordered(512, 128, QUEUE_ORDERS.index(given[0]))
    return baselines.make_policy(name, **baselines.parse_parameters(name, given))


def run(scenario: Scenario, requests: np.ndarray, decide: Any) -> State:
    """A recorded run with noise that is a multiple of 1 / 1024."""
    draw = build.draw_noise
    build.draw_noise = lambda *given: np.maximum(np.round(draw(*given) / TICK_S), 1.0) * TICK_S
    try:
        states = load(new_states(scenario, 1, len(requests), record=True), 0, requests, 3)
        return single(continue_rollout(states, decide, 3))
    finally:
        build.draw_noise = draw


def hashes(golden: Golden) -> dict[str, str]:
    """Hashes of a system's runs by policy; of logged ones also those of "POLICY, logs" and "POLICY, summary"."""
    scenario = scenario_of(golden)
    requests = requests_of(golden, scenario)
    found = {}
    for name in golden.policies:
        state = run(scenario, requests, policy_of(name))
        found[name] = hash_of(*results(state))
        if name in golden.logged:
            found[f"{name}, logs"] = hash_of(*logs(state))
            found[f"{name}, summary"] = hash_of(*summary(state, scenario))
    return found


# ---- what is hashed ------------------------------------------------------------------------------------------------
REQUEST_FIELDS = (
    "arrival_s",
    "prompt_tokens",
    "output_tokens",
    "client",
    "session",
    "row",
    "status",
    "worker",
    "prefill_tokens",
    "computed_tokens",
    "emitted_tokens",
    "latest_start_s",
    "first_scheduled_s",
    "first_token_s",
    "last_token_s",
    "finish_s",
    "max_tbt_s",
    "late_gaps",
    "late_tokens",
    "evictions",
    "credit",
    "home",
    "hit_tokens",
)
SYSTEM_FIELDS = (
    "now_s",
    "phase",
    "epoch",
    "num_requests",
    "num_waiting",
    "num_finished",
    "num_rejected",
    "num_batches",
    "num_evictions",
    "busy_s",
    "prefill_done",
    "decode_done",
)
BATCH_FIELDS = (
    "worker",
    "start_s",
    "end_s",
    "num_requests",
    "prefill_tokens",
    "decode_tokens",
    "num_waiting",
    "num_running",
    "kv_used_blocks",
)


def results(state: State) -> Iterator[np.ndarray]:
    """What became of every request and of the system."""
    requests, system = state.requests[: int(state.system[0]["num_requests"])], state.system[0]
    yield from (requests[name] for name in REQUEST_FIELDS)
    yield from (system[name] for name in SYSTEM_FIELDS)


def logs(state: State) -> Iterator[np.ndarray]:
    """Every batch, and every gap between two tokens."""
    system = state.system[0]
    batches, gaps = state.batch_log[: int(system["num_batches"])], state.gap_log[: int(system["num_gaps"])]
    yield from (batches[name] for name in BATCH_FIELDS)
    yield np.repeat(gaps["gap_s"], gaps["count"])


LATER = (  # measures that came after the hashes; tests/test_families.py and tests/test_usage.py have them
    *("weighted_attainment", "prefill_time_share", "decode_time_share", "idle_time_share", "slo_budget_share"),
)


def summary(state: State, scenario: Scenario) -> Iterator[str]:
    """All measures, to 9 digits: the order of a sum is the library's."""
    for name, value in summarise(state, scenario, *EVERYTHING).to_dict().items():
        if name in LATER:
            continue
        yield f"{name} {value:.9g}" if isinstance(value, float) else f"{name} {value}"


def rounded(values: Any, digits: int) -> np.ndarray:
    return np.round(np.asarray(values, np.float64), digits)


def hash_of(*parts: Any) -> str:
    """16 digits. Of numbers the values count, not how many bits hold them; one NaN is as good as another, and so is
    -0.0 as 0.0."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            digest.update(part.encode())
            continue
        array = np.asarray(part)
        if array.dtype.kind == "f":
            array = np.where(np.isnan(array), np.nan, array + 0.0).astype("<f8")
        digest.update(str(array.shape).encode() + array.astype("<i8" if array.dtype.kind in "biu" else "<f8").tobytes())
    return digest.hexdigest()[:16]
