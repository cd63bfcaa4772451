"""What no scheduler can beat: an upper bound on SLO attainment, from the requests, the service time and the promises.

Knows the settings and the records; runs no policy. The exact best of tiny instances is in `llm_env.optimum`.

**Derivation.** Fix any policy and any set of requests that it serves within their SLO.

1. *A token has a price.* Share the duration S(b) of every batch equally among its b tokens. If a batch can have at most
   B tokens and takes at most D seconds, each of its tokens costs at least kappa(B, D) = min S(b)/b over 1 <= b <= B
   with S(b) <= D.
2. *A request on time has a window.* Its prompt is computed in batches that start at its arrival r or later and end by
   r + TTFT target: it costs prompt_tokens * kappa(B, TTFT target) of worker time in [r, r + TTFT target]. Its first m
   decode tokens are made by r + TTFT target + m * TBT target, because every gap is within the TBT target (rule max;
   rule p99 where it forgives no gap) or token by token (rule deadline). Under max and p99 the batch of such a token is
   no longer than the gap that it ends, so the token costs at least kappa(B, TBT target); under deadline it must end in
   the window, and costs at least kappa(B, TTFT target + m * TBT target). A request to which p99 forgives a gap (more
   than 100 output tokens) is bounded by its prompt alone: the forgiven gap may be of any length.
   The terms for prefill attention and cached tokens belong to one request and are added to its price. A prompt of L
   tokens attends to at least 1 + 2 + ... + L, in one chunk or in many.
3. *Workers become one machine.* k workers of speeds v do at most sum(v) seconds of work a second, so what they can do
   by the windows one machine of that speed can do too, preempting at will. (S(b)/max(v) is then what has to be within
   D.)
4. *Windows become agreeable.* On one machine the most jobs that can be done in their windows are found in O(n^2) if
   deadlines are in the order of arrivals: then the machine serves any chosen jobs in that order without preemption, and
   with f_j(k) = the earliest end of k of the first j jobs,
   f_j(k) = min(f_{j-1}(k), max(f_{j-1}(k-1), r_j) + p_j if that is <= d_j).
   Deadlines that are not in order (m decode tokens, several classes) are relaxed to d'_j = max(d_1, ..., d_j). With
   several classes the sum of the classes alone, each with the machine to itself, is a bound too.

Every m gives a valid bound (m = 0 is the prompt alone), so the smallest is taken. KV memory, the slots of a worker, the
fixed time of decodes, evictions, links and the unfairness of not knowing output lengths only make it harder for a
policy: the bound holds with them, and is looser. It is one of the sample path: with service noise a batch may be faster
than S(b), so there is none. With a prefix cache the tokens that a prompt shares with the turn before it cost nothing,
but for its last: as if they were always found.

Sources: Kise, Ibaraki and Mine, "A solvable case of the one-machine scheduling problem with ready and due times"
(Operations Research 26(1), 1978) for agreeable windows; Moore (Management Science 15(1), 1968) for equal releases.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from llm_env.closed_loop import is_script
from llm_env.config import Scenario, refuse_varying
from llm_env.dtypes import LATE_TOLERANCE_S, SLO_RULES
from llm_env.errors import UserError
from llm_env.jit import njit
from llm_env.service import Curve, curve_budget, mean_seconds, service_curve

UNLIMITED_TOKENS = 1 << 40  # no batch is larger
DECODE_TOKENS = (0, 4, 32, UNLIMITED_TOKENS)  # of each request that are counted: one relaxation each


class Bound(NamedTuple):
    """At most `num_met` of `num_requests` measured requests can keep their SLO."""

    num_met: int
    num_requests: int

    @property
    def share(self) -> float:
        """Of SLO attainment; NaN without a request."""
        return self.num_met / self.num_requests if self.num_requests else float("nan")


def slo_bound(
    requests: np.ndarray,
    scenario: Scenario,
    rule: str | None = None,
    max_batch_tokens: int | None = None,
    from_s: float | None = None,
    until_s: float | None = None,
    decode_tokens: tuple[int, ...] = DECODE_TOKENS,
) -> Bound:
    """The most requests that any policy can serve within their SLO. Assumptions: see the module.

    Args:
        requests: (n,) REQUEST with arrivals, lengths and targets; what became of them is not read.
        scenario: service time, workers and horizon.
        rule: "max", "p99" or "deadline"; the scenario's if None.
        max_batch_tokens: no batch has more tokens. None: any size; a batch still has to end within the target of
            whatever token it makes, so a token's price stays above the slope of the curve.
        from_s, until_s: only requests with from_s <= arrival < until_s count; the scenario's warm-up and last arrival
            if None. The others are taken to need nothing.
        decode_tokens: the relaxations, see `DECODE_TOKENS`; (0,) is the bound of the prompts alone.

    Raises:
        UserError: the service time is noisy, the requests are those of a closed loop, or no such rule or batch.
    """
    rule = scenario.slo.rule if rule is None else rule
    if rule not in SLO_RULES:
        raise UserError(f"bound: rule: expected one of {', '.join(SLO_RULES)}, got {rule!r}")
    if max_batch_tokens is not None and max_batch_tokens < 1:
        raise UserError(f"bound: max_batch_tokens: expected at least 1, got {max_batch_tokens}")
    refuse_varying(scenario, "bound")
    why_not = reason_without_bound(scenario)
    if why_not:
        raise UserError(f"bound: {why_not}")
    if is_script(requests):
        raise UserError("bound: users who wait for their answers ask when the policy lets them: none holds for all")
    start_s = scenario.episode.warmup_s if from_s is None else from_s
    end_s = scenario.episode.arrivals_s if until_s is None else until_s
    counted = requests[(requests["arrival_s"] >= start_s) & (requests["arrival_s"] < end_s)]
    counted = counted[np.argsort(counted["arrival_s"], kind="stable")]
    cap = UNLIMITED_TOKENS if max_batch_tokens is None else max_batch_tokens
    classes = np.unique(counted["slo_class"])
    most = len(counted)
    for tokens in decode_tokens:
        work_s, due_s = _windows(counted, scenario, rule, cap, tokens)
        most = min(most, _solved(counted["arrival_s"], work_s, due_s))
        if len(classes) > 1:
            members = [counted["slo_class"] == c for c in classes]
            most = min(most, sum(_solved(counted["arrival_s"][m], work_s[m], due_s[m]) for m in members))
    return Bound(most, len(counted))


def reason_without_bound(scenario: Scenario) -> str:
    """Why the scenario has no bound, "" if it has one."""
    service = scenario.system.service
    if service.setup_noise != "none" or service.per_token_noise != "none":
        return "the service time is noisy: a batch may be faster than S(b), so no bound holds on every path"
    return ""


def cheapest_token_s(curve: Curve, limit_s: float, max_tokens: int) -> float:
    """kappa: the least S(b)/b in seconds over batches of 1 to `max_tokens` tokens with S(b) <= limit_s.

    inf if no batch is as fast as that. On each piece of the curve S is linear, so that S(b)/b is least at an end.
    """
    if mean_seconds(curve, 1) > limit_s:
        return float("inf")
    most = min(float(max_tokens), curve_budget(curve, limit_s, max_tokens))
    ends = [1.0, float(curve.free_tokens), *curve.points[:, 0].tolist(), most]
    if curve.step_tokens > 1:
        ends.append(float(most // curve.step_tokens * curve.step_tokens))
    return min(mean_seconds(curve, b) / b for b in ends if 1 <= b <= most)


# ---- the windows of a relaxation -----------------------------------------------------------------------------------
def _windows(q: np.ndarray, scenario: Scenario, rule: str, cap: int, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Work in seconds of the one fast machine, and when it is due, of each request with its first `tokens` decodes."""
    system, service = scenario.system, scenario.system.service
    curve = service_curve(service, 1e3)
    speeds = system.worker_speeds
    prompt, ttft_s, tbt_s = q["prompt_tokens"], q["ttft_target_s"], q["tbt_target_s"]
    decodes = np.minimum(q["output_tokens"] - 1, tokens)
    if rule == "p99":
        decodes = np.where(q["output_tokens"] > 100, 0, decodes)
    due_s = ttft_s + decodes * tbt_s + LATE_TOLERANCE_S * (1 + decodes)
    decode_limit_s = due_s if rule == "deadline" else tbt_s + LATE_TOLERANCE_S

    def price_s(limit_s: np.ndarray) -> np.ndarray:
        values, where = np.unique(limit_s, return_inverse=True)
        return np.array([cheapest_token_s(curve, float(v) * max(speeds), cap) for v in values])[where]

    new = prompt - np.minimum(q["shared_tokens"], prompt - 1) if system.kv.prefix_cache else prompt
    work_s = new * price_s(ttft_s + LATE_TOLERANCE_S)
    work_s += np.where(decodes > 0, decodes * np.where(decodes > 0, price_s(decode_limit_s), 0.0), 0.0)
    work_s += service.prefill_attention_ms_per_1m_token_context / 1e9 * new * (new + 1) / 2
    cached_tokens = decodes * prompt + decodes * (decodes - 1) / 2
    work_s += service.kv_ms_per_1k_cached_tokens / 1e6 * cached_tokens
    return work_s / sum(speeds), np.minimum(q["arrival_s"] + due_s, scenario.episode.horizon_s)


def _solved(release_s: np.ndarray, work_s: np.ndarray, due_s: np.ndarray) -> int:
    """`most_on_time` with deadlines relaxed until they are in the order of the releases."""
    return int(most_on_time(np.ascontiguousarray(release_s), work_s, np.maximum.accumulate(due_s)))


@njit(_nrt=True)  # it has one array of its own
def most_on_time(release_s, work_s, due_s) -> int:
    """The most jobs that one machine can do in their windows, preempting at will. O(n^2) time, O(n) memory.

    Args:
        release_s, work_s, due_s: (n,) float64, both releases and deadlines ascending; infinite work is never done.

    Source: Kise, Ibaraki and Mine (1978), see the module.
    """
    n = release_s.shape[0]
    end_s = np.full(n + 1, np.inf)  # end_s[k]: the earliest end of k of the jobs so far
    end_s[0] = -np.inf
    most = 0
    for j in range(n):
        latest_s = due_s[j] + 1e-12 * abs(due_s[j])  # what rounding of the sums may add
        for k in range(most, -1, -1):
            end = max(end_s[k], release_s[j]) + work_s[j]
            if end <= latest_s and end < end_s[k + 1]:
                end_s[k + 1] = end
                most = max(most, k + 1)
    return most
