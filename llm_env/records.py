"""The data everything works on: REQUEST, SYSTEM and WORKER records, the State that holds them, and what a policy sees
(View) and answers (Decision). Plain arrays and tuples; no rules, no physics.

Seconds are float64 and tokens int64 everywhere. Copying the arrays of a State is a snapshot.
"""

from __future__ import annotations

from typing import Any, NamedTuple, get_type_hints

import numba
import numpy as np
from numba import types

from llm_env.config import MAX_POINTS
from llm_env.jit import njit

INF = float("inf")
NEVER = -1.0  # a time that has not come
FAR = 1e9  # seconds: "no such request" in slacks, finite so that a policy may compute with it

# ---- requests ------------------------------------------------------------------------------------------------------
FUTURE, WAITING, RUNNING, FINISHED, REJECTED = range(5)  # REQUEST.status
STATUS_NAMES = ("future", "waiting", "running", "finished", "rejected")

REQUEST = np.dtype(
    [
        # what arrived; the workload writes it once
        ("arrival_s", "f8"),
        ("prompt_tokens", "i8"),
        ("output_tokens", "i8"),  # the truth; only the kernel reads it
        ("predicted_tokens", "f8"),  # what a length predictor said, NaN if none
        ("slo_class", "i8"),
        ("ttft_target_s", "f8"),
        ("tbt_target_s", "f8"),
        ("weight", "f8"),
        ("client", "i8"),  # -1 if unknown
        ("session", "i8"),  # -1 if none
        ("row", "i8"),  # its place in the input, since requests are kept in order of arrival
        # what became of it; the kernel writes it
        ("status", "i8"),
        ("worker", "i8"),  # where it runs or last ran, -1 before
        ("in_batch", "i8"),  # 1 while it is part of the batch being formed or executed
        ("prefill_tokens", "i8"),  # what must be prefilled now: the prompt, after an eviction also what was generated
        ("computed_tokens", "i8"),  # tokens with KV on the worker
        ("emitted_tokens", "i8"),  # output tokens made so far
        ("blocks", "i8"),  # KV blocks held
        ("kv_rule", "i8"),  # the KV manager that admitted it
        ("latest_start_s", "f8"),  # the prefill must start by then for the first token to be on time
        ("first_scheduled_s", "f8"),
        ("first_token_s", "f8"),
        ("last_token_s", "f8"),
        ("finish_s", "f8"),
        ("max_tbt_s", "f8"),  # NaN before the second token
        ("late_gaps", "i8"),  # gaps above the TBT target
        ("late_tokens", "i8"),  # tokens after arrival + TTFT target + (j - 1) * TBT target
        ("evictions", "i8"),
        ("credit", "i8"),  # reward book-keeping: 1 credited for its first token, -1 taken back, 0 neither
    ],
    align=True,
)

# ---- the system ----------------------------------------------------------------------------------------------------
RULE_MAX, RULE_P99, RULE_DEADLINE = range(3)  # SYSTEM.slo_rule
SLO_RULES = ("max", "p99", "deadline")
LATE_TOLERANCE_S = 1e-9  # a token this much after its due time is still on time: absorbs rounding of sums

ACTIVE, DRAINED, HORIZON, NEEDS_ROOM = range(4)  # SYSTEM.phase

NO_NOISE, EXPONENTIAL, GAMMA, LOGNORMAL = range(4)  # SYSTEM.setup_noise and per_token_noise
NOISES = ("none", "exponential", "gamma", "lognormal")

SYSTEM = np.dtype(
    [
        # settings, in seconds and tokens
        ("num_requests", "i8"),
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
        ("slo_budget", "f8"),  # tokens: the largest batch with S(b) <= tbt_target_s, at least 1
        ("horizon_s", "f8"),
        ("record", "i8"),  # 1: write batch_log and gap_log
        # the clock
        ("now_s", "f8"),
        ("phase", "i8"),
        ("worker", "i8"),  # whose decision is due
        ("epoch", "i8"),  # decisions taken
        ("next_arrival", "i8"),  # index of the first request that has not arrived
        # the waiting queue
        ("num_waiting", "i8"),  # with the resumed ones
        ("waiting_tokens", "i8"),  # prefill tokens of all that wait
        ("num_resumed", "i8"),  # evicted requests at the front
        ("rate_fast", "f8"),  # arrivals per second, 3 s exponential average, at rate_s
        ("rate_slow", "f8"),  # the same over 20 s
        ("rate_s", "f8"),
        # counters of the run
        ("num_finished", "i8"),
        ("num_rejected", "i8"),
        ("num_batches", "i8"),
        ("num_gaps", "i8"),  # rows of gap_log in use
        ("num_evictions", "i8"),
        ("busy_s", "f8"),
        ("prefill_done", "i8"),
        ("decode_done", "i8"),
        # what happened since the last decision, for the reward
        ("step_first_token", "f8"),
        ("step_completion", "f8"),
        ("step_token", "f8"),
        ("step_queue", "f8"),
        # settings once more, last because large: what is read in every step lies close together
        ("points", "f8", (MAX_POINTS, 2)),  # the first num_points: tokens, seconds
    ],
    align=True,
)

WORKER = np.dtype(
    [
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
        ("batch_evicted", "i8"),  # evictions while the batch was formed
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

# ---- waiting requests, sorted several ways -------------------------------------------------------------------------
BY_ARRIVAL, BY_PROMPT, BY_DEADLINE, BY_LATEST_START = range(4)  # static ranks; by arrival is the index itself
NUM_RANKS = 3  # State.order and State.rank hold the last three, at BY_... - 1
SET_ARRIVAL, SET_PROMPT, SET_DEADLINE, SET_LATEST_START, SET_FEASIBLE, SET_HOPELESS = range(6)
NUM_SETS = 6  # FEASIBLE: those by deadline that can still be on time; HOPELESS: the others, by arrival

# Edges of the slack buckets in units of the TTFT target: bucket k holds EDGES[k-1] <= slack < EDGES[k], where slack is
# the time left until latest_start_s. Bucket 0 is the hopeless.
SLACK_EDGES = (0.0, 0.125, 0.25, 0.5, 0.75)
NUM_BUCKETS = len(SLACK_EDGES) + 1


class State(NamedTuple):
    """One serving system in full. Leading axes of a vectorised state are stripped by `row`."""

    requests: Any  # (capacity,) REQUEST, the first num_requests in order of arrival
    system: Any  # (1,) SYSTEM
    workers: Any  # (num_workers,) WORKER
    running: Any  # (num_workers, max_running) int64, admitted requests in list order
    batch: Any  # (num_workers, max_running, 2) int64: request, tokens
    order: Any  # (NUM_RANKS, capacity) int64: the request at each rank
    rank: Any  # (NUM_RANKS, capacity) int64: the rank of each request
    sets: Any  # (NUM_SETS, words) int64: bitmap trees of those that wait (`llm_env.queue`)
    levels: Any  # (num_levels + 1,) int64: where each level of a bitmap tree starts
    buckets: Any  # (2, NUM_BUCKETS) int64: requests and tokens that wait in each slack bucket
    cursors: Any  # (NUM_BUCKETS - 1,) int64: first latest-start rank at or beyond each edge
    resumed: Any  # (capacity,) int64: stack of evicted requests, the last is the front of the queue
    noise: Any  # (num_workers, iterations, 2) float64 of mean 1
    scratch: Any  # (4, max_running + window) float64
    batch_log: Any  # (rows,) BATCH
    gap_log: Any  # (rows,) GAP


def _array(dtype: np.dtype | str, ndim: int) -> types.Array:
    return types.Array(numba.from_dtype(np.dtype(dtype)), ndim, "C")


_FIELD_TYPES: dict[str, tuple[np.dtype | str, int]] = {
    "requests": (REQUEST, 1),
    "system": (SYSTEM, 1),
    "workers": (WORKER, 1),
    "running": ("i8", 2),
    "batch": ("i8", 3),
    "order": ("i8", 2),
    "rank": ("i8", 2),
    "sets": ("i8", 2),
    "levels": ("i8", 1),
    "buckets": ("i8", 2),
    "cursors": ("i8", 1),
    "resumed": ("i8", 1),
    "noise": ("f8", 3),
    "scratch": ("f8", 2),
    "batch_log": (BATCH, 1),
    "gap_log": (GAP, 1),
}
STATE_TYPE = types.NamedTuple(tuple(_array(*_FIELD_TYPES[f]) for f in State._fields), State)
# the same with a leading axis of environments
STATES_TYPE = types.NamedTuple(tuple(_array(_FIELD_TYPES[f][0], _FIELD_TYPES[f][1] + 1) for f in State._fields), State)


def snapshot(state: State) -> State:
    """An independent copy of every array: continuing from it gives the same bytes as continuing from the original."""
    return State(*(np.copy(array) for array in state))


@njit
def row(states: State, e: int) -> State:
    """The e-th system of a vectorised state, as views on its arrays."""
    return State(
        states.requests[e],
        states.system[e],
        states.workers[e],
        states.running[e],
        states.batch[e],
        states.order[e],
        states.rank[e],
        states.sets[e],
        states.levels[e],
        states.buckets[e],
        states.cursors[e],
        states.resumed[e],
        states.noise[e],
        states.scratch[e],
        states.batch_log[e],
        states.gap_log[e],
    )


# ---- what a policy sees and answers --------------------------------------------------------------------------------
class View(NamedTuple):
    """What a policy may see when a worker asks for its next batch. Never a true output length.

    Times in seconds, lengths in tokens. A slack is the time left until a prefill must start for its first token to be
    on time; FAR (1e9) where there is no such request.
    """

    now_s: float
    epoch: int  # number of decisions before this one, over all workers
    worker: int
    num_workers: int
    # hardware and promises
    setup_s: float
    per_token_s: float
    free_tokens: int
    ttft_target_s: float
    tbt_target_s: float
    slo_budget: float  # tokens: the largest batch whose S(b) is within the TBT target
    max_running: int
    # the queue
    num_waiting: int
    waiting_tokens: int
    num_resumed: int  # evicted requests at its front
    num_hopeless: int  # can no longer have their first token on time
    hopeless_tokens: int
    head_tokens: int  # prefill tokens of the head of the FCFS queue, 0 if none waits
    head_age_s: float  # how long that request has been here
    urgent_slack_s: float  # the feasible request with the earliest TTFT deadline
    urgent_tokens: int
    second_slack_s: float
    second_tokens: int
    rate_fast_per_s: float  # arrivals, 3 s average
    rate_slow_per_s: float  # arrivals, 20 s average
    # the worker at hand
    num_running: int
    num_decodes: int
    num_partial: int  # prompts that are partly prefilled
    partial_tokens: int  # what is left of them
    context_tokens: int  # tokens in its KV
    min_decode_slack_s: float  # until the most urgent decode's next token is late
    num_clean_decodes: int  # decodes that have kept their TBT promise so far
    kv_blocks: int
    free_blocks: int
    block_tokens: int
    kv_used: float  # share of blocks in use, 0 if unlimited
    last_batch_s: float
    last_batch_tokens: int


# packing
DECODES_FIRST, PREFILL_FIRST, LIST_ORDER, NEVER_MIX = range(4)
PACKINGS = ("decodes-first", "prefill-first", "list-order", "never-mix")
# queue orders
FCFS, SHORTEST_PREFILL, EARLIEST_DEADLINE, LEAST_SLACK, MOORE_HODGSON = range(5)
QUEUE_ORDERS = ("fcfs", "shortest-prefill", "earliest-deadline", "least-slack", "moore-hodgson")
# KV managers
KV_PROMPT, KV_CHUNK, KV_RESERVE = range(3)
KV_RULES = ("prompt", "chunk", "reserve")

UNLIMITED = 1 << 40  # tokens or requests
DROPPED_LAST = 1e6  # TTFT targets: Moore-Hodgson's dropped stand behind everybody else


class Decision(NamedTuple):
    """How the next batch is to be formed. Made with `decision(...)`, which has the defaults.

    Attributes:
        token_budget: most tokens in the batch; prefill stays within it, decodes only under LIST_ORDER or what
            PREFILL_FIRST leaves of it beside prompts.
        prefill_tokens: most prefill tokens in the batch.
        chunk_tokens: most prefill tokens per prompt.
        max_decodes: most decodes in the batch; beyond it those that have waited longest for a token go first (under
            LIST_ORDER the first of the list).
        max_running: no admission at or above this many admitted requests.
        packing: DECODES_FIRST, PREFILL_FIRST, LIST_ORDER (running requests as they were admitted, then the queue) or
            NEVER_MIX (prefill alone; decodes only if no prompt can be prefilled).
        whole_prompts: 1: a prompt is prefilled in one batch or not at all; the only prompt of a batch may exceed the
            budget.
        padded: 1: whole prompts, counted as prompts x longest prompt of the batch against token_budget alone.
        order: FCFS, SHORTEST_PREFILL, EARLIEST_DEADLINE, LEAST_SLACK or MOORE_HODGSON.
        margin: Moore-Hodgson: factor on the time a prompt is thought to need.
        slack_weight: Moore-Hodgson: 1 sorts by deadline, 0 by remaining prefill time, between them by the mixture.
        drop_weight: Moore-Hodgson: how far the dropped stand behind the others, in TTFT targets; 0 ignores the drop.
        kv_rule: KV_PROMPT (the whole prompt's blocks at admission), KV_CHUNK (blocks as chunks are computed) or
            KV_RESERVE (`reserve_tokens` at admission).
        reserve_tokens: tokens reserved per request under KV_RESERVE.
        watermark: share of blocks that an admission must leave free, unless the system states one.
        hold_s: above 0: dispatch nothing and ask again after this long or at the next arrival or completion.
    """

    token_budget: int
    prefill_tokens: int
    chunk_tokens: int
    max_decodes: int
    max_running: int
    packing: int
    whole_prompts: int
    padded: int
    order: int
    margin: float
    slack_weight: float
    drop_weight: float
    kv_rule: int
    reserve_tokens: int
    watermark: float
    hold_s: float


@njit
def decision(
    token_budget,
    prefill_tokens=UNLIMITED,
    chunk_tokens=UNLIMITED,
    max_decodes=UNLIMITED,
    max_running=UNLIMITED,
    packing=DECODES_FIRST,
    whole_prompts=0,
    padded=0,
    order=FCFS,
    margin=1.0,
    slack_weight=1.0,
    drop_weight=DROPPED_LAST,
    kv_rule=KV_CHUNK,
    reserve_tokens=0,
    watermark=0.0,
    hold_s=0.0,
) -> Decision:
    """A Decision with defaults for what is not given: decodes first, then chunked prefill in order of arrival."""
    return Decision(
        int(token_budget),
        int(prefill_tokens),
        int(chunk_tokens),
        int(max_decodes),
        int(max_running),
        int(packing),
        int(whole_prompts),
        int(padded),
        int(order),
        float(margin),
        float(slack_weight),
        float(drop_weight),
        int(kv_rule),
        int(reserve_tokens),
        float(watermark),
        float(hold_s),
    )


def _scalar_tuple(kind: type) -> types.NamedTuple:
    hints = get_type_hints(kind)
    return types.NamedTuple(tuple(types.float64 if h is float else types.int64 for h in hints.values()), kind)


VIEW_TYPE = _scalar_tuple(View)
DECISION_TYPE = _scalar_tuple(Decision)
DECIDE_SIGNATURE = DECISION_TYPE(VIEW_TYPE)
DECIDE_TYPE = types.FunctionType(DECIDE_SIGNATURE)


def policy(function: Any) -> Any:
    """Decorator: compiles ``decide(view: View) -> Decision`` so that one compiled loop can run any policy."""
    return njit(DECIDE_SIGNATURE)(function)
