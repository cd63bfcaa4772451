"""The waiting queues: each a set of requests, kept sorted in several ways at once. Knows the records only.

There is one that all workers share, or one for each worker that prefills.

Each order ranks the requests once, before the run (in a closed loop as they arrive), so a set is a bitmap over ranks. A
tree of 32-bit words above it finds the next member in at most ceil(log32(n)) steps (4 for a million requests), whatever
the backlog. Orders by what is no rank, because it changes while requests wait, look for it in `llm_env.least`. Requests
that were evicted stand at the front of every order, the last evicted first, and are no members of the sets.
"""

from __future__ import annotations

from math import exp

import numpy as np
from numba.cpython.unsafe.numbers import trailing_zeros

from llm_env.dtypes import INF, NOBODY, QUEUE
from llm_env.jit import IN_PLAIN_PYTHON, njit
from llm_env.records import (
    BY_CLIENT,
    BY_DEADLINE,
    BY_LATEST_START,
    BY_PROMPT,
    KEY_SERVICE,
    KEY_WEIGHT,
    NUM_BUCKETS,
    NUM_SETS,
    SET_ARRIVAL,
    SET_CLIENT,
    SET_DEADLINE,
    SET_FEASIBLE,
    SET_HEADS,
    SET_HOPELESS,
    SET_LATEST_START,
    SET_PROMPT,
    SLACK_EDGES,
    UNKNOWN,
    State,
)

RATE_FAST_S = 3.0  # time constants of the arrival-rate averages
RATE_SLOW_S = 20.0
_EDGES = np.array(SLACK_EDGES)
_ROUNDING = 1e-14  # more than sums of a few terms of size 1 can be off


def _lowest_bit(word) -> int:
    """Position of the lowest bit that is set; word > 0."""
    word = int(word)
    return (word & -word).bit_length() - 1


def _trailing_zeros(word) -> int:
    """Position of the lowest bit that is set; word > 0."""
    return int(trailing_zeros(word))  # pyright: ignore[reportCallIssue] - one machine instruction


lowest_bit = _lowest_bit if IN_PLAIN_PYTHON else njit(_trailing_zeros)


# ---- bitmap trees --------------------------------------------------------------------------------------------------
def tree_levels(capacity: int) -> np.ndarray:
    """Where each level of a bitmap tree over `capacity` members starts, (num_levels + 1,) int64; leaves first."""
    starts, words = [0], max(1, -(-capacity // 32))
    while True:
        starts.append(starts[-1] + words)
        if words == 1:
            return np.array(starts, np.int64)
        words = -(-words // 32)


@njit
def tree_add(tree, levels, member) -> None:
    """Adds a member. Args: tree: (words,) int64; levels: from `tree_levels`; member: 0 <= member < capacity."""
    for level in range(levels.shape[0] - 1):
        word = levels[level] + (member >> 5)
        before = tree[word]
        tree[word] = before | (1 << (member & 31))
        if before != 0:
            return  # the levels above know this word already
        member >>= 5


@njit
def tree_remove(tree, levels, member) -> None:
    """Removes a member."""
    for level in range(levels.shape[0] - 1):
        word = levels[level] + (member >> 5)
        tree[word] &= ~(1 << (member & 31))
        if tree[word] != 0:
            return
        member >>= 5


@njit
def tree_next(tree, levels, member) -> int:
    """The smallest member >= `member`, -1 if there is none."""
    level, num_levels = 0, levels.shape[0] - 1
    while level < num_levels:
        word = levels[level] + (member >> 5)
        if word >= levels[level + 1]:
            return -1
        rest = tree[word] >> (member & 31)
        if rest != 0:
            member += lowest_bit(rest)
            while level > 0:
                level -= 1
                member = (member << 5) + lowest_bit(tree[levels[level] + member])
            return member
        member = (member >> 5) + 1
        level += 1
    return -1


@njit(forceinline=True)
def is_member(tree, member) -> bool:
    """True if the set has it."""
    return (tree[member >> 5] >> (member & 31)) & 1 == 1


@njit
def forget_bounds(bounds, tree, levels, member) -> None:
    """There are no bounds above a member now, for it is about to join; see `llm_env.least`.

    A word above one that has members and no bound has none either.
    """
    for level in range(levels.shape[0] - 1):
        word = levels[level] + (member >> 5)
        if tree[word] != 0 and bounds[word] == UNKNOWN:
            return
        bounds[word] = UNKNOWN
        member >>= 5


# ---- joining and leaving -------------------------------------------------------------------------------------------
@njit
def slack_bucket(state: State, i) -> int:
    """The slack bucket of waiting request i at the time of the last `pass_time`."""
    rank = state.rank[BY_LATEST_START - 1, i]
    bucket = 0
    while bucket < NUM_BUCKETS - 1 and rank >= state.cursors[bucket]:
        bucket += 1
    return bucket


@njit
def join(state: State, q, i) -> None:
    """Request i, newly arrived, starts to wait in queue q."""
    queue, levels, sets, r = state.queues[q], state.levels, state.sets[q], state.requests[i]
    by_deadline = state.rank[BY_DEADLINE - 1, i]
    r.queue = q
    for key in range(KEY_WEIGHT, KEY_SERVICE):
        forget_bounds(sets[key], sets[SET_ARRIVAL], levels, i)
    tree_add(sets[SET_ARRIVAL], levels, i)
    tree_add(sets[SET_PROMPT], levels, state.rank[BY_PROMPT - 1, i])
    tree_add(sets[SET_DEADLINE], levels, by_deadline)
    tree_add(sets[SET_LATEST_START], levels, state.rank[BY_LATEST_START - 1, i])
    bucket = slack_bucket(state, i)
    if bucket == 0:
        tree_add(sets[SET_HOPELESS], levels, i)
    else:
        tree_add(sets[SET_FEASIBLE], levels, by_deadline)
        _count_feasible(state.system[0], queue, r, 1)
    tokens = r.prefill_tokens
    state.buckets[q, 0, bucket] += 1
    state.buckets[q, 1, bucket] += tokens
    queue.num_waiting += 1
    queue.waiting_tokens += tokens
    state.system[0].num_waiting += 1
    if state.system[0].num_clients > 1:
        _line_up(state, q, i)


@njit(forceinline=True)
def _count_feasible(system, queue, r, number) -> None:
    """REQUEST r, which can be on time, is counted in (1) or out (-1)."""
    if r.ttft_target_s <= system.ttft_target_s:
        queue.tight_waiting += number
        queue.tight_tokens += number * r.prefill_tokens
    queue.weight_millionths += number * int(r.weight * 1e6 + 0.5)


@njit
def _line_up(state: State, q, i) -> None:
    """Request i waits behind the others of its client, of which it came last."""
    members, rank = state.sets[q, SET_CLIENT], state.rank[BY_CLIENT - 1, i]
    tree_add(members, state.levels, rank)
    if tree_next(members, state.levels, state.clients[state.requests[i].tenant].first) == rank:
        _add_head(state, q, i)


@njit
def _add_head(state: State, q, i) -> None:
    """Request i is now the first of its client in queue q."""
    sets = state.sets[q]
    forget_bounds(sets[KEY_SERVICE], sets[SET_HEADS], state.levels, i)
    tree_add(sets[SET_HEADS], state.levels, i)


@njit
def _step_out(state: State, q, i) -> None:
    """Request i no longer waits among those of its client; if it was the first, the next one is."""
    members, heads, rank = state.sets[q, SET_CLIENT], state.sets[q, SET_HEADS], state.rank[BY_CLIENT - 1, i]
    tree_remove(members, state.levels, rank)
    if not is_member(heads, i):
        return
    tree_remove(heads, state.levels, i)
    rank = tree_next(members, state.levels, rank)
    if rank >= 0:
        following = state.order[BY_CLIENT - 1, rank]
        if state.requests[following].tenant == state.requests[i].tenant:
            _add_head(state, q, following)


@njit
def leave(state: State, i) -> None:
    """Request i stops waiting. If it was evicted before, it must be the front of its queue."""
    r = state.requests[i]
    q, tokens = r.queue, r.prefill_tokens
    queue, levels, sets = state.queues[q], state.levels, state.sets[q]
    state.system[0].num_waiting -= 1
    queue.num_waiting -= 1
    queue.waiting_tokens -= tokens
    if queue.num_resumed > 0 and queue.front == i:
        queue.num_resumed -= 1
        queue.front = r.next
        return
    by_deadline = state.rank[BY_DEADLINE - 1, i]
    tree_remove(sets[SET_ARRIVAL], levels, i)
    tree_remove(sets[SET_PROMPT], levels, state.rank[BY_PROMPT - 1, i])
    tree_remove(sets[SET_DEADLINE], levels, by_deadline)
    tree_remove(sets[SET_LATEST_START], levels, state.rank[BY_LATEST_START - 1, i])
    bucket = slack_bucket(state, i)
    if bucket == 0:
        tree_remove(sets[SET_HOPELESS], levels, i)
    else:
        tree_remove(sets[SET_FEASIBLE], levels, by_deadline)
        _count_feasible(state.system[0], queue, r, -1)
    state.buckets[q, 0, bucket] -= 1
    state.buckets[q, 1, bucket] -= tokens
    if state.system[0].num_clients > 1:
        _step_out(state, q, i)


@njit
def push_front(state: State, i) -> None:
    """Evicted request i returns to the front of its queue."""
    r = state.requests[i]
    queue = state.queues[r.queue]
    r.next = queue.front
    queue.front = i
    queue.num_resumed += 1
    queue.num_waiting += 1
    queue.waiting_tokens += r.prefill_tokens
    state.system[0].num_waiting += 1


# ---- the passing of time -------------------------------------------------------------------------------------------
@njit(forceinline=True)
def edge_s(system, edge, now_s) -> float:
    """Who must start before this time is below an edge of the slack buckets."""
    return now_s + _EDGES[edge] * system.ttft_target_s


@njit
def pass_time(state: State, now_s) -> None:
    """Moves waiting requests whose slack has shrunk to lower buckets; each passes each edge once in a run."""
    system, single, next_edge_s = state.system[0], state.queues.shape[0] == 1, INF
    if now_s < system.next_edge_s:
        return
    order, levels = state.order[BY_LATEST_START - 1], state.levels
    for edge in range(NUM_BUCKETS - 1):
        limit_s = edge_s(system, edge, now_s)
        rank = state.cursors[edge]
        while rank < system.num_ranked and state.requests[order[rank]].latest_start_s < limit_s:
            q = 0 if single else state.requests[order[rank]].queue
            if is_member(state.sets[q, SET_LATEST_START], rank):
                i = order[rank]
                tokens = state.requests[i].prefill_tokens
                state.buckets[q, 0, edge + 1] -= 1
                state.buckets[q, 1, edge + 1] -= tokens
                state.buckets[q, 0, edge] += 1
                state.buckets[q, 1, edge] += tokens
                if edge == 0:
                    tree_remove(state.sets[q, SET_FEASIBLE], levels, state.rank[BY_DEADLINE - 1, i])
                    tree_add(state.sets[q, SET_HOPELESS], levels, i)
                    _count_feasible(system, state.queues[q], state.requests[i], -1)
            rank += 1
        state.cursors[edge] = rank
        if rank < system.num_ranked:
            start_s = state.requests[order[rank]].latest_start_s
            rounding_s = _ROUNDING * (abs(start_s) + system.ttft_target_s)
            next_edge_s = min(next_edge_s, start_s - _EDGES[edge] * system.ttft_target_s - rounding_s)
    system.next_edge_s = next_edge_s


@njit
def count_arrival(system, arrival_s) -> None:
    """Brings the two arrival-rate averages up to this arrival and adds it."""
    passed = arrival_s - system.rate_s
    system.rate_fast = system.rate_fast * exp(-passed / RATE_FAST_S) + 1.0 / RATE_FAST_S
    system.rate_slow = system.rate_slow * exp(-passed / RATE_SLOW_S) + 1.0 / RATE_SLOW_S
    system.rate_s = arrival_s


# ---- who is next ---------------------------------------------------------------------------------------------------
@njit
def head(state: State, q, which_set) -> int:
    """The request of queue q that stands first: the last evicted, else the first of the set; -1 if nobody waits."""
    queue = state.queues[q]
    if queue.num_resumed > 0:
        return queue.front
    member = tree_next(state.sets[q, which_set], state.levels, 0)
    return -1 if member < 0 else member_request(state, which_set, member)


@njit
def member_request(state: State, which_set, member) -> int:
    """The request behind a member of a set (a rank, or the request itself where the set is by arrival)."""
    if which_set == SET_ARRIVAL or which_set == SET_HOPELESS or which_set == SET_HEADS:
        return member
    if which_set == SET_PROMPT:
        return state.order[BY_PROMPT - 1, member]
    if which_set == SET_LATEST_START:
        return state.order[BY_LATEST_START - 1, member]
    if which_set == SET_CLIENT:
        return state.order[BY_CLIENT - 1, member]
    return state.order[BY_DEADLINE - 1, member]


def clear_queue(state: State) -> None:
    """Empties every queue; the ranks stay."""
    state.queues[:] = np.zeros(1, QUEUE)[0]
    state.queues["front"] = NOBODY
    state.sets[:] = 0
    state.sets[:, NUM_SETS:] = UNKNOWN
    state.buckets[:] = 0
    state.cursors[:] = 0
