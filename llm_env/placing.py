"""Placing one request in the batch that is being formed: a decode, a chunk of a prompt, an admission from the queue.

Knows the queue and KV memory; who is placed, and in which order, is decided in `llm_env.batching` and `llm_env.orders`.
"""

from __future__ import annotations

import numpy as np

from llm_env.clients import client_admitted
from llm_env.dtypes import FAR, RUNNING
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


@njit(forceinline=True)
def _missing_blocks(r, block_tokens) -> int:
    """Blocks that REQUEST r lacks for one more token."""
    if r.blocks * block_tokens > r.computed_tokens:  # dividing for every decode would cost a tenth of the time
        return 0
    return blocks_for(r.computed_tokens + 1, block_tokens) - r.blocks


@njit(forceinline=True)
def _wanted_blocks(r, missing) -> int:
    """Blocks that must be free for a decode: vLLM v0 and Vidur want one even if it is not taken."""
    return max(missing, 1) if r.kv_rule == KV_PROMPT else missing


@njit
def place_decode(state: State, w, position, d: Decision) -> bool:
    """Places the decode at a position of the running list, evicting if it must; False if it was evicted itself."""
    i = state.running[w, position]
    r, worker = state.requests[i], state.workers[w]
    wanted = _wanted_blocks(r, _missing_blocks(r, state.system[0].block_tokens))
    if worker.free_blocks < wanted and not make_room(state, w, position, wanted, d):
        return False
    grow(state, w, i, r.computed_tokens + 1)
    place(worker, state.batch[w], r, i, 1, False, state.system[0].now_s)
    return True


@njit(forceinline=True)
def may_decode(system, r, within_s, gate) -> bool:
    """True if REQUEST r is a decode that is not in the batch, whose next token is late within `within_s` and that does
    not stand at the gate, which is after `gate` tokens if that is above 0.
    """
    if r.in_batch > 0 or r.computed_tokens < r.prefill_tokens or (gate > 0 and r.emitted_tokens == gate):
        return False
    return within_s >= FAR or r.last_token_s + r.tbt_target_s - system.now_s <= within_s


@njit
def place_fitting_decodes(requests, running, batch, worker, system, within_s, gate, most, leading) -> int:
    """Places decodes of a worker in list order, at most `most`, until one finds no block.

    The arrays are rows of the State, not the State itself, and counters are kept in variables: the loop runs once per
    request and batch.

    Args:
        within_s, gate: see `may_decode`.
        leading: stop at the first request that may not.

    Returns:
        The position at which it stopped, the number of running requests if all are placed.
    """
    block_tokens, num_running = system.block_tokens, worker.num_running
    before, free_blocks, first_other = worker.batch_size, worker.free_blocks, num_running
    size, position = before, 0
    while position < num_running and size - before < most:
        i = running[position]
        r = requests[np.uintp(i)]
        if not may_decode(system, r, within_s, gate):
            first_other = min(first_other, position)
            if leading:
                break
            position += 1
            continue
        missing = _missing_blocks(r, block_tokens)
        if free_blocks < 1 + missing and free_blocks < _wanted_blocks(r, missing):
            break
        if missing > 0:
            free_blocks -= missing
            r.blocks += missing
        r.in_batch = 1
        batch[size, 0] = i
        batch[size, 1] = 1
        size += 1
        position += 1
    worker.batch_size = size
    worker.batch_tokens += size - before
    worker.free_blocks = free_blocks
    worker.leading_decodes = min(first_other, position)
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
        worker.leading_decodes = min(worker.leading_decodes, position)
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
