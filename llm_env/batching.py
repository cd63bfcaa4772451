"""`form_batch`: turns a Decision into the next batch of one worker. Who decodes, who prefills, who is admitted, who is
evicted. Nothing here moves the clock.

Sources: list order and preemption as vLLM v1 (`vllm/v1/core/sched/scheduler.py`); decodes, then partial prefills, then
new requests as Sarathi-Serve (Agrawal et al., OSDI 2024, Algorithm 3); prefill-only batches as vLLM v0 (Kwon et al.,
SOSP 2023); iteration-level scheduling as Orca (Yu et al., OSDI 2022, section 3.1).
"""

from __future__ import annotations

from llm_env.dtypes import COMPUTING, FAR, INF, PARALLEL_PREFILL
from llm_env.jit import njit
from llm_env.kv import blocks_for, grow
from llm_env.link import add_transfer
from llm_env.orders import closed_gate, decode_cut, decode_key, place_merged, place_moore_hodgson
from llm_env.placing import (
    admit,
    chunk,
    left_tokens,
    may_decode,
    place_decode,
    place_fitting_decodes,
    place_partial,
    place_swapped,
    prefill_room,
)
from llm_env.queue import head
from llm_env.records import (
    FCFS,
    LIST_ORDER,
    MOORE_HODGSON,
    NEVER_MIX,
    PREFILL_FIRST,
    SET_ARRIVAL,
    UNLIMITED,
    Decision,
    State,
)


@njit
def form_batch(state: State, w, d: Decision) -> None:
    """Fills state.batch[w] as the decision says; an empty batch means that it dispatches nothing."""
    worker = state.workers[w]
    worker.batch_size = 0
    worker.batch_tokens = 0
    worker.batch_prefill = 0
    worker.batch_prompts = 0
    worker.batch_longest = 0
    worker.batch_evicted = 0
    worker.batch_admitted = 0
    worker.leading_decodes = 0
    worker.summed = 0
    if d.packing == NEVER_MIX:
        _place_prefills(state, w, d)
        if worker.batch_size == 0:
            _place_decodes(state, w, d, d.max_decodes, d.decode_within_s, closed_gate(state, w, d))
    elif d.packing == PREFILL_FIRST:
        _place_prefills(state, w, d)
        left = d.token_budget - worker.batch_tokens if worker.batch_prompts > 0 else UNLIMITED
        _place_decodes(state, w, d, min(d.max_decodes, left), d.decode_within_s, closed_gate(state, w, d))
    elif d.packing == LIST_ORDER:
        _place_list(state, w, d)
        _place_prefills(state, w, d)
    else:
        _place_decodes(state, w, d, d.max_decodes, d.decode_within_s, closed_gate(state, w, d))
        _place_prefills(state, w, d)
    if d.decode_within_s < FAR or d.gate_tokens > 0:
        _place_held_back(state, w, d)
    if state.system[0].layout == PARALLEL_PREFILL and worker.batch_admitted == 0:
        _help(state, w, d)


@njit
def _place_held_back(state: State, w, d: Decision) -> None:
    """Decodes that `decode_within_s` or the gate held back: if the batch is empty, or if they are to fill it up."""
    worker = state.workers[w]
    if worker.batch_evicted > 0:
        return  # it has somebody in the batch, or asks again at once
    left = worker.batch_size - worker.batch_prompts + d.token_budget - worker.batch_tokens
    if worker.batch_size == 0:
        limit = min(d.max_decodes, left) if d.packing == LIST_ORDER else d.max_decodes
        _place_decodes(state, w, d, limit, FAR, 0)
    elif d.fill_decodes == 1:
        if d.packing != NEVER_MIX or worker.batch_prompts == 0:
            _place_decodes(state, w, d, min(d.max_decodes, left), FAR, 0)


# ---- 1. decodes ----------------------------------------------------------------------------------------------------
@njit
def _place_decodes(state: State, w, d: Decision, limit, within_s, gate) -> None:
    """Places decodes, of those that `may_decode`, in list order until there are `limit` in the batch.

    If there are more, the first by `decode_order` go (under LIST_ORDER those of the list). Then swapped ones.
    """
    worker = state.workers[w]
    all_go, position = limit >= worker.num_running - worker.num_partial, 0
    if all_go:
        position = _place_fitting(state, w, within_s, gate, UNLIMITED, False)
    if position < worker.num_running:
        _place_some_decodes(state, w, d, limit, within_s, gate, position, all_go)
    if worker.num_swapped > 0:
        place_swapped(state, w, d, limit - (worker.batch_size - worker.batch_prompts))


@njit(forceinline=True)
def _place_fitting(state: State, w, within_s, gate, most, leading) -> int:
    """`placing.place_fitting_decodes` of worker w."""
    requests, running, batch = state.requests, state.running[w], state.batch[w]
    return place_fitting_decodes(
        requests, running, batch, state.workers[w], state.system[0], within_s, gate, most, leading
    )


@njit
def _place_some_decodes(state: State, w, d: Decision, limit, within_s, gate, position, all_go) -> None:
    """`_place_decodes` where not all decodes may go or memory runs out; from a position on."""
    worker, system = state.workers[w], state.system[0]
    before = worker.batch_size - worker.batch_prompts  # decodes that are placed already
    if limit <= before:
        return
    latest, latest_i = INF, state.requests.shape[0]
    if d.packing != LIST_ORDER and not all_go:
        latest, latest_i = decode_cut(state, w, limit - before, d, within_s, gate)
    while position < worker.num_running:
        i = state.running[w, position]
        r = state.requests[i]
        places = may_decode(system, r, within_s, gate)
        if d.packing == LIST_ORDER:
            places = places and worker.batch_size - worker.batch_prompts < limit
        elif places and not all_go:
            key = decode_key(state, r, i, d)
            places = key < latest or (key == latest and i <= latest_i)
        if not places or place_decode(state, w, position, d):
            position += 1


@njit
def _place_list(state: State, w, d: Decision) -> None:
    """vLLM v1: running requests in list order, decodes and chunks alike, while the budget lasts. Then swapped ones."""
    worker, system = state.workers[w], state.system[0]
    gate = closed_gate(state, w, d)
    position = _place_fitting(state, w, d.decode_within_s, gate, min(d.max_decodes, d.token_budget), True)
    decodes = position
    while position < worker.num_running and worker.batch_tokens < d.token_budget:
        r = state.requests[state.running[w, position]]
        if r.computed_tokens >= r.prefill_tokens:
            if decodes >= d.max_decodes or not may_decode(system, r, d.decode_within_s, gate):
                position += 1
            elif place_decode(state, w, position, d):
                position += 1
                decodes += 1
        else:
            tokens = chunk(worker, d, left_tokens(r))
            if tokens <= 0 or place_partial(state, w, position, tokens, d):
                position += 1
    if worker.num_swapped > 0:
        place_swapped(state, w, d, min(d.max_decodes - decodes, d.token_budget - worker.batch_tokens))


# ---- 2. prefill in a queue order -----------------------------------------------------------------------------------
@njit
def _place_prefills(state: State, w, d: Decision) -> None:
    worker = state.workers[w]
    queue = state.queues[worker.queue]
    if prefill_room(worker, d) <= 0 or (worker.num_partial == 0 and queue.num_waiting == 0):
        return
    if worker.next_role > 0:  # it finishes what it has begun
        _place_partials(state, w, d)
    elif d.order == FCFS:
        _place_partials(state, w, d)
        while queue.num_waiting > 0 and admit(state, w, d, head(state, worker.queue, SET_ARRIVAL)):
            pass
    elif d.order == MOORE_HODGSON:
        place_moore_hodgson(state, w, d)
    else:
        place_merged(state, w, d)


@njit
def _place_partials(state: State, w, d: Decision) -> None:
    """Chunks of partly prefilled requests in list order."""
    worker = state.workers[w]
    position = worker.leading_decodes
    while position < worker.num_running and worker.num_partial > 0:
        r = state.requests[state.running[w, position]]
        if r.in_batch > 0 or left_tokens(r) <= 0:
            position += 1
            continue
        tokens = chunk(worker, d, left_tokens(r))
        if tokens <= 0:
            return
        if place_partial(state, w, position, tokens, d):
            position += 1


# ---- 3. helping with prompts of other workers ----------------------------------------------------------------------
@njit
def _help(state: State, w, d: Decision) -> None:
    """Parallel prefill: with what room is left, chunks of long prompts that run elsewhere, in order of arrival."""
    worker, system = state.workers[w], state.system[0]
    if d.whole_prompts == 1 or d.padded == 1:
        return
    if d.packing == NEVER_MIX and worker.batch_size > worker.batch_prompts:
        return
    i = next_helpable(state, w, -1)
    while i >= 0 and worker.batch_size < system.max_running and system.num_transfers < state.transfers.shape[0]:
        r = state.requests[i]
        tokens = min(prefill_room(worker, d), d.chunk_tokens, left_tokens(r) - r.in_batch)
        blocks = blocks_for(tokens, system.block_tokens)
        held = r.computed_tokens + r.away_tokens + r.in_batch + tokens  # on its own worker, once gathered
        more = blocks_for(held, system.block_tokens) - r.blocks
        if tokens <= 0 or blocks > worker.free_blocks or more > state.workers[r.worker].free_blocks:
            return
        grow(state, r.worker, i, held)
        state.batch[w, worker.batch_size, 0] = i
        state.batch[w, worker.batch_size, 1] = tokens
        worker.batch_size += 1
        worker.batch_tokens += tokens
        worker.batch_prefill += tokens
        worker.batch_prompts += 1
        worker.free_blocks -= blocks
        r.away_tokens += tokens
        r.num_helpers += 1
        add_transfer(state, i, w, r.worker, COMPUTING, tokens, 1, blocks)
        i = next_helpable(state, w, i)


@njit
def next_helpable(state: State, w, after) -> int:
    """The first prompt in order of arrival, after request `after`, that worker w may help to prefill; -1 if none."""
    system, best = state.system[0], -1
    for other in range(state.workers.shape[0]):
        owner = state.workers[other]
        if other == w or owner.num_partial == 0:
            continue
        for position in range(owner.num_running):
            i = state.running[other, position]
            if i <= after or (best >= 0 and i >= best):
                continue
            r = state.requests[i]
            left = left_tokens(r) - r.in_batch
            wanted = r.computed_tokens < r.prefill_tokens and left >= system.helpers_min_tokens
            if wanted and r.num_helpers + 1 < system.helpers_max_workers:
                best = i
    return best


@njit
def attention(state: State, w) -> tuple[int, int]:
    """What the batch of worker w attends to.

    Returns:
        Tokens with KV of its decodes before this step; the sum over its prefill entries of chunk tokens x context,
        where the context is what had been computed or taken by workers before, plus the chunk itself.
    """
    cached_tokens, token_context = 0, 0
    for k in range(state.workers[w].batch_size):
        r, tokens = state.requests[state.batch[w, k, 0]], state.batch[w, k, 1]
        if r.computed_tokens < r.prefill_tokens:
            token_context += tokens * (r.computed_tokens + r.away_tokens + r.in_batch)
        else:
            cached_tokens += r.computed_tokens
    return cached_tokens, token_context
