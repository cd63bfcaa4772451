"""The exact best of tiny instances, found by trying every schedule: the yardstick that no policy may beat.

One worker without noise and with unlimited KV memory; 4 or 5 requests take seconds, more take for ever. Knows the
settings and the service time; runs no policy.

A schedule is a sequence of batches. A batch starts when the worker is free or when somebody arrives, holds any of the
requests that have arrived, each with one decode token or some quanta of its prompt, and at most `token_budget` tokens.
Waiting for anything but an arrival cannot help: all objectives here only get worse when tokens come later, and
everything that a batch could hold at another moment was there at the last arrival before it.

Dynamic programming over what has been computed of each request. Of the ways to the same progress only those are kept
that no other beats in both time and cost so far, and of those only the ones that could still beat the best known.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from llm_env.config import Scenario
from llm_env.dtypes import LATE_TOLERANCE_S
from llm_env.errors import UserError
from llm_env.service import mean_seconds, service_curve

Progress = tuple[int, ...]  # units done of each request: its prompt's quanta, then its decodes

OBJECTIVES = ("ttft", "e2e", "misses")
MAX_REQUESTS = 6
_INF = float("inf")


def optimum(
    requests: np.ndarray, scenario: Scenario, objective: str, token_budget: int | None = None, quantum: int = 1
) -> float:
    """The least value of an objective over all schedules.

    Args:
        requests: (n,) REQUEST, at most MAX_REQUESTS.
        scenario: its service time; one worker, no noise, unlimited KV memory, no terms beside the curve.
        objective: "ttft" or "e2e": the sum of TTFT or E2E over all requests, in seconds; "misses": how many cannot
            keep their SLO under the rule deadline. A request that keeps it under max keeps it under deadline, so no
            policy has fewer misses under max either, nor under p99 where it forgives no gap.
        token_budget: most tokens in a batch, decodes counted; None for no limit.
        quantum: prompts are cut into pieces of this many tokens; a policy that cuts finer is not covered.

    Raises:
        UserError: the system or the instance is not of this kind.
    """
    if objective not in OBJECTIVES:
        raise UserError(f"optimum: objective: expected one of {', '.join(OBJECTIVES)}, got {objective!r}")
    instance = _instance(requests, scenario, token_budget, quantum)
    if objective == "misses":
        n = len(requests)
        for served in range(n, 0, -1):
            if any(_all_on_time(instance, chosen) for chosen in combinations(range(n), served)):
                return float(n - served)
        return float(n)
    return _least_sum(instance, objective == "e2e") - float(requests["arrival_s"].sum())


@dataclass(frozen=True)
class _Instance:
    arrival_s: tuple[float, ...]
    prompt: tuple[int, ...]  # tokens
    quanta: tuple[int, ...]  # of the prompt
    decodes: tuple[int, ...]
    ttft_s: tuple[float, ...]
    tbt_s: tuple[float, ...]
    quantum: int
    budget: int
    seconds: tuple[float, ...]  # S(b) at index b

    def tokens(self, i: int, done: int, more: int) -> int:
        """Tokens of request i that take it from `done` units to `done + more`."""
        if done >= self.quanta[i]:
            return more
        return min((done + more) * self.quantum, self.prompt[i]) - done * self.quantum

    def batches(self, progress: Progress, wanted: Progress, there: tuple[int, ...]) -> Iterator[tuple[Progress, int]]:
        """Every batch of the requests that are `there`: progress after it, and its tokens. Not the empty one."""

        def extend(k: int, after: Progress, tokens: int) -> Iterator[tuple[Progress, int]]:
            if k == len(there):
                if tokens:
                    yield after, tokens
                return
            i, done = there[k], progress[there[k]]
            most = min(1, wanted[i] - done) if done >= self.quanta[i] else self.quanta[i] - done
            for more in range(most + 1):
                total = tokens + self.tokens(i, done, more)
                if total > self.budget:
                    break
                yield from extend(k + 1, (*after[:i], done + more, *after[i + 1 :]), total)

        return extend(0, progress, 0)

    def starts(self, now_s: float, progress: Progress, wanted: Progress) -> Iterator[tuple[float, tuple[int, ...]]]:
        """Moments at which the next batch may start, and the unfinished requests that are there by then."""
        left = [i for i in range(len(wanted)) if progress[i] < wanted[i]]
        times = {max(now_s, self.arrival_s[i]) for i in left}
        for start_s in sorted(times):
            yield start_s, tuple(i for i in left if self.arrival_s[i] <= start_s)


def _instance(requests: np.ndarray, scenario: Scenario, token_budget: int | None, quantum: int) -> _Instance:
    system, service = scenario.system, scenario.system.service
    terms = (
        service.decode_fixed_ms,
        service.kv_ms_per_1k_cached_tokens,
        service.prefill_attention_ms_per_1m_token_context,
    )
    if system.workers != 1 or system.kv.blocks is not None or any(terms):
        raise UserError("optimum: expected one worker, unlimited KV memory and no terms beside the curve")
    if service.setup_noise != "none" or service.per_token_noise != "none":
        raise UserError("optimum: the service time is noisy: the best schedule would depend on the draws")
    if not 1 <= len(requests) <= MAX_REQUESTS:
        raise UserError(f"optimum: expected 1 to {MAX_REQUESTS} requests, got {len(requests)}")
    if quantum < 1 or (token_budget is not None and token_budget < quantum):
        raise UserError(f"optimum: expected 1 <= quantum <= token_budget, got {quantum} and {token_budget}")
    curve = service_curve(service, 1e3)
    most = int((requests["prompt_tokens"] + requests["output_tokens"]).sum())
    budget = most if token_budget is None else min(most, token_budget)
    columns = {name: tuple(requests[name].tolist()) for name in ("arrival_s", "ttft_target_s", "tbt_target_s")}
    prompt = tuple(int(tokens) for tokens in requests["prompt_tokens"])
    return _Instance(
        columns["arrival_s"],
        prompt,
        tuple(-(-tokens // quantum) for tokens in prompt),
        tuple(int(tokens) - 1 for tokens in requests["output_tokens"]),
        columns["ttft_target_s"],
        columns["tbt_target_s"],
        quantum,
        budget,
        tuple(mean_seconds(curve, b) for b in range(budget + 1)),
    )


# ---- sums of times -------------------------------------------------------------------------------------------------
def _least_sum(instance: _Instance, to_the_end: bool) -> float:
    """The least sum of the moments at which prompts (or requests) are done. Decodes only delay first tokens."""
    n = len(instance.prompt)
    wanted = tuple(q + (d if to_the_end else 0) for q, d in zip(instance.quanta, instance.decodes, strict=True))
    price_s = min(instance.seconds[b] / b for b in range(1, instance.budget + 1))

    def at_least(now_s: float, progress: Progress) -> float:
        """A bound on what the unfinished add: each alone on the machine from now on."""
        total = 0.0
        for i in range(n):
            if progress[i] < wanted[i]:
                prefill = instance.quanta[i] - progress[i]
                alone_s = max(0, wanted[i] - max(progress[i], instance.quanta[i])) * instance.seconds[1]
                if prefill > 0:
                    alone_s += max(instance.seconds[1], price_s * instance.tokens(i, progress[i], prefill))
                total += max(now_s, instance.arrival_s[i]) + alone_s
        return total

    best = _one_after_the_other(instance, wanted)
    levels: list[dict[Progress, list[tuple[float, float]]]] = [{} for _ in range(sum(wanted) + 1)]
    levels[0][(0,) * n] = [(0.0, 0.0)]
    for level in levels:
        for progress, ways in level.items():
            formed: dict[tuple[int, ...], list[tuple[Progress, int, int]]] = {}
            for now_s, cost in _undominated(ways):
                if progress == wanted:
                    best = min(best, cost)
                    continue
                if cost + at_least(now_s, progress) > best * (1 + 1e-12):
                    continue
                for start_s, there in instance.starts(now_s, progress, wanted):
                    if there not in formed:
                        formed[there] = [
                            (after, tokens, sum(after[i] == wanted[i] != progress[i] for i in there))
                            for after, tokens in instance.batches(progress, wanted, there)
                        ]
                    for after, tokens, done in formed[there]:
                        end_s = start_s + instance.seconds[tokens]
                        levels[sum(after)].setdefault(after, []).append((end_s, cost + done * end_s))
    return best


def _undominated(ways: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those (time, cost) that no other beats in both."""
    kept, least = [], _INF
    for now_s, cost in sorted(ways):
        if cost < least:
            kept.append((now_s, cost))
            least = cost
    return kept


def _one_after_the_other(instance: _Instance, wanted: Progress) -> float:
    """The sum of a schedule that exists: requests alone, in order, one unit a batch. A bound to begin with."""
    now_s, total = 0.0, 0.0
    for i, units in enumerate(wanted):
        now_s = max(now_s, instance.arrival_s[i])
        now_s += sum(instance.seconds[instance.tokens(i, done, 1)] for done in range(units))
        total += now_s
    return total


# ---- promises ------------------------------------------------------------------------------------------------------
def _all_on_time(instance: _Instance, chosen: tuple[int, ...]) -> bool:
    """True if these requests, and no others, can have every token by arrival + TTFT target + (j - 1) TBT targets.

    All that matters of a way to the same progress is when it gets there.
    """
    n = len(instance.prompt)
    wanted = tuple(instance.quanta[i] + instance.decodes[i] if i in chosen else 0 for i in range(n))
    levels: list[dict[Progress, float]] = [{} for _ in range(sum(wanted) + 1)]
    levels[0][(0,) * n] = 0.0
    for level in levels:
        for progress, now_s in level.items():
            if progress == wanted:
                return True
            for start_s, there in instance.starts(now_s, progress, wanted):
                for after, tokens in instance.batches(progress, wanted, there):
                    end_s = start_s + instance.seconds[tokens]
                    if end_s < levels[sum(after)].get(after, _INF) and _on_time(instance, progress, after, end_s):
                        levels[sum(after)][after] = end_s
    return False


def _on_time(instance: _Instance, progress: Progress, after: Progress, end_s: float) -> bool:
    for i in range(len(after)):
        token = after[i] - instance.quanta[i]  # 0: the first
        if after[i] > progress[i] and token >= 0:
            if end_s > instance.arrival_s[i] + instance.ttft_s[i] + token * instance.tbt_s[i] + LATE_TOLERANCE_S:
                return False
    return True
