"""The only physics: arrivals, batches that take S(b), and the clock that jumps from decision to decision.

`step` is one decision: form the batch, start it (or hold), and move to the next moment at which a worker asks. There
is no random number here; noise was drawn before the run.
"""

from __future__ import annotations

from llm_env.batching import form_batch
from llm_env.jit import njit
from llm_env.kv import never_fits, release
from llm_env.queue import count_arrival, join, pass_time
from llm_env.records import (
    ACTIVE,
    DRAINED,
    FINISHED,
    HORIZON,
    INF,
    NEEDS_ROOM,
    REJECTED,
    WAITING,
    Decision,
    State,
)
from llm_env.service import batch_seconds
from llm_env.slo import slo_met, stamp_token


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
    if d.hold_s > 0.0:
        worker.held_until_s = system.now_s + min(d.hold_s, system.max_hold_s)
    else:
        form_batch(state, w, d)
        if worker.batch_size > 0:
            _start(state, w)
        elif worker.batch_evicted == 0:  # else it asks again at once: there is room now, and fewer to evict
            worker.held_until_s = system.now_s + system.max_hold_s
    advance(state)


@njit(forceinline=True)
def has_room(state: State) -> bool:
    """True if noise and logs have room for whatever one step can do."""
    system, num_workers = state.system[0], state.workers.shape[0]
    if system.setup_noise > 0 or system.per_token_noise > 0:
        if state.workers[system.worker].iteration >= state.noise.shape[1]:
            return False
    if system.record == 0:
        return True
    return (
        system.num_batches + num_workers <= state.batch_log.shape[0]
        and system.num_gaps + num_workers * state.running.shape[1] <= state.gap_log.shape[0]
    )


@njit(forceinline=True)
def _start(state: State, w) -> None:
    """The worker begins the batch that was formed: busy for S(b)."""
    system, worker = state.system[0], state.workers[w]
    setup_factor = state.noise[w, worker.iteration, 0] if system.setup_noise > 0 else 1.0
    token_factor = state.noise[w, worker.iteration, 1] if system.per_token_noise > 0 else 1.0
    cached_tokens, token_context = 0, 0
    if system.cached_token_s > 0.0 or system.token_context_s > 0.0:
        cached_tokens, token_context = _attention(state, w)
    num_decodes = worker.batch_size - worker.batch_prompts
    seconds = batch_seconds(
        system, worker.batch_tokens, num_decodes, cached_tokens, token_context, setup_factor, token_factor
    )
    worker.busy = 1
    worker.start_s = system.now_s
    worker.end_s = system.now_s + seconds
    worker.held_until_s = system.now_s
    worker.iteration += 1
    worker.last_batch_tokens = worker.batch_tokens
    system.busy_s += seconds


@njit
def _attention(state: State, w) -> tuple[int, int]:
    """What the batch of worker w attends to.

    Returns:
        Tokens with KV of its decodes before this step; the sum over its prefill entries of chunk tokens x context,
        where the context is what had been computed before plus the chunk itself.
    """
    cached_tokens, token_context = 0, 0
    for k in range(state.workers[w].batch_size):
        r, tokens = state.requests[state.batch[w, k, 0]], state.batch[w, k, 1]
        if r.computed_tokens < r.prefill_tokens:
            token_context += tokens * (r.computed_tokens + tokens)
        else:
            cached_tokens += r.computed_tokens
    return cached_tokens, token_context


@njit
def advance(state: State) -> None:
    """Moves the clock to the next decision; phase DRAINED if nothing is left to do, HORIZON if time is up."""
    system = state.system[0]
    num_workers = state.workers.shape[0]
    while True:
        next_s, idle = INF, False
        for w in range(num_workers):
            worker = state.workers[w]
            if worker.busy == 1:
                next_s = min(next_s, worker.end_s)
                continue
            idle = True
            if worker.num_running > 0 or system.num_waiting > 0:
                if worker.held_until_s <= system.now_s:
                    system.worker = w
                    return
                next_s = min(next_s, worker.held_until_s)
        if idle and system.next_arrival < system.num_requests:
            next_s = min(next_s, state.requests[system.next_arrival].arrival_s)
        if next_s == INF:
            system.phase = DRAINED
            return
        if next_s > system.horizon_s:
            _arrive(state, system.horizon_s)
            system.phase = HORIZON
            return
        completed = False
        arrived = _arrive(state, next_s)
        for w in range(num_workers):
            if state.workers[w].busy == 1 and state.workers[w].end_s <= next_s:
                _finish(state, w)
                completed = True
        if arrived or completed:
            for w in range(num_workers):
                state.workers[w].held_until_s = min(state.workers[w].held_until_s, next_s)


@njit(forceinline=True)
def _arrive(state: State, time_s) -> bool:
    """The clock moves to time_s; everything that has arrived by then joins the queue. True if something did."""
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
        system.next_arrival += 1
        count_arrival(system, r.arrival_s)
        if never_fits(state, i):
            r.status = REJECTED
            system.num_rejected += 1
        else:
            r.status = WAITING
            system.step_queue += time_s - r.arrival_s
            join(state, i)
    return system.next_arrival > first


@njit(forceinline=True)
def _finish(state: State, w) -> None:
    """The batch of worker w ends: every entry gets its tokens at this moment."""
    system, worker = state.system[0], state.workers[w]
    end_s = worker.end_s
    before_finished = system.num_finished
    used_blocks = _used_blocks(state, w) if system.record == 1 else 0
    run_gap_s, run_count = -1.0, 0  # successive equal gaps are logged as one row
    num_decodes = worker.batch_size - worker.batch_prompts
    requests, batch = state.requests, state.batch[w]
    for k in range(worker.batch_size):
        r = requests[batch[k, 0]]
        r.in_batch = 0
        prefilled = r.computed_tokens < r.prefill_tokens
        r.computed_tokens += batch[k, 1]
        if r.computed_tokens < r.prefill_tokens:
            continue
        if prefilled:
            worker.num_partial -= 1
        gap_s = stamp_token(system, r, end_s)
        if gap_s >= 0.0 and system.record == 1:
            if gap_s != run_gap_s:
                _log_gaps(state, run_gap_s, run_count)
                run_gap_s, run_count = gap_s, 0
            run_count += 1
        if r.emitted_tokens == r.output_tokens:
            r.status = FINISHED
            r.finish_s = end_s
            release(state, w, state.batch[w, k, 0])
            system.num_finished += 1
            if slo_met(r, system.slo_rule):
                system.step_completion += r.weight
    worker.busy = 0
    system.prefill_done += worker.batch_prefill
    system.decode_done += num_decodes
    if system.record == 1:
        _log_gaps(state, run_gap_s, run_count)
        _log_batch(state, w, num_decodes, used_blocks)
    if system.num_finished > before_finished:
        kept = 0
        for position in range(worker.num_running):
            i = state.running[w, position]
            if state.requests[i].status != FINISHED:
                state.running[w, kept] = i
                kept += 1
        worker.num_running = kept


@njit
def _log_gaps(state: State, gap_s, count) -> None:
    if count > 0:
        system = state.system[0]
        state.gap_log[system.num_gaps].gap_s = gap_s
        state.gap_log[system.num_gaps].count = count
        system.num_gaps += 1


@njit
def _log_batch(state: State, w, num_decodes, used_blocks) -> None:
    system, worker = state.system[0], state.workers[w]
    b = state.batch_log[system.num_batches]
    b.worker = w
    b.start_s = worker.start_s
    b.end_s = worker.end_s
    b.num_requests = worker.batch_size
    b.prefill_tokens = worker.batch_prefill
    b.decode_tokens = num_decodes
    b.num_waiting = system.num_waiting
    b.num_running = worker.num_running
    b.kv_used_blocks = used_blocks
    system.num_batches += 1


@njit
def _used_blocks(state: State, w) -> int:
    """KV blocks that the running requests hold at the end of the batch, before anything is freed."""
    blocks = 0
    for position in range(state.workers[w].num_running):
        blocks += state.requests[state.running[w, position]].blocks
    return blocks
