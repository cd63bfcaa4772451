"""Trial runs: what a changed decision would lead to, in copies of a system whose future has been filled in.

Rows 1, 2, ... of a vectorised State each hold the present and one future (`llm_env.futures`); row 0 is where they are
run. A trial holds one change of the base policy's decisions for a few decisions, lets the base decide up to the
horizon, and prices the end. Knows the kernel and the base, not which change will be chosen.

Source: rollout of a base policy after one step of deviation: Bertsekas, "Dynamic Programming and Optimal Control" (4th
ed., 2017), vol. 1, section 6.4; common random numbers: Law, "Simulation Modeling and Analysis" (5th ed., 2015), section
11.2.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from numba import types

from llm_env.actions import decision_from_entry
from llm_env.addresses import states_at
from llm_env.core import step
from llm_env.dtypes import ACTIVE, FINISHED, LATE_TOLERANCE_S, NEEDS_ROOM, REJECTED, RULE_DEADLINE, WAITING
from llm_env.jit import njit
from llm_env.orders import moore_hodgson
from llm_env.placing import left_tokens
from llm_env.queue import join, pass_time
from llm_env.records import (
    DECIDE_TYPE,
    DROPPED_LAST,
    MOORE_HODGSON,
    NUM_SETS,
    UNKNOWN,
    Decision,
    State,
    View,
    decision,
    row,
)
from llm_env.reference import refer
from llm_env.service import largest_batch, mean_seconds
from llm_env.slo import slo_met, tbt_broken, ttft_met
from llm_env.view import make_view

# ---- changes of a decision -----------------------------------------------------------------------------------------
KEEP, DECODES_ONLY, BUDGET, SCALE, FILL, URGENT_FILL, NO_ADMISSION, SHORTEST, DEADLINES, LEVELS = range(10)


class Change(NamedTuple):
    """One way to change what the base decides.

    Kinds: KEEP it; DECODES_ONLY: no prefill; BUDGET: at most `value` times the SLO budget; SCALE: `value` times the
    base's budget; FILL: the largest batch within `value` times the slack of the most urgent decode; URGENT_FILL: the
    same, and only decodes that are late within `value` TBT targets; NO_ADMISSION: nobody new; SHORTEST: by the mixture
    of `slack_weight` = `value` of deadline and remaining prefill, nobody dropped, the hopeless last; DEADLINES:
    Moore-Hodgson with the margin `value`; LEVELS: entry `value` of the actions' DISCRETE_TABLE in its place.
    """

    name: str
    kind: int
    value: float


CHANGES = (
    Change("base", KEEP, 0.0),
    Change("decodes only", DECODES_ONLY, 0.0),
    Change("small budget", BUDGET, 0.31),
    Change("smaller budget", SCALE, 0.7),
    Change("larger budget", SCALE, 1.4),
    Change("slack fill", FILL, 1.0),
    Change("urgent decodes and fill", URGENT_FILL, 1.0),
    Change("no admission", NO_ADMISSION, 0.0),
    Change("shortest prefill", SHORTEST, 0.0),
    Change("moore-hodgson", DEADLINES, 1.0),
    Change("shortest and most urgent", SHORTEST, 0.3),
)

_LARGEST = 8192  # tokens: what `baselines.slack_fill` takes at most


@njit
def changed(view: View, d: Decision, kind, value) -> Decision:
    """A decision of the base with a change; see `Change`."""
    if kind == LEVELS:
        return decision_from_entry(view.slo_budget, view.num_decodes, int(value))
    budget, prefill_tokens, max_running, order = d.token_budget, d.prefill_tokens, d.max_running, d.order
    margin, slack_weight, drop_weight = d.margin, d.slack_weight, d.drop_weight
    within_s, fill_decodes = d.decode_within_s, d.fill_decodes
    if kind == DECODES_ONLY:
        prefill_tokens = 0
    elif kind == BUDGET:
        budget = min(budget, max(1, int(value * view.slo_budget)))
    elif kind == SCALE:
        budget = max(1, int(value * budget))
    elif kind == FILL or kind == URGENT_FILL:
        budget = _LARGEST
        if view.num_decodes > 0:
            slack_s = view.min_decode_slack_s if kind == FILL else view.tbt_target_s
            scale = value if kind == FILL else 1.0
            budget = int(largest_batch(view.setup_s, view.per_token_s, view.free_tokens, slack_s * scale, _LARGEST))
        if kind == URGENT_FILL:
            within_s, fill_decodes = value * view.tbt_target_s, 1
    elif kind == NO_ADMISSION:
        max_running = 0
    elif kind == SHORTEST:
        order, slack_weight, drop_weight = MOORE_HODGSON, value, 0.0
    elif kind == DEADLINES:
        order, margin, slack_weight, drop_weight = MOORE_HODGSON, value, 1.0, DROPPED_LAST
    return Decision(
        budget,
        prefill_tokens,
        d.chunk_tokens,
        d.max_decodes,
        max_running,
        d.packing,
        d.whole_prompts,
        d.padded,
        order,
        margin,
        slack_weight,
        drop_weight,
        d.kv_rule,
        d.reserve_tokens,
        d.watermark,
        d.hold_s,
        d.reserve_ratio,
        d.victim,
        d.swap,
        d.decode_order,
        within_s,
        d.gate_tokens,
        d.gate_count,
        fill_decodes,
        d.quantum_s,
        d.starve_s,
        d.memory,
        d.class_weight,
        d.role,
        d.ranked,
    )


# ---- one trial -----------------------------------------------------------------------------------------------------
@njit
def _line_up(state: State) -> None:
    """Those that wait in a row that `llm_env.futures` filled join its queue; the evicted keep their places."""
    system, queue = state.system[0], state.queues[0]
    state.sets[:, :NUM_SETS] = 0
    state.sets[:, NUM_SETS:] = UNKNOWN
    state.buckets[:] = 0
    state.cursors[:] = 0
    queue.num_waiting, queue.waiting_tokens = 0, 0
    system.num_waiting, system.next_edge_s = 0, 0.0
    pass_time(state, system.now_s)
    for i in range(system.next_arrival):
        r = state.requests[i]
        if r.status != WAITING:
            continue
        if r.evictions == 0:
            join(state, 0, i)
        else:
            queue.num_waiting += 1
            queue.waiting_tokens += r.prefill_tokens
            system.num_waiting += 1


@njit
def _copy(here: State, there: State) -> None:
    """What a run changes of a system, from one row to another."""
    for i in range(here.system[0].num_requests):
        there.requests[i] = here.requests[i]
    there.system[0] = here.system[0]
    there.workers[0] = here.workers[0]
    for position in range(here.workers[0].num_running):
        there.running[0, position] = here.running[0, position]
    there.queues[0] = here.queues[0]
    for which in range(here.sets.shape[1]):
        for word in range(here.sets.shape[2]):
            there.sets[0, which, word] = here.sets[0, which, word]
    for bucket in range(here.buckets.shape[2]):
        there.buckets[0, 0, bucket] = here.buckets[0, 0, bucket]
        there.buckets[0, 1, bucket] = here.buckets[0, 1, bucket]
    for edge in range(here.cursors.shape[0]):
        there.cursors[edge] = here.cursors[edge]
    there.clients[0] = here.clients[0]


@njit(inline="always")
def _joined(here: State, there: State) -> State:
    """The copy in row `there` with what no run changes, ranks and noise, as it lies in row `here`."""
    copied = State(
        there.requests,
        there.system,
        there.workers,
        there.running,
        there.batch,
        here.order,
        here.rank,
        there.queues,
        there.sets,
        there.levels,
        there.buckets,
        there.cursors,
        there.transfers,
        there.clients,
        here.noise,
        there.scratch,
        there.batch_log,
        there.gap_log,
    )
    return refer(copied)


@njit
def _run(state: State, decide, kind, value, hold, end_s) -> int:
    """The change for `hold` decisions, then the base until `end_s`. Returns how many decisions that were."""
    system, steps = state.system[0], 0
    while system.phase == ACTIVE and system.now_s < end_s:
        view = make_view(state)
        d = decide(view)
        if steps < hold and kind != KEEP:
            d = changed(view, d, kind, value)
        step(state, d)
        if system.phase == NEEDS_ROOM:  # the noise of a future begins again
            state.workers[system.worker].iteration = 0
            system.phase = ACTIVE
            continue
        steps += 1
    return steps


# ---- the price of its end ------------------------------------------------------------------------------------------
@njit
def _breaks(r, rule, now_s) -> bool:
    """True if REQUEST r, which has emitted tokens, has broken its SLO or does so with its next token, whenever it is.

    Counts that token in r, which belongs to a copy that is not run any further.
    """
    if rule == RULE_DEADLINE:
        due_s = r.arrival_s + r.ttft_target_s + r.emitted_tokens * r.tbt_target_s
        r.late_tokens += 1 if now_s > due_s + LATE_TOLERANCE_S else 0
    else:
        r.late_gaps += 1 if now_s - r.last_token_s > r.tbt_target_s + LATE_TOLERANCE_S else 0
    return tbt_broken(r, rule) or not ttft_met(r)


@njit
def _cost(state: State, end_s, mean_weight, work_weight) -> float:
    """The price of a trial's end, in requests lost; the state is not run any further.

    1. The weight of those that missed their SLO or can no longer keep it, over the mean weight.
    2. The same of those that Moore-Hodgson, by weight, would drop of the others that have no first token yet.
    3. `work_weight` times the seconds of work that is left, at the rate of full batches, and those by which the last
       batch ended after `end_s`.
    """
    system, worker = state.system[0], state.workers[0]
    now_s, rule = system.now_s, system.slo_rule
    lost, work_tokens = 0.0, 0
    for i in range(system.next_arrival):
        r = state.requests[i]
        if r.status == FINISHED:
            lost += 0.0 if slo_met(r, rule) else r.weight
            continue
        if r.status == REJECTED:
            lost += r.weight
            continue
        work_tokens += left_tokens(r) + r.output_tokens - r.emitted_tokens
        if r.emitted_tokens > 0:
            lost += r.weight if _breaks(r, rule, now_s) else 0.0
        elif r.status == WAITING and r.latest_start_s < now_s:
            lost += r.weight
    budget, decodes = int(worker.slo_budget), worker.num_running - worker.num_partial
    worker.batch_tokens, worker.batch_prefill = decodes, 0
    budget_then = max(budget, decodes + budget // 4)
    count = moore_hodgson(state, 0, decision(budget_then, order=MOORE_HODGSON, class_weight=1.0))
    for k in range(count):
        r = state.requests[int(state.scratch[0, k])]
        if state.scratch[3, k] > 0.5 * DROPPED_LAST * system.ttft_target_s and r.emitted_tokens == 0:
            lost += r.weight
    work_s = work_tokens * mean_seconds(system, budget) / budget / worker.speed
    return lost / mean_weight + work_weight * (work_s + max(0.0, now_s - end_s))


# ---- compiled ------------------------------------------------------------------------------------------------------
TRY, GO_ON, UNTIL_WAITING = range(3)


class Terms(NamedTuple):
    """What all trials of a plan have in common."""

    hold: int  # decisions
    end_s: float
    mean_weight: float
    work_weight: float


@njit
def _go_on(state: State, decide, kind, value, mode, most) -> int:
    """Up to `most` decisions of the base with a change, with UNTIL_WAITING while nobody waits. Returns how many."""
    system, steps = state.system[0], 0
    while system.phase == ACTIVE and steps < most:
        if mode == UNTIL_WAITING and system.num_waiting > 0:
            break
        view = make_view(state)
        d = decide(view)
        if kind != KEEP:
            d = changed(view, d, kind, value)
        step(state, d)
        if system.phase != NEEDS_ROOM:
            steps += 1
    return steps


def _look_ahead(table, decide, mode, first, last, changes, which, terms, costs):
    states, steps = states_at(table), 0
    scratch = row(states, 0)
    if mode != TRY:
        k = which[0]
        return _go_on(scratch, decide, int(changes[k, 0]), changes[k, 1], mode, last - first)
    for m in range(first, last):
        present = row(states, 1 + m)
        _line_up(present)
        for place in range(which.shape[0]):
            k = which[place]
            _copy(present, scratch)
            trial = _joined(present, scratch)
            steps += _run(trial, decide, int(changes[k, 0]), changes[k, 1], terms.hold, terms.end_s)
            costs[m, k] = _cost(trial, terms.end_s, terms.mean_weight, terms.work_weight)
    return steps


_I8, _F8 = types.int64, types.float64


@cache
def look_ahead() -> Callable[..., int]:
    """Compiled: the only entry, for each one more would have to be compiled with the whole kernel.

    Args of the function:
        table: `llm_env.addresses` of a vectorised State.
        decide: the base.
        mode: TRY: fills in costs[m, k] of the futures first <= m < last and the changes k in `which`, see the head of
            this file. GO_ON: takes last - first decisions in row 0 with the change which[0]. UNTIL_WAITING: the same,
            but stops before a decision at which somebody waits. If room runs out, phase is NEEDS_ROOM: make some and
            call again.
        first, last: see `mode`.
        changes: (num_changes, 2) float64: kind and value.
        which: (n,) int64 places in `changes`.
        terms: a `Terms`.
        costs: (num_futures, num_changes) float64.

    Returns:
        How many decisions were taken.
    """
    matrix = _F8[:, ::1]
    terms = types.NamedTuple((_I8, _F8, _F8, _F8), Terms)
    return njit(_I8(_I8[:, ::1], DECIDE_TYPE, _I8, _I8, _I8, matrix, _I8[::1], terms, matrix))(_look_ahead)
