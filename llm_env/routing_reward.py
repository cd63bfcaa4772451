"""What an agent that routes is paid: misses since it last named a worker, and the growth of the queues. Knows records.

A promise is missed at the moment from which it cannot be kept any more: rejected, no first token by its deadline, a TBT
promise broken (`llm_env.slo`); at the end of an episode whatever is unfinished. So the misses of an episode add up to
the SLO weight of all requests that did not meet their SLO.
"""

from __future__ import annotations

import numpy as np

from llm_env.config import RewardSettings
from llm_env.dtypes import DRAINED, FINISHED, HORIZON, LATE_TOLERANCE_S, REJECTED
from llm_env.jit import njit
from llm_env.records import State
from llm_env.slo import tbt_broken, ttft_met
from llm_env.worker_load import worker_load

# name, meaning
ROUTING_TERMS = (
    ("miss", "minus the SLO weight of the requests whose promise has been missed since the last decision"),
    (
        "backlog",
        "minus the growth of the seconds of prefill that are queued and can still be on time, over all workers",
    ),
)
ROUTING_TERM_NAMES = tuple(name for name, _ in ROUTING_TERMS)


def routing_reward_weights(settings: RewardSettings) -> np.ndarray:
    """(2,) float64 weights in the order of ROUTING_TERMS."""
    return np.array([getattr(settings, name) for name in ROUTING_TERM_NAMES], np.float64)


@njit
def is_missed(r, rule, now_s) -> bool:
    """True if REQUEST r, which has arrived, cannot meet its SLO any more, whatever happens after now_s."""
    if r.status == REJECTED:
        return True
    if r.emitted_tokens == 0:
        return now_s > r.arrival_s + r.ttft_target_s + LATE_TOLERANCE_S
    return not ttft_met(r) or tbt_broken(r, rule)


@njit
def missed_weight(state: State, ended) -> float:
    """SLO weight of all requests that have missed it by now, and of the unfinished if all has ended.

    Cost: one look at the requests that are open, or behind one that is.
    """
    system, now_s = state.system[0], state.system[0].now_s
    missed, open_before = system.missed_before, False
    for i in range(system.first_open, system.next_arrival):
        r = state.requests[i]
        lost = is_missed(r, system.slo_rule, now_s) or (ended and r.status != FINISHED)
        if lost:
            missed += r.weight
        if not lost and r.status != FINISHED:
            open_before = True
        if not open_before:
            system.first_open = i + 1
            system.missed_before = missed
    return missed


@njit
def backlog_s(state: State) -> float:
    """Seconds of prefill that wait and can still be on time, over the workers that prefill."""
    seconds = 0.0
    for w in range(state.system[0].num_prefill_workers):
        load = worker_load(state, w)
        seconds += load.live_tokens / load.rate_per_s
    return seconds


@njit
def routing_terms(state: State, weights, out) -> float:
    """Writes the weighted terms since the last call into out, (2,) float64, and returns their sum."""
    system = state.system[0]
    missed = missed_weight(state, system.phase == DRAINED or system.phase == HORIZON)
    queued_s = backlog_s(state)
    out[0] = 0.0 - weights[0] * (missed - system.missed)
    out[1] = 0.0 - weights[1] * (queued_s - system.queued_s)
    system.missed = missed
    system.queued_s = queued_s
    return out[0] + out[1]
