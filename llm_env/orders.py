"""Queue orders: which partly prefilled or waiting request is prefilled next, and who decodes if not all may.

FCFS is in `llm_env.batching`: partial prompts in list order, then the queue. Here are the orders by a key and
Moore-Hodgson. Evicted requests stand before all others in every order.

Sources: Moore-Hodgson: Moore, "An n job, one machine sequencing algorithm for minimizing the number of late jobs"
(Management Science 15(1), 1968). Shortest predicted output: Fu et al., "Efficient LLM Scheduling by Learning to Rank"
(NeurIPS 2024). Response ratio: Brinch Hansen (1971). Fair clients: Sheng et al., "Fairness in Serving Large Language
Models" (OSDI 2024), Algorithm 2. Least attained: Wu et al., "Fast Distributed Inference Serving for Large Language
Models" (FastServe, arXiv 2305.05920), section 4.1, skip-join MLFQ. Priority: Cobham, "Priority assignment in waiting
line problems" (Operations Research 2(1), 1954).
"""

from __future__ import annotations

from llm_env.dtypes import INF, RUNNING
from llm_env.jit import njit
from llm_env.kv import position_of
from llm_env.least import (
    MAX_LEVEL,
    first_by_level,
    first_by_ratio,
    first_least,
    key_of,
    response_ratio,
    skip_join_level,
)
from llm_env.placing import admit, chunk, left_tokens, may_decode, place_partial, prefill_room
from llm_env.queue import head, member_request, tree_next
from llm_env.records import (
    CANDIDATES,
    DECODE_OLDEST,
    EARLIEST_DEADLINE,
    FAIR_CLIENTS,
    FCFS,
    KEY_PREDICTED,
    KEY_SERVICE,
    KEY_WEIGHT,
    LEAST_SLACK,
    MOST_RANKED,
    PREDICTED_SHORTEST,
    PRIORITY,
    RESPONSE_RATIO,
    SCORES,
    SET_ARRIVAL,
    SET_DEADLINE,
    SET_FEASIBLE,
    SET_HOPELESS,
    SET_LATEST_START,
    SET_PROMPT,
    SHORTEST_PREFILL,
    Decision,
    State,
)
from llm_env.service import mean_seconds, prefill_seconds

WINDOW = 64  # Moore-Hodgson looks at this many feasible waiting requests, those with the earliest deadlines


# ---- keys ----------------------------------------------------------------------------------------------------------
@njit
def due_s(r) -> float:
    """When the prefill of REQUEST r should have ended: its TTFT deadline, or its next token's if it was evicted."""
    return r.arrival_s + r.ttft_target_s if r.emitted_tokens == 0 else r.last_token_s + r.tbt_target_s


@njit
def _key(state: State, r, d: Decision) -> float:
    """What the decision's order sorts prompts by, smallest first."""
    order, system = d.order, state.system[0]
    if order == SHORTEST_PREFILL:
        return float(left_tokens(r))
    if order == EARLIEST_DEADLINE:
        return due_s(r)
    if order == LEAST_SLACK:
        return due_s(r) - prefill_seconds(system, left_tokens(r))
    if order == RESPONSE_RATIO:
        return -response_ratio(system.now_s - r.arrival_s, prefill_seconds(system, left_tokens(r)))
    return _standing(state, r, d)


@njit
def _standing(state: State, r, d: Decision) -> float:
    """The keys that do not depend on whether a request prefills or decodes."""
    system = state.system[0]
    if d.order == PRIORITY:
        return key_of(state, r, KEY_WEIGHT)
    if d.order == FAIR_CLIENTS:
        return key_of(state, r, KEY_SERVICE)
    if _starves(system, r, d):
        return -INF
    if d.order == PREDICTED_SHORTEST:
        return key_of(state, r, KEY_PREDICTED)
    return float(_level(system, r, d.quantum_s))


@njit
def _starves(system, r, d: Decision) -> bool:
    """True if REQUEST r got no token for so long that it goes first."""
    return d.starve_s > 0.0 and system.now_s - max(r.arrival_s, r.last_token_s) > d.starve_s


@njit
def _level(system, r, quantum_s) -> int:
    """Skip-join MLFQ: level l has the quantum quantum_s x 2^l. A prompt joins the first level whose quantum holds its
    prefill; whoever has used up the quanta down to a level stands in the next.
    """
    if quantum_s <= 0.0:
        return 0
    joined = skip_join_level(r.prefill_s, quantum_s)
    attained_s, level = 0.0, joined
    if r.emitted_tokens > 0:
        attained_s = r.prefill_s + (r.emitted_tokens - 1) * mean_seconds(system, 1) / system.fastest
    while level < MAX_LEVEL and quantum_s * ((1 << (level + 1)) - (1 << joined)) <= attained_s:
        level += 1
    return level


# ---- decodes, if not all may ---------------------------------------------------------------------------------------
@njit
def decode_key(state: State, r, i, d: Decision) -> float:
    """What decodes are sorted by, smallest first."""
    if d.decode_order == DECODE_OLDEST or d.order == SHORTEST_PREFILL or d.order == RESPONSE_RATIO:
        return r.last_token_s
    if d.order == FCFS:
        return float(i)
    if d.order < PREDICTED_SHORTEST:
        return r.last_token_s + r.tbt_target_s
    return _standing(state, r, d)


@njit
def closed_gate(state: State, w, d: Decision) -> int:
    """`gate_tokens` if too few decodes stand there for it to open, else 0: no gate."""
    if d.gate_tokens <= 0:
        return 0
    count = 0
    for position in range(state.workers[w].num_running):
        r = state.requests[state.running[w, position]]
        if r.in_batch == 0 and r.computed_tokens >= r.prefill_tokens and r.emitted_tokens == d.gate_tokens:
            count += 1
    return d.gate_tokens if count < d.gate_count else 0


@njit
def decode_cut(state: State, w, limit, d: Decision, within_s, gate) -> tuple[float, int]:
    """Key and index of the limit-th decode, sorted by key, then index; all may go if there are not more."""
    keys, ids = state.scratch[0], state.scratch[1]
    count = 0
    for position in range(state.workers[w].num_running):
        i = state.running[w, position]
        r = state.requests[i]
        if not may_decode(state.system[0], r, within_s, gate):
            continue
        key, k = decode_key(state, r, i, d), count
        while k > 0 and (keys[k - 1] > key or (keys[k - 1] == key and ids[k - 1] > i)):
            keys[k], ids[k] = keys[k - 1], ids[k - 1]
            k -= 1
        keys[k], ids[k] = key, i
        count += 1
    if count <= limit:
        return INF, state.requests.shape[0]
    return keys[limit - 1], int(ids[limit - 1])


# ---- orders by a key -----------------------------------------------------------------------------------------------
@njit
def _first_partial(state: State, w, d: Decision) -> tuple[int, float]:
    """Position and key of the unplaced partial that the order puts first; (-1, inf) if there is none."""
    worker = state.workers[w]
    best, best_key = -1, INF
    if worker.num_partial > 0:
        for position in range(worker.leading_decodes, worker.num_running):
            r = state.requests[state.running[w, position]]
            if r.in_batch == 0 and left_tokens(r) > 0:
                key = _key(state, r, d)
                if key < best_key or best < 0:
                    best, best_key = position, key
    return best, best_key


@njit
def first_waiting(state: State, q, d: Decision) -> int:
    """The request of queue q that the order puts first; -1 if nobody waits."""
    if d.order == SHORTEST_PREFILL:
        return head(state, q, SET_PROMPT)
    if d.order == EARLIEST_DEADLINE:
        return head(state, q, SET_DEADLINE)
    if d.order == LEAST_SLACK:
        return head(state, q, SET_LATEST_START)
    oldest = head(state, q, SET_ARRIVAL)
    if oldest < 0 or state.queues[q].num_resumed > 0:
        return oldest
    if d.order == RESPONSE_RATIO:
        return first_by_ratio(state, q)
    if d.order == PRIORITY:
        return first_least(state, q, KEY_WEIGHT)
    if d.order == FAIR_CLIENTS:
        return first_least(state, q, KEY_SERVICE) if state.system[0].num_clients > 1 else oldest
    if _starves(state.system[0], state.requests[oldest], d):
        return oldest  # nobody who waits has starved for longer
    if d.order == PREDICTED_SHORTEST:
        return first_least(state, q, KEY_PREDICTED)
    return first_by_level(state, q, d.quantum_s)


@njit
def place_merged(state: State, w, d: Decision) -> None:
    """Partial and waiting requests in one order by key; evicted requests first, ties to the partial."""
    worker = state.workers[w]
    queue = state.queues[worker.queue]
    admitting = True
    while prefill_room(worker, d) > 0:
        position, partial_key = _first_partial(state, w, d)
        i = first_waiting(state, worker.queue, d) if admitting else -1
        if i >= 0 and (position < 0 or queue.num_resumed > 0 or _key(state, state.requests[i], d) < partial_key):
            admitting = admit(state, w, d, i)
        elif position >= 0:
            tokens = chunk(worker, d, left_tokens(state.requests[state.running[w, position]]))
            if tokens <= 0:
                return
            place_partial(state, w, position, tokens, d)
        else:
            return


# ---- Moore-Hodgson -------------------------------------------------------------------------------------------------
@njit
def place_moore_hodgson(state: State, w, d: Decision) -> None:
    """Evicted requests; then earliest deadline first, the dropped behind; then the rest; then the hopeless."""
    worker = state.workers[w]
    q, queue = worker.queue, state.queues[worker.queue]
    admitting = True
    while admitting and queue.num_resumed > 0:
        admitting = admit(state, w, d, queue.front)
    count = moore_hodgson(state, w, d)
    ids = state.scratch[0]
    for k in range(count):
        i = int(ids[k])
        r = state.requests[i]
        if r.status == RUNNING:
            if r.in_batch == 0:
                tokens = chunk(worker, d, left_tokens(r))
                position = position_of(state, w, i)
                if tokens > 0:
                    place_partial(state, w, position, tokens, d)
        elif admitting:
            admitting = admit(state, w, d, i)
    for which_set in (SET_FEASIBLE, SET_HOPELESS):
        while admitting:
            member = tree_next(state.sets[q, which_set], state.levels, 0)
            if member < 0:
                break
            admitting = admit(state, w, d, member_request(state, which_set, member))


@njit
def _candidates(state: State, w) -> int:
    """Writes to scratch[0] the unplaced partials and the WINDOW most urgent feasible requests, by deadline."""
    ids, due = state.scratch[0], state.scratch[1]
    count = 0
    members, levels = state.sets[state.workers[w].queue, SET_FEASIBLE], state.levels
    member = tree_next(members, levels, 0)
    while member >= 0 and count < WINDOW:
        i = member_request(state, SET_FEASIBLE, member)
        ids[count], due[count] = i, due_s(state.requests[i])
        count += 1
        member = tree_next(members, levels, member + 1)
    if state.workers[w].num_partial > 0:
        for position in range(state.workers[w].num_running - 1, -1, -1):  # so that equals keep their list order
            i = state.running[w, position]
            r = state.requests[i]
            if r.in_batch == 0 and left_tokens(r) > 0:
                k, at_s = count, due_s(r)
                while k > 0 and due[k - 1] >= at_s:
                    ids[k], due[k] = ids[k - 1], due[k - 1]
                    k -= 1
                ids[k], due[k] = i, at_s
                count += 1
    return count


@njit
def moore_hodgson(state: State, w, d: Decision) -> int:
    """Sorts the candidates into scratch[0]; returns how many.

    1. The present rate: a batch filled to the budget prefills `room` tokens in S(batch).
    2. In order of deadline, add each prompt's time x margin; whenever the sum passes the deadline at hand, drop the
       longest so far (Moore 1968), or with a class_weight the longest for its weight.
    3. Sort by the key slack_weight * deadline + (1 - slack_weight) * time, to which the dropped add drop_weight TTFT
       targets. With the defaults (1 and a very large number) that is earliest deadline first, the dropped at the back.
    """
    worker, system = state.workers[w], state.system[0]
    count = _candidates(state, w)
    ids, due, needs, dropped = state.scratch[0], state.scratch[1], state.scratch[2], state.scratch[3]
    room = min(prefill_room(worker, d), 1 << 20)
    if room <= 0 or count == 0:
        return 0
    seconds_per_token = mean_seconds(system, worker.batch_tokens + room) / room * d.margin / worker.speed
    total_s = 0.0
    for k in range(count):
        r = state.requests[int(ids[k])]
        due[k] -= system.now_s
        needs[k] = left_tokens(r) * seconds_per_token
        # of those that are not dropped, minus what makes them the next to be
        dropped[k] = -needs[k] if d.class_weight == 0.0 else -needs[k] / r.weight**d.class_weight
        total_s += needs[k]
        while total_s > due[k]:
            longest = -1
            for q in range(k + 1):
                if dropped[q] <= 0.0 and (longest < 0 or dropped[q] < dropped[longest]):
                    longest = q
            if longest < 0:
                break
            dropped[longest] = 1.0
            total_s -= needs[longest]
    for k in range(count):
        behind_s = d.drop_weight * system.ttft_target_s if dropped[k] > 0.0 else 0.0
        dropped[k] = d.slack_weight * due[k] + (1.0 - d.slack_weight) * needs[k] + behind_s
    _sort_by_key(ids, dropped, count)
    if d.ranked == 1:
        _change_places(state, w, count)
    return count


@njit
def _change_places(state: State, w, count) -> None:
    """Candidates (`llm_env.ranking`) among the first `count` of scratch[0] share out the places that they have there.

    Sorted by j - MOST_RANKED / 2 x score, where j = 0, 1, ... is how they stand now: equal scores change nothing, and
    any order is that of some scores. All others keep their places.
    """
    ids, places, chosen, keys = state.scratch[0], state.scratch[1], state.scratch[2], state.scratch[3]
    candidates, scores, found = state.scratch[CANDIDATES], state.scratch[SCORES], 0
    for c in range(MOST_RANKED):
        place = 0
        while place < count and ids[place] != candidates[c]:
            place += 1
        if place == count:
            continue  # there is no such candidate, or it has just been evicted
        k = found
        while k > 0 and places[k - 1] > place:  # by place
            places[k], keys[k] = places[k - 1], keys[k - 1]
            k -= 1
        places[k], keys[k] = place, -0.5 * MOST_RANKED * scores[c]
        found += 1
    for j in range(found):
        chosen[j] = ids[int(places[j])]
        keys[j] += j
    _sort_by_key(chosen, keys, found)
    for j in range(found):
        ids[int(places[j])] = chosen[j]


@njit
def _sort_by_key(ids, keys, count) -> None:
    """Stable insertion sort: the list is nearly sorted already."""
    for k in range(1, count):
        i, key, q = ids[k], keys[k], k
        while q > 0 and keys[q - 1] > key:
            ids[q], keys[q] = ids[q - 1], keys[q - 1]
            q -= 1
        ids[q], keys[q] = i, key
