"""What a router may know of a worker: how much waits and runs there, its KV, its speed, and what a prompt would meet.

The router "score" and the observation of `llm_env/Routing-v0` use these same functions. Knows records, the prefix cache
and the service curve; never a true output length.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from llm_env.config import RoutingSettings
from llm_env.jit import njit
from llm_env.prefix import hit_blocks
from llm_env.records import State
from llm_env.service import mean_seconds

# places in SYSTEM.routing, in seconds
RUNNING, MEMORY, MEMORY_FROM, LONG, SLOW, KV, MISS, MISS_FROM = range(8)


def routing_weights(settings: RoutingSettings) -> np.ndarray:
    """(8,) float64: the settings in seconds, `long` per token, in the order of the places above."""
    milliseconds = np.array(
        [
            settings.running_ms,
            settings.memory_ms,
            settings.memory_from * 1e3,
            settings.long_ms_per_1k_tokens / 1e3,
            settings.slow_ms,
            settings.kv_ms,
            settings.miss_ms,
            settings.miss_from * 1e3,
        ]
    )
    return milliseconds / 1e3


class WorkerLoad(NamedTuple):
    """One worker as a router sees it."""

    queued_tokens: int  # prefill tokens that wait, or that are left of prompts begun
    live_tokens: int  # of these, those of requests that are not hopeless: their first token can still be on time
    num_waiting: int
    num_running: int
    num_decodes: int
    kv_used: float  # share of KV in use, 0 if unlimited; what the prefix cache keeps counts as free
    kv_waiting: float  # share that the waiting prompts will take
    free_s: float  # until the batch that runs there ends, 0 if none does
    rate_per_s: float  # prefill tokens per second in batches of its SLO budget


@njit
def worker_load(state: State, w) -> WorkerLoad:
    """The load of worker w now. Cost: one pass over its running requests."""
    system, worker, requests = state.system[0], state.workers[w], state.requests
    queue = state.queues[worker.queue]
    queued, live = queue.waiting_tokens, queue.waiting_tokens - state.buckets[worker.queue, 1, 0]
    decodes = 0
    for position in range(worker.num_running):
        r = requests[state.running[w, position]]
        left = r.prefill_tokens - r.computed_tokens - r.away_tokens
        if left > 0:
            queued += left
            if r.emitted_tokens > 0 or r.arrival_s + r.ttft_target_s >= system.now_s:
                live += left
        else:
            decodes += 1
    kv_used, kv_waiting = 0.0, 0.0
    if system.kv_limited == 1:
        kv_used = 1.0 - (worker.free_blocks + worker.cached_blocks) / system.kv_blocks
        kv_waiting = queue.waiting_tokens / (system.kv_blocks * system.block_tokens)
    budget = int(worker.slo_budget)
    return WorkerLoad(
        int(queued),
        int(live),
        int(queue.num_waiting),
        int(worker.num_running),
        decodes,
        kv_used,
        kv_waiting,
        max(0.0, worker.end_s - system.now_s) if worker.busy == 1 else 0.0,
        budget * worker.speed / mean_seconds(system, budget),
    )


@njit
def new_tokens(state: State, w, i) -> int:
    """What worker w would have to prefill of request i: all but what its prefix cache has."""
    return state.requests[i].prefill_tokens - hit_blocks(state, w, i) * state.system[0].block_tokens


@njit
def slowness(state: State, w) -> float:
    """How many times as long as on the fastest worker a batch takes on worker w, minus 1."""
    return state.system[0].fastest / state.workers[w].speed - 1.0


@njit
def expected_work_s(state: State, w, i, load: WorkerLoad) -> float:
    """Seconds of prefill that are queued on worker w with request i, the hopeless included."""
    return (load.queued_tokens + new_tokens(state, w, i)) / load.rate_per_s


@njit
def predicted_ttft_s(state: State, w, i, load: WorkerLoad) -> float:
    """When request i would have its first token on worker w, from now: the batch that runs, then the live prompts.

    Each batch of the SLO budget serves one token of every decode first, and prompts with the rest of it.
    """
    budget = int(state.workers[w].slo_budget)
    room = max(1, budget - load.num_decodes) / budget
    return load.free_s + (load.live_tokens + new_tokens(state, w, i)) / (load.rate_per_s * room)


@njit
def score(state: State, w, i, load: WorkerLoad) -> float:
    """What the router "score" minimises, in seconds: queued live work and what `system.routing` adds to it.

    The settings `llm_env.config.RoutingSettings` tell each term. Load-based dispatch after Winston (1977) and shortest
    expected delay; the terms for KV memory, for long prompts on slow workers and for a predicted miss are this
    project's.
    """
    weights, tokens, slow = state.system[0].routing, new_tokens(state, w, i), slowness(state, w)
    r, system = state.requests[i], state.system[0]
    seconds = (load.live_tokens + tokens) / load.rate_per_s
    seconds += weights[RUNNING] * load.num_running * (1.0 + slow)
    seconds += slow * (weights[LONG] * tokens + weights[SLOW])
    if system.kv_limited == 1:
        wanted = load.kv_used + load.kv_waiting + tokens / (system.kv_blocks * system.block_tokens)
        seconds += weights[MEMORY] * max(0.0, wanted - weights[MEMORY_FROM]) + weights[KV] * load.kv_used
    waited_s = system.now_s - r.arrival_s
    if waited_s + predicted_ttft_s(state, w, i, load) > weights[MISS_FROM] * r.ttft_target_s:
        seconds += weights[MISS]
    return seconds
