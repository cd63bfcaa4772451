"""What a token does to a request's promises: gaps, lateness, the three SLO rules, and the reward's book-keeping.

Knows the records only. The rules (DESIGN section 1): ``max``: every gap within the TBT target; ``p99``: the 99th
percentile (nearest rank) of the request's gaps within it, that is at most floor(gaps / 100) late gaps; ``deadline``:
token j is due at arrival + TTFT target + (j - 1) * TBT target, which cannot be gamed by holding tokens back.
"""

from __future__ import annotations

import numpy as np

from llm_env.dtypes import FINISHED, LATE_TOLERANCE_S, RULE_DEADLINE, RULE_P99, SLO_RULES
from llm_env.jit import njit


@njit(forceinline=True)
def tbt_broken(r, rule) -> bool:
    """True if REQUEST r has broken the TBT part of its SLO under the rule, whatever its remaining tokens do."""
    if rule == RULE_DEADLINE:
        return r.late_tokens > 0
    allowed = (r.output_tokens - 1) // 100 if rule == RULE_P99 else 0
    return r.late_gaps > allowed


@njit
def ttft_met(r) -> bool:
    """True if REQUEST r has its first token, on time."""
    return r.emitted_tokens > 0 and r.first_token_s <= r.arrival_s + r.ttft_target_s + LATE_TOLERANCE_S


@njit
def slo_met(r, rule) -> bool:
    """True if REQUEST r finished and kept its SLO under the rule."""
    return r.status == FINISHED and ttft_met(r) and not tbt_broken(r, rule)


@njit(forceinline=True)
def stamp_token(system, r, time_s) -> float:
    """REQUEST r emits one output token at time_s: stamps, lateness and reward events; status is not touched.

    Returns:
        The gap since the token before, in seconds; -1 for the first token.
    """
    r.emitted_tokens += 1
    due_s = r.arrival_s + r.ttft_target_s + (r.emitted_tokens - 1) * r.tbt_target_s
    on_time = time_s <= due_s + LATE_TOLERANCE_S
    if on_time:
        system.step_token += r.weight
    else:
        r.late_tokens += 1
    gap_s = -1.0
    if r.emitted_tokens == 1:
        r.first_token_s = time_s
        if on_time:
            r.credit = 1
            system.step_first_token += r.weight
    else:
        gap_s = time_s - r.last_token_s
        if not gap_s <= r.max_tbt_s:  # also true while max_tbt_s is NaN
            r.max_tbt_s = gap_s
        if gap_s > r.tbt_target_s + LATE_TOLERANCE_S:
            r.late_gaps += 1
    r.last_token_s = time_s
    if r.credit == 1 and tbt_broken(r, system.slo_rule):
        r.credit = -1
        system.step_first_token -= r.weight
    return gap_s


NUM_VERDICTS = 1 + len(SLO_RULES)  # columns of `judged`: TTFT met, then SLO met under each rule of SLO_RULES


def judged(requests: np.ndarray) -> np.ndarray:
    """What became of each promise: (n, NUM_VERDICTS) bool. Args: requests: (n,) REQUEST after a run."""
    verdicts = np.zeros((len(requests), NUM_VERDICTS), np.bool_)
    _judge(np.ascontiguousarray(requests), verdicts)
    return verdicts


@njit
def _judge(requests, verdicts):
    for i in range(requests.shape[0]):
        verdicts[i, 0] = ttft_met(requests[i])
        for rule in range(NUM_VERDICTS - 1):
            verdicts[i, 1 + rule] = slo_met(requests[i], rule)
