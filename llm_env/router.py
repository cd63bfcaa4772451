"""Which worker gets a request: at its arrival, and where its KV moves after a prefill. Knows the records and what
`llm_env.worker_load` tells of a worker.

The rules are those of common front ends: round robin; smooth weighted round robin (nginx, "Upstream: smooth weighted
round-robin balancing", commit 52327e0627f4, 2012); random; least outstanding tokens; join the shortest queue (Winston,
"Optimality of the shortest line discipline", Journal of Applied Probability 14(1), 1977); the shorter of two random
queues (Mitzenmacher, "The power of two choices in randomized load balancing", IEEE Transactions on Parallel and
Distributed Systems 12(10), 2001); shortest expected work, the same by seconds of queued prefill; sticky sessions; a
weighted score of all these (`llm_env.worker_load.score`). Or an agent names the worker (`llm_env.core.route`).
"""

from __future__ import annotations

from llm_env.dtypes import (
    INF,
    NOBODY,
    ROLE_DECODE,
    ROUTE_EXPECTED_WORK,
    ROUTE_POWER_OF_TWO,
    ROUTE_RANDOM,
    ROUTE_ROUND_ROBIN,
    ROUTE_SCORE,
    ROUTE_SHARED,
    ROUTE_SHORTEST_QUEUE,
    ROUTE_STICKY,
    ROUTE_WEIGHTED,
)
from llm_env.jit import njit
from llm_env.records import State
from llm_env.worker_load import expected_work_s, score, worker_load

_WORD = 0xFFFFFFFF  # 32 bits


@njit
def route_arrival(state: State, i) -> int:
    """The queue that request i joins; notes the worker as its home."""
    system, r = state.system[0], state.requests[i]
    if system.router == ROUTE_SHARED:
        return 0
    r.home = NOBODY
    if system.router == ROUTE_ROUND_ROBIN:
        r.home = system.prefill_turn % system.num_prefill_workers
        system.prefill_turn += 1
    elif system.named != NOBODY:  # by an agent
        r.home = system.named
        system.named = NOBODY
    elif system.router == ROUTE_STICKY and r.previous >= 0:
        r.home = state.requests[r.previous].home
    if r.home == NOBODY:
        r.home = _chosen(state, i, 0, system.num_prefill_workers)
    return r.home


@njit
def route_decode(state: State, i) -> int:
    """The decode worker that request i moves to; NOBODY under a shared queue: the first with room will do.

    Rules that weigh prefill work, and agents, leave it to least tokens.
    """
    system, num_workers = state.system[0], state.workers.shape[0]
    first = system.num_prefill_workers
    if system.router == ROUTE_SHARED:
        return NOBODY
    if system.router == ROUTE_ROUND_ROBIN:
        system.decode_turn += 1
        return first + (system.decode_turn - 1) % (num_workers - first)
    if system.router == ROUTE_EXPECTED_WORK or system.router == ROUTE_SCORE:
        return _least(state, first, num_workers, False)
    return _chosen(state, i, first, num_workers)


@njit
def _chosen(state: State, i, first, last) -> int:
    """The worker from `first` to before `last` that the rule gives request i to."""
    router = state.system[0].router
    if router == ROUTE_SCORE or router == ROUTE_EXPECTED_WORK:
        return best_by_work(state, i, first, last, router == ROUTE_SCORE)
    if router == ROUTE_RANDOM:
        return first + _draw(i, first, 0, last - first)
    if router == ROUTE_WEIGHTED:
        return _weighted_turn(state, first, last)
    if router == ROUTE_POWER_OF_TWO:
        return _shorter_of_two(state, i, first, last)
    return _least(state, first, last, router == ROUTE_SHORTEST_QUEUE)


@njit
def best_by_work(state: State, i, first, last, scored) -> int:
    """The worker with the least score for request i, else with the least expected work; the lowest of equals."""
    best, least_s = first, INF
    for w in range(first, last):
        load = worker_load(state, w)
        seconds = score(state, w, i, load) if scored else expected_work_s(state, w, i, load)
        if seconds < least_s:
            best, least_s = w, seconds
    return best


@njit
def _draw(i, pool, k, n) -> int:
    """A number from 0 to n - 1 that looks random: a hash of request i, its pool's first worker and k.

    The kernel has no random numbers, so the same request meets the same luck whatever happened before. The mixer is
    lowbias32 of Wellons' hash-prospector (https://github.com/skeeto/hash-prospector).
    """
    x = ((int(i) * 64 + int(pool)) * 2 + k + 1) & _WORD
    x ^= x >> 16
    x = (x * 0x7FEB352D) & _WORD
    x ^= x >> 15
    x = (x * 0x846CA68B) & _WORD
    x ^= x >> 16
    return (x * int(n)) >> 32


@njit
def _weighted_turn(state: State, first, last) -> int:
    """Smooth weighted round robin: all gain their speed, the first of the most is taken and pays what all gained."""
    best, total = first, 0.0
    for w in range(first, last):
        worker = state.workers[w]
        worker.turn += worker.speed
        total += worker.speed
        if worker.turn > state.workers[best].turn:
            best = w
    state.workers[best].turn -= total
    return best


@njit
def _shorter_of_two(state: State, i, first, last) -> int:
    """The one with fewer requests of two different workers drawn at random; the one drawn first of equals."""
    n = last - first
    one = _draw(i, first, 0, n)
    if n == 1:
        return first
    other = (one + 1 + _draw(i, first, 1, n - 1)) % n
    return first + (other if _num_requests(state, first + other) < _num_requests(state, first + one) else one)


@njit
def _least(state: State, first, last, by_requests) -> int:
    """The worker from `first` to before `last` with the fewest requests or tokens, the lowest of equals."""
    best, least = first, INF
    for w in range(first, last):
        load = _num_requests(state, w) if by_requests else outstanding_tokens(state, w) / state.workers[w].speed
        if load < least:
            best, least = w, load
    return best


@njit
def _num_requests(state: State, w) -> float:
    """Unfinished requests of worker w: waiting, running, on their way to it, swapped."""
    worker, system = state.workers[w], state.system[0]
    count = worker.num_running + worker.num_swapped + state.queues[worker.queue].num_waiting
    for k in range(system.num_transfers):
        t = state.transfers[k]
        if t.helps == 0 and t.target == w:
            count += 1
    return float(count)


@njit
def outstanding_tokens(state: State, w) -> float:
    """Tokens of the unfinished requests of worker w: prompts that wait; of the others the more of prompt and KV."""
    worker, system, requests = state.workers[w], state.system[0], state.requests
    tokens = state.queues[worker.queue].waiting_tokens
    for position in range(worker.num_running):
        r = requests[state.running[w, position]]
        tokens += max(r.prefill_tokens, r.computed_tokens)
    for k in range(system.num_transfers):
        t = state.transfers[k]
        if t.helps == 0 and t.target == w:
            r = requests[t.request]
            tokens += max(r.prefill_tokens, r.computed_tokens)
    i = worker.swapped
    while i != NOBODY:
        tokens += requests[i].computed_tokens
        i = requests[i].next
    return float(tokens)


@njit
def decode_worker_with_room(state: State, blocks) -> int:
    """The decode worker with a place and `blocks` free that has the fewest requests; NOBODY if there is none."""
    best, least = NOBODY, INF
    for w in range(state.workers.shape[0]):
        if state.workers[w].role != ROLE_DECODE or state.workers[w].next_role > 0:
            continue
        load = state.workers[w].num_running + state.workers[w].num_incoming
        if has_room(state, w, blocks) and load < least:
            best, least = w, float(load)
    return best


@njit
def has_room(state: State, w, blocks) -> bool:
    """True if worker w has a place and `blocks` free for one more request, and nobody there waits to come back."""
    worker = state.workers[w]
    places = worker.num_running + worker.num_incoming
    return worker.num_swapped == 0 and places < state.system[0].max_running and worker.free_blocks >= blocks
