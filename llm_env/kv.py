"""KV memory of a worker in blocks: how many a request needs, and eviction with recompute. Knows records and queue.

Source: Kwon et al., "Efficient Memory Management for LLM Serving with PagedAttention" (SOSP 2023), sections 4.3-4.5:
paged blocks, and preemption of the last request with all-or-nothing recompute.
"""

from __future__ import annotations

from llm_env.jit import njit
from llm_env.queue import push_front
from llm_env.records import KV_CHUNK, KV_PROMPT, WAITING, Decision, State


@njit(forceinline=True)
def blocks_for(tokens, block_tokens) -> int:
    """Blocks that hold `tokens` tokens."""
    return (tokens + block_tokens - 1) // block_tokens


@njit(forceinline=True)
def grow(state: State, w, i, tokens) -> None:
    """Gives request i on worker w the blocks for `tokens` tokens in all; they must be free."""
    r = state.requests[i]
    blocks = blocks_for(tokens, state.system[0].block_tokens)
    if blocks > r.blocks:
        state.workers[w].free_blocks -= blocks - r.blocks
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


@njit
def admission_blocks(state: State, w, d: Decision, i, chunk_tokens) -> int:
    """Blocks that request i takes if it is admitted to worker w now with a first chunk; -1 if memory forbids it.

    KV_PROMPT (vLLM v0, Sarathi in Vidur) takes the whole prompt's blocks; KV_CHUNK (vLLM v1) needs them free but takes
    the chunk's; KV_RESERVE (Orca) takes `reserve_tokens` or the prompt, whichever is more. A watermark's share of the
    blocks must stay free. An empty worker admits whatever fits, or nothing would ever be served.
    """
    r, system, worker = state.requests[i], state.system[0], state.workers[w]
    prompt = blocks_for(r.prefill_tokens, system.block_tokens)
    if d.kv_rule == KV_CHUNK:
        needed, taken = prompt, blocks_for(chunk_tokens, system.block_tokens)
    elif d.kv_rule == KV_PROMPT:
        needed, taken = prompt, prompt
    else:
        needed = max(prompt, blocks_for(d.reserve_tokens, system.block_tokens))
        taken = needed
    watermark = system.watermark if system.watermark >= 0 else d.watermark
    kept = int(watermark * system.kv_blocks) if system.kv_limited == 1 else 0
    if worker.free_blocks - needed >= kept:
        return taken
    if worker.num_running == 0:
        return min(taken, worker.free_blocks)
    return -1


@njit
def evict(state: State, w, position) -> None:
    """Evicts running[w, position]: its KV is lost, and it waits at the front to prefill all it had again."""
    worker, system = state.workers[w], state.system[0]
    i = state.running[w, position]
    r = state.requests[i]
    for k in range(position, worker.num_running - 1):
        state.running[w, k] = state.running[w, k + 1]
    worker.num_running -= 1
    if r.computed_tokens < r.prefill_tokens:
        worker.num_partial -= 1
    release(state, w, i)
    r.status = WAITING
    r.prefill_tokens = r.prompt_tokens + r.emitted_tokens
    r.computed_tokens = 0
    r.evictions += 1
    worker.batch_evicted += 1
    system.num_evictions += 1
    push_front(state, i)


@njit
def make_room(state: State, w, position, blocks) -> bool:
    """Evicts from the end of the running list until `blocks` are free for running[w, position].

    Victims are the last running requests that are not yet in the batch; without another the request itself goes, and
    the answer is False.
    """
    worker = state.workers[w]
    while worker.free_blocks < blocks:
        victim = worker.num_running - 1
        while victim > position and state.requests[state.running[w, victim]].in_batch == 1:
            victim -= 1
        evict(state, w, victim)
        if victim == position:
            return False
    return True
