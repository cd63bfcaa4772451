"""KV memory of a worker in blocks: how many a request needs, who is evicted, and what swapped requests come back to.

Source: Kwon et al., "Efficient Memory Management for LLM Serving with PagedAttention" (SOSP 2023), sections 4.3-4.5:
paged blocks, preemption of the last request, recompute or swap of all it has. Knows records, queue and prefix cache.
"""

from __future__ import annotations

from llm_env.clients import client_waits_again
from llm_env.dtypes import MOVING, NOBODY, SWAPPED, WAITING
from llm_env.jit import njit
from llm_env.prefix import hit_blocks, reclaim
from llm_env.queue import push_front
from llm_env.records import (
    KV_CHUNK,
    KV_DECLARED,
    KV_ESTIMATE,
    KV_RESERVE,
    VICTIM_FEWEST,
    VICTIM_LAST,
    Decision,
    State,
)


@njit(forceinline=True)
def blocks_for(tokens, block_tokens) -> int:
    """Blocks that hold `tokens` tokens."""
    return (tokens + block_tokens - 1) // block_tokens


@njit(forceinline=True)
def grow(state: State, w, i, tokens) -> None:
    """Gives request i on worker w the blocks for `tokens` tokens in all; they must be free or cached."""
    r, worker = state.requests[i], state.workers[w]
    blocks = blocks_for(tokens, state.system[0].block_tokens)
    if blocks > r.blocks:
        if blocks - r.blocks > worker.free_blocks:
            reclaim(state, w, blocks - r.blocks)
        worker.free_blocks -= blocks - r.blocks
        r.blocks = blocks


@njit(forceinline=True)
def release(state: State, w, i) -> None:
    """Frees all blocks of request i on worker w."""
    r = state.requests[i]
    state.workers[w].free_blocks += r.blocks
    r.blocks = 0


@njit
def never_fits(state: State, i) -> bool:
    """True if request i, alone on a worker, would need more blocks than there are: it is rejected at arrival.

    It holds L + B - 1 tokens at most: the last output token is never computed on.
    """
    r, system = state.requests[i], state.system[0]
    return blocks_for(r.prompt_tokens + r.output_tokens - 1, system.block_tokens) > system.kv_blocks


# ---- admission -----------------------------------------------------------------------------------------------------
@njit
def admission_blocks(state: State, w, d: Decision, i, chunk_tokens) -> int:
    """Blocks that request i will hold if it is admitted to worker w now with a first chunk; -1 if memory forbids it.

    KV_PROMPT (vLLM v0, Sarathi in Vidur) takes the whole prompt's blocks; KV_CHUNK (vLLM v1) needs them free but takes
    the chunk's; KV_RESERVE (Orca) takes `reserve_tokens` or the prompt, whichever is more; KV_DECLARED the prompt and
    the declared output; KV_ESTIMATE (SGLang, TensorRT-LLM) the prompt, if `_estimate_fits`. A watermark's share of the
    blocks must stay free. A worker with nothing in memory admits whatever fits, or nothing would ever be served. Cached
    blocks count as free.
    """
    r, system, worker = state.requests[i], state.system[0], state.workers[w]
    needed = blocks_for(r.prefill_tokens, system.block_tokens)
    taken = needed
    if d.kv_rule == KV_CHUNK:
        hit_tokens = hit_blocks(state, w, i) * system.block_tokens
        taken = blocks_for(hit_tokens + chunk_tokens, system.block_tokens)
    elif d.kv_rule == KV_RESERVE:
        needed = max(needed, blocks_for(d.reserve_tokens, system.block_tokens))
        taken = needed
    elif d.kv_rule == KV_DECLARED:
        needed = max(needed, blocks_for(r.prompt_tokens + r.declared_tokens - 1, system.block_tokens))
        taken = needed
    available = worker.free_blocks + worker.cached_blocks
    if available - needed >= watermark_blocks(system, d) and (
        d.kv_rule != KV_ESTIMATE or _estimate_fits(state, w, d, i)
    ):
        return taken
    if available == system.kv_blocks:
        return min(taken, available)
    return -1


@njit(forceinline=True)
def watermark_blocks(system, d: Decision) -> int:
    """Blocks that an admission must leave free."""
    watermark = system.watermark if system.watermark >= 0 else d.watermark
    return int(watermark * system.kv_blocks) if system.kv_limited == 1 else 0


@njit
def _estimate_fits(state: State, w, d: Decision, i) -> bool:
    """True if request i's prompt and output fit beside what the running requests are thought to need still.

    Those that were admitted in this step are thought to need all of their declared output, the others a share.
    """
    system, worker = state.system[0], state.workers[w]
    free = float(worker.free_blocks + worker.cached_blocks) * system.block_tokens
    for position in range(worker.num_running):
        r = state.requests[state.running[w, position]]
        if r.status == MOVING:
            continue
        admitted_now = r.in_batch > 0 and r.computed_tokens == r.hit_tokens
        free -= (1.0 if admitted_now else d.reserve_ratio) * _thought_left(r, d)
    r = state.requests[i]
    return r.prefill_tokens + _thought_left(r, d) <= free


@njit
def _thought_left(r, d: Decision) -> int:
    """Output tokens that REQUEST r is thought to need still."""
    left = max(0, r.declared_tokens - r.emitted_tokens)
    return min(left, d.reserve_tokens) if d.reserve_tokens > 0 else left


# ---- eviction ------------------------------------------------------------------------------------------------------
@njit
def make_room(state: State, w, position, blocks, d: Decision) -> bool:
    """Evicts until `blocks` are free or cached for running[w, position].

    Victims are requests from that position on that are not in the batch. If the request itself goes, the answer is
    False.
    """
    worker = state.workers[w]
    while worker.free_blocks + worker.cached_blocks < blocks:
        victim = _victim(state, w, position, d.victim)
        evict(state, w, victim, d.swap)
        if victim == position:
            return False
    return True


@njit
def _victim(state: State, w, position, rule) -> int:
    """Position of the next victim; the request at `position` itself is not in the batch."""
    num_running = state.workers[w].num_running
    if rule == VICTIM_LAST:
        victim = num_running - 1
        while victim > position and state.requests[state.running[w, victim]].in_batch > 0:
            victim -= 1
        return victim
    victim = position
    for k in range(position + 1, num_running):
        r, v = state.requests[state.running[w, k]], state.requests[state.running[w, victim]]
        if r.in_batch > 0:
            continue
        if rule == VICTIM_FEWEST:
            fewer = r.emitted_tokens < v.emitted_tokens
            if fewer or (r.emitted_tokens == v.emitted_tokens and r.prompt_tokens >= v.prompt_tokens):
                victim = k
        elif r.weight <= v.weight:
            victim = k
    return victim


@njit
def evict(state: State, w, position, swap) -> None:
    """Evicts running[w, position]. Its KV is lost, and it waits at the front to prefill all it had again; or, with
    `swap`, unless it is alone, its KV goes to the host and it waits for its blocks.
    """
    worker, system = state.workers[w], state.system[0]
    i = state.running[w, position]
    r = state.requests[i]
    alone = worker.num_running == 1
    unlist(state, w, position)
    if r.computed_tokens < r.prefill_tokens:
        worker.num_partial -= 1
    release(state, w, i)
    r.evictions += 1
    r.away_tokens = 0
    r.num_helpers = 0
    worker.batch_evicted += 1
    system.num_evictions += 1
    if swap == 1 and not alone:
        r.status = SWAPPED
        worker.swap_tokens += r.computed_tokens
        _line_up_swapped(state, w, i)
        return
    r.status = WAITING
    r.prefill_tokens = r.prompt_tokens + r.emitted_tokens
    r.computed_tokens = 0
    r.hit_tokens = 0
    client_waits_again(state, i)
    push_front(state, i)


@njit
def position_of(state: State, w, i) -> int:
    """Where request i stands in the running list of worker w; it must be there."""
    position = 0
    while state.running[w, position] != i:
        position += 1
    return position


@njit
def unlist(state: State, w, position) -> None:
    """Takes running[w, position] out of the list; the others keep their order."""
    worker = state.workers[w]
    worker.num_running -= 1
    worker.summed = 0
    worker.leading_decodes = 0
    for k in range(position, worker.num_running):
        state.running[w, k] = state.running[w, k + 1]


# ---- swapped requests ----------------------------------------------------------------------------------------------
@njit
def _line_up_swapped(state: State, w, i) -> None:
    """Swapped request i lines up on worker w, in order of arrival."""
    worker, requests = state.workers[w], state.requests
    worker.num_swapped += 1
    if worker.swapped == NOBODY or worker.swapped > i:
        requests[i].next = worker.swapped
        worker.swapped = i
        return
    k = worker.swapped
    while requests[k].next != NOBODY and requests[k].next < i:
        k = requests[k].next
    requests[i].next = requests[k].next
    requests[k].next = i


@njit
def bring_back(state: State, w, d: Decision) -> int:
    """The first swapped request of worker w, if there is memory for it: it gets its blocks. -1 if not."""
    worker, system = state.workers[w], state.system[0]
    i = worker.swapped
    r = state.requests[i]
    blocks = blocks_for(r.computed_tokens, system.block_tokens)
    available = worker.free_blocks + worker.cached_blocks
    if available - (blocks + 1) < watermark_blocks(system, d) and available < system.kv_blocks:
        return NOBODY
    worker.swapped = r.next
    worker.num_swapped -= 1
    worker.swap_tokens += r.computed_tokens
    grow(state, w, i, r.computed_tokens)
    if r.computed_tokens < r.prefill_tokens:
        worker.num_partial += 1
    return i
