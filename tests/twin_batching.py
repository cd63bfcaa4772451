"""How the slow twin (`reference_simulator`) forms a batch: the rules of a `Decision`, one after the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from twin_kv import place_for
from twin_model import Batch, Entry, Request, Worker
from twin_orders import choose_decodes, in_order

from llm_env.dtypes import RUNNING
from llm_env.records import (
    DECODES_FIRST,
    FAIR_CLIENTS,
    FCFS,
    KV_PROMPT,
    LIST_ORDER,
    MOORE_HODGSON,
    NEVER_MIX,
    PREFILL_FIRST,
    Decision,
)

if TYPE_CHECKING:
    from reference_simulator import Simulator


def form_batch(sim: Simulator, worker: Worker, batch: Batch, d: Decision) -> None:
    """Fills the batch of an idle worker."""
    former = _Former(sim, worker, batch, d)
    former.place()
    if not batch.entries and former.held_back and not batch.evicted:  # else it asks again at once
        former.place_decodes(all_of_them=True)
    elif d.fill_decodes and not batch.evicted:
        former.fill()  # Reading: only beside something
    former.help()  # Reading: decodes that an otherwise empty batch brings back go before the help


class _Former:
    def __init__(self, sim: Simulator, worker: Worker, batch: Batch, d: Decision) -> None:
        self.sim, self.settings, self.worker, self.batch, self.d = sim, sim.settings, worker, batch, d
        self.memory = sim.memory
        self.queue = worker.queue
        self.admitting = True  # until the first that does not fit
        self.admitted: list[Request] = []
        self.held_back: list[Request] = []  # decodes that are not urgent or stand at the gate
        at_gate = [r for r in worker.present if not r.is_partial and r.emitted_tokens == d.gate_tokens]
        self.gated = at_gate if d.gate_tokens > 0 and len(at_gate) < d.gate_count else []

    # ---- packings --------------------------------------------------------------------------------------------------
    def place(self) -> None:
        d, batch = self.d, self.batch
        if d.packing == DECODES_FIRST:
            self.place_decodes()
            self.swap_in(d.max_decodes)
            self.add_prefill(min(d.prefill_tokens, d.token_budget - batch.decode_tokens))
        elif d.packing == PREFILL_FIRST:
            self.add_prefill(min(d.prefill_tokens, d.token_budget))
            self.place_decodes()
            self.swap_in(self.most_decodes())
        elif d.packing == NEVER_MIX:
            self.add_prefill(min(d.prefill_tokens, d.token_budget))
            if not batch.prompts:
                self.place_decodes()
                self.swap_in(d.max_decodes)
        elif d.packing == LIST_ORDER:
            self.add_in_list_order()
            self.swap_in(self.most_decodes())
            self.add_prefill(min(d.prefill_tokens, d.token_budget - batch.decode_tokens))

    def most_decodes(self) -> float:
        d, batch = self.d, self.batch
        left = math.inf
        if d.packing == LIST_ORDER or (d.packing == PREFILL_FIRST and batch.prompts):
            left = d.token_budget - batch.prefill_tokens
        return min(d.max_decodes, left)

    def place_decodes(self, all_of_them: bool = False) -> None:
        if self.d.packing == LIST_ORDER:
            self.add_in_list_order(all_of_them)
            return
        decodes = [r for r in self.worker.present if not r.is_partial and not self.batch.holds(r)]
        decodes = [r for r in decodes if all_of_them or not self.is_held_back(r)]
        self.decode_some(decodes, self.most_decodes())

    def decode_some(self, decodes: list[Request], most: float) -> None:
        for request in choose_decodes(self.sim, self.d, decodes, most):
            if request.status == RUNNING:  # it may have been evicted for one before it
                self.decode(request)

    def is_held_back(self, request: Request) -> bool:
        slack_s = request.last_token_s + request.tbt_target_s - self.sim.now_s
        if slack_s > self.d.decode_within_s or request in self.gated:
            self.held_back.append(request)
            return True
        return False

    def fill(self) -> None:
        """Decodes that were held back, into what is left of the budget; in list order the first of the list."""
        d, batch = self.d, self.batch
        if d.packing == LIST_ORDER:
            self.add_in_list_order(all_of_them=True)
            return
        decodes = [r for r in self.worker.present if r in self.held_back]  # NEVER_MIX: none beside prefill
        self.decode_some(decodes, min(d.max_decodes - batch.decode_tokens, d.token_budget - batch.tokens))

    def add_prefill(self, most: int) -> None:
        """Partly prefilled prompts and those that wait, in the queue's order, at most so many tokens."""
        if self.queue is None:
            return
        if self.worker.next_role:
            self.add_prompts(self.unplaced_prompts(), most)
            return
        resumed = list(self.queue.resumed)
        if self.d.order == FCFS:
            self.add_prompts(self.unplaced_prompts(), most)
            self.add_prompts(resumed + self.queue.waiting, most)
            return
        self.add_prompts(resumed, most)
        if self.d.order == FAIR_CLIENTS:  # an admission moves its client's counter: look again after each
            tried: list[Request] = []
            while rest := [r for r in self.sorted(most) if r not in tried]:
                tried.append(rest[0])
                if not self.add_prompts(rest[:1], most):
                    return
        else:
            self.add_prompts(self.sorted(most), most)

    def sorted(self, most: int) -> list[Request]:
        assert self.queue
        return in_order(self.sim, self.worker, self.batch, self.d, self.unplaced_prompts() + self.queue.waiting, most)

    def unplaced_prompts(self) -> list[Request]:
        """Reading: those that helpers have all the rest of are passed over."""
        return [r for r in self.worker.present if r.left > 0 and not self.batch.holds(r)]

    def add_prompts(self, prompts: Sequence[Request], most: int) -> bool:
        """False if nobody behind these may be tried."""
        for request in list(prompts):
            if self.batch.prefill_tokens >= most:
                return False
            if request in self.worker.running:
                fits = self.chunk(request.left, most) > 0
                if fits:
                    self.continue_prompt(request, most)
                # Reading: a partly prefilled whole prompt that does not fit holds up, by order, the others of its
                # kind (FCFS), nobody (Moore-Hodgson), or everybody behind it.
                elif self.d.order != MOORE_HODGSON or self.worker.next_role:
                    return False
            elif self.queue and request in self.queue.all and self.admitting:
                self.admitting = self.admit(request, most)
        return True

    def add_in_list_order(self, all_of_them: bool = False) -> None:
        for request in list(self.worker.present):
            if request.status != RUNNING or self.batch.holds(request):
                continue
            if self.d.token_budget - self.batch.tokens <= 0:
                return
            if not request.is_partial:
                # Reading: the first in the list, also of these
                if self.batch.decode_tokens < self.d.max_decodes and (all_of_them or not self.is_held_back(request)):
                    self.decode(request)
            elif request.left > 0:
                most = min(self.d.prefill_tokens, self.d.token_budget - self.batch.decode_tokens)
                self.continue_prompt(request, most)

    # ---- entries ---------------------------------------------------------------------------------------------------
    def decode(self, request: Request) -> None:
        needed = self.memory.blocks(request.computed_tokens + 1) - request.blocks
        wanted = max(needed, 1) if request.kv_rule == KV_PROMPT else needed
        if self.make_room(request, wanted):
            self.memory.give(self.worker, request, max(0, needed))
            self.add_decode(request)

    def add_decode(self, request: Request) -> None:
        request.placed_tokens = 1
        self.batch.add(Entry(request, 1, decode=True, cached=request.computed_tokens))

    def continue_prompt(self, request: Request, most: int) -> None:
        tokens = self.chunk(request.left, most)
        if tokens <= 0:
            return
        needed = self.memory.blocks(request.computed_tokens + request.away_tokens + tokens) - request.blocks
        if self.make_room(request, needed):
            self.memory.give(self.worker, request, max(0, needed))
            self.add_prompt(request, tokens)

    def make_room(self, request: Request, blocks: int) -> bool:
        return self.memory.make_room(self.worker, request, blocks, self.batch, self.d)

    def admit(self, request: Request, most: int) -> bool:
        """Admits a waiting request with its first chunk; False if that ends the admissions."""
        s, d, worker = self.settings, self.d, self.worker
        if self.batch.evicted or worker.swapped or len(worker.present) >= d.max_running:
            return False
        if len(worker.running) >= s.max_running:
            return False
        hit = self.memory.hit(worker, request, self.sim.requests)
        hit_tokens = hit * s.block_tokens
        tokens = self.chunk(request.left - hit_tokens, most)
        if tokens <= 0:
            return False
        blocks = self.memory.admission(worker, request, hit_tokens + tokens, d, self.admitted)
        if blocks is None:
            return False
        self.sim.admit(worker, request, place_for(worker, request, d))
        self.admitted.append(request)
        request.kv_rule = d.kv_rule
        if hit:
            self.memory.use_up(worker, request, hit, self.sim.requests)
            request.hit_tokens = request.computed_tokens = hit_tokens
        self.memory.give(worker, request, blocks[1] - hit)
        self.add_prompt(request, tokens)
        return True

    def chunk(self, left: int, most: int) -> int:
        """How many tokens of a prompt this batch may take; 0 if none."""
        room = most - self.batch.prefill_tokens
        if room <= 0:
            return 0
        alone = self.batch.prompts == 0  # Reading: decodes beside it do not count
        if self.d.padded:
            # Reading: implies whole prompts; the padded count is held against the token budget alone.
            padded = (self.batch.prompts + 1) * max(self.batch.longest, left)
            return left if padded <= self.d.token_budget or alone else 0
        if self.d.whole_prompts:
            return left if left <= room or alone else 0
        return max(0, min(left, self.d.chunk_tokens, room))

    def add_prompt(self, request: Request, tokens: int) -> None:
        request.placed_tokens = tokens
        context = request.computed_tokens + request.away_tokens + tokens
        self.batch.add(Entry(request, tokens, decode=False, context=context))

    # ---- back from the host ----------------------------------------------------------------------------------------
    def swap_in(self, most_decodes: float) -> None:
        """Reading: the first that may not return keeps back those behind it."""
        worker = self.worker
        for request in list(worker.swapped):
            if self.batch.evicted:
                return
            if not self.memory.swap_in(worker, request, self.d):
                return
            worker.running.insert(place_for(worker, request, self.d), request)
            request.status = RUNNING
            if not request.is_partial and self.batch.decode_tokens < most_decodes:
                needed = self.memory.blocks(request.computed_tokens + 1) - request.blocks
                self.memory.give(worker, request, needed)
                self.add_decode(request)

    # ---- prompts of other workers ----------------------------------------------------------------------------------
    def help(self) -> None:
        """Chunks of prompts that others prefill. Readings: never beside decodes under NEVER_MIX, else within the token
        budget that all decodes leave; the prompt's own worker takes the blocks when it next adds to the request; the
        first whose blocks are not free here ends it."""
        d, batch, s = self.d, self.batch, self.settings
        if s.layout != "parallel-prefill" or d.whole_prompts or d.padded or self.admitted:
            return
        if d.packing == NEVER_MIX and batch.decode_tokens:
            return
        most = min(d.prefill_tokens, d.token_budget - batch.decode_tokens)
        for request in self.sim.helpable(self.worker):
            left = request.left - request.placed_tokens
            tokens = min(left, most - batch.prefill_tokens, d.chunk_tokens)
            if tokens <= 0 or len(batch.entries) >= s.max_running:
                return
            blocks = self.memory.blocks(tokens)
            there = request.computed_tokens + request.away_tokens + request.placed_tokens + tokens
            owner = self.sim.workers[request.worker]
            needed = max(0, self.memory.blocks(there) - request.blocks)
            if self.worker.all_free < blocks or owner.all_free < needed:
                return
            self.memory.give(owner, request, needed)
            self.memory.take(self.worker, blocks)
            request.away_tokens += tokens
            request.helpers += 1
            batch.add(
                Entry(request, tokens, False, helps=True, context=there, blocks=blocks, evictions=request.evictions)
            )
