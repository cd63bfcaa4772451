"""The queue orders of the slow twin (`reference_simulator`): who is prefilled first, who decodes if not all may."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from twin_model import Batch, Request, Settings, Worker

from llm_env.dtypes import WAITING
from llm_env.records import (
    DECODE_BY_ORDER,
    EARLIEST_DEADLINE,
    FAIR_CLIENTS,
    FCFS,
    LEAST_ATTAINED,
    LEAST_SLACK,
    MOORE_HODGSON,
    PREDICTED_SHORTEST,
    PRIORITY,
    RESPONSE_RATIO,
    SHORTEST_PREFILL,
    Decision,
)

if TYPE_CHECKING:
    from reference_simulator import Simulator

WINDOW = 64  # Moore-Hodgson looks at so many feasible requests that wait
ROOM_CAP = 1 << 20  # tokens: the batch for which an unlimited budget's rate is taken
MOST_LEVELS = 30
PROMPT_WEIGHT, OUTPUT_WEIGHT = 1, 2  # of a client's tokens


def in_order(sim: Simulator, worker: Worker, batch: Batch, d: Decision, requests: list[Request], most: int):
    """Partly prefilled prompts and those that wait, sorted. Evicted ones are not among them: they come first."""
    s = sim.settings
    if d.order == MOORE_HODGSON:
        return moore_hodgson(sim, worker, batch, d, requests, most)
    if d.order in (SHORTEST_PREFILL, EARLIEST_DEADLINE, LEAST_SLACK):
        # ties go to partly prefilled prompts, as they were admitted, then to the earliest arrival.
        keys: dict[int, Callable[[Request], float]] = {
            SHORTEST_PREFILL: lambda r: r.left,
            EARLIEST_DEADLINE: due_s,
            LEAST_SLACK: lambda r: due_s(r) - s.prefill_time(r.left),
        }
        return sorted(requests, key=keys[d.order])
    return sorted(requests, key=lambda r: prefill_key(sim, d, r))  # of equals as above


def prefill_key(sim: Simulator, d: Decision, request: Request) -> tuple[float, ...]:
    if d.order == RESPONSE_RATIO:
        wait_s, service_s = sim.now_s - request.arrival_s, sim.settings.prefill_time(request.left)
        return (-(wait_s + service_s) / service_s if service_s > 0 else -math.inf,)
    return shared_key(sim, d, request)


def shared_key(sim: Simulator, d: Decision, request: Request) -> tuple[float, ...]:
    """The keys that prompts and decodes have in common."""
    if d.order == PREDICTED_SHORTEST:
        if starves(sim, d, request):
            return (-math.inf,)
        return (math.inf if math.isnan(request.predicted_tokens) else request.predicted_tokens,)
    if d.order == FAIR_CLIENTS:
        return (sim.clients.served.get(request.client, 0),)
    if d.order == LEAST_ATTAINED:
        return ((-1 if starves(sim, d, request) else level(sim.settings, d, request)),)
    assert d.order == PRIORITY
    return (-request.weight,)


def starves(sim: Simulator, d: Decision, request: Request) -> bool:
    return d.starve_s > 0 and sim.now_s - max(request.arrival_s, request.last_token_s) > d.starve_s


def level(s: Settings, d: Decision, request: Request) -> int:
    prompt_s = s.prefill_time(request.prompt_tokens)
    attained_s = (
        prompt_s + (request.emitted_tokens - 1) * (s.batch_time(1) / s.fastest) if request.emitted_tokens else 0.0
    )
    first = 0
    while first < MOST_LEVELS and d.quantum_s * 2**first < prompt_s:
        first += 1
    at = first
    while at < MOST_LEVELS and d.quantum_s * (2 ** (at + 1) - 2**first) <= attained_s:
        at += 1
    return at


def due_s(request: Request) -> float:
    """Reading: what had tokens before it was evicted is due when its next token is."""
    return request.last_token_s + request.tbt_target_s if request.emitted_tokens else request.deadline_s


def moore_hodgson(
    sim: Simulator, worker: Worker, batch: Batch, d: Decision, requests: list[Request], most: int
) -> list[Request]:
    """By deadline, the longest dropped until the others can all be on time; the hopeless last.

    Readings: the present rate is that of a batch filled with as much prefill as it may still take, on this worker;
    partly prefilled prompts are never hopeless, at worst dropped; ties go to those that wait.
    """
    s, now_s = sim.settings, sim.now_s
    room = min(most - batch.prefill_tokens, ROOM_CAP)
    if room <= 0:
        return []
    need_s_per_token = s.batch_time(batch.tokens + room) / worker.speed / room * d.margin
    need_s = {r: r.left * need_s_per_token for r in requests}
    waiting = [r for r in requests if r.status == WAITING]
    hopeless = [r for r in waiting if r.deadline_s - s.prefill_time(r.left) < now_s]
    feasible = sorted((r for r in waiting if r not in hopeless), key=due_s)
    looked_at = [r for r in requests if r.status != WAITING] + feasible[:WINDOW]  # of equals the partial first
    looked_at.sort(key=due_s)
    kept: list[Request] = []
    dropped: list[Request] = []
    busy_s = 0.0  # kept as a running sum: grids of times make ties, which a last digit decides
    for request in looked_at:
        kept.append(request)
        busy_s += need_s[request]
        while kept and busy_s > due_s(request) - now_s:
            longest = max(kept, key=lambda r: need_s[r] / r.weight**d.class_weight)
            kept.remove(longest)
            dropped.append(longest)
            busy_s -= need_s[longest]

    def key(request: Request) -> float:
        mixture = d.slack_weight * (due_s(request) - now_s) + (1 - d.slack_weight) * need_s[request]
        return mixture + (d.drop_weight * s.ttft_target_s if request in dropped else 0.0)

    return sorted(looked_at, key=key) + feasible[WINDOW:] + hopeless


def choose_decodes(sim: Simulator, d: Decision, decodes: list[Request], most: float) -> list[Request]:
    """At most so many of these, in the order in which they came."""
    if len(decodes) <= most:
        return decodes
    chosen = sorted(decodes, key=lambda r: (*decode_key(sim, d, r), r.index))[: max(0, int(most))]
    return [r for r in decodes if r in chosen]


def decode_key(sim: Simulator, d: Decision, request: Request) -> tuple[float, ...]:
    if d.decode_order != DECODE_BY_ORDER or d.order in (SHORTEST_PREFILL, RESPONSE_RATIO):
        return (request.last_token_s,)
    if d.order == FCFS:
        return ()
    if d.order in (EARLIEST_DEADLINE, LEAST_SLACK, MOORE_HODGSON):
        return (request.last_token_s + request.tbt_target_s,)
    return shared_key(sim, d, request)


class Clients:
    """What each client has been served (Sheng et al., Algorithm 2). Reading: unknown clients (-1) are one."""

    def __init__(self) -> None:
        self.served: dict[int, float] = {}
        self.last_to_leave: int | None = None

    def arrive(self, request: Request, waiting: list[Request]) -> None:
        """Before it joins those that wait, in whatever queue."""
        mine = self.served.setdefault(request.client, 0)
        clients = {r.client for r in waiting}
        if request.client in clients:
            return
        if clients:
            self.served[request.client] = max(mine, min(self.served[c] for c in clients))
        elif self.last_to_leave is not None:
            self.served[request.client] = max(mine, self.served[self.last_to_leave])

    def leave(self, request: Request) -> None:
        self.last_to_leave = request.client
        if request.evictions == 0:
            self.served[request.client] += PROMPT_WEIGHT * request.prompt_tokens

    def emit(self, request: Request) -> None:
        self.served[request.client] += OUTPUT_WEIGHT
