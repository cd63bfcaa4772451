"""A second simulator, slow and plain, that shares nothing with the kernel: the tests compare the two.

Objects, lists and dictionaries; every queue is sorted anew for every decision. Written from the documentation, so that
a difference is a mistake of one side or a gap in the text. Its readings of such gaps are marked "Reading:".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from twin_batching import form_batch
from twin_kv import Memory
from twin_model import Batch, Queue, Request, Settings, Worker, blocks_for
from twin_network import Network, Router
from twin_orders import Clients
from twin_roles import Roles
from twin_view import UNLIMITED_BLOCKS, view

from llm_env.dtypes import (
    FINISHED,
    FUTURE,
    LATE_TOLERANCE_S,
    REJECTED,
    ROLE_BOTH,
    ROLE_DECODE,
    ROLE_PREFILL,
    RUNNING,
    WAITING,
)
from llm_env.records import Decision, View

MAX_DECISIONS = 20_000


class Simulator:
    """One system. `run` lets a policy, any function View -> Decision, decide until it is drained or its horizon.

    Args:
        requests: in order of arrival; in a closed loop, where they have times of thought, grouped by client, the times
            of arrival infinite but for the first of each client.
    """

    def __init__(self, settings: Settings, requests: Sequence[Request]) -> None:
        self.settings, self.requests = settings, list(requests)
        self.closed = bool(requests) and requests[0].think_s >= 0
        for request in self.requests if self.closed else ():
            if request.arrival_s >= settings.arrivals_s:
                request.arrival_s = math.inf
        self.now_s, self.epoch, self.num_arrived = 0.0, 0, 0
        self.batches: list[Batch] = []
        self.queues = [Queue()]
        free = UNLIMITED_BLOCKS if settings.kv_blocks is None else settings.kv_blocks
        self.workers: list[Worker] = []
        for index in range(settings.workers):
            role = ROLE_BOTH
            if settings.layout == "disaggregated":
                role = ROLE_PREFILL if index < settings.prefill_workers else ROLE_DECODE
            if role != ROLE_DECODE and settings.router != "shared" and index > 0:
                self.queues.append(Queue())
            queue = None if role == ROLE_DECODE else self.queues[-1]
            speed = settings.speeds[index] if settings.speeds else 1.0
            self.workers.append(Worker(index, role, queue, speed, free))
        self.router = Router(settings.router, [w for w in self.workers if w.role != ROLE_DECODE])
        self.memory = Memory(settings, self.queue_of)
        self.network = Network(self)
        self.clients = Clients()
        self.roles = Roles(self)

    def queue_of(self, request: Request) -> Queue:
        queue = self.queues[0] if self.settings.router == "shared" else self.workers[request.home].queue
        assert queue is not None
        return queue

    # ---- the clock -------------------------------------------------------------------------------------------------
    def run(self, decide: Callable[[View], Decision]) -> None:
        while self._to_next_decision():
            worker = next(w for w in self.workers if self._is_due(w))
            d = decide(view(self, worker))
            worker.memory = d.memory
            self._carry_out(worker, d)
            self.epoch += 1
            assert self.epoch < MAX_DECISIONS, "the policy does not come to an end"

    def _is_due(self, worker: Worker) -> bool:
        if worker.batch is not None or worker.switch_end_s is not None or worker.held_until_s > self.now_s:
            return False
        return self._has_work(worker)

    def _has_work(self, worker: Worker) -> bool:
        if worker.present or worker.swapped or (worker.queue and worker.queue.all):
            return True
        return bool(self.helpable(worker)) or self.roles.has_say(worker)

    def helpable(self, worker: Worker) -> list[Request]:
        """Partly prefilled prompts of other workers that this one could help with, in order of arrival.

        Readings: a prompt in its first batch is partly prefilled; a chunk on its way still occupies its helper.
        """
        s = self.settings
        if s.layout != "parallel-prefill":
            return []
        found = [r for w in self.workers if w is not worker for r in w.present if r.is_partial]
        found = [r for r in found if r.left - r.placed_tokens >= s.helped_from and r.helpers + 1 < s.helped_by]
        return sorted(found, key=lambda r: r.index)

    def _to_next_decision(self) -> bool:
        """Moves the clock to where a worker must decide; False if none ever will before the horizon."""
        if any(self._is_due(worker) for worker in self.workers):
            return True  # Reading: before batches end that took no time at all
        while True:
            self._let_things_happen()
            if any(self._is_due(worker) for worker in self.workers):
                return True
            times = [r.arrival_s for r in self.requests if r.status == FUTURE]
            times += [w.batch.end_s for w in self.workers if w.batch is not None]
            times += [w.switch_end_s for w in self.workers if w.switch_end_s is not None]
            times += [w.held_until_s for w in self.workers if w.held_until_s > self.now_s and self._has_work(w)]
            times.append(self.network.link.next_event_s(self.now_s))
            if min(times) == math.inf or min(times) > self.settings.horizon_s:
                return False  # Reading: what happens at the horizon itself still counts
            self.network.link.move_on(self.now_s, min(times))
            self.now_s = min(times)

    def _let_things_happen(self) -> None:
        """Everything of this moment; each of it ends all holds."""
        arrived, completed = self._let_arrive(), self._complete_batches()
        completed = self.roles.end_changes() or completed
        gathered = self._let_move()
        if arrived or completed or gathered:
            self._end_holds()

    def _let_move(self) -> bool:
        """Transfers end, and moves start where there is room. True if one has ended."""
        ended = self.network.complete()
        self.network.start_moves()
        while self.network.complete():  # one that takes no time at all ends at once
            ended = True
            self.network.start_moves()
        return ended

    def _end_holds(self) -> None:
        for worker in self.workers:
            worker.held_until_s = -1.0

    def _let_arrive(self) -> bool:
        before = self.num_arrived
        while due := [r for r in self.requests if r.status == FUTURE and r.arrival_s <= self.now_s]:
            request = min(due, key=lambda r: r.arrival_s)  # of equals the first
            request.index, self.num_arrived = self.num_arrived, self.num_arrived + 1
            most = request.prompt_tokens + request.output_tokens - 1
            blocks = self.settings.kv_blocks
            if blocks is not None and blocks_for(most, self.settings.block_tokens) > blocks:
                request.status = REJECTED
                self._think(request)
                continue
            if self.settings.router != "shared":
                previous = self.requests[request.previous] if request.previous >= 0 else None
                request.home = self.router.choose(previous).index
            self.clients.arrive(request, [r for queue in self.queues for r in queue.all])
            request.status = WAITING
            self.queue_of(request).waiting.append(request)
        return self.num_arrived > before

    def _think(self, request: Request) -> None:
        """Its user, if there is one who waited for it, will ask again."""
        place = self.requests.index(request) + 1
        if not self.closed or place == len(self.requests) or self.requests[place].client != request.client:
            return
        arrival_s = self.now_s + self.requests[place].think_s
        if arrival_s < self.settings.arrivals_s:
            self.requests[place].arrival_s = arrival_s

    # ---- batches ---------------------------------------------------------------------------------------------------
    def _carry_out(self, worker: Worker, d: Decision) -> None:
        if self.settings.change_roles:
            begins = self.roles.ask(worker, d.role)
            if self._let_move():
                self._end_holds()
            if begins:
                return
        batch = Batch(worker.index, self.now_s)
        swapped = len(worker.swapped)
        if d.hold_s <= 0:
            form_batch(self, worker, batch, d)
            worker.last_evicted = batch.evicted  # Reading: also if nothing else came of it
        if batch.entries:
            self._begin(worker, batch)
        elif not batch.evicted or (d.swap and swapped and len(worker.swapped) == swapped):
            # Reading: else it asks again at once; not where as many came back as were swapped out
            hold_s = min(d.hold_s, self.settings.max_hold_s) if d.hold_s > 0 else self.settings.max_hold_s
            worker.held_until_s = self.now_s + hold_s
        if self._let_move():  # who was evicted or came back from the host made room
            self._end_holds()

    def _begin(self, worker: Worker, batch: Batch) -> None:
        for entry in batch.entries:
            if entry.request.first_scheduled_s < 0:
                entry.request.first_scheduled_s = self.now_s
        batch.seconds = self.settings.batch_time(batch.tokens, worker.index, worker.iteration)
        for seconds in batch.terms(self.settings):
            batch.seconds += seconds
        batch.seconds /= worker.speed
        batch.seconds += worker.swap_tokens * self.settings.bytes_per_token / self.settings.host_bytes_per_s
        worker.swap_tokens = 0
        batch.end_s = self.now_s + batch.seconds
        worker.iteration += 1
        worker.batch = batch

    def _complete_batches(self) -> bool:
        ended = [w for w in self.workers if w.batch is not None and w.batch.end_s <= self.now_s]
        for worker in ended:
            batch = worker.batch
            assert batch is not None
            worker.batch = None
            worker.last_batch = batch
            self.batches.append(batch)  # Reading: the record is of batches that ended, in that order
            for entry in batch.entries:
                if entry.helps:
                    self.network.send_chunk(worker, entry)
                else:
                    entry.request.placed_tokens = 0
                    self.compute(entry.request, entry.tokens)
        return bool(ended)

    def compute(self, request: Request, tokens: int) -> None:
        """Its worker has the KV of so many tokens more."""
        request.computed_tokens += tokens
        if request.is_partial:
            return
        self._emit(request)
        worker = self.workers[request.worker]
        if request.emitted_tokens == request.output_tokens:
            request.status = FINISHED
            request.finish_s = self.now_s
            worker.running.remove(request)
            self.memory.finish(worker, request)
            self._think(request)
        elif worker.role == ROLE_PREFILL:
            self.network.line_up(worker, request)

    def _emit(self, request: Request) -> None:
        self.clients.emit(request)
        request.emitted_tokens += 1
        if request.emitted_tokens == 1:
            request.first_token_s = self.now_s
        else:
            gap_s = self.now_s - request.last_token_s
            request.max_tbt_s = gap_s if math.isnan(request.max_tbt_s) else max(request.max_tbt_s, gap_s)
            request.late_gaps += gap_s > request.tbt_target_s + LATE_TOLERANCE_S
        request.late_tokens += self.now_s > request.next_due_s(request.emitted_tokens) + LATE_TOLERANCE_S
        request.last_token_s = self.now_s

    def admit(self, worker: Worker, request: Request, place: int) -> None:
        """From the queue to a place in a worker's running list."""
        assert worker.queue is not None
        (worker.queue.resumed if request in worker.queue.resumed else worker.queue.waiting).remove(request)
        self.clients.leave(request)
        request.status, request.worker = RUNNING, worker.index
        worker.running.insert(place, request)
