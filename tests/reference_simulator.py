"""A second simulator, slow and plain, that shares nothing with the kernel: the tests compare the two.

Objects, lists and dictionaries; every queue is sorted anew for every decision. Written from the documentation, so that
a difference is a mistake of one side or a gap in the text. Its readings of such gaps are marked "Reading:".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from twin_batching import form_batch
from twin_model import Batch, Request, Settings, Worker, blocks_for, prefill_time

from llm_env.records import (
    FAR,
    FINISHED,
    FUTURE,
    LATE_TOLERANCE_S,
    REJECTED,
    RULE_DEADLINE,
    RUNNING,
    WAITING,
    Decision,
    View,
)

MAX_DECISIONS = 20_000
UNLIMITED_BLOCKS = 1 << 40


@dataclass
class Simulator:
    """One system. `run` lets a policy, any function View -> Decision, decide until it is drained or its horizon."""

    settings: Settings
    requests: Sequence[Request]  # in order of arrival
    now_s: float = 0.0
    epoch: int = 0
    batches: list[Batch] = field(default_factory=list)
    resumed: list[Request] = field(default_factory=list)  # evicted requests, the front of the queue first
    waiting: list[Request] = field(default_factory=list)  # the others, in order of arrival

    def __post_init__(self) -> None:
        blocks = self.settings.kv_blocks
        free = UNLIMITED_BLOCKS if blocks is None else blocks
        self.workers = [Worker(index, free) for index in range(self.settings.workers)]

    # ---- the clock -------------------------------------------------------------------------------------------------
    def run(self, decide: Callable[[View], Decision]) -> None:
        while self._to_next_decision():
            worker = next(w for w in self.workers if self._is_due(w))
            self._carry_out(worker, decide(self.view(worker)))
            self.epoch += 1
            assert self.epoch < MAX_DECISIONS, "the policy does not come to an end"

    def _is_due(self, worker: Worker) -> bool:
        if worker.batch is not None or worker.held_until_s > self.now_s:
            return False
        return bool(worker.running or self.waiting or self.resumed)

    def _to_next_decision(self) -> bool:
        """Moves the clock to where a worker must decide; False if none ever will before the horizon."""
        if any(self._is_due(worker) for worker in self.workers):
            return True  # Reading: before batches end that took no time at all
        while True:
            self._complete_batches()
            self._let_arrive()
            if any(self._is_due(worker) for worker in self.workers):
                return True
            times = [r.arrival_s for r in self.requests if r.status == FUTURE]
            times += [w.batch.end_s for w in self.workers if w.batch is not None]
            if self.waiting or self.resumed or any(w.running for w in self.workers):
                times += [w.held_until_s for w in self.workers if w.held_until_s > self.now_s]
            if not times or min(times) > self.settings.horizon_s:
                return False  # Reading: what happens at the horizon itself still counts
            self.now_s = min(times)

    def _let_arrive(self) -> None:
        for request in self.requests:
            if request.status != FUTURE or request.arrival_s > self.now_s:
                continue
            self._end_holds()
            most = request.prompt_tokens + request.output_tokens - 1
            blocks = self.settings.kv_blocks
            if blocks is not None and blocks_for(most, self.settings.block_tokens) > blocks:
                request.status = REJECTED
                continue
            request.status = WAITING
            self.waiting.append(request)

    def _end_holds(self) -> None:
        for worker in self.workers:
            worker.held_until_s = -1.0

    # ---- batches ---------------------------------------------------------------------------------------------------
    def _carry_out(self, worker: Worker, d: Decision) -> None:
        batch = Batch(worker.index, self.now_s)
        if d.hold_s <= 0:
            form_batch(self, worker, batch, d)
        if not batch.entries:
            if batch.evicted:
                return  # Reading: it asks again at once
            hold_s = min(d.hold_s, self.settings.max_hold_s) if d.hold_s > 0 else self.settings.max_hold_s
            worker.held_until_s = self.now_s + hold_s
            return
        for request, _ in batch.entries:
            if request.first_scheduled_s < 0:
                request.first_scheduled_s = self.now_s
        batch.seconds = self.settings.batch_time(batch.tokens, worker.index, worker.iteration)
        for seconds in self.settings.terms(batch.entries):
            batch.seconds += seconds
        batch.end_s = self.now_s + batch.seconds
        worker.iteration += 1
        worker.batch = batch

    def _complete_batches(self) -> None:
        for worker in self.workers:
            batch = worker.batch
            if batch is None or batch.end_s > self.now_s:
                continue
            self._end_holds()
            worker.batch = None
            worker.last_batch = batch
            self.batches.append(batch)  # Reading: the record is of batches that ended, in that order
            for request, tokens in batch.entries:
                request.computed_tokens += tokens
                if request.computed_tokens >= request.prefill_tokens:
                    self._emit(request)
                if request.emitted_tokens == request.output_tokens:
                    request.status = FINISHED
                    request.finish_s = self.now_s
                    worker.free_blocks += request.blocks
                    request.blocks = 0
                    worker.running.remove(request)

    def _emit(self, request: Request) -> None:
        request.emitted_tokens += 1
        if request.emitted_tokens == 1:
            request.first_token_s = self.now_s
        else:
            gap_s = self.now_s - request.last_token_s
            request.max_tbt_s = gap_s if math.isnan(request.max_tbt_s) else max(request.max_tbt_s, gap_s)
            request.late_gaps += gap_s > request.tbt_target_s + LATE_TOLERANCE_S
        request.late_tokens += self.now_s > request.next_due_s(request.emitted_tokens) + LATE_TOLERANCE_S
        request.last_token_s = self.now_s

    def evict(self, worker: Worker, request: Request) -> None:
        """Takes a running request's KV; it goes to the front of the queue and prefills all it has once more."""
        worker.running.remove(request)
        worker.free_blocks += request.blocks
        request.blocks = 0
        request.computed_tokens = 0
        request.prefill_tokens = request.prompt_tokens + request.emitted_tokens
        request.status = WAITING
        request.evictions += 1
        self.resumed.insert(0, request)

    # ---- what a policy sees ----------------------------------------------------------------------------------------
    def view(self, worker: Worker) -> View:
        s, now_s = self.settings, self.now_s
        queue = self.resumed + self.waiting
        slack_s = {id(r): r.deadline_s - prefill_time(s, r.prefill_tokens) - now_s for r in self.waiting}
        hopeless = [r for r in self.waiting if slack_s[id(r)] < 0]
        feasible = sorted((r for r in self.waiting if slack_s[id(r)] >= 0), key=lambda r: r.deadline_s)
        urgent = [(slack_s[id(r)], r.prefill_tokens) for r in feasible[:2]] + [(FAR, 0), (FAR, 0)]
        partial = [r for r in worker.running if r.is_partial]
        decodes = [r for r in worker.running if not r.is_partial]
        ages_s = [now_s - r.arrival_s for r in self.requests if r.status != FUTURE]
        used = 0.0 if s.kv_blocks is None else (s.kv_blocks - worker.free_blocks) / s.kv_blocks
        last = worker.last_batch
        return View(
            now_s=now_s,
            epoch=self.epoch,
            worker=worker.index,
            num_workers=s.workers,
            setup_s=s.setup_s,
            per_token_s=s.per_token_s,
            free_tokens=s.free_tokens,
            ttft_target_s=s.ttft_target_s,
            tbt_target_s=s.tbt_target_s,
            slo_budget=s.slo_budget,
            max_running=s.max_running,
            num_waiting=len(queue),
            waiting_tokens=sum(r.prefill_tokens for r in queue),
            num_resumed=len(self.resumed),
            num_hopeless=len(hopeless),
            hopeless_tokens=sum(r.prefill_tokens for r in hopeless),
            head_tokens=queue[0].prefill_tokens if queue else 0,
            head_age_s=now_s - queue[0].arrival_s if queue else 0.0,
            urgent_slack_s=urgent[0][0],
            urgent_tokens=urgent[0][1],
            second_slack_s=urgent[1][0],
            second_tokens=urgent[1][1],
            rate_fast_per_s=sum(math.exp(-age / 3) for age in ages_s) / 3,
            rate_slow_per_s=sum(math.exp(-age / 20) for age in ages_s) / 20,
            num_running=len(worker.running),
            num_decodes=len(decodes),
            num_partial=len(partial),
            partial_tokens=sum(r.left for r in partial),
            context_tokens=sum(r.computed_tokens for r in worker.running),
            min_decode_slack_s=min((self._decode_slack(r) for r in decodes), default=FAR),
            num_clean_decodes=sum(self._is_clean(r) for r in decodes),
            kv_blocks=UNLIMITED_BLOCKS if s.kv_blocks is None else s.kv_blocks,
            free_blocks=worker.free_blocks,
            block_tokens=s.block_tokens,
            kv_used=used,
            last_batch_s=last.seconds if last else 0.0,
            last_batch_tokens=last.tokens if last else 0,
        )

    def _decode_slack(self, request: Request) -> float:
        return request.last_token_s + request.tbt_target_s - self.now_s  # Reading: the gap's limit under every SLO rule

    def _is_clean(self, request: Request) -> bool:
        return (request.late_tokens if self.settings.slo_rule == RULE_DEADLINE else request.late_gaps) == 0

    def admit(self, worker: Worker, request: Request, place: int) -> None:
        """From the queue to a place in a worker's running list."""
        (self.resumed if request in self.resumed else self.waiting).remove(request)
        request.status = RUNNING
        worker.running.insert(place, request)
