"""The dtypes that everything works on: REQUEST, SYSTEM, WORKER and the smaller records, with the numbers their fields
may hold. No rules, no physics; what a policy sees and answers is in `llm_env.records`.

Seconds are float64 and tokens int64 everywhere.
"""

from __future__ import annotations

from typing import Any, get_args

import numpy as np

from llm_env.settings import MAX_POINTS
from llm_env.system_settings import Router

INF = float("inf")
NEVER = -1.0  # a time that has not come
FAR = 1e9  # seconds: "no such request" in slacks, finite so that a policy may compute with it

# ---- requests ------------------------------------------------------------------------------------------------------
FUTURE, WAITING, RUNNING, FINISHED, REJECTED, MOVING, SWAPPED = range(7)  # REQUEST.status
STATUS_NAMES = ("future", "waiting", "running", "finished", "rejected", "moving", "swapped")
NOBODY = -1  # no request, no worker: the end of a list

CACHE_LINE = 64  # bytes


def offset_of(dtype: np.dtype, name: str) -> int:
    """Where a field of a record begins, in bytes."""
    fields: Any = dtype.fields
    return fields[name][1]


def _in_whole_lines(dtype: np.dtype) -> np.dtype:
    """The same fields and `spare`, which fills the last cache line: the first fields then lie in as few as can be."""
    spare = -dtype.itemsize % CACHE_LINE // 8
    fields: Any = dtype.descr + ([("spare", "i8", (spare,))] if spare else [])
    return np.dtype(fields, align=True)


_REQUEST = np.dtype(
    [
        # what every batch touches, in two or three cache lines; (w): the workload writes it, else the kernel
        ("in_batch", "i8"),  # its tokens in the batch being formed or executed; 1 while it moves, else 0
        ("computed_tokens", "i8"),  # tokens with KV on the worker
        ("prefill_tokens", "i8"),  # what must be prefilled now: the prompt, after an eviction also what was generated
        ("blocks", "i8"),  # KV blocks held
        ("emitted_tokens", "i8"),  # output tokens made so far
        ("output_tokens", "i8"),  # (w) the truth; only the kernel reads it
        ("last_token_s", "f8"),
        ("tbt_target_s", "f8"),  # (w)
        ("arrival_s", "f8"),  # (w)
        ("ttft_target_s", "f8"),  # (w)
        ("max_tbt_s", "f8"),  # NaN before the second token
        ("late_gaps", "i8"),  # gaps above the TBT target
        ("late_tokens", "i8"),  # tokens after arrival + TTFT target + (j - 1) * TBT target
        ("weight", "f8"),  # (w)
        ("declared_tokens", "i8"),  # (w) most output tokens that its client allows
        ("credit", "i8"),  # reward book-keeping: 1 credited for its first token, -1 taken back, 0 neither
        # what some moments touch
        ("status", "i8"),
        ("worker", "i8"),  # where it runs or last ran, -1 before
        ("kv_rule", "i8"),  # the KV manager that admitted it
        ("away_tokens", "i8"),  # of its prompt, with helpers: being computed or gathered
        ("prompt_tokens", "i8"),  # (w)
        ("first_scheduled_s", "f8"),
        ("first_token_s", "f8"),
        ("finish_s", "f8"),
        ("evictions", "i8"),
        ("latest_start_s", "f8"),  # the prefill must start by then for the first token to be on time
        ("prefill_s", "f8"),  # seconds to prefill its prompt alone; known once the workload is loaded
        # what only some policies and systems look at
        ("predicted_tokens", "f8"),  # (w) what a length predictor said, NaN if none
        ("slo_class", "i8"),  # (w)
        ("client", "i8"),  # (w) -1 if unknown
        ("session", "i8"),  # (w) -1 if none
        ("row", "i8"),  # (w) its place in the input, since requests are kept in order of arrival
        ("previous", "i8"),  # (w) the previous turn of its session, NOBODY if none
        ("shared_tokens", "i8"),  # (w) of its prompt: the previous turn's prompt and output
        ("think_s", "f8"),  # (w) closed loops: its user's thought before it; NEVER in an open one
        ("tenant", "i8"),  # its client, counted from 0
        ("queue", "i8"),  # where it waits or waited
        ("home", "i8"),  # the worker that a router gave it to, NOBODY in a shared queue
        ("num_helpers", "i8"),  # chunks of it with helpers
        ("hit_tokens", "i8"),  # of its prompt, found in the prefix cache
        ("cached_blocks", "i8"),  # finished: blocks that its worker keeps for the next turn
        ("next", "i8"),  # links of the list it stands in: evicted, swapped or cached
        ("before", "i8"),
    ],
    align=True,
)
REQUEST = _in_whole_lines(_REQUEST)

# ---- the system ----------------------------------------------------------------------------------------------------
RULE_MAX, RULE_P99, RULE_DEADLINE = range(3)  # SYSTEM.slo_rule
SLO_RULES = ("max", "p99", "deadline")
LATE_TOLERANCE_S = 1e-9  # a token this much after its due time is still on time: absorbs rounding of sums

ACTIVE, DRAINED, HORIZON, NEEDS_ROOM, ROUTING = range(5)  # SYSTEM.phase; ROUTING: whose is the next arrival to be?

REPLICAS, DISAGGREGATED, PARALLEL_PREFILL = range(3)  # SYSTEM.layout
LAYOUTS = ("replicas", "disaggregated", "parallel-prefill")
ROUTE_SHARED, ROUTE_ROUND_ROBIN, ROUTE_LEAST_TOKENS, ROUTE_SHORTEST_QUEUE, ROUTE_STICKY = range(5)  # SYSTEM.router
ROUTE_RANDOM, ROUTE_WEIGHTED, ROUTE_EXPECTED_WORK, ROUTE_POWER_OF_TWO = range(5, 9)
ROUTE_SCORE, ROUTE_AGENT = range(9, 11)  # these look at the clock: arrivals are events even if all workers are busy
ROUTERS: tuple[str, ...] = get_args(Router)  # in this order
ROLE_BOTH, ROLE_PREFILL, ROLE_DECODE = range(3)  # WORKER.role

NO_NOISE, EXPONENTIAL, GAMMA, LOGNORMAL = range(4)  # SYSTEM.setup_noise and per_token_noise
NOISES = ("none", "exponential", "gamma", "lognormal")

SYSTEM = np.dtype(
    [
        # settings, in seconds and tokens
        ("num_requests", "i8"),  # in a closed loop: those that have arrived, and the next one
        ("setup_s", "f8"),
        ("per_token_s", "f8"),
        ("free_tokens", "i8"),
        ("setup_noise", "i8"),  # above 0: setup is multiplied by noise[worker, iteration, 0] of this family
        ("setup_noise_cv", "f8"),  # of gamma and lognormal
        ("per_token_noise", "i8"),  # above 0: the per-token term is multiplied by noise[worker, iteration, 1]
        ("per_token_noise_cv", "f8"),
        ("step_tokens", "i8"),  # tokens are counted in whole steps of this many
        ("num_points", "i8"),  # above 0: a measured table, whose line is only what a View shows of it
        ("decode_fixed_s", "f8"),  # if the batch holds a decode
        ("cached_token_s", "f8"),  # per cached token of the batch's decodes
        ("token_context_s", "f8"),  # per prefill token and token of its context
        ("kv_blocks", "i8"),  # per worker
        ("kv_limited", "i8"),  # 0: kv_blocks is a number that is never reached
        ("block_tokens", "i8"),
        ("watermark", "f8"),  # share of blocks kept free at admission; negative: as the policy says
        ("max_running", "i8"),
        ("max_hold_s", "f8"),
        ("slo_rule", "i8"),
        ("ttft_target_s", "f8"),  # tightest of the classes: the yardstick of slack buckets
        ("tbt_target_s", "f8"),  # tightest of the classes
        ("fastest", "f8"),  # speed of the fastest worker: what can be on time is judged by it
        ("slo_budget", "f8"),  # tokens: its largest batch within tbt_target_s, at least 1
        ("horizon_s", "f8"),
        ("record", "i8"),  # 1: write batch_log and gap_log
        ("layout", "i8"),
        ("router", "i8"),
        ("num_prefill_workers", "i8"),  # the first so many; under DISAGGREGATED the others only decode, at first
        ("prefix_cache", "i8"),
        ("kv_bytes_per_token", "f8"),
        ("host_bytes_per_s", "f8"),
        ("link_latency_s", "f8"),
        ("link_bytes_per_s", "f8"),  # infinite: a transfer takes its latency
        ("helpers_max_workers", "i8"),  # workers at one prompt, with its own
        ("helpers_min_tokens", "i8"),
        ("change_roles", "i8"),  # 1: workers may change role
        ("switch_s", "f8"),  # which takes so long
        ("min_prefill_workers", "i8"),
        ("min_decode_workers", "i8"),
        ("num_clients", "i8"),
        ("arrivals_s", "f8"),  # no user of a closed loop sends a request at or after this
        ("num_users", "i8"),  # of a closed loop, 0 in an open one
        ("script", "i8"),  # closed loops: the row of State.requests at which the script begins
        ("prefill_gap", "f8"),  # two unequal prefill_s differ by at least this share of the larger
        ("largest_weight", "f8"),  # of the SLO classes
        ("log2_classes", "f8"),  # how many there are
        ("log10_ttft_spread", "f8"),  # loosest TTFT target / tightest
        ("log10_tbt_spread", "f8"),
        ("weight_spread", "f8"),  # least weight / largest
        # the clock
        ("now_s", "f8"),
        ("phase", "i8"),
        ("worker", "i8"),  # whose decision is due
        ("epoch", "i8"),  # decisions taken
        ("next_arrival", "i8"),  # index of the first request that has not arrived
        ("num_ranked", "i8"),  # requests with ranks: in an open loop all, in a closed one those that have arrived
        ("next_edge_s", "f8"),  # before this no waiting request passes an edge of the slack buckets
        ("num_thinking", "i8"),  # closed loops: users whose next arrival is known
        ("named", "i8"),  # ROUTE_AGENT: the worker that was named for the next arrival, NOBODY: none yet
        # those that wait, over all queues
        ("num_waiting", "i8"),  # with the resumed ones
        ("rate_fast", "f8"),  # arrivals per second, 3 s exponential average, at rate_s
        ("rate_slow", "f8"),  # the same over 20 s
        ("rate_s", "f8"),
        ("prompt_rate_fast", "f8"),  # under DISAGGREGATED: prompt tokens that arrive per second, the same averages
        ("prompt_rate_slow", "f8"),
        ("output_rate_fast", "f8"),  # and output tokens, as predicted
        ("output_rate_slow", "f8"),
        ("num_transfers", "i8"),  # rows of State.transfers in use
        ("prefill_turn", "i8"),  # round robin: requests routed to each pool
        ("decode_turn", "i8"),
        ("last_client", "i8"),  # the tenant that was last to leave the queue, NOBODY before
        # counters of the run
        ("num_finished", "i8"),
        ("num_rejected", "i8"),
        ("num_batches", "i8"),
        ("num_gaps", "i8"),  # rows of gap_log in use
        ("num_evictions", "i8"),
        ("num_switches", "i8"),  # roles changed
        ("busy_s", "f8"),
        ("prefill_done", "i8"),
        ("decode_done", "i8"),
        # what happened since the last decision, for the reward
        ("step_first_token", "f8"),
        ("step_completion", "f8"),
        ("step_token", "f8"),
        ("step_queue", "f8"),
        # the same since an agent last named a worker (`llm_env.routing_reward`)
        ("routed_s", "f8"),  # when that was
        ("first_open", "i8"),  # of all before this request it is known whether they met their SLO
        ("missed_before", "f8"),  # SLO weight of those of them that did not
        ("missed", "f8"),  # of all that had missed it by then
        ("queued_s", "f8"),  # prefill seconds that were queued then
        # settings once more, last because large: what is read in every step lies close together
        ("points", "f8", (MAX_POINTS, 2)),  # the first num_points: tokens, seconds
        ("routing", "f8", (8,)),  # what the router "score" weighs with, see `llm_env.worker_load`
    ],
    align=True,
)

WORKER = np.dtype(
    [
        # settings
        ("role", "i8"),
        ("first_role", "i8"),  # at the start of a run
        ("queue", "i8"),  # that it pulls from
        ("speed", "f8"),
        ("slo_budget", "f8"),  # tokens: its largest batch within SYSTEM.tbt_target_s, at least 1
        # the run
        ("busy", "i8"),
        ("start_s", "f8"),
        ("end_s", "f8"),
        ("held_until_s", "f8"),
        ("iteration", "i8"),
        ("free_blocks", "i8"),
        ("num_running", "i8"),
        ("num_partial", "i8"),  # running requests whose prefill is unfinished
        ("batch_size", "i8"),
        ("batch_tokens", "i8"),
        ("batch_prefill", "i8"),
        ("batch_prompts", "i8"),  # how many entries prefill
        ("batch_longest", "i8"),  # tokens of the longest of them
        ("last_batch_tokens", "i8"),  # of the batch that ran last; a hold has none
        ("last_batch_prefill", "i8"),  # of these, prefill
        ("batch_evicted", "i8"),  # evictions while the batch was formed
        ("batch_admitted", "i8"),  # admissions while it was formed
        ("leading_decodes", "i8"),  # while it is formed: so many at the head of the running list are decodes, or more
        # what its next View sums up over those that run (`llm_env.sums`)
        ("summed", "i8"),  # 1: the following hold, 0: something has changed
        ("context_tokens", "i8"),
        ("emitted_tokens", "i8"),
        ("declared_tokens", "i8"),
        ("partial_tokens", "i8"),
        ("num_clean", "i8"),
        ("due_s", "f8"),
        ("memory", "f8"),  # what its policy asked to be told again
        ("turn", "f8"),  # weighted round robin: its current weight
        ("num_moving", "i8"),  # of the running requests: those whose KV is leaving for another worker
        ("num_incoming", "i8"),  # requests that have a place here and whose KV is on its way
        ("next_role", "i8"),  # that it is about to take, 0 if it stays what it is
        ("switching", "i8"),  # 1: it is busy with that
        ("num_swapped", "i8"),
        ("swapped", "i8"),  # the first of them, in order of arrival
        ("swap_tokens", "i8"),  # swapped out and in since the last batch
        ("cached_blocks", "i8"),  # kept for next turns: neither free nor used
        ("cache_first", "i8"),  # the finished request whose blocks go first
        ("cache_last", "i8"),
    ],
    align=True,
)

BATCH = np.dtype(
    [
        ("worker", "i8"),
        ("start_s", "f8"),
        ("end_s", "f8"),
        ("num_requests", "i8"),
        ("prefill_tokens", "i8"),
        ("decode_tokens", "i8"),
        ("num_waiting", "i8"),
        ("num_running", "i8"),
        ("kv_used_blocks", "i8"),
    ],
    align=True,
)

GAP = np.dtype([("gap_s", "f8"), ("count", "i8")], align=True)  # count successive gaps of one length

QUEUE = np.dtype(
    [
        ("num_waiting", "i8"),  # with the resumed ones
        ("waiting_tokens", "i8"),  # prefill tokens of all that wait
        ("num_resumed", "i8"),  # evicted requests at the front
        ("front", "i8"),  # the first of these, NOBODY if none
        # of those that can still have their first token on time
        ("tight_waiting", "i8"),  # with the tightest TTFT target of all classes
        ("tight_tokens", "i8"),  # their prefill tokens
        ("weight_millionths", "i8"),  # sum of SLO weights x 10^6, rounded for each: integers add up exactly
    ],
    align=True,
)

# a transfer of KV: COMPUTING (a helper's chunk), LINED_UP (no room at the target yet), then UNDER_WAY
COMPUTING, LINED_UP, UNDER_WAY = range(3)  # TRANSFER.phase

TRANSFER = np.dtype(
    [
        ("request", "i8"),
        ("source", "i8"),  # worker
        ("target", "i8"),  # worker, NOBODY until one has room
        ("phase", "i8"),
        ("tokens", "i8"),
        ("helps", "i8"),  # 1: a chunk for a prompt of the target; 0: a request moves
        ("blocks", "i8"),  # helps: held on the source; moves: taken on the target
        ("evictions", "i8"),  # helps: of the request when the chunk was taken; another number means it is lost
        ("data_s", "f8"),  # when the latency is over
        ("bytes_left", "f8"),
    ],
    align=True,
)

CLIENT = np.dtype(
    [
        ("service", "f8"),  # weighted tokens (`llm_env.clients`)
        ("num_waiting", "i8"),
        ("first", "i8"),  # the rank BY_CLIENT of the first of its requests
    ],
    align=True,
)
