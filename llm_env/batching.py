"""`form_batch`: turns a Decision into the next batch of one worker. Who decodes, who prefills, who is admitted, who is
evicted. Knows the queue and KV memory; nothing here moves the clock.

Sources: list order and preemption as vLLM v1 (`vllm/v1/core/sched/scheduler.py`); decodes, then partial prefills, then
new requests as Sarathi-Serve (Agrawal et al., OSDI 2024, Algorithm 3); prefill-only batches as vLLM v0 (Kwon et al.,
SOSP 2023); iteration-level scheduling as Orca (Yu et al., OSDI 2022, section 3.1); Moore-Hodgson as Moore, "An n job,
one machine sequencing algorithm for minimizing the number of late jobs" (Management Science 15(1), 1968).
"""

from __future__ import annotations

from llm_env.jit import njit
from llm_env.kv import admission_blocks, blocks_for, grow, make_room
from llm_env.queue import head, leave, member_request, tree_next
from llm_env.records import (
    EARLIEST_DEADLINE,
    FCFS,
    INF,
    KV_PROMPT,
    LEAST_SLACK,
    LIST_ORDER,
    MOORE_HODGSON,
    NEVER_MIX,
    PREFILL_FIRST,
    RUNNING,
    SET_ARRIVAL,
    SET_DEADLINE,
    SET_FEASIBLE,
    SET_HOPELESS,
    SET_LATEST_START,
    SET_PROMPT,
    SHORTEST_PREFILL,
    UNLIMITED,
    Decision,
    State,
)
from llm_env.service import mean_seconds, prefill_seconds

WINDOW = 64  # Moore-Hodgson looks at this many feasible waiting requests, those with the earliest deadlines


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
    if d.packing == NEVER_MIX:
        _place_prefills(state, w, d)
        if worker.batch_size == 0:
            _place_decodes(state, w, d.max_decodes)
    elif d.packing == PREFILL_FIRST:
        _place_prefills(state, w, d)
        left = d.token_budget - worker.batch_tokens if worker.batch_prompts > 0 else UNLIMITED
        _place_decodes(state, w, min(d.max_decodes, left))
    elif d.packing == LIST_ORDER:
        _place_list(state, w, d)
        _place_prefills(state, w, d)
    else:
        _place_decodes(state, w, d.max_decodes)
        _place_prefills(state, w, d)


# ---- 1. placing one request ----------------------------------------------------------------------------------------
@njit(forceinline=True)
def _place(state: State, w, i, tokens, prefill) -> None:
    worker, r = state.workers[w], state.requests[i]
    k = worker.batch_size
    state.batch[w, k, 0] = i
    state.batch[w, k, 1] = tokens
    worker.batch_size = k + 1
    worker.batch_tokens += tokens
    if prefill:
        worker.batch_prefill += tokens
        worker.batch_prompts += 1
        worker.batch_longest = max(worker.batch_longest, tokens)
    r.in_batch = 1
    if r.first_scheduled_s < 0:
        r.first_scheduled_s = state.system[0].now_s


@njit(forceinline=True)
def _prefill_room(worker, d: Decision) -> int:
    """Prefill tokens that the batch may still take."""
    return min(d.token_budget - worker.batch_tokens, d.prefill_tokens - worker.batch_prefill)


@njit(forceinline=True)
def _chunk(worker, d: Decision, remaining) -> int:
    """Tokens that a prompt with `remaining` tokens to prefill gets in this batch; 0 if it must wait."""
    room = _prefill_room(worker, d)
    if room <= 0:
        return 0
    if d.padded == 1:
        padded = (worker.batch_prompts + 1) * max(worker.batch_longest, remaining)
        return remaining if padded <= d.token_budget or worker.batch_prompts == 0 else 0
    if d.whole_prompts == 1:
        return remaining if remaining <= room or worker.batch_prompts == 0 else 0
    return max(0, min(remaining, room, d.chunk_tokens))


@njit(forceinline=True)
def _place_decode(state: State, w, position) -> bool:
    """Places the decode at a position of the running list, evicting if it must; False if it was evicted itself."""
    i = state.running[w, position]
    r, worker = state.requests[i], state.workers[w]
    needed = blocks_for(r.computed_tokens + 1, state.system[0].block_tokens) - r.blocks
    spare = 1 if r.kv_rule == KV_PROMPT else 0  # vLLM v0 and Vidur want a free block even if it is not taken
    if worker.free_blocks < max(needed, spare) and not make_room(state, w, position, max(needed, spare)):
        return False
    grow(state, w, i, r.computed_tokens + 1)
    _place(state, w, i, 1, False)
    return True


@njit
def _place_partial(state: State, w, position, tokens) -> bool:
    """Places a chunk of the partly prefilled request at a position; False if it was evicted for want of memory."""
    i = state.running[w, position]
    r, worker = state.requests[i], state.workers[w]
    needed = blocks_for(r.computed_tokens + tokens, state.system[0].block_tokens) - r.blocks
    if worker.free_blocks < needed and not make_room(state, w, position, needed):
        return False
    grow(state, w, i, r.computed_tokens + tokens)
    _place(state, w, i, tokens, True)
    return True


@njit
def _admit(state: State, w, d: Decision, i) -> bool:
    """Admits waiting request i to worker w with its first chunk; False if budget, slots or memory forbid it."""
    worker, r = state.workers[w], state.requests[i]
    if worker.batch_evicted > 0 or worker.num_running >= min(d.max_running, state.system[0].max_running):
        return False
    tokens = _chunk(worker, d, r.prefill_tokens)
    if tokens <= 0:
        return False
    blocks = admission_blocks(state, w, d, i, tokens)
    if blocks < 0:
        return False
    leave(state, i)
    r.status = RUNNING
    r.worker = w
    r.kv_rule = d.kv_rule
    r.blocks = blocks
    worker.free_blocks -= blocks
    position = worker.num_running
    if d.packing == NEVER_MIX:  # vLLM v0 keeps its running list in order of arrival
        while position > 0 and state.running[w, position - 1] > i:
            state.running[w, position] = state.running[w, position - 1]
            position -= 1
    state.running[w, position] = i
    worker.num_running += 1
    worker.num_partial += 1
    _place(state, w, i, tokens, True)
    return True


# ---- 2. running requests -------------------------------------------------------------------------------------------
@njit(forceinline=True)
def _place_decodes(state: State, w, limit) -> None:
    """Places decodes in list order; if there are more than `limit`, those that wait longest for their next token."""
    worker = state.workers[w]
    latest_s, latest_i = INF, 0
    if limit < worker.num_running - worker.num_partial:
        if limit <= 0:
            return
        latest_s, latest_i = _cut(state, w, limit)
    position = 0
    requests, running = state.requests, state.running[w]
    while position < worker.num_running:
        i = running[position]
        r = requests[i]
        waits = r.last_token_s < latest_s or (r.last_token_s == latest_s and i <= latest_i)
        decodes = r.in_batch == 0 and r.computed_tokens >= r.prefill_tokens
        if not (decodes and waits) or _place_decode(state, w, position):
            position += 1


@njit
def _cut(state: State, w, limit) -> tuple[float, int]:
    """Last token time and index of the limit-th decode, sorted by last token time (oldest first), then index."""
    times, ids = state.scratch[0], state.scratch[1]
    count = 0
    for position in range(state.workers[w].num_running):
        i = state.running[w, position]
        r = state.requests[i]
        if r.computed_tokens < r.prefill_tokens:
            continue
        k = count
        while k > 0 and (times[k - 1] > r.last_token_s or (times[k - 1] == r.last_token_s and ids[k - 1] > i)):
            times[k], ids[k] = times[k - 1], ids[k - 1]
            k -= 1
        times[k], ids[k] = r.last_token_s, i
        count += 1
    return times[limit - 1], int(ids[limit - 1])


@njit
def _place_list(state: State, w, d: Decision) -> None:
    """vLLM v1: running requests in list order, decodes and chunks alike, while the budget lasts."""
    worker = state.workers[w]
    position, decodes = 0, 0
    while position < worker.num_running and worker.batch_tokens < d.token_budget:
        r = state.requests[state.running[w, position]]
        if r.computed_tokens >= r.prefill_tokens:
            if decodes >= d.max_decodes or _place_decode(state, w, position):
                position += 1
                decodes += 1
        else:
            tokens = _chunk(worker, d, r.prefill_tokens - r.computed_tokens)
            if tokens <= 0 or _place_partial(state, w, position, tokens):
                position += 1


# ---- 3. prefill in a queue order -----------------------------------------------------------------------------------
@njit
def _place_prefills(state: State, w, d: Decision) -> None:
    worker = state.workers[w]
    if _prefill_room(worker, d) <= 0 or (worker.num_partial == 0 and state.system[0].num_waiting == 0):
        return
    if d.order == FCFS:
        _place_partials(state, w, d)
        while state.system[0].num_waiting > 0 and _admit(state, w, d, head(state, SET_ARRIVAL)):
            pass
    elif d.order == MOORE_HODGSON:
        _place_moore_hodgson(state, w, d)
    else:
        _place_merged(state, w, d)


@njit
def _place_partials(state: State, w, d: Decision) -> None:
    """Chunks of partly prefilled requests in list order."""
    worker = state.workers[w]
    position = 0
    while position < worker.num_running and worker.num_partial > 0:
        r = state.requests[state.running[w, position]]
        if r.in_batch == 1 or r.computed_tokens >= r.prefill_tokens:
            position += 1
            continue
        tokens = _chunk(worker, d, r.prefill_tokens - r.computed_tokens)
        if tokens <= 0:
            return
        if _place_partial(state, w, position, tokens):
            position += 1


@njit
def _due_s(r) -> float:
    """When the prefill of REQUEST r should have ended: its TTFT deadline, or its next token's if it was evicted."""
    return r.arrival_s + r.ttft_target_s if r.emitted_tokens == 0 else r.last_token_s + r.tbt_target_s


@njit
def _key(state: State, r, order) -> float:
    """What an order sorts by, smallest first."""
    remaining = r.prefill_tokens - r.computed_tokens
    if order == SHORTEST_PREFILL:
        return float(remaining)
    if order == EARLIEST_DEADLINE:
        return _due_s(r)
    return _due_s(r) - prefill_seconds(state.system[0], remaining)  # LEAST_SLACK


@njit
def _first_partial(state: State, w, order) -> tuple[int, float]:
    """Position and key of the unplaced partial that an order puts first; (-1, inf) if there is none."""
    worker = state.workers[w]
    best, best_key = -1, INF
    if worker.num_partial > 0:
        for position in range(worker.num_running):
            r = state.requests[state.running[w, position]]
            if r.in_batch == 0 and r.computed_tokens < r.prefill_tokens:
                key = _key(state, r, order)
                if key < best_key:
                    best, best_key = position, key
    return best, best_key


@njit
def _place_merged(state: State, w, d: Decision) -> None:
    """Partial and waiting requests in one order by key; evicted requests first, ties to the partial."""
    worker, system = state.workers[w], state.system[0]
    if d.order == SHORTEST_PREFILL:
        which_set = SET_PROMPT
    elif d.order == LEAST_SLACK:
        which_set = SET_LATEST_START
    else:
        which_set = SET_DEADLINE
    admitting = True
    while _prefill_room(worker, d) > 0:
        position, partial_key = _first_partial(state, w, d.order)
        i = head(state, which_set) if admitting else -1
        if i >= 0 and (system.num_resumed > 0 or _key(state, state.requests[i], d.order) < partial_key):
            admitting = _admit(state, w, d, i)
        elif position >= 0:
            r = state.requests[state.running[w, position]]
            tokens = _chunk(worker, d, r.prefill_tokens - r.computed_tokens)
            if tokens <= 0:
                return
            _place_partial(state, w, position, tokens)
        else:
            return


# ---- 4. Moore-Hodgson ----------------------------------------------------------------------------------------------
@njit
def _place_moore_hodgson(state: State, w, d: Decision) -> None:
    """Evicted requests; then earliest deadline first, the dropped behind; then the rest; then the hopeless."""
    system = state.system[0]
    admitting = True
    while admitting and system.num_resumed > 0:
        admitting = _admit(state, w, d, head(state, SET_ARRIVAL))
    count = _moore_hodgson(state, w, d)
    ids = state.scratch[0]
    for k in range(count):
        i = int(ids[k])
        r = state.requests[i]
        if r.status == RUNNING:
            if r.in_batch == 0:
                tokens = _chunk(state.workers[w], d, r.prefill_tokens - r.computed_tokens)
                position = _position(state, w, i)
                if tokens > 0:
                    _place_partial(state, w, position, tokens)
        elif admitting:
            admitting = _admit(state, w, d, i)
    for which_set in (SET_FEASIBLE, SET_HOPELESS):
        while admitting:
            member = tree_next(state.sets[which_set], state.levels, 0)
            if member < 0:
                break
            admitting = _admit(state, w, d, member_request(state, which_set, member))


@njit
def _position(state: State, w, i) -> int:
    position = 0
    while state.running[w, position] != i:
        position += 1
    return position


@njit
def _candidates(state: State, w) -> int:
    """Writes to scratch[0] the unplaced partials and the WINDOW most urgent feasible requests, by deadline."""
    ids, due = state.scratch[0], state.scratch[1]
    count = 0
    members, levels = state.sets[SET_FEASIBLE], state.levels
    member = tree_next(members, levels, 0)
    while member >= 0 and count < WINDOW:
        i = member_request(state, SET_FEASIBLE, member)
        ids[count], due[count] = i, _due_s(state.requests[i])
        count += 1
        member = tree_next(members, levels, member + 1)
    if state.workers[w].num_partial > 0:
        for position in range(state.workers[w].num_running - 1, -1, -1):  # so that equals keep their list order
            i = state.running[w, position]
            r = state.requests[i]
            if r.in_batch == 0 and r.computed_tokens < r.prefill_tokens:
                k, due_s = count, _due_s(r)
                while k > 0 and due[k - 1] >= due_s:
                    ids[k], due[k] = ids[k - 1], due[k - 1]
                    k -= 1
                ids[k], due[k] = i, due_s
                count += 1
    return count


@njit
def _moore_hodgson(state: State, w, d: Decision) -> int:
    """Sorts the candidates into scratch[0]; returns how many.

    1. The present rate: a batch filled to the budget prefills `room` tokens in S(batch).
    2. In order of deadline, add each prompt's time x margin; whenever the sum passes the deadline at hand, drop the
       longest so far (Moore 1968).
    3. Sort by the key slack_weight * deadline + (1 - slack_weight) * time, to which the dropped add drop_weight TTFT
       targets. With the defaults (1 and a very large number) that is earliest deadline first, the dropped at the back.
    """
    worker, system = state.workers[w], state.system[0]
    count = _candidates(state, w)
    ids, due, needs, dropped = state.scratch[0], state.scratch[1], state.scratch[2], state.scratch[3]
    room = min(_prefill_room(worker, d), 1 << 20)
    if room <= 0 or count == 0:
        return 0
    seconds_per_token = mean_seconds(system, worker.batch_tokens + room) / room * d.margin
    total_s = 0.0
    for k in range(count):
        r = state.requests[int(ids[k])]
        due[k] -= system.now_s
        needs[k] = (r.prefill_tokens - r.computed_tokens) * seconds_per_token
        dropped[k] = 0.0
        total_s += needs[k]
        while total_s > due[k]:
            longest = -1
            for q in range(k + 1):
                if dropped[q] == 0.0 and (longest < 0 or needs[q] > needs[longest]):
                    longest = q
            if longest < 0:
                break
            dropped[longest] = 1.0
            total_s -= needs[longest]
    for k in range(count):
        behind_s = dropped[k] * d.drop_weight * system.ttft_target_s
        dropped[k] = d.slack_weight * due[k] + (1.0 - d.slack_weight) * needs[k] + behind_s
    _sort_by_key(ids, dropped, count)
    return count


@njit
def _sort_by_key(ids, keys, count) -> None:
    """Stable insertion sort: the list is nearly sorted already."""
    for k in range(1, count):
        i, key, q = ids[k], keys[k], k
        while q > 0 and keys[q - 1] > key:
            ids[q], keys[q] = ids[q - 1], keys[q - 1]
            q -= 1
        ids[q], keys[q] = i, key
