"""The only physics: arrivals, batches that take S(b), and the clock that jumps from decision to decision.

`step` is one decision: form the batch, start it (or hold), and move to the next moment at which a worker asks. There
is no random number here; noise was drawn before the run.
"""

from __future__ import annotations

import numpy as np

from llm_env.batching import attention, form_batch, next_helpable
from llm_env.clients import charge_token, client_arrives
from llm_env.closed_loop import ask, think
from llm_env.dtypes import (
    ACTIVE,
    DISAGGREGATED,
    DRAINED,
    FINISHED,
    HORIZON,
    INF,
    NEEDS_ROOM,
    NEVER,
    NOBODY,
    PARALLEL_PREFILL,
    REJECTED,
    REPLICAS,
    ROLE_PREFILL,
    ROUTE_AGENT,
    ROUTE_SCORE,
    ROUTING,
    RUNNING,
    WAITING,
)
from llm_env.jit import njit
from llm_env.kv import never_fits, position_of, release, unlist
from llm_env.link import (
    arrived_transfer,
    drop_transfer,
    line_up_move,
    next_transfer_s,
    pass_link,
    send_chunks,
    start_moves,
)
from llm_env.logs import has_room, log_batch, log_gaps, used_blocks
from llm_env.prefix import keep
from llm_env.queue import count_arrival, join, pass_time
from llm_env.records import Decision, State
from llm_env.roles import changes_role, count_tokens, is_asked_for_role, take_role
from llm_env.router import route_arrival
from llm_env.service import batch_seconds
from llm_env.slo import slo_met, stamp_token, stamped
from llm_env.sums import no_sums, remember, with_request


@njit
def step(state: State, d: Decision) -> None:
    """Carries out one decision and moves to the next; SYSTEM.phase tells whether there is one.

    If noise or log rows could run out, nothing is done and the phase is NEEDS_ROOM: enlarge them and call again.
    """
    system = state.system[0]
    if not has_room(state):
        system.phase = NEEDS_ROOM
        return
    system.phase = ACTIVE
    system.epoch += 1
    system.step_first_token = 0.0
    system.step_completion = 0.0
    system.step_token = 0.0
    system.step_queue = 0.0
    w = system.worker
    worker = state.workers[w]
    worker.memory = d.memory
    switches = system.change_roles == 1 and _takes_wish(state, w, d.role)
    if switches:
        pass  # it is busy with that
    elif d.hold_s > 0.0:
        worker.held_until_s = system.now_s + min(d.hold_s, system.max_hold_s)
    else:
        num_swapped = worker.num_swapped
        form_batch(state, w, d)
        if worker.batch_size > 0:
            _start(state, w)
        elif worker.batch_evicted == 0 or (d.swap == 1 and num_swapped > 0 and worker.num_swapped == num_swapped):
            # else it asks again at once: there is room now, and fewer to evict; not if who came back was evicted again
            worker.held_until_s = system.now_s + system.max_hold_s
        makes_room = worker.batch_evicted > 0 or worker.num_swapped < num_swapped
        if makes_room and system.num_transfers > 0 and _transfer(state):  # who is to move here
            _end_holds(state)
    advance(state)


@njit
def _takes_wish(state: State, w, role) -> bool:
    """Worker w is asked to take a role. True if it begins to; moves that take no time end at once."""
    switches = changes_role(state, w, role)
    if state.system[0].num_transfers > 0 and _transfer(state):
        _end_holds(state)
    return switches


@njit(forceinline=True)
def _start(state: State, w) -> None:
    """The worker begins the batch that was formed: busy for S(b)."""
    system, worker = state.system[0], state.workers[w]
    setup_factor = state.noise[w, worker.iteration, 0] if system.setup_noise > 0 else 1.0
    token_factor = state.noise[w, worker.iteration, 1] if system.per_token_noise > 0 else 1.0
    cached_tokens, token_context = 0, 0
    if system.cached_token_s > 0.0 or system.token_context_s > 0.0:
        cached_tokens, token_context = attention(state, w)
    num_decodes = worker.batch_size - worker.batch_prompts
    seconds = batch_seconds(
        system, worker.batch_tokens, num_decodes, cached_tokens, token_context, setup_factor, token_factor
    )
    seconds /= worker.speed
    if worker.swap_tokens > 0:  # before the batch, which waits for it
        seconds += worker.swap_tokens * system.kv_bytes_per_token / system.host_bytes_per_s
        worker.swap_tokens = 0
    worker.busy = 1
    worker.start_s = system.now_s
    worker.end_s = system.now_s + seconds
    worker.held_until_s = system.now_s
    worker.iteration += 1
    worker.last_batch_tokens = worker.batch_tokens
    worker.last_batch_prefill = worker.batch_prefill
    system.busy_s += seconds


@njit
def advance(state: State) -> None:
    """Moves the clock to the next decision; phase DRAINED if nothing is left to do, HORIZON if time is up.

    Phase ROUTING: a request arrives now and an agent is to name its worker, see `route`.
    """
    system = state.system[0]
    while True:
        next_s = system.now_s
        if system.named == NOBODY:  # else this moment was left to ask for a worker, and goes on
            next_s = _next_event_s(state)
            if next_s == NEVER:
                return
            if next_s == INF:
                system.phase = DRAINED
                return
            if next_s > system.horizon_s:
                _arrive(state, system.horizon_s)
                system.phase = HORIZON
                return
            if system.num_transfers > 0:
                pass_link(state, next_s)
        arrived, completed = _arrive(state, next_s), False
        if system.phase == ROUTING:
            return
        for w in range(state.workers.shape[0]):
            if state.workers[w].busy == 1 and state.workers[w].end_s <= next_s:
                _finish(state, w)
                completed = True
        if system.num_transfers > 0 and _transfer(state):
            completed = True
        if arrived or completed:
            _end_holds(state)


@njit
def _is_asked(state: State, w) -> bool:
    """True if worker w, with nothing of its own to do, may still do something: help, or take another role."""
    if state.system[0].layout == PARALLEL_PREFILL:
        return next_helpable(state, w, -1) >= 0
    return state.system[0].change_roles == 1 and is_asked_for_role(state, w)


@njit(forceinline=True)
def _next_event_s(state: State) -> float:
    """When something happens next, INF if nothing will; NEVER if a worker has a decision to take before."""
    system, workers, queues = state.system[0], state.workers, state.queues
    next_s, wakes = INF, system.router >= ROUTE_SCORE  # an arrival is an event if somebody is idle, or sees the clock
    for w in range(workers.shape[0]):
        worker = workers[w]
        if worker.busy == 1:
            next_s = min(next_s, worker.end_s)
            continue
        wakes = True
        here = worker.num_running - worker.num_moving + worker.num_swapped
        has_work = here > 0 or queues[worker.queue].num_waiting > 0
        if has_work or (system.layout != REPLICAS and _is_asked(state, w)):
            if worker.held_until_s <= system.now_s:
                system.worker = w
                return NEVER
            next_s = min(next_s, worker.held_until_s)
    if wakes and system.next_arrival < system.num_requests:
        next_s = min(next_s, state.requests[system.next_arrival].arrival_s)
    if system.num_transfers > 0:
        next_s = min(next_s, next_transfer_s(state))
    return next_s


@njit
def route(state: State, w) -> None:
    """An agent names worker w for the arrival of phase ROUTING, which joins its queue; then `advance`.

    Requests that arrive at one moment are asked for one after the other, before any batch is formed. The state is as
    at that moment, but for batches and transfers that end at it: as compiled routers see it.
    """
    system = state.system[0]
    system.named = w
    system.phase = ACTIVE
    advance(state)


@njit(forceinline=True)
def _end_holds(state: State) -> None:
    """Something arrived or was completed: whoever holds asks again."""
    now_s = state.system[0].now_s
    for w in range(state.workers.shape[0]):
        state.workers[w].held_until_s = min(state.workers[w].held_until_s, now_s)


@njit(forceinline=True)
def _arrive(state: State, time_s) -> bool:
    """The clock moves to time_s; everything that has arrived by then joins a queue. True if something did.

    With ROUTE_AGENT the phase becomes ROUTING before a request whose worker has not been named.
    """
    system = state.system[0]
    system.step_queue += system.num_waiting * (time_s - system.now_s)
    system.now_s = time_s
    pass_time(state, time_s)
    first = system.next_arrival
    while system.next_arrival < system.num_requests:
        i = system.next_arrival
        r = state.requests[i]
        if r.arrival_s > time_s:
            break
        if system.router == ROUTE_AGENT and system.named == NOBODY and not never_fits(state, i):
            system.phase = ROUTING
            break
        system.next_arrival += 1
        if system.layout == DISAGGREGATED:
            count_tokens(system, r)
        count_arrival(system, r.arrival_s)
        if system.num_users > 0:
            ask(state, i)
        if never_fits(state, i):
            r.status = REJECTED
            system.num_rejected += 1
            if system.num_users > 0:
                think(state, i, r.arrival_s)
        else:
            r.status = WAITING
            system.step_queue += time_s - r.arrival_s
            client_arrives(state, i)
            join(state, route_arrival(state, i), i)
    return system.next_arrival > first


@njit(forceinline=True)
def _finish(state: State, w) -> None:
    """The batch of worker w ends: every entry gets its tokens at this moment."""
    system, worker = state.system[0], state.workers[w]
    if worker.switching == 1:
        take_role(state, w)
        return
    held_blocks = used_blocks(state, w) if system.record == 1 else 0
    num_done = _stamp_batch(state.requests, state.batch[w], worker, system, w, state.gap_log)
    if num_done > 0 or worker.role == ROLE_PREFILL or system.num_clients > 1:
        _follow_up(state, w)
    num_decodes = worker.batch_size - worker.batch_prompts
    worker.busy = 0
    system.prefill_done += worker.batch_prefill
    system.decode_done += num_decodes
    if system.record == 1:
        log_batch(state, w, num_decodes, held_blocks)
    if system.layout == PARALLEL_PREFILL:
        send_chunks(state, w)
    if num_done > 0:
        _drop_finished(state, w)


@njit
def _stamp_batch(requests, batch, worker, system, w, gap_log) -> int:
    """Every entry of the batch gets its tokens; who is through with its prompt emits one.

    The arrays are rows of the State, not the State itself, and counters are kept in variables: the loop runs once per
    request and batch. If nobody else runs there, the worker remembers the sums that its next View shows.

    Returns:
        How many requests have emitted their last token; they are not finished yet.
    """
    end_s, rule, record, helps = worker.end_s, system.slo_rule, system.record == 1, system.layout == PARALLEL_PREFILL
    first_tokens, tokens = system.step_first_token, system.step_token
    num_done, num_prefilled, sums = 0, 0, no_sums()
    run_gap_s, run_count = -1.0, 0  # successive equal gaps are logged as one row
    for k in range(worker.batch_size):
        r = requests[np.uintp(batch[k, 0])]
        if helps and r.worker != w:
            continue  # a chunk for a prompt of another worker
        r.in_batch = 0
        prefilled = r.computed_tokens < r.prefill_tokens
        r.computed_tokens += batch[k, 1]
        if r.computed_tokens >= r.prefill_tokens:
            if prefilled:
                num_prefilled += 1
            gap_s, first_token, token = stamped(r, end_s, rule)
            first_tokens += first_token
            tokens += token
            if record and gap_s >= 0.0:
                if gap_s != run_gap_s:
                    log_gaps(system, gap_log, run_gap_s, run_count)
                    run_gap_s, run_count = gap_s, 0
                run_count += 1
            if r.emitted_tokens == r.output_tokens:
                num_done += 1
                continue
        sums = with_request(sums, r, rule)
    log_gaps(system, gap_log, run_gap_s, run_count)
    system.step_first_token, system.step_token = first_tokens, tokens
    worker.num_partial -= num_prefilled
    if system.layout == REPLICAS and worker.batch_size == worker.num_running:
        remember(worker, sums)
    return num_done


@njit
def _follow_up(state: State, w) -> None:
    """What follows from the batch that ended on worker w: clients are charged, requests finish or move."""
    for k in range(state.workers[w].batch_size):
        i = state.batch[w, k, 0]
        r = state.requests[i]
        if r.worker != w or r.computed_tokens < r.prefill_tokens:
            continue
        charge_token(state, i)
        if r.emitted_tokens == r.output_tokens:
            _complete(state, w, i)
        elif state.workers[w].role == ROLE_PREFILL:
            line_up_move(state, w, i)
    if state.system[0].num_users > 0:
        _answer_users(state, w)


@njit
def _answer_users(state: State, w) -> None:
    """Users whose requests the batch of worker w has finished begin to think."""
    for k in range(state.workers[w].batch_size):
        i = state.batch[w, k, 0]
        if state.requests[i].worker == w and state.requests[i].status == FINISHED:
            think(state, i, state.requests[i].finish_s)


@njit
def _complete(state: State, w, i) -> None:
    """Request i has emitted its last token."""
    system, r = state.system[0], state.requests[i]
    r.status = FINISHED
    r.finish_s = r.last_token_s
    if system.prefix_cache == 1 and r.session >= 0:
        keep(state, w, i)
    else:
        release(state, w, i)
    system.num_finished += 1
    if slo_met(r, system.slo_rule):
        system.step_completion += r.weight


@njit(forceinline=True)
def _drop_finished(state: State, w) -> None:
    """Takes finished requests out of the running list of worker w."""
    worker, kept = state.workers[w], 0
    for position in range(worker.num_running):
        i = state.running[w, position]
        if state.requests[i].status != FINISHED:
            state.running[w, kept] = i
            kept += 1
    worker.num_running = kept


# ---- KV between workers --------------------------------------------------------------------------------------------
@njit
def _transfer(state: State) -> bool:
    """Transfers that have ended by now take effect, and moves that find room start. True if one has ended."""
    ended = False
    while True:
        k = arrived_transfer(state)
        while k >= 0:
            ended = True
            if state.transfers[k].helps == 1:
                _gather(state, k)
            else:
                _move(state, k)
            drop_transfer(state, k)
            k = arrived_transfer(state)
        if not start_moves(state):
            return ended


@njit
def _move(state: State, k) -> None:
    """The KV of a prefilled request has reached the worker on which it decodes."""
    t = state.transfers[k]
    i = t.request
    r, source, target = state.requests[i], state.workers[t.source], state.workers[t.target]
    unlist(state, t.source, position_of(state, t.source, i))
    source.num_moving -= 1
    source.free_blocks += r.blocks
    r.blocks = t.blocks
    r.worker = t.target
    r.status = RUNNING
    r.in_batch = 0
    target.num_incoming -= 1
    state.running[t.target, target.num_running] = i
    target.num_running += 1


@njit
def _gather(state: State, k) -> None:
    """A helper's chunk has reached the worker of its prompt; the last one completes the prefill."""
    t = state.transfers[k]
    r, system = state.requests[t.request], state.system[0]
    state.workers[t.source].free_blocks += t.blocks
    if r.evictions != t.evictions:
        return  # the prompt was evicted meanwhile and starts anew
    r.away_tokens -= t.tokens
    r.num_helpers -= 1
    r.computed_tokens += t.tokens
    if r.computed_tokens < r.prefill_tokens:
        return
    state.workers[t.target].num_partial -= 1
    gap_s = stamp_token(system, r, system.now_s)
    if system.record == 1 and gap_s >= 0.0:
        log_gaps(system, state.gap_log, gap_s, 1)
    charge_token(state, t.request)
    if r.emitted_tokens == r.output_tokens:
        _complete(state, t.target, t.request)
        unlist(state, t.target, position_of(state, t.target, t.request))
        if system.num_users > 0:
            think(state, t.request, r.finish_s)
