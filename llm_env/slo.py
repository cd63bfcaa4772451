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
    return r.late_gaps > 0 and (rule != RULE_P99 or r.late_gaps > (r.output_tokens - 1) // 100)


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
    gap_s, first_token, token = stamped(r, time_s, system.slo_rule)
    system.step_first_token += first_token
    system.step_token += token
    return gap_s


@njit(forceinline=True)
def stamped(r, time_s, rule) -> tuple[float, float, float]:
    """`stamp_token` where the caller keeps the reward's counters.

    Returns:
        The gap; what is to be added to SYSTEM.step_first_token and to SYSTEM.step_token.
    """
    emitted_tokens = r.emitted_tokens + 1
    r.emitted_tokens = emitted_tokens
    due_s = r.arrival_s + r.ttft_target_s + (emitted_tokens - 1) * r.tbt_target_s
    on_time = time_s <= due_s + LATE_TOLERANCE_S
    r.late_tokens += 0 if on_time else 1  # no branch: who is late is hard to predict
    token = r.weight if on_time else 0.0
    gap_s, first_token, late_gap = -1.0, 0.0, False
    if emitted_tokens == 1:
        r.first_token_s = time_s
        if on_time:
            r.credit = 1
            first_token = r.weight
    else:
        gap_s = time_s - r.last_token_s
        r.max_tbt_s = r.max_tbt_s if gap_s <= r.max_tbt_s else gap_s  # which it is while max_tbt_s is NaN
        late_gap = gap_s > r.tbt_target_s + LATE_TOLERANCE_S
        r.late_gaps += 1 if late_gap else 0
    r.last_token_s = time_s
    worse = not on_time if rule == RULE_DEADLINE else late_gap
    if worse and r.credit == 1 and tbt_broken(r, rule):
        r.credit = -1
        first_token -= r.weight
    return gap_s, first_token, token


NUM_VERDICTS = 1 + len(SLO_RULES)  # columns of `judged`: TTFT met, then SLO met under each rule of SLO_RULES


def judged(requests: np.ndarray) -> np.ndarray:
    """What became of each promise: (n, NUM_VERDICTS) bool. Args: requests: (n,) REQUEST after a run."""
    verdicts = np.zeros((len(requests), NUM_VERDICTS), np.bool_)
    _judge(np.ascontiguousarray(requests), verdicts)
    return verdicts


def met_share(met: np.ndarray, weights: np.ndarray) -> float:
    """The share of the requests' SLO weight that was met; where all weights are equal, of the requests.

    Args:
        met: (n,) bool, of each request.
        weights: (n,) float64 above 0.

    Returns:
        From 0 to 1; NaN without a request.
    """
    if met.size == 0:
        return float("nan")
    if (weights == weights[0]).all():
        return float(met.mean())
    return float(weights[met].sum() / weights.sum())


@njit
def _judge(requests, verdicts):
    for i in range(requests.shape[0]):
        verdicts[i, 0] = ttft_met(requests[i])
        for rule in range(NUM_VERDICTS - 1):
            verdicts[i, 1 + rule] = slo_met(requests[i], rule)
