"""The feature vector that an agent sees of a State. It reads and does not write.

No true output length is read here: a request shows what it has generated, never what is left.
"""

from __future__ import annotations

from math import exp, log, log1p, log10

import numpy as np

from llm_env.dtypes import INF, MOVING, ROLE_DECODE, ROLE_PREFILL, RULE_P99
from llm_env.jit import njit
from llm_env.queue import RATE_FAST_S, member_request, tree_next
from llm_env.records import NUM_BUCKETS, SET_FEASIBLE, State, View
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
    # the pools of a disaggregated system; 0 where there are none
    ("role", -1, 1, "1 if the worker prefills, -1 if it decodes"),
    ("next_role", -1, 1, "the same of the role that it is about to take, 0 if it stays what it is"),
    ("prefill_share", 0, 1, "share of the workers that prefill or are about to"),
    ("pool_live_tokens", 0, 4, "log1p(waiting prefill tokens of all queues that are not hopeless) / 12"),
    ("pool_decodes", 0, 4, "log1p(requests of the workers that decode) / 6"),
    ("pool_kv_used", 0, 1, "share of their KV blocks in use, 0 if unlimited"),
    ("lined_up", 0, 4, "log1p(prefilled requests for which no worker that decodes has room) / 3"),
    ("prompt_rate_fast", 0, 2, "log1p(prompt tokens that arrive per second, 3 s average) / 12"),
    ("prompt_rate_slow", 0, 2, "log1p(the same over 20 s) / 12"),
    ("output_rate_fast", 0, 2, "log1p(predicted output tokens that arrive per second, 3 s average) / 12"),
    ("output_rate_slow", 0, 2, "log1p(the same over 20 s) / 12"),
    # classes and memory; "can be on time" is about the first token
    ("tight_waiting", 0, 4, "log1p(requests that wait, can be on time and have the tightest TTFT target) / 6"),
    ("tight_seconds", 0, 4, "time to prefill all their tokens at the SLO budget / TTFT target"),
    ("waiting_weight", 0, 1, "mean SLO weight of those that wait and can be on time / largest, 0 if none"),
    ("urgent_own_slack", -1, 2, "slack of the most urgent feasible request / its own TTFT target, 2 if none"),
    ("urgent_weight", 0, 1, "its SLO weight / largest of the classes, 0 if none"),
    ("tight_decodes", 0, 1, "share of the decodes that have the tightest TBT target, 0 if none"),
    ("classes", 0, 4, "log2(SLO classes)"),
    ("loosest_ttft", 0, 4, "log10(loosest TTFT target of the classes / tightest)"),
    ("loosest_tbt", 0, 4, "log10(loosest TBT target of the classes / tightest)"),
    ("least_weight", 0, 1, "least SLO weight of the classes / largest"),
    ("kv_waiting", 0, 4, "KV for the prompts that wait and can be on time / all KV, 0 if unlimited"),
    ("kv_declared", 0, 4, "KV for what running requests may still make (declared) / all KV, 0 if unlimited"),
    ("evicted", 0, 4, "log1p(evictions while the worker's last batch was formed) / 3"),
    ("attention", 0, 4, "time that decoding everything in KV adds to a batch / TBT target"),
)
FEATURE_NAMES = tuple(name for name, *_ in FEATURES)
NUM_FEATURES = len(FEATURES)
NUM_POOL_FEATURES = FEATURE_NAMES.index("tight_waiting") - FEATURE_NAMES.index("role")


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
    token_s = mean_seconds(system, budget) / budget / view.speed  # of prefill, in batches of the SLO budget
    feasible_s = (view.waiting_tokens - view.hopeless_tokens) * token_s
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
    k, tight_decodes = _observe_running(state, view, out, k)
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
    _observe_pools(system, view, out, k)
    _observe_classes(state, view, token_s, tight_decodes, out, k + NUM_POOL_FEATURES)


@njit
def _observe_pools(system, view: View, out, k) -> None:
    """The features of pools, from role on, beginning at place k."""
    if view.prefill_workers == 0:
        out[k : k + NUM_POOL_FEATURES] = 0.0
        return
    fade = exp(-(view.now_s - system.rate_s) / RATE_FAST_S)
    for value, low, high in (
        (_sign_of_role(view.role), -1.0, 1.0),
        (_sign_of_role(view.next_role), -1.0, 1.0),
        (view.prefill_workers / view.num_workers, 0.0, 1.0),
        (_log1p(view.pool_live_tokens) / _TOKENS, 0.0, 4.0),
        (_log1p(view.pool_decodes) / _COUNT, 0.0, 4.0),
        (view.pool_kv_used, 0.0, 1.0),
        (_log1p(view.num_lined_up) / _FEW, 0.0, 4.0),
        (log1p(system.prompt_rate_fast * fade) / _TOKENS, 0.0, 2.0),
        (log1p(view.prompt_rate_per_s) / _TOKENS, 0.0, 2.0),
        (log1p(system.output_rate_fast * fade) / _TOKENS, 0.0, 2.0),
        (log1p(view.output_rate_per_s) / _TOKENS, 0.0, 2.0),
    ):
        out[k] = _clip(value, low, high)
        k += 1


@njit
def _sign_of_role(role) -> float:
    """1 for prefill, -1 for decode, 0 for neither."""
    return 1.0 if role == ROLE_PREFILL else (-1.0 if role == ROLE_DECODE else 0.0)


@njit
def _observe_classes(state: State, view: View, token_s, tight_decodes, out, k) -> None:
    """The features of classes and memory, from tight_waiting to attention."""
    system, q = state.system[0], state.workers[view.worker].queue
    queue = state.queues[q]
    feasible, feasible_tokens = 0, 0
    for b in range(1, NUM_BUCKETS):
        feasible += state.buckets[q, 0, b]
        feasible_tokens += state.buckets[q, 1, b]
    urgent_slack, urgent_weight = 2.0, 0.0
    member = tree_next(state.sets[q, SET_FEASIBLE], state.levels, 0)
    if member >= 0:
        r = state.requests[member_request(state, SET_FEASIBLE, member)]
        urgent_slack, urgent_weight = (r.latest_start_s - view.now_s) / r.ttft_target_s, r.weight
    of_weight = 1.0 / system.largest_weight
    of_kv = 1.0 / (float(system.kv_blocks) * system.block_tokens) if system.kv_limited == 1 else 0.0
    owed_tokens = max(0, view.declared_tokens - view.emitted_tokens)
    out[k] = min(_log1p(queue.tight_waiting) / _COUNT, 4.0)
    out[k + 1] = min(queue.tight_tokens * token_s / system.ttft_target_s, 4.0)
    out[k + 2] = min(queue.weight_millionths * 1e-6 / feasible * of_weight, 1.0) if feasible > 0 else 0.0
    out[k + 3] = _clip(urgent_slack, -1.0, 2.0)
    out[k + 4] = min(urgent_weight * of_weight, 1.0)
    out[k + 5] = tight_decodes / view.num_decodes if view.num_decodes > 0 else 0.0
    out[k + 6] = system.log2_classes
    out[k + 7] = min(system.log10_ttft_spread, 4.0)
    out[k + 8] = min(system.log10_tbt_spread, 4.0)
    out[k + 9] = system.weight_spread
    out[k + 10] = min(feasible_tokens * of_kv, 4.0)
    out[k + 11] = min(owed_tokens * of_kv, 4.0)
    out[k + 12] = min(_log1p(view.last_evicted) / _FEW, 4.0)
    out[k + 13] = min(view.decode_extra_s / system.tbt_target_s, 4.0)


@njit
def _observe_running(state: State, view: View, out, k) -> tuple[int, int]:
    """The features of running requests, from partial_slack to late_allowance.

    Returns:
        The next free place, and how many decodes have the tightest TBT target.
    """
    system = state.system[0]
    w = system.worker
    counts = (0, 0, 0, 0, 0)
    late, soon, mid, full, more = counts
    partial_slack_s, may_be_late, tight = INF, 0, 0
    moving = state.workers[w].num_moving > 0
    for position in range(state.workers[w].num_running):
        r = state.requests[state.running[w, position]]
        if moving and r.status == MOVING:
            continue
        if r.computed_tokens < r.prefill_tokens:
            if r.emitted_tokens == 0:
                partial_slack_s = min(partial_slack_s, r.arrival_s + r.ttft_target_s - view.now_s)
            continue
        if r.tbt_target_s <= system.tbt_target_s:
            tight += 1
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
    return k + 3, tight
