"""The prefix cache: KV that finished turns of a session leave on their worker for the next turn. Knows the records.

Source: Kwon et al., "Efficient Memory Management for LLM Serving with PagedAttention" (SOSP 2023), section 4.4 (shared
prefixes), and vLLM's automatic prefix caching: whole blocks, least recently used first, the last blocks of a sequence
before its first. Here a cached sequence has one successor, the next turn of its session.
"""

from __future__ import annotations

from llm_env.dtypes import FINISHED, NOBODY
from llm_env.jit import njit
from llm_env.records import State


@njit
def hit_blocks(state: State, w, i) -> int:
    """Blocks of request i's prompt that worker w has from the previous turn; the last token is never among them."""
    r, system = state.requests[i], state.system[0]
    if system.prefix_cache == 0 or r.previous < 0 or r.emitted_tokens > 0:
        return 0
    p = state.requests[r.previous]
    if p.status != FINISHED or p.worker != w:
        return 0
    return min(p.cached_blocks, r.shared_tokens // system.block_tokens, (r.prompt_tokens - 1) // system.block_tokens)


@njit
def take_over(state: State, w, i) -> None:
    """Request i, admitted to worker w, starts with the blocks it has there; the previous turn leaves the cache."""
    hit = hit_blocks(state, w, i)
    if hit == 0:
        return
    r, worker = state.requests[i], state.workers[w]
    p = state.requests[r.previous]
    worker.cached_blocks -= p.cached_blocks
    worker.free_blocks += p.cached_blocks - hit
    _unlink(state, w, r.previous)
    p.cached_blocks = 0
    r.blocks = hit
    r.hit_tokens = hit * state.system[0].block_tokens
    r.computed_tokens = r.hit_tokens


@njit
def keep(state: State, w, i) -> None:
    """Finished request i leaves its full blocks in the cache of worker w; the rest are free."""
    r, worker = state.requests[i], state.workers[w]
    full = min(r.blocks, r.computed_tokens // state.system[0].block_tokens)
    worker.free_blocks += r.blocks - full
    r.blocks = 0
    if full == 0:
        return
    r.cached_blocks = full
    worker.cached_blocks += full
    r.before, r.next = worker.cache_last, NOBODY
    if worker.cache_last == NOBODY:
        worker.cache_first = i
    else:
        state.requests[worker.cache_last].next = i
    worker.cache_last = i


@njit
def reclaim(state: State, w, blocks) -> None:
    """Frees cached blocks until `blocks` are free or none is cached."""
    worker = state.workers[w]
    while worker.free_blocks < blocks and worker.cache_first != NOBODY:
        i = worker.cache_first
        r = state.requests[i]
        taken = min(r.cached_blocks, blocks - worker.free_blocks)
        r.cached_blocks -= taken
        worker.cached_blocks -= taken
        worker.free_blocks += taken
        if r.cached_blocks == 0:
            _unlink(state, w, i)


@njit
def _unlink(state: State, w, i) -> None:
    r, worker = state.requests[i], state.workers[w]
    if r.before == NOBODY:
        worker.cache_first = r.next
    else:
        state.requests[r.before].next = r.next
    if r.next == NOBODY:
        worker.cache_last = r.before
    else:
        state.requests[r.next].before = r.before
    r.before, r.next = NOBODY, NOBODY
