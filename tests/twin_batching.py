"""How the slow twin (`reference_simulator`) forms a batch: the rules of a `Decision`, one after the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from twin_model import Batch, Request, Worker, blocks_for, prefill_time

from llm_env.records import (
    DECODES_FIRST,
    EARLIEST_DEADLINE,
    FCFS,
    KV_CHUNK,
    KV_PROMPT,
    LEAST_SLACK,
    LIST_ORDER,
    MOORE_HODGSON,
    NEVER_MIX,
    PREFILL_FIRST,
    SHORTEST_PREFILL,
    WAITING,
    Decision,
)

if TYPE_CHECKING:
    from reference_simulator import Simulator

WINDOW = 64  # Moore-Hodgson looks at so many feasible requests that wait
ROOM_CAP = 1 << 20  # tokens: the batch for which an unlimited budget's rate is taken


def form_batch(sim: Simulator, worker: Worker, batch: Batch, d: Decision) -> None:
    """Fills the batch of an idle worker."""
    former = _Former(sim, worker, batch, d)
    if d.packing == DECODES_FIRST:
        former.add_decodes(d.max_decodes)
        former.add_prefill(min(d.prefill_tokens, d.token_budget - batch.decode_tokens))
    elif d.packing == PREFILL_FIRST:
        former.add_prefill(min(d.prefill_tokens, d.token_budget))
        left = d.token_budget - batch.prefill_tokens if batch.prompts else math.inf
        former.add_decodes(min(d.max_decodes, left))
    elif d.packing == NEVER_MIX:
        former.add_prefill(min(d.prefill_tokens, d.token_budget))
        if not batch.prompts:
            former.add_decodes(d.max_decodes)
    elif d.packing == LIST_ORDER:
        former.add_in_list_order()


class _Former:
    def __init__(self, sim: Simulator, worker: Worker, batch: Batch, d: Decision) -> None:
        self.sim, self.settings, self.worker, self.batch, self.d = sim, sim.settings, worker, batch, d
        self.admitting = True  # until the first that does not fit

    # ---- packings --------------------------------------------------------------------------------------------------
    def add_decodes(self, most: float) -> None:
        for request in self.chosen_decodes(most):
            if request in self.worker.running:  # it may have been evicted for one before it
                self.decode(request)

    def chosen_decodes(self, most: float) -> list[Request]:
        """At most so many decodes; where not all may go, those that have waited longest for a token."""
        decodes = [r for r in self.worker.running if not r.is_partial and not self.batch.holds(r)]
        if len(decodes) > most:
            chosen = sorted(decodes, key=lambda r: (r.last_token_s, r.index))[: max(0, int(most))]
            decodes = [r for r in decodes if r in chosen]
        return decodes

    def add_prefill(self, most: int) -> None:
        """Partly prefilled prompts and those that wait, in the queue's order, at most so many tokens."""
        resumed = list(self.sim.resumed)
        if self.d.order == FCFS:
            self.add_prompts(self.unplaced_prompts(), most)
            self.add_prompts(resumed + self.sim.waiting, most)
        else:
            self.add_prompts(resumed, most)
            self.add_prompts(self.sorted(self.unplaced_prompts() + self.sim.waiting, most), most)

    def unplaced_prompts(self) -> list[Request]:
        return [r for r in self.worker.running if r.is_partial and not self.batch.holds(r)]

    def add_prompts(self, prompts: Sequence[Request], most: int) -> None:
        for request in list(prompts):
            if self.batch.prefill_tokens >= most:
                return
            if request in self.worker.running:
                fits = self.chunk(request, most) > 0
                if fits:
                    self.continue_prompt(request, most)
                # Reading: a partly prefilled whole prompt that does not fit holds up, by order, the others of its
                # kind (FCFS), nobody (Moore-Hodgson), or everybody behind it.
                elif self.d.order != MOORE_HODGSON:
                    return
            elif request in self.sim.resumed + self.sim.waiting and self.admitting:
                self.admitting = self.admit(request, most)

    def add_in_list_order(self) -> None:
        for request in list(self.worker.running):
            if request not in self.worker.running:
                continue
            left = self.d.token_budget - self.batch.tokens
            if left <= 0:
                return
            if request.is_partial:
                self.continue_prompt(
                    request, min(self.d.prefill_tokens, self.d.token_budget - self.batch.decode_tokens)
                )
            elif self.batch.decode_tokens < self.d.max_decodes:  # Reading: the first in the list, also of these
                self.decode(request)
        self.add_prefill(min(self.d.prefill_tokens, self.d.token_budget - self.batch.decode_tokens))

    # ---- queue orders ----------------------------------------------------------------------------------------------
    def sorted(self, requests: list[Request], most: int) -> list[Request]:
        """Reading: ties go to partly prefilled prompts, as they were admitted, then to the earliest arrival."""
        if self.d.order == SHORTEST_PREFILL:
            return sorted(requests, key=lambda r: r.left)
        if self.d.order == EARLIEST_DEADLINE:
            return sorted(requests, key=self.due_s)
        if self.d.order == LEAST_SLACK:
            return sorted(requests, key=lambda r: self.due_s(r) - prefill_time(self.settings, r.left))
        return self.moore_hodgson(requests, most)

    def due_s(self, request: Request) -> float:
        """Reading: what had tokens before it was evicted is due when its next token is."""
        return request.last_token_s + request.tbt_target_s if request.emitted_tokens else request.deadline_s

    def moore_hodgson(self, requests: list[Request], most: int) -> list[Request]:
        """By deadline, the longest dropped until the others can all be on time; the hopeless last.

        Readings: the present rate is that of a batch filled with as much prefill as it may still take; partly
        prefilled prompts are never hopeless, at worst dropped; ties go to those that wait.
        """
        now_s, d = self.sim.now_s, self.d
        room = min(most - self.batch.prefill_tokens, ROOM_CAP)
        if room <= 0:
            return []
        need_s_per_token = self.settings.batch_time(self.batch.tokens + room) / room * d.margin
        need_s = {r: r.left * need_s_per_token for r in requests}
        waiting = [r for r in requests if r.status == WAITING]
        hopeless = [r for r in waiting if r.deadline_s - prefill_time(self.settings, r.left) < now_s]
        feasible = sorted((r for r in waiting if r not in hopeless), key=self.due_s)
        looked_at = [r for r in requests if r.status != WAITING] + feasible[:WINDOW]  # of equals the partial first
        looked_at.sort(key=self.due_s)
        kept: list[Request] = []
        dropped: list[Request] = []
        busy_s = 0.0  # kept as a running sum: grids of times make ties, which a last digit decides
        for request in looked_at:
            kept.append(request)
            busy_s += need_s[request]
            while kept and busy_s > self.due_s(request) - now_s:
                longest = max(kept, key=lambda r: need_s[r])
                kept.remove(longest)
                dropped.append(longest)
                busy_s -= need_s[longest]

        def key(request: Request) -> float:
            mixture = d.slack_weight * (self.due_s(request) - now_s) + (1 - d.slack_weight) * need_s[request]
            return mixture + (d.drop_weight * self.settings.ttft_target_s if request in dropped else 0.0)

        return sorted(looked_at, key=key) + feasible[WINDOW:] + hopeless

    # ---- entries ---------------------------------------------------------------------------------------------------
    def decode(self, request: Request) -> None:
        needed = blocks_for(request.computed_tokens + 1, self.settings.block_tokens) - request.blocks
        wanted = max(needed, 1) if request.kv_rule == KV_PROMPT else needed
        if self.make_room(request, wanted):
            self.take(request, max(0, needed))
            self.batch.entries.append((request, 1))
            self.batch.decode_tokens += 1

    def continue_prompt(self, request: Request, most: int) -> None:
        tokens = self.chunk(request, most)
        if tokens <= 0:
            return
        needed = blocks_for(request.computed_tokens + tokens, self.settings.block_tokens) - request.blocks
        if self.make_room(request, needed):
            self.take(request, max(0, needed))
            self.add_prompt(request, tokens)

    def admit(self, request: Request, most: int) -> bool:
        """Admits a waiting request with its first chunk; False if that ends the admissions."""
        s, d, worker = self.settings, self.d, self.worker
        if self.batch.evicted or len(worker.running) >= min(d.max_running, s.max_running):
            return False
        tokens = self.chunk(request, most)
        if tokens <= 0:
            return False
        prompt = blocks_for(request.prefill_tokens, s.block_tokens)
        if d.kv_rule == KV_CHUNK:
            must_fit, taken = prompt, blocks_for(tokens, s.block_tokens)
        elif d.kv_rule == KV_PROMPT:
            must_fit, taken = prompt, prompt
        else:
            must_fit = taken = max(prompt, blocks_for(d.reserve_tokens, s.block_tokens))
        kept_free = 0
        if s.kv_blocks is not None:
            kept_free = math.floor((d.watermark if s.watermark is None else s.watermark) * s.kv_blocks)
            if not worker.running:  # an empty worker admits whatever fits
                kept_free = 0
                must_fit = taken = min(must_fit, s.kv_blocks) if d.kv_rule not in (KV_CHUNK, KV_PROMPT) else taken
        if worker.free_blocks - must_fit < kept_free:
            return False
        place = len(worker.running)
        while d.packing == NEVER_MIX and place > 0 and worker.running[place - 1].index > request.index:
            place -= 1  # Reading: vLLM v0 decodes, and evicts, in order of arrival
        self.sim.admit(worker, request, place)
        request.kv_rule = d.kv_rule
        self.take(request, taken)
        self.add_prompt(request, tokens)
        return True

    def chunk(self, request: Request, most: int) -> int:
        """How many tokens of a prompt this batch may take; 0 if none."""
        room = most - self.batch.prefill_tokens
        if room <= 0:
            return 0
        alone = self.batch.prompts == 0  # Reading: decodes beside it do not count
        if self.d.padded:
            # Reading: implies whole prompts; the padded count is held against the token budget alone.
            padded = (self.batch.prompts + 1) * max(self.batch.longest, request.left)
            return request.left if padded <= self.d.token_budget or alone else 0
        if self.d.whole_prompts:
            return request.left if request.left <= room or alone else 0
        return max(0, min(request.left, self.d.chunk_tokens, room))

    def add_prompt(self, request: Request, tokens: int) -> None:
        self.batch.entries.append((request, tokens))
        self.batch.prefill_tokens += tokens
        self.batch.prompts += 1
        self.batch.longest = max(self.batch.longest, tokens)

    # ---- memory ----------------------------------------------------------------------------------------------------
    def make_room(self, request: Request, blocks: int) -> bool:
        """Evicts the last running request that is not in the batch until so many blocks are free; False if it went."""
        while self.worker.free_blocks < blocks:
            victim = [r for r in self.worker.running if not self.batch.holds(r)][-1]
            self.sim.evict(self.worker, victim)
            self.batch.evicted += 1
            if victim is request:
                return False
        return True

    def take(self, request: Request, blocks: int) -> None:
        request.blocks += blocks
        self.worker.free_blocks -= blocks
