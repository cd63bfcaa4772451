"""Between the workers of the slow twin (`reference_simulator`): routing, and KV that moves over the shared link."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from twin_model import Entry, Request, Settings, Transfer, Worker

from llm_env.dtypes import MOVING, ROLE_DECODE, RUNNING
from llm_env.records import KV_DECLARED, KV_RESERVE

if TYPE_CHECKING:
    from reference_simulator import Simulator


# ---- routers -------------------------------------------------------------------------------------------------------
def waiting_load(worker: Worker) -> float:
    """Tokens waited for or held, by speed. Reading: a move counts at its target from when that was chosen."""
    tokens = sum(r.load_tokens for r in worker.running + worker.incoming + worker.lined_up)
    tokens += sum(r.prefill_tokens for r in worker.queue.all) if worker.queue else 0
    return (tokens + sum(r.computed_tokens for r in worker.swapped)) / worker.speed


def crowd(worker: Worker) -> int:
    """Reading: those that are leaving still count."""
    waiting = len(worker.queue.all) if worker.queue else 0
    return waiting + len(worker.running) + len(worker.incoming) + len(worker.lined_up) + len(worker.swapped)


class Router:
    def __init__(self, name: str, pool: list[Worker]) -> None:
        self.name, self.pool = name, pool
        self.routed = 0

    def choose(self, previous: Request | None = None) -> Worker:
        self.routed += 1
        if self.name == "round-robin":
            return self.pool[(self.routed - 1) % len(self.pool)]
        if self.name == "shortest-queue":
            return min(self.pool, key=crowd)
        if self.name == "session-sticky" and previous is not None and previous.home >= 0:
            return next(w for w in self.pool if w.index == previous.home)
        assert self.name in ("least-tokens", "session-sticky")
        return min(self.pool, key=waiting_load)


# ---- the link ------------------------------------------------------------------------------------------------------
class Link:
    """Transfers that share a bandwidth equally, once past their latency."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.transfers: list[Transfer] = []  # under way, in the order of their start

    def start(self, transfer: Transfer, now_s: float) -> None:
        transfer.data_s = now_s + self.settings.link_latency_s
        transfer.bytes_left = transfer.tokens * self.settings.bytes_per_token
        if self.settings.link_bytes_per_s == math.inf:
            transfer.bytes_left = 0.0
        self.transfers.append(transfer)

    def sharing(self, now_s: float) -> list[Transfer]:
        return [t for t in self.transfers if t.data_s <= now_s and t.bytes_left > 0]

    def end_s(self, transfer: Transfer, now_s: float) -> float:
        """When it ends if nothing changes; for one in its latency, when that is over."""
        if transfer.data_s > now_s:
            return transfer.data_s
        sharing = self.sharing(now_s)
        return now_s + transfer.bytes_left * len(sharing) / self.settings.link_bytes_per_s if sharing else now_s

    def next_event_s(self, now_s: float) -> float:
        return min((self.end_s(t, now_s) for t in self.transfers), default=math.inf)

    def move_on(self, now_s: float, then_s: float) -> None:
        """The clock goes from one time to another, at most to `next_event_s`."""
        sharing = self.sharing(now_s)
        ends = [t for t in sharing if self.end_s(t, now_s) <= then_s]
        for transfer in sharing:
            transfer.bytes_left -= (then_s - now_s) * self.settings.link_bytes_per_s / len(sharing)
        for transfer in ends:
            transfer.bytes_left = 0.0

    def ended(self, now_s: float) -> list[Transfer]:
        return [t for t in self.transfers if t.data_s <= now_s and t.bytes_left <= 0]


# ---- what moves ----------------------------------------------------------------------------------------------------
class Network:
    """Requests that go from prefill to decode workers, and chunks that helpers send to a prompt's worker."""

    def __init__(self, sim: Simulator) -> None:
        self.sim, self.settings = sim, sim.settings
        self.link = Link(sim.settings)
        self.line: list[Transfer] = []  # moves that have not started
        router = sim.settings.router
        self.router = Router("least-tokens" if router == "session-sticky" else router, self.decoders)

    @property
    def decoders(self) -> list[Worker]:
        return [w for w in self.sim.workers if w.role == ROLE_DECODE and not w.next_role]

    def line_up(self, worker: Worker, request: Request) -> None:
        """At the end of its prefill on a worker that only prefills, or when its worker stops decoding."""
        request.status = MOVING
        target = None if self.settings.router == "shared" else self.router.choose()
        if target:
            target.lined_up.append(request)
        self.line.append(Transfer(request, worker, target, request.computed_tokens, helps=False))

    def start_moves(self) -> None:
        blocked: list[Worker | None] = []
        for transfer in list(self.line):
            if transfer.target in blocked:
                continue
            pool = self.decoders if transfer.target is None else [transfer.target]
            blocks = self._blocks(transfer.request)
            pool = self._with_room(pool, transfer.request)
            if not pool:
                blocked.append(transfer.target)
                continue
            transfer.target = min(pool, key=lambda w: len(w.running) + len(w.incoming))
            transfer.blocks = blocks
            self.sim.memory.take(transfer.target, blocks)
            if transfer.request in transfer.target.lined_up:
                transfer.target.lined_up.remove(transfer.request)
            transfer.target.incoming.append(transfer.request)
            self.line.remove(transfer)
            self.link.start(transfer, self.sim.now_s)

    def has_room(self, request: Request) -> bool:
        return bool(self._with_room(self.decoders, request))

    def _with_room(self, pool: list[Worker], request: Request) -> list[Worker]:
        return [w for w in pool if self._has_place(w) and w.all_free >= self._blocks(request)]

    def _has_place(self, worker: Worker) -> bool:
        return not worker.swapped and len(worker.running) + len(worker.incoming) < self.settings.max_running

    def _blocks(self, request: Request) -> int:
        needed = self.sim.memory.blocks(request.computed_tokens + 1)
        return max(needed, request.blocks) if request.kv_rule in (KV_RESERVE, KV_DECLARED) else needed

    def send_chunk(self, worker: Worker, entry: Entry) -> None:
        """Reading: also one that is lost already."""
        owner = self.sim.workers[entry.request.worker]
        transfer = Transfer(entry.request, worker, owner, entry.tokens, True, entry.blocks, entry.evictions)
        self.link.start(transfer, self.sim.now_s)

    def complete(self) -> bool:
        """Ends the transfers that end now; True if there was one."""
        ended = self.link.ended(self.sim.now_s)
        for transfer in ended:
            self.link.transfers.remove(transfer)
            request, source, target = transfer.request, transfer.source, transfer.target
            assert target is not None
            if transfer.helps:
                source.free_blocks += transfer.blocks
                if request.evictions == transfer.evictions:
                    request.away_tokens -= transfer.tokens
                    request.helpers -= 1
                    self.sim.compute(request, transfer.tokens)
                continue
            source.running.remove(request)
            self.sim.memory.release(source, request)
            target.incoming.remove(request)
            target.running.append(request)
            request.blocks, request.worker, request.status = transfer.blocks, target.index, RUNNING
        return bool(ended)
