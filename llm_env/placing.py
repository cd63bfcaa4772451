"""Placing one request in the batch that is being formed: a decode, a chunk of a prompt, an admission from the queue.

Knows the queue and KV memory; who is placed, and in which order, is decided in `llm_env.batching` and `llm_env.orders`.
"""

from __future__ import annotations

from llm_env.clients import client_admitted
from llm_env.dtypes import RUNNING
from llm_env.jit import njit
from llm_env.kv import admission_blocks, blocks_for, bring_back, grow, make_room
from llm_env.prefix import hit_blocks, reclaim, take_over
from llm_env.queue import leave
from llm_env.records import KV_PROMPT, NEVER_MIX, Decision, State


@njit(forceinline=True)
def place(worker, batch, r, i, tokens, prefill, now_s) -> None:
    """Adds `tokens` tokens of request i to a batch.

    Args:
        worker: the WORKER whose batch it is.
        batch: (max_running, 2) its rows of State.batch.
        r: the REQUEST i.
    """
    k = worker.batch_size
    batch[k, 0] = i
    batch[k, 1] = tokens
    worker.batch_size = k + 1
    worker.batch_tokens += tokens
    if prefill:
        worker.batch_prefill += tokens
        worker.batch_prompts += 1
        worker.batch_longest = max(worker.batch_longest, tokens)
    r.in_batch = tokens
    if r.first_scheduled_s < 0:
        r.first_scheduled_s = now_s


@njit(forceinline=True)
def left_tokens(r) -> int:
    """Tokens of REQUEST r's prompt that nobody has computed or taken yet, but for its chunk in a batch."""
    return r.prefill_tokens - r.computed_tokens - r.away_tokens


@njit(forceinline=True)
def prefill_room(worker, d: Decision) -> int:
    """Prefill tokens that the batch may still take."""
    return min(d.token_budget - worker.batch_tokens, d.prefill_tokens - worker.batch_prefill)


@njit(forceinline=True)
def chunk(worker, d: Decision, remaining) -> int:
    """Tokens that a prompt with `remaining` tokens to prefill gets in this batch; 0 if it must wait."""
    room = prefill_room(worker, d)
    if room <= 0:
        return 0
    if d.padded == 1:
        padded = (worker.batch_prompts + 1) * max(worker.batch_longest, remaining)
        return remaining if padded <= d.token_budget or worker.batch_prompts == 0 else 0
    if d.whole_prompts == 1:
        return remaining if remaining <= room or worker.batch_prompts == 0 else 0
    return max(0, min(remaining, room, d.chunk_tokens))


@njit
def place_decode(state: State, w, position, d: Decision) -> bool:
    """Places the decode at a position of the running list, evicting if it must; False if it was evicted itself."""
    i = state.running[w, position]
    r, worker = state.requests[i], state.workers[w]
    needed = blocks_for(r.computed_tokens + 1, state.system[0].block_tokens) - r.blocks
    spare = 1 if r.kv_rule == KV_PROMPT else 0  # vLLM v0 and Vidur want a free block even if it is not taken
    if worker.free_blocks < max(needed, spare) and not make_room(state, w, position, max(needed, spare), d):
        return False
    grow(state, w, i, r.computed_tokens + 1)
    place(worker, state.batch[w], r, i, 1, False, state.system[0].now_s)
    return True


@njit(forceinline=True)
def _place_fitting(worker, batch, r, i, system) -> bool:
    """Places decode i unless it finds no block. Args: see `place`."""
    needed = 0
    if r.blocks * system.block_tokens <= r.computed_tokens:  # dividing for every decode would cost a tenth of the time
        needed = blocks_for(r.computed_tokens + 1, system.block_tokens) - r.blocks
    if worker.free_blocks < max(needed, 1 if r.kv_rule == KV_PROMPT else 0):
        return False
    if needed > 0:
        worker.free_blocks -= needed
        r.blocks += needed
    place(worker, batch, r, i, 1, False, system.now_s)
    return True


@njit
def place_fitting_decodes(requests, running, batch, worker, system) -> int:
    """Places every decode of a worker in list order, until one finds no block.

    The arrays are rows of the State, not the State itself: the loop runs once per request and batch.

    Returns:
        The position at which it stopped, the number of running requests if all are placed.
    """
    for position in range(worker.num_running):
        i = running[position]
        r = requests[i]
        if r.in_batch > 0 or r.computed_tokens < r.prefill_tokens:
            continue
        if not _place_fitting(worker, batch, r, i, system):
            return position
    return worker.num_running


@njit
def place_leading_decodes(requests, running, batch, worker, system, most) -> int:
    """Places the decodes that lead the running list, at most `most`, until one finds no block or a prompt comes.

    As `place_fitting_decodes` for speed.

    Returns:
        How many were placed.
    """
    position = 0
    while position < min(worker.num_running, most):
        i = running[position]
        r = requests[i]
        if r.computed_tokens < r.prefill_tokens or not _place_fitting(worker, batch, r, i, system):
            break
        position += 1
    return position


@njit
def place_partial(state: State, w, position, tokens, d: Decision) -> bool:
    """Places a chunk of the partly prefilled request at a position; False if it was evicted for want of memory."""
    i = state.running[w, position]
    r, worker = state.requests[i], state.workers[w]
    held = r.computed_tokens + r.away_tokens + tokens
    needed = blocks_for(held, state.system[0].block_tokens) - r.blocks
    if worker.free_blocks < needed and not make_room(state, w, position, needed, d):
        return False
    grow(state, w, i, held)
    place(worker, state.batch[w], r, i, tokens, True, state.system[0].now_s)
    return True


@njit
def admit(state: State, w, d: Decision, i) -> bool:
    """Admits waiting request i to worker w with its first chunk; False if budget, slots or memory forbid it."""
    worker, r, system = state.workers[w], state.requests[i], state.system[0]
    if worker.batch_evicted > 0 or worker.num_swapped > 0 or worker.num_running >= system.max_running:
        return False
    if worker.num_running - worker.num_moving >= d.max_running:
        return False
    hit_tokens = hit_blocks(state, w, i) * system.block_tokens
    tokens = chunk(worker, d, r.prefill_tokens - hit_tokens)
    if tokens <= 0:
        return False
    blocks = admission_blocks(state, w, d, i, tokens)
    if blocks < 0:
        return False
    leave(state, i)
    client_admitted(state, i)
    r.status = RUNNING
    r.worker = w
    r.kv_rule = d.kv_rule
    take_over(state, w, i)
    reclaim(state, w, blocks - r.blocks)
    worker.free_blocks -= blocks - r.blocks
    r.blocks = blocks
    worker.batch_admitted += 1
    worker.num_partial += 1
    _list(state, w, i, d)
    place(worker, state.batch[w], r, i, tokens, True, system.now_s)
    return True


@njit(forceinline=True)
def _list(state: State, w, i, d: Decision) -> int:
    """Adds request i to the running list: at its end; under NEVER_MIX, as vLLM v0, by arrival. Returns its position."""
    worker = state.workers[w]
    position = worker.num_running
    if d.packing == NEVER_MIX:
        while position > 0 and state.running[w, position - 1] > i:
            state.running[w, position] = state.running[w, position - 1]
            position -= 1
    state.running[w, position] = i
    worker.num_running += 1
    return position


@njit
def place_swapped(state: State, w, d: Decision, limit) -> None:
    """Swapped requests return, in order of arrival, while there is room; at most `limit` decode in this batch."""
    worker, system = state.workers[w], state.system[0]
    places = min(d.max_running, system.max_running)
    while worker.num_swapped > 0 and worker.batch_evicted == 0 and worker.num_running + worker.num_incoming < places:
        i = bring_back(state, w, d)
        if i < 0:
            return
        r = state.requests[i]
        r.status = RUNNING
        position = _list(state, w, i, d)
        if r.computed_tokens >= r.prefill_tokens and limit > 0:
            place_decode(state, w, position, d)
            limit -= 1
