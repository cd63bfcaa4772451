"""What a View sums up over the running requests of a worker. Knows records and the SLO rules only.

Most batches hold every running request, so that stamping their tokens can sum them up for the View that follows, as
`core` does; a worker remembers these sums until anything that runs there changes.
"""

from __future__ import annotations

from typing import NamedTuple

from llm_env.dtypes import INF, MOVING, RULE_DEADLINE, RULE_P99
from llm_env.jit import njit
from llm_env.placing import left_tokens
from llm_env.records import State


class Sums(NamedTuple):
    """Over the running requests of a worker; whose KV is leaving counts in `context_tokens` alone."""

    context_tokens: int  # with KV on the worker
    emitted_tokens: int
    declared_tokens: int
    num_partial: int  # prompts that are partly prefilled
    partial_tokens: int  # what is left of them
    num_clean: int  # decodes that have kept their TBT promise so far
    due_s: float  # when the first decode's next token is late; infinite if there is none


@njit(forceinline=True)
def no_sums() -> Sums:
    """Those over nobody."""
    return Sums(0, 0, 0, 0, 0, 0, INF)


@njit(forceinline=True)
def with_request(sums: Sums, r, rule) -> Sums:
    """The sums with one more running REQUEST, which is not moving."""
    context_tokens = sums.context_tokens + r.computed_tokens
    emitted_tokens, declared_tokens = sums.emitted_tokens + r.emitted_tokens, sums.declared_tokens + r.declared_tokens
    num_partial, partial_tokens = sums.num_partial, sums.partial_tokens
    num_clean, due_s = sums.num_clean, sums.due_s
    if r.computed_tokens < r.prefill_tokens:
        num_partial += 1
        partial_tokens += left_tokens(r)
    else:
        next_due_s = r.last_token_s + r.tbt_target_s
        if next_due_s < due_s:
            due_s = next_due_s
        num_clean += 1 if keeps_tbt(r, rule) else 0
    return Sums(context_tokens, emitted_tokens, declared_tokens, num_partial, partial_tokens, num_clean, due_s)


@njit(forceinline=True)
def keeps_tbt(r, rule) -> bool:
    """True if REQUEST r has kept its TBT promise with the tokens made so far (its length being unknown)."""
    if rule == RULE_DEADLINE:
        return r.late_tokens == 0
    if rule == RULE_P99:
        return r.late_gaps * 100 < r.emitted_tokens  # as late_gaps <= (emitted_tokens - 1) // 100
    return r.late_gaps == 0


@njit(forceinline=True)
def remember(worker, sums: Sums) -> None:
    """WORKER keeps the sums over all that run there, until its `summed` is 0. It counts the partials anyway."""
    worker.summed = 1
    worker.context_tokens = sums.context_tokens
    worker.emitted_tokens = sums.emitted_tokens
    worker.declared_tokens = sums.declared_tokens
    worker.partial_tokens = sums.partial_tokens
    worker.num_clean = sums.num_clean
    worker.due_s = sums.due_s


@njit(forceinline=True)
def running_sums(state: State, w) -> Sums:
    """The sums over all that run on worker w: remembered, else from one pass over them."""
    worker = state.workers[w]
    if worker.summed == 1:
        return Sums(
            worker.context_tokens,
            worker.emitted_tokens,
            worker.declared_tokens,
            worker.num_partial,
            worker.partial_tokens,
            worker.num_clean,
            worker.due_s,
        )
    return _summed_up(state.requests, state.running[w], worker, state.system[0].slo_rule)


@njit
def _summed_up(requests, running, worker, rule) -> Sums:
    """The arrays are rows of the State, as those of `placing.place_fitting_decodes`."""
    sums, moving_tokens, moving = no_sums(), 0, worker.num_moving > 0
    for position in range(worker.num_running):
        r = requests[running[position]]
        if moving and r.status == MOVING:
            moving_tokens += r.computed_tokens
        else:
            sums = with_request(sums, r, rule)
    return Sums(
        sums.context_tokens + moving_tokens,
        sums.emitted_tokens,
        sums.declared_tokens,
        sums.num_partial,
        sums.partial_tokens,
        sums.num_clean,
        sums.due_s,
    )
