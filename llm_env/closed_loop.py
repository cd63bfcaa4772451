"""Closed loops: users who wait for the whole answer, think, and ask again. Knows the queue and the curve, no batches.

What the users ask, and how long they think before, is a script that is drawn before the run; when a request arrives
follows from the run. The arrays of a State with n scripted requests have room for 2n. The first n columns are used as
in an open loop: requests in order of arrival, of which row SYSTEM.next_arrival shows the earliest that is to come. From
column SYSTEM.script = n on lie

- State.requests: the script, grouped by user;
- State.order, row 0: the next requests of those who think, a binary heap by arrival, then row of the script;
- State.order, row 1: how many requests with prompts of a length have arrived, at the length's first rank;
- State.rank, row 0: that first rank, for each row of the script.

Ranks by prompt and by client are places in the whole script, so they are known at arrival and stay. Ranks by deadline
and by latest start count those that have arrived: a new one moves those with later keys up by one, which are few
because keys grow with time.
"""

from __future__ import annotations

import numpy as np

from llm_env.jit import njit
from llm_env.queue import edge_s, tree_add, tree_remove
from llm_env.records import (
    BY_CLIENT,
    BY_DEADLINE,
    BY_LATEST_START,
    BY_PROMPT,
    NUM_BUCKETS,
    SET_DEADLINE,
    SET_FEASIBLE,
    SET_LATEST_START,
    State,
)

_HEAP, _ARRIVED = 0, 1  # rows of State.order behind SYSTEM.script


# ---- before the run ------------------------------------------------------------------------------------------------
def is_script(requests: np.ndarray) -> bool:
    """True if the REQUESTs are the script of a closed loop: they have times of thought."""
    return len(requests) > 0 and bool(requests["think_s"][0] >= 0)


def start_users(state: State, n: int) -> None:
    """All users of the n scripted requests, which lie from row n on with their tenants, begin to think.

    Raises:
        ValueError: the requests of some user do not lie together, or no time of thought lies between two of them.
    """
    system, script = state.system[0], state.requests[n : 2 * n]
    firsts = np.flatnonzero(np.append(True, np.diff(script["tenant"]) != 0))
    if len(firsts) != system["num_clients"]:
        raise ValueError("closed loop: the requests of each user (client) must lie together in the script")
    if not (np.delete(script["think_s"], firsts) > 0).all():
        raise ValueError("closed loop: a user must think for some time before asking again")
    script["row"] = np.arange(n)
    state.rank[BY_PROMPT - 1, n : 2 * n] = np.searchsorted(np.sort(script["prompt_tokens"]), script["prompt_tokens"])
    state.order[_ARRIVED, n : 2 * n] = 0
    system["num_users"], system["script"] = len(firsts), n
    state.clients["first"][script["tenant"][firsts]] = firsts
    firsts = firsts[script["arrival_s"][firsts] < system["arrivals_s"]]
    firsts = firsts[np.argsort(script["arrival_s"][firsts], kind="stable")]  # sorted, and so a heap
    state.order[_HEAP, n : n + len(firsts)] = n + firsts
    system["num_thinking"] = len(firsts)
    system["num_ranked"] = 0
    _show_next(state)


# ---- thinking and asking -------------------------------------------------------------------------------------------
@njit
def think(state: State, i, time_s) -> None:
    """The user of request i has the answer, or a refusal, at time_s; a thought later comes the next request, if any."""
    system, requests = state.system[0], state.requests
    k = system.script + requests[i].row + 1
    if k == 2 * system.script or requests[k].tenant != requests[i].tenant:
        return
    arrival_s = time_s + requests[k].think_s
    if arrival_s >= system.arrivals_s:
        return
    requests[k].arrival_s = arrival_s
    heap = state.order[_HEAP, system.script :]
    _push(heap, requests, system.num_thinking, k)
    system.num_thinking += 1
    _show_next(state)


@njit
def ask(state: State, i) -> None:
    """Request i, which was the earliest to come, arrives: it gets its ranks, and the next one is shown."""
    system, requests, script = state.system[0], state.requests, state.system[0].script
    _pop(state.order[_HEAP, script:], requests, system.num_thinking)
    system.num_thinking -= 1
    _show_next(state)
    r = requests[i]
    r.latest_start_s = r.arrival_s + r.ttft_target_s - r.prefill_s
    first = state.rank[BY_PROMPT - 1, script + r.row]
    place = first + state.order[_ARRIVED, script + first]
    state.order[_ARRIVED, script + first] += 1
    state.order[BY_PROMPT - 1, place] = i
    state.rank[BY_PROMPT - 1, i] = place
    state.order[BY_CLIENT - 1, r.row] = i
    state.rank[BY_CLIENT - 1, i] = r.row
    _insert(state, BY_DEADLINE, i)
    _insert(state, BY_LATEST_START, i)
    system.num_ranked += 1
    system.next_edge_s = 0.0
    for edge in range(NUM_BUCKETS - 1):
        if r.latest_start_s < edge_s(system, edge, system.now_s):
            state.cursors[edge] += 1


@njit
def _show_next(state: State) -> None:
    """Row next_arrival of the requests becomes a copy of the earliest that is to come."""
    system = state.system[0]
    system.num_requests = system.next_arrival
    if system.num_thinking > 0:
        state.requests[system.next_arrival] = state.requests[state.order[_HEAP, system.script]]
        system.num_requests += 1


# ---- ranks ---------------------------------------------------------------------------------------------------------
@njit
def _insert(state: State, which, i) -> None:
    """Request i takes its rank, behind equals; those behind it move up."""
    order, ranks, place = state.order[which - 1], state.rank[which - 1], state.system[0].num_ranked
    key = _key(state.requests[i], which)
    while place > 0 and _key(state.requests[order[place - 1]], which) > key:
        place -= 1
        moved = order[place]
        order[place + 1] = moved
        ranks[moved] = place + 1
        sets = state.sets[state.requests[moved].queue]
        if which == BY_DEADLINE:
            _move_up(sets[SET_DEADLINE], state.levels, place)
            _move_up(sets[SET_FEASIBLE], state.levels, place)
        else:
            _move_up(sets[SET_LATEST_START], state.levels, place)
    order[place] = i
    ranks[i] = place


@njit
def _key(r, which) -> float:
    """What REQUEST r is ranked by, as `llm_env.build.load` ranks those of an open loop."""
    return r.arrival_s + r.ttft_target_s if which == BY_DEADLINE else r.latest_start_s


@njit
def _move_up(tree, levels, member) -> None:
    """A member of a set, if it is one, becomes the next higher one."""
    if (tree[member >> 5] >> (member & 31)) & 1:
        tree_remove(tree, levels, member)
        tree_add(tree, levels, member + 1)


# ---- the heap of those who think -----------------------------------------------------------------------------------
@njit
def _earlier(requests, a, b) -> bool:
    """True if row a arrives before row b."""
    first_s, second_s = requests[a].arrival_s, requests[b].arrival_s
    return first_s < second_s or (first_s == second_s and a < b)


@njit
def _push(heap, requests, size, k) -> None:
    """Adds row k to a heap of `size` rows."""
    place = size
    while place > 0 and _earlier(requests, k, heap[(place - 1) // 2]):
        heap[place] = heap[(place - 1) // 2]
        place = (place - 1) // 2
    heap[place] = k


@njit
def _pop(heap, requests, size) -> None:
    """Takes the earliest row from a heap of `size` rows."""
    size -= 1
    last, place = heap[size], 0
    while 2 * place + 1 < size:
        child = 2 * place + 1
        if child + 1 < size and _earlier(requests, heap[child + 1], heap[child]):
            child += 1
        if not _earlier(requests, heap[child], last):
            break
        heap[place] = heap[child]
        place = child
    heap[place] = last
