"""The feature vector that an agent sees of a State. It reads and does not write.

No true output length is read here: a request shows what it has generated, never what is left.
"""

from __future__ import annotations

from math import log, log1p, log10

import numpy as np

from llm_env.dtypes import INF, MOVING, RULE_P99
from llm_env.jit import njit
from llm_env.records import NUM_BUCKETS, State, View
from llm_env.service import mean_seconds
from llm_env.view import make_view

_COUNT, _TOKENS, _FEW = 6.0, 12.0, 3.0  # log1p of counts, tokens and small counts is divided by these
DECODE_EDGES = (0.0, 0.34, 0.67, 1.0)  # slack of decodes, in units of their TBT target

_BUCKET_NAMES = ("hopeless", "slack_12", "slack_25", "slack_50", "slack_75", "slack_100")
_DECODE_NAMES = ("late", "slack_33", "slack_66", "slack_99", "slack_more")

# name, least and greatest value, meaning; the order is that of `observe`
FEATURES: tuple[tuple[str, float, float, str], ...] = (
    ("waiting", 0, 4, "log1p(requests that wait) / 6"),
    ("waiting_tokens", 0, 4, "log1p(their prefill tokens) / 12"),
    *((f"waiting_{n}", 0.0, 4.0, f"log1p(requests in slack bucket {n}) / 6") for n in _BUCKET_NAMES),
    *((f"waiting_tokens_{n}", 0.0, 4.0, f"log1p(prefill tokens in slack bucket {n}) / 12") for n in _BUCKET_NAMES),
    ("resumed", 0, 4, "log1p(evicted requests at the front) / 3"),
    ("head_age", 0, 4, "age of the FCFS head / TTFT target"),
    ("urgent_slack", -1, 2, "slack of the most urgent feasible request / TTFT target, 2 if none"),
    ("urgent_tokens", 0, 2, "log1p(its prefill tokens) / 12"),
    ("second_slack", -1, 2, "slack of the second most urgent / TTFT target, 2 if none"),
    ("second_tokens", 0, 2, "log1p(its prefill tokens) / 12"),
    ("feasible_seconds", 0, 4, "time to prefill all feasible waiting tokens at the SLO budget / TTFT target"),
    ("running", 0, 1, "admitted requests / max_running"),
    ("decodes", 0, 4, "log1p(decodes) / 6"),
    ("decode_share", 0, 4, "decodes / SLO budget"),
    ("partials", 0, 4, "log1p(partly prefilled prompts) / 3"),
    ("partial_tokens", 0, 2, "log1p(prefill tokens left of them) / 12"),
    ("partial_slack", -1, 2, "time to the most urgent partial's TTFT deadline / TTFT target, 2 if none"),
    *((f"decodes_{n}", 0.0, 4.0, f"log1p(decodes whose next token is in {n}) / 6") for n in _DECODE_NAMES),
    ("decode_slack", -1, 2, "time until the most urgent decode is late / TBT target, 2 if none"),
    ("clean_decodes", 0, 1, "share of the decodes that have kept their TBT promise, 1 if none"),
    ("late_allowance", 0, 1, "share of the decodes that may be late once more and keep it"),
    ("kv_used", 0, 1, "share of KV blocks in use, 0 if unlimited"),
    ("kv_free_tokens", 0, 2, "log1p(free KV tokens) / 12, 2 if unlimited"),
    ("context_tokens", 0, 2, "log1p(tokens in KV) / 12"),
    ("free_slots", 0, 2, "log1p(requests that may still be admitted) / 6"),
    ("rate_fast", 0, 4, "log1p(arrivals/s, 3 s average)"),
    ("rate_slow", 0, 4, "log1p(arrivals/s, 20 s average)"),
    ("rate_trend", -3, 3, "log of the ratio of the two"),
    ("last_batch_s", 0, 4, "duration of the worker's last batch / TBT target"),
    ("last_batch_tokens", 0, 2, "log1p(its tokens) / 12"),
    ("busy_workers", 0, 1, "share of the workers that run a batch now"),
    ("ttft_target", -3, 3, "log10(TTFT target / 1 s)"),
    ("tbt_target", -3, 3, "log10(TBT target / 0.1 s)"),
    ("setup", 0, 4, "setup time of a batch / TBT target"),
    ("per_token", 0, 4, "time of 1,000 tokens beyond the free ones / TTFT target"),
    ("slo_budget", 0, 2, "log1p(SLO budget) / 12"),
    ("free_tokens", 0, 2, "log1p(tokens that cost no time) / 12"),
    ("workers", 0, 4, "log2(workers)"),
)
FEATURE_NAMES = tuple(name for name, *_ in FEATURES)
NUM_FEATURES = len(FEATURES)


_SMALL = 256
_LOG1P = np.array([log1p(number) for number in range(_SMALL)])  # a third of the time of an observation was in log1p


@njit
def _log1p(number) -> float:
    """log1p of an integer of at least 0."""
    return float(_LOG1P[number]) if number < _SMALL else log1p(number)


@njit
def _clip(value, low, high) -> float:
    return min(max(value, low), high)


@njit
def observe(state: State, out) -> None:
    """Writes the features of the present decision into out, (NUM_FEATURES,) float32, in the order of FEATURES."""
    system = state.system[0]
    view = make_view(state)
    ttft_s, tbt_s = system.ttft_target_s, system.tbt_target_s
    k = 0
    for value in (_log1p(view.num_waiting) / _COUNT, _log1p(view.waiting_tokens) / _TOKENS):
        out[k] = _clip(value, 0.0, 4.0)
        k += 1
    buckets = state.buckets[state.workers[system.worker].queue]
    for b in range(NUM_BUCKETS):
        out[k + b] = _clip(_log1p(buckets[0, b]) / _COUNT, 0.0, 4.0)
        out[k + NUM_BUCKETS + b] = _clip(_log1p(buckets[1, b]) / _TOKENS, 0.0, 4.0)
    k += 2 * NUM_BUCKETS
    budget = int(view.slo_budget)
    feasible_s = (view.waiting_tokens - view.hopeless_tokens) * mean_seconds(system, budget) / budget / view.speed
    for value, low, high in (
        (_log1p(view.num_resumed) / _FEW, 0.0, 4.0),
        (view.head_age_s / ttft_s, 0.0, 4.0),
        (view.urgent_slack_s / ttft_s, -1.0, 2.0),
        (_log1p(view.urgent_tokens) / _TOKENS, 0.0, 2.0),
        (view.second_slack_s / ttft_s, -1.0, 2.0),
        (_log1p(view.second_tokens) / _TOKENS, 0.0, 2.0),
        (feasible_s / ttft_s, 0.0, 4.0),
        (view.num_running / view.max_running, 0.0, 1.0),
        (_log1p(view.num_decodes) / _COUNT, 0.0, 4.0),
        (view.num_decodes / view.slo_budget, 0.0, 4.0),
        (_log1p(view.num_partial) / _FEW, 0.0, 4.0),
        (_log1p(view.partial_tokens) / _TOKENS, 0.0, 2.0),
    ):
        out[k] = _clip(value, low, high)
        k += 1
    k = _observe_running(state, view, out, k)
    limited = system.kv_limited == 1
    busy = 0
    for w in range(view.num_workers):
        busy += state.workers[w].busy
    trend = log((view.rate_fast_per_s + 1e-3) / (view.rate_slow_per_s + 1e-3))
    for value, low, high in (
        (view.kv_used, 0.0, 1.0),
        (_log1p(view.free_blocks * view.block_tokens) / _TOKENS if limited else 2.0, 0.0, 2.0),
        (_log1p(view.context_tokens) / _TOKENS, 0.0, 2.0),
        (_log1p(view.max_running - view.num_running) / _COUNT, 0.0, 2.0),
        (log1p(view.rate_fast_per_s), 0.0, 4.0),
        (log1p(view.rate_slow_per_s), 0.0, 4.0),
        (trend, -3.0, 3.0),
        (view.last_batch_s / tbt_s, 0.0, 4.0),
        (_log1p(view.last_batch_tokens) / _TOKENS, 0.0, 2.0),
        (busy / view.num_workers, 0.0, 1.0),
        (log10(ttft_s), -3.0, 3.0),
        (log10(tbt_s / 0.1), -3.0, 3.0),
        (view.setup_s / tbt_s, 0.0, 4.0),
        (1000.0 * view.per_token_s / ttft_s, 0.0, 4.0),
        (log1p(view.slo_budget) / _TOKENS, 0.0, 2.0),
        (_log1p(view.free_tokens) / _TOKENS, 0.0, 2.0),
        (log(view.num_workers) / log(2.0), 0.0, 4.0),
    ):
        out[k] = _clip(value, low, high)
        k += 1


@njit
def _observe_running(state: State, view: View, out, k) -> int:
    """The features of running requests, from partial_slack to late_allowance; returns the next free place."""
    system = state.system[0]
    w = system.worker
    counts = (0, 0, 0, 0, 0)
    late, soon, mid, full, more = counts
    partial_slack_s, may_be_late = INF, 0
    moving = state.workers[w].num_moving > 0
    for position in range(state.workers[w].num_running):
        r = state.requests[state.running[w, position]]
        if moving and r.status == MOVING:
            continue
        if r.computed_tokens < r.prefill_tokens:
            if r.emitted_tokens == 0:
                partial_slack_s = min(partial_slack_s, r.arrival_s + r.ttft_target_s - view.now_s)
            continue
        slack = (r.last_token_s + r.tbt_target_s - view.now_s) / r.tbt_target_s
        if slack < DECODE_EDGES[0]:
            late += 1
        elif slack < DECODE_EDGES[1]:
            soon += 1
        elif slack < DECODE_EDGES[2]:
            mid += 1
        elif slack < DECODE_EDGES[3]:
            full += 1
        else:
            more += 1
        if system.slo_rule == RULE_P99 and r.late_gaps < (r.emitted_tokens - 1) // 100:
            may_be_late += 1
    out[k] = _clip(partial_slack_s / system.ttft_target_s, -1.0, 2.0)
    k += 1
    for count in (late, soon, mid, full, more):
        out[k] = _clip(_log1p(count) / _COUNT, 0.0, 4.0)
        k += 1
    out[k] = _clip(view.min_decode_slack_s / system.tbt_target_s, -1.0, 2.0)
    out[k + 1] = view.num_clean_decodes / view.num_decodes if view.num_decodes > 0 else 1.0
    out[k + 2] = may_be_late / view.num_decodes if view.num_decodes > 0 else 0.0
    return k + 3
