"""The data everything works on: the State, arrays of the records in `llm_env.dtypes`, and what a policy sees (View) and
answers (Decision). Plain arrays and tuples; no rules, no physics.

Copying the arrays of a State is a snapshot.
"""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple, get_type_hints

import numba
import numpy as np
from numba import types

from llm_env.dtypes import BATCH, CLIENT, FAR, GAP, QUEUE, REQUEST, SYSTEM, TRANSFER, WORKER
from llm_env.jit import njit
from llm_env.reference import pass_by_address, refer

# ---- waiting requests, sorted several ways -------------------------------------------------------------------------
BY_ARRIVAL, BY_PROMPT, BY_DEADLINE, BY_LATEST_START, BY_CLIENT = range(5)  # ranks; by arrival is the index itself
NUM_RANKS = 4  # State.order and State.rank hold the last four, at BY_... - 1
SET_ARRIVAL, SET_PROMPT, SET_DEADLINE, SET_LATEST_START, SET_FEASIBLE, SET_HOPELESS, SET_CLIENT, SET_HEADS = range(8)
NUM_SETS = 8  # FEASIBLE: those by deadline that can still be on time; HOPELESS: the others, by arrival; HEADS: of each
# client the first that waits, by arrival (CLIENT and HEADS are empty if there is only one client)
# `llm_env.least`: keys, the first three of SET_ARRIVAL, the last of SET_HEADS; their bounds are rows of State.sets too
KEY_WEIGHT, KEY_PREDICTED, KEY_PREFILL, KEY_SERVICE = range(NUM_SETS, NUM_SETS + 4)
NUM_ROWS = NUM_SETS + 4
UNKNOWN = -(1 << 52)  # the bits of -inf: where there is no bound

# Edges of the slack buckets in units of the TTFT target: bucket k holds EDGES[k-1] <= slack < EDGES[k], where slack is
# the time left until latest_start_s. Bucket 0 is the hopeless.
SLACK_EDGES = (0.0, 0.125, 0.25, 0.5, 0.75)
NUM_BUCKETS = len(SLACK_EDGES) + 1


class State(NamedTuple):
    """One serving system in full. Leading axes of a vectorised state are stripped by `row`."""

    requests: Any  # (capacity,) REQUEST, the first num_requests in order of arrival; scripts: `llm_env.closed_loop`
    system: Any  # (1,) SYSTEM
    workers: Any  # (num_workers,) WORKER
    running: Any  # (num_workers, max_running) int64, admitted requests in list order
    batch: Any  # (num_workers, max_running, 2) int64: request, tokens
    order: Any  # (NUM_RANKS, capacity) int64: the request at each rank
    rank: Any  # (NUM_RANKS, capacity) int64: the rank of each request
    queues: Any  # (num_queues,) QUEUE: one, or one per worker that prefills
    sets: Any  # (num_queues, NUM_ROWS, words) int64: bitmap trees of those that wait (`llm_env.queue`), bounds of keys
    levels: Any  # (num_levels + 1,) int64: where each level of a bitmap tree starts
    buckets: Any  # (num_queues, 2, NUM_BUCKETS) int64: requests and tokens that wait in each slack bucket
    cursors: Any  # (NUM_BUCKETS - 1,) int64: first latest-start rank at or beyond each edge
    transfers: Any  # (rows,) TRANSFER, the first num_transfers in the order in which they came up
    clients: Any  # (capacity,) CLIENT
    noise: Any  # (num_workers, iterations, 2) float64 of mean 1
    scratch: Any  # (6, max_running + window) float64; the last two rows: see SCORES
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
    "queues": (QUEUE, 1),
    "sets": ("i8", 3),
    "levels": ("i8", 1),
    "buckets": ("i8", 3),
    "cursors": ("i8", 1),
    "transfers": (TRANSFER, 1),
    "clients": (CLIENT, 1),
    "noise": ("f8", 3),
    "scratch": ("f8", 2),
    "batch_log": (BATCH, 1),
    "gap_log": (GAP, 1),
}


STATE_TYPE = pass_by_address(types.NamedTuple(tuple(_array(*_FIELD_TYPES[f]) for f in State._fields), State))
# the same with a leading axis of environments
STATES_TYPE = types.NamedTuple(tuple(_array(_FIELD_TYPES[f][0], _FIELD_TYPES[f][1] + 1) for f in State._fields), State)


def snapshot(state: State) -> State:
    """An independent copy of every array: continuing from it gives the same bytes as continuing from the original."""
    return State(*(np.copy(array) for array in state))


@njit(inline="always")
def row(states: State, e: int) -> State:
    """The e-th system of a vectorised state, as views on its arrays."""
    state = State(
        states.requests[e],
        states.system[e],
        states.workers[e],
        states.running[e],
        states.batch[e],
        states.order[e],
        states.rank[e],
        states.queues[e],
        states.sets[e],
        states.levels[e],
        states.buckets[e],
        states.cursors[e],
        states.transfers[e],
        states.clients[e],
        states.noise[e],
        states.scratch[e],
        states.batch_log[e],
        states.gap_log[e],
    )
    return refer(state)


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
    # more of the worker at hand
    role: int  # ROLE_BOTH, ROLE_PREFILL or ROLE_DECODE
    speed: float
    num_moving: int  # of its requests: those whose KV is leaving for a worker that decodes; not among num_running
    num_swapped: int  # its requests whose KV is on the host
    last_prefill_tokens: int  # of last_batch_tokens
    last_evicted: int  # evictions while its last batch was formed
    emitted_tokens: int  # output tokens so far of its running requests
    declared_tokens: int  # output tokens that their clients allow
    help_tokens: int  # of prompts on other workers that it could help to prefill
    memory: float  # Decision.memory of its last decision, 0 at first
    decode_extra_s: float  # what decoding all that is in its KV adds to the time of a batch, beside its tokens
    # the pools of a disaggregated system, all 0 elsewhere; a policy is handed each number, so there are few of them
    next_role: int  # that this worker is about to take, 0 if it stays what it is
    prefill_workers: int  # each worker counts as what it is or is about to be; the others decode
    pool_live_tokens: int  # prefill tokens that wait, in all queues, of requests that may still be on time
    pool_decodes: int  # requests of the workers that decode, with those on their way to them
    pool_kv_used: float  # share of the KV blocks of these workers in use, 0 if unlimited
    num_lined_up: int  # prefilled requests for which no worker that decodes has room yet
    prompt_rate_per_s: float  # prompt tokens that arrive, 20 s average
    output_rate_per_s: float  # output tokens that arrive: as predicted, where there is a prediction, else declared


# packing
DECODES_FIRST, PREFILL_FIRST, LIST_ORDER, NEVER_MIX = range(4)
PACKINGS = ("decodes-first", "prefill-first", "list-order", "never-mix")
# queue orders
FCFS, SHORTEST_PREFILL, EARLIEST_DEADLINE, LEAST_SLACK, MOORE_HODGSON = range(5)
PREDICTED_SHORTEST, RESPONSE_RATIO, FAIR_CLIENTS, LEAST_ATTAINED, PRIORITY = range(5, 10)
QUEUE_ORDERS = (
    "fcfs",
    "shortest-prefill",
    "earliest-deadline",
    "least-slack",
    "moore-hodgson",
    "predicted-shortest",
    "response-ratio",
    "fair-clients",
    "least-attained",
    "priority",
)
# KV managers
KV_PROMPT, KV_CHUNK, KV_RESERVE, KV_DECLARED, KV_ESTIMATE = range(5)
KV_RULES = ("prompt", "chunk", "reserve", "declared", "estimate")
# who is evicted
VICTIM_LAST, VICTIM_FEWEST, VICTIM_PRIORITY = range(3)
VICTIMS = ("last", "fewest-output", "lowest-priority")
# who decodes, if not all may
DECODE_OLDEST, DECODE_BY_ORDER = range(2)

MOST_RANKED = 16  # candidates that may change places by scores
SCORES, CANDIDATES = 4, 5  # rows of State.scratch: scores in [-1, 1], and whose they are (`llm_env.ranking`)

UNLIMITED = 1 << 40  # tokens or requests
DROPPED_LAST = 1e6  # TTFT targets: Moore-Hodgson's dropped stand behind everybody else


class Decision(NamedTuple):
    """How the next batch is to be formed. Made with `decision(...)`, which has the defaults.

    Attributes:
        token_budget: most tokens in the batch; prefill stays within it, decodes only under LIST_ORDER or what
            PREFILL_FIRST leaves of it beside prompts.
        prefill_tokens: most prefill tokens in the batch.
        chunk_tokens: most prefill tokens per prompt.
        max_decodes: most decodes in the batch; beyond it those go first that `decode_order` says (under LIST_ORDER the
            first of the list).
        max_running: no admission at or above this many admitted requests.
        packing: DECODES_FIRST, PREFILL_FIRST, LIST_ORDER (running requests as they were admitted, then the queue) or
            NEVER_MIX (prefill alone; decodes only if no prompt can be prefilled).
        whole_prompts: 1: a prompt is prefilled in one batch or not at all; the only prompt of a batch may exceed the
            budget.
        padded: 1: whole prompts, counted as prompts x longest prompt of the batch against token_budget alone.
        order: FCFS, SHORTEST_PREFILL, EARLIEST_DEADLINE, LEAST_SLACK, MOORE_HODGSON, PREDICTED_SHORTEST,
            RESPONSE_RATIO, FAIR_CLIENTS, LEAST_ATTAINED or PRIORITY (`llm_env.orders`).
        margin: Moore-Hodgson: factor on the time a prompt is thought to need.
        slack_weight: Moore-Hodgson: 1 sorts by deadline, 0 by remaining prefill time, between them by the mixture.
        drop_weight: Moore-Hodgson: how far the dropped stand behind the others, in TTFT targets; 0 ignores the drop.
        kv_rule: KV_PROMPT (the whole prompt's blocks at admission), KV_CHUNK (blocks as chunks are computed),
            KV_RESERVE (`reserve_tokens` at admission), KV_DECLARED (prompt and declared output) or KV_ESTIMATE (the
            prompt's blocks, if what the running requests may still need fits too; see `reserve_ratio`).
        reserve_tokens: tokens reserved per request under KV_RESERVE; under KV_ESTIMATE, if above 0, the most output
            that a request is thought to need.
        watermark: share of blocks that an admission must leave free, unless the system states one.
        hold_s: above 0: dispatch nothing and ask again after this long or at the next arrival or completion.
        reserve_ratio: KV_ESTIMATE: the share of their remaining declared output that running requests are thought to
            need.
        victim: VICTIM_LAST, VICTIM_FEWEST (output tokens so far) or VICTIM_PRIORITY (least weight).
        swap: 1: victims keep their KV on the host and come back; 0: they lose it and prefill again.
        decode_order: DECODE_OLDEST: those that have waited longest for a token; DECODE_BY_ORDER: the first by `order`.
        decode_within_s: only decodes whose next token is late after at most this long, unless the batch would be empty.
        gate_tokens: above 0: decodes that have made exactly so many tokens wait until there are `gate_count` of them,
            unless the batch would be empty.
        gate_count: see `gate_tokens`.
        fill_decodes: 1: after the prefill, decodes that `decode_within_s` or the gate held back go into what is left of
            `token_budget`.
        quantum_s: LEAST_ATTAINED: the first level's quantum.
        starve_s: PREDICTED_SHORTEST and LEAST_ATTAINED, above 0: who got no token for longer goes first.
        memory: a number that `View.memory` shows at this worker's next decision.
        class_weight: Moore-Hodgson: exponent of SLO weights in who is dropped: the largest time / weight^class_weight.
        role: ROLE_PREFILL or ROLE_DECODE: what this worker is to be, where roles may change (`llm_env.roles`); 0 leaves
            it what it is, or about to become.
        ranked: Moore-Hodgson: 1 lets candidates change places by their scores (`llm_env.ranking`).
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
    reserve_ratio: float
    victim: int
    swap: int
    decode_order: int
    decode_within_s: float
    gate_tokens: int
    gate_count: int
    fill_decodes: int
    quantum_s: float
    starve_s: float
    memory: float
    class_weight: float
    role: int
    ranked: int


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
    reserve_ratio=1.0,
    victim=VICTIM_LAST,
    swap=0,
    decode_order=DECODE_OLDEST,
    decode_within_s=FAR,
    gate_tokens=0,
    gate_count=0,
    fill_decodes=0,
    quantum_s=0.0,
    starve_s=0.0,
    memory=0.0,
    class_weight=0.0,
    role=0,
    ranked=0,
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
        float(reserve_ratio),
        int(victim),
        int(swap),
        int(decode_order),
        float(decode_within_s),
        int(gate_tokens),
        int(gate_count),
        int(fill_decodes),
        float(quantum_s),
        float(starve_s),
        float(memory),
        float(class_weight),
        int(role),
        int(ranked),
    )


def _scalar_tuple(kind: type) -> types.NamedTuple:
    hints = get_type_hints(kind)
    return types.NamedTuple(tuple(types.float64 if h is float else types.int64 for h in hints.values()), kind)


VIEW_TYPE = _scalar_tuple(View)
DECISION_TYPE = _scalar_tuple(Decision)
DECIDE_SIGNATURE = DECISION_TYPE(VIEW_TYPE)
DECIDE_TYPE = types.FunctionType(DECIDE_SIGNATURE)


def policy(function: Any) -> Any:
    """Decorator: compiles ``decide(view: View) -> Decision`` so that one compiled loop can run any policy.

    Functions that differ only in what they close over get names of their own. numba's symbols are made of the name and
    a number that counts from 1 in each process: of two that other processes left in the disk cache under one symbol,
    the loop would run the one that was loaded last for both.
    """
    closed_over = [cell.cell_contents for cell in function.__closure__ or ()]
    told_apart = hashlib.sha256(repr([(type(value).__name__, value) for value in closed_over]).encode()).hexdigest()
    function.__qualname__ += f"_{told_apart[:16]}"
    return njit(DECIDE_SIGNATURE, _nrt=True)(function)  # a policy may allocate: a network in numpy, say
