"""Workers of disaggregated pools that change role: who may, what becomes of their requests, and what it costs.

A decision asks for a role (`Decision.role`). If the pool that the worker leaves stays large enough, the worker drains:
it takes nothing new, ends what it has begun, and then is busy for `switch_s` doing nothing. Each worker counts as what
it is or is about to be; it may be asked back while it drains.

- From prefill to decode: no admissions; partly prefilled prompts are prefilled to their end, so no work is lost.
  Requests whose KV is under way leave as ever. Those for which no decode worker has room yet leave as soon as one has,
  or decode here once the worker decodes: their KV is there.
- From decode to prefill: at each of its decisions the worker sends its decodes over the link to other decode workers
  that have room, in list order, unless prefilled requests wait for such room, who came first. A request pauses while it
  moves; who finds no room decodes here. Nothing new is sent here; what is on its way still comes.

Here is neither the clock nor the link. Knows records, queues, the router and transfers.

Source: Hu et al., "Inference without Interference" (TetriInfer, arXiv:2401.11181, 2024): instances flip between prefill
and decode when they have drained. Sun et al., "Llumnix" (OSDI 2024): an instance that is to go is drained by migrating
its requests, not by waiting for their ends. Role switching in place, without loading weights: SGLang pull request 28403
(2026); Wu et al., "Arrow" (arXiv:2505.11916, 2025), whose instances are stateless. The papers were read in abstract.
"""

from __future__ import annotations

from math import exp, isnan
from typing import NamedTuple

from llm_env.dtypes import LINED_UP, MOVING, NOBODY, ROLE_DECODE, ROLE_PREFILL, RUNNING
from llm_env.jit import njit
from llm_env.link import blocks_to_move, drop_transfer, line_up_move, start_moves
from llm_env.queue import RATE_FAST_S, RATE_SLOW_S
from llm_env.records import State
from llm_env.router import decode_worker_with_room


@njit
def role_queue(role) -> int:
    """The queue of a worker under a shared router: 0, where prompts wait, or 1, where nobody ever does."""
    return 1 if role == ROLE_DECODE else 0


@njit(forceinline=True)
def role_to_be(worker) -> int:
    """What WORKER is, or is about to be."""
    return worker.next_role if worker.next_role > 0 else worker.role


@njit
def num_with_role(state: State, role) -> int:
    """Workers that have a role or are about to take it."""
    count = 0
    for w in range(state.workers.shape[0]):
        if role_to_be(state.workers[w]) == role:
            count += 1
    return count


@njit
def may_leave(state: State, w) -> bool:
    """True if the pool of worker w, as it is to be, stays large enough without it."""
    system, role = state.system[0], role_to_be(state.workers[w])
    least = system.min_decode_workers if role == ROLE_DECODE else system.min_prefill_workers
    return num_with_role(state, role) > least


@njit
def is_asked_for_role(state: State, w) -> bool:
    """True if worker w, with nothing of its own to do, has a decision to take: there are requests for another role, or
    it is about to take one.
    """
    system = state.system[0]
    if state.workers[w].next_role > 0:
        return True
    return system.num_finished + system.num_rejected < system.next_arrival and may_leave(state, w)


# ---- changing ------------------------------------------------------------------------------------------------------
@njit
def changes_role(state: State, w, role) -> bool:
    """Notes the role that worker w is asked to take, 0 for none. True if the change begins now: it is busy with it."""
    system, worker = state.system[0], state.workers[w]
    if (role == ROLE_PREFILL or role == ROLE_DECODE) and role != role_to_be(worker) and may_leave(state, w):
        worker.next_role = role if role != worker.role else 0
    if worker.next_role == 0:
        return False
    if worker.role == ROLE_DECODE:
        _send_away(state, w)
    if worker.num_running > worker.num_moving or worker.num_swapped > 0 or worker.num_incoming > 0:
        return False
    worker.switching = 1
    worker.busy = 1
    worker.batch_size = 0
    worker.batch_tokens = 0
    worker.batch_prefill = 0
    worker.batch_prompts = 0
    worker.start_s = system.now_s
    worker.end_s = system.now_s + system.switch_s
    worker.held_until_s = system.now_s
    return True


@njit
def _send_away(state: State, w) -> None:
    """The decodes of worker w move to other workers as long as there is room."""
    system = state.system[0]
    if num_lined_up(state) > 0:
        return
    for position in range(state.workers[w].num_running):
        i = state.running[w, position]
        r = state.requests[i]
        if r.status == MOVING:
            continue
        if decode_worker_with_room(state, blocks_to_move(system, r)) == NOBODY:
            return
        line_up_move(state, w, i)
        start_moves(state)


@njit
def take_role(state: State, w) -> None:
    """Worker w has its new role. It has run no batch in it; who is still lined up to leave it decodes there."""
    system, worker = state.system[0], state.workers[w]
    worker.switching = 0
    worker.busy = 0
    worker.role = worker.next_role
    worker.next_role = 0
    worker.queue = role_queue(worker.role)
    worker.start_s = worker.end_s
    worker.last_batch_tokens = 0
    worker.last_batch_prefill = 0
    system.num_switches += 1
    k = 0
    while worker.role == ROLE_DECODE and k < system.num_transfers:
        t = state.transfers[k]
        if t.phase != LINED_UP or t.source != w:
            k += 1
            continue
        state.requests[t.request].status = RUNNING
        state.requests[t.request].in_batch = 0
        worker.num_moving -= 1
        drop_transfer(state, k)


# ---- what a policy sees of the pools -------------------------------------------------------------------------------
class Pools(NamedTuple):
    """The pools of a disaggregated system, as the View shows them."""

    prefill_workers: int
    live_tokens: int
    decodes: int
    kv_used: float
    num_lined_up: int


@njit
def no_pools() -> Pools:
    """Those of any other system."""
    return Pools(0, 0, 0, 0.0, 0)


@njit
def pools_of(state: State) -> Pools:
    """Sums over queues, decode workers and transfers."""
    system, live_tokens = state.system[0], 0
    for q in range(state.queues.shape[0]):
        live_tokens += state.queues[q].waiting_tokens - state.buckets[q, 1, 0]
    decodes, blocks, free_blocks = 0, 0, 0
    for w in range(state.workers.shape[0]):
        worker = state.workers[w]
        if worker.role == ROLE_DECODE:
            decodes += worker.num_running - worker.num_moving + worker.num_incoming + worker.num_swapped
            blocks += system.kv_blocks
            free_blocks += worker.free_blocks
    kv_used = 1.0 - free_blocks / blocks if system.kv_limited == 1 and blocks > 0 else 0.0
    return Pools(num_with_role(state, ROLE_PREFILL), live_tokens, decodes, kv_used, num_lined_up(state))


@njit
def num_lined_up(state: State) -> int:
    """Requests that are to move and for which there is no room yet."""
    system, count = state.system[0], 0
    for k in range(system.num_transfers):
        if state.transfers[k].phase == LINED_UP:
            count += 1
    return count


@njit
def count_tokens(system, r) -> None:
    """Adds an arriving REQUEST to the rates of tokens; before `queue.count_arrival`, which moves their time."""
    passed = r.arrival_s - system.rate_s
    fast, slow = exp(-passed / RATE_FAST_S), exp(-passed / RATE_SLOW_S)
    output = float(r.declared_tokens)
    if not isnan(r.predicted_tokens):
        output = min(output, r.predicted_tokens)
    system.prompt_rate_fast = system.prompt_rate_fast * fast + r.prompt_tokens / RATE_FAST_S
    system.prompt_rate_slow = system.prompt_rate_slow * slow + r.prompt_tokens / RATE_SLOW_S
    system.output_rate_fast = system.output_rate_fast * fast + output / RATE_FAST_S
    system.output_rate_slow = system.output_rate_slow * slow + output / RATE_SLOW_S
