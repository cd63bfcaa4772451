"""What an agent that routes sees of an arrival: the same features of each worker, and some of the request and the pool.

The features of a worker come from `llm_env.worker_load`, as the router "score" does. It reads and does not write; no
true output length is read here.
"""

from __future__ import annotations

from math import exp, log, log1p, log10

from llm_env.jit import njit
from llm_env.queue import RATE_FAST_S, RATE_SLOW_S
from llm_env.records import State
from llm_env.worker_load import MISS_FROM, new_tokens, predicted_ttft_s, score, slowness, worker_load

# name, least and greatest value, meaning; the order is that of `observe_arrival`
WORKER_FEATURES: tuple[tuple[str, float, float, str], ...] = (
    ("live", 0, 8, "time to prefill what waits there and can still be on time / TTFT target"),
    ("queued", 0, 8, "the same of all that waits there / TTFT target"),
    ("own", 0, 8, "time to prefill this prompt there / TTFT target"),
    ("cached", 0, 1, "share of this prompt in its prefix cache"),
    ("waiting", 0, 4, "log1p(requests that wait there) / 3"),
    ("running", 0, 8, "requests that run there x (1 + slowness) / 64"),
    ("decode_share", 0, 4, "decodes there / its SLO budget"),
    ("kv_used", 0, 1, "share of its KV blocks in use, 0 if unlimited"),
    ("kv_wanted", 0, 4, "the same with the prompts that wait there and this one"),
    ("free", 0, 8, "time until its present batch ends / TBT target"),
    ("wait", 0, 8, "when this request would have its first token there, from its arrival / TTFT target"),
    ("miss", 0, 1, "1 if that is later than system.routing.miss_from"),
    ("slowness", 0, 4, "log(speed of the fastest worker / its speed)"),
    ("score", 0, 8, "its score above the least of all workers / TTFT target"),
    ("choice", 0, 1, "1 for the worker that the router score would choose"),
)
GLOBAL_FEATURES: tuple[tuple[str, float, float, str], ...] = (
    ("prompt", 0, 2, "log1p(prompt tokens) / 8"),
    ("ttft_target", -3, 3, "log10(its TTFT target / 1 s)"),
    ("tbt_target", -3, 3, "log10(its TBT target / 0.1 s)"),
    ("weight", -3, 3, "log10(its SLO weight)"),
    ("rate_fast", 0, 4, "log1p(arrivals/s before it, 3 s average) / 3"),
    ("rate_slow", 0, 4, "log1p(arrivals/s before it, 20 s average) / 3"),
    ("rate_trend", -3, 3, "log of the ratio of the two"),
    ("mean_live", 0, 8, "mean of live over the workers"),
    ("mean_running", 0, 8, "mean of running"),
    ("mean_kv_used", 0, 1, "mean of kv_used"),
    ("mean_kv_wanted", 0, 4, "mean of kv_wanted"),
    ("least_wait", 0, 8, "least of wait"),
)
NUM_WORKER_FEATURES, NUM_GLOBAL_FEATURES = len(WORKER_FEATURES), len(GLOBAL_FEATURES)
WORKER_FEATURE_NAMES = tuple(name for name, *_ in WORKER_FEATURES)
GLOBAL_FEATURE_NAMES = tuple(name for name, *_ in GLOBAL_FEATURES)
_LIVE, _RUNNING, _KV_USED, _KV_WANTED, _WAIT, _SCORE, _CHOICE = (
    WORKER_FEATURE_NAMES.index(name) for name in ("live", "running", "kv_used", "kv_wanted", "wait", "score", "choice")
)


def num_routing_features(num_workers: int) -> int:
    """Length of an observation of a pool of `num_workers` workers."""
    return num_workers * NUM_WORKER_FEATURES + NUM_GLOBAL_FEATURES


@njit
def _clip(value, low, high) -> float:
    return min(max(value, low), high)


@njit
def observe_arrival(state: State, out) -> None:
    """Writes what is seen of the arrival whose worker is to be named.

    Args:
        out: (num_workers * NUM_WORKER_FEATURES + NUM_GLOBAL_FEATURES,) float32: the features of worker 0, of worker 1
            and so on over the workers that prefill, then the global ones.
    """
    system, i = state.system[0], state.system[0].next_arrival
    r, num_workers = state.requests[i], system.num_prefill_workers
    best, least_s = 0, 0.0
    for w in range(num_workers):
        seconds = _observe_worker(state, w, i, out[w * NUM_WORKER_FEATURES : (w + 1) * NUM_WORKER_FEATURES])
        if w == 0 or seconds < least_s:
            best, least_s = w, seconds
    live, running, kv_used, kv_wanted, wait = 0.0, 0.0, 0.0, 0.0, 8.0
    for w in range(num_workers):
        mine = out[w * NUM_WORKER_FEATURES : (w + 1) * NUM_WORKER_FEATURES]
        load = worker_load(state, w)
        mine[_SCORE] = _clip((score(state, w, i, load) - least_s) / r.ttft_target_s, 0.0, 8.0)
        mine[_CHOICE] = 1.0 if w == best else 0.0
        live += mine[_LIVE]
        running += mine[_RUNNING]
        kv_used += mine[_KV_USED]
        kv_wanted += mine[_KV_WANTED]
        wait = min(wait, mine[_WAIT])
    passed = system.now_s - system.rate_s
    fast, slow = system.rate_fast * exp(-passed / RATE_FAST_S), system.rate_slow * exp(-passed / RATE_SLOW_S)
    k = num_workers * NUM_WORKER_FEATURES
    for value, low, high in (
        (log1p(r.prompt_tokens) / 8.0, 0.0, 2.0),
        (log10(r.ttft_target_s), -3.0, 3.0),
        (log10(r.tbt_target_s / 0.1), -3.0, 3.0),
        (log10(r.weight), -3.0, 3.0),
        (log1p(fast) / 3.0, 0.0, 4.0),
        (log1p(slow) / 3.0, 0.0, 4.0),
        (log((fast + 1e-3) / (slow + 1e-3)), -3.0, 3.0),
        (live / num_workers, 0.0, 8.0),
        (running / num_workers, 0.0, 8.0),
        (kv_used / num_workers, 0.0, 1.0),
        (kv_wanted / num_workers, 0.0, 4.0),
        (wait, 0.0, 8.0),
    ):
        out[k] = _clip(value, low, high)
        k += 1


@njit
def _observe_worker(state: State, w, i, out) -> float:
    """Writes the features of worker w but for score and choice; returns its score for request i, in seconds."""
    system, worker, r = state.system[0], state.workers[w], state.requests[i]
    load, tokens, slow = worker_load(state, w), new_tokens(state, w, i), slowness(state, w)
    ttft_s = r.ttft_target_s
    wanted = load.kv_used
    if system.kv_limited == 1:
        wanted += load.kv_waiting + tokens / (system.kv_blocks * system.block_tokens)
    wait = (system.now_s - r.arrival_s + predicted_ttft_s(state, w, i, load)) / ttft_s
    k = -1
    for value, low, high in (
        (load.live_tokens / load.rate_per_s / ttft_s, 0.0, 8.0),
        (load.queued_tokens / load.rate_per_s / ttft_s, 0.0, 8.0),
        (tokens / load.rate_per_s / ttft_s, 0.0, 8.0),
        (1.0 - tokens / r.prefill_tokens, 0.0, 1.0),
        (log1p(load.num_waiting) / 3.0, 0.0, 4.0),
        (load.num_running * (1.0 + slow) / 64.0, 0.0, 8.0),
        (load.num_decodes / worker.slo_budget, 0.0, 4.0),
        (load.kv_used, 0.0, 1.0),
        (wanted, 0.0, 4.0),
        (load.free_s / system.tbt_target_s, 0.0, 8.0),
        (wait, 0.0, 8.0),
        (1.0 if wait > system.routing[MISS_FROM] else 0.0, 0.0, 1.0),
        (log(1.0 + slow), 0.0, 4.0),
    ):
        k += 1
        out[k] = _clip(value, low, high)
    return score(state, w, i, load)
