"""Which worker gets a request: at its arrival, and where its KV moves after a prefill. Knows the records only.

The rules are those of common front ends: round robin; least outstanding tokens; join the shortest queue (Winston,
"Optimality of the shortest line discipline", Journal of Applied Probability 14(1), 1977); sticky sessions.
"""

from __future__ import annotations

from llm_env.dtypes import (
    INF,
    NOBODY,
    ROUTE_ROUND_ROBIN,
    ROUTE_SHARED,
    ROUTE_SHORTEST_QUEUE,
    ROUTE_STICKY,
)
from llm_env.jit import njit
from llm_env.records import State


@njit
def route_arrival(state: State, i) -> int:
    """The queue that request i joins; notes the worker as its home."""
    system, r = state.system[0], state.requests[i]
    if system.router == ROUTE_SHARED:
        return 0
    if system.router == ROUTE_ROUND_ROBIN:
        r.home = system.prefill_turn % system.num_prefill_workers
        system.prefill_turn += 1
    else:
        r.home = NOBODY
        if system.router == ROUTE_STICKY and r.previous >= 0:
            r.home = state.requests[r.previous].home
        if r.home == NOBODY:
            r.home = _least(state, 0, system.num_prefill_workers, system.router == ROUTE_SHORTEST_QUEUE)
    return r.home


@njit
def route_decode(state: State) -> int:
    """The decode worker that a request moves to; NOBODY under a shared queue: the first with room will do."""
    system, num_workers = state.system[0], state.workers.shape[0]
    first = system.num_prefill_workers
    if system.router == ROUTE_SHARED:
        return NOBODY
    if system.router == ROUTE_ROUND_ROBIN:
        system.decode_turn += 1
        return first + (system.decode_turn - 1) % (num_workers - first)
    return _least(state, first, num_workers, system.router == ROUTE_SHORTEST_QUEUE)


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
    for w in range(state.system[0].num_prefill_workers, state.workers.shape[0]):
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
