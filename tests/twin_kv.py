"""KV memory in the slow twin (`reference_simulator`): who fits, who goes, what the prefix cache keeps."""

from __future__ import annotations

import math
from collections.abc import Callable

from twin_model import Batch, Queue, Request, Settings, Worker, blocks_for

from llm_env.dtypes import FINISHED, SWAPPED, WAITING
from llm_env.records import (
    KV_CHUNK,
    KV_DECLARED,
    KV_ESTIMATE,
    KV_PROMPT,
    KV_RESERVE,
    NEVER_MIX,
    VICTIM_FEWEST,
    VICTIM_LAST,
    VICTIM_PRIORITY,
    Decision,
)


class Memory:
    """The blocks of all workers."""

    def __init__(self, settings: Settings, queue_of: Callable[[Request], Queue]) -> None:
        self.settings, self.queue_of = settings, queue_of

    def blocks(self, tokens: int) -> int:
        return blocks_for(tokens, self.settings.block_tokens)

    # ---- taking and giving back ------------------------------------------------------------------------------------
    def take(self, worker: Worker, blocks: int) -> None:
        """Free blocks; what is missing comes from the cache: the oldest entry first, its last blocks first."""
        while worker.free_blocks < blocks:
            request, cached = worker.cache[0]
            taken = min(cached, blocks - worker.free_blocks)
            worker.free_blocks += taken
            worker.cache[0] = (request, cached - taken)
            if cached == taken:
                worker.cache.pop(0)
        worker.free_blocks -= blocks

    def give(self, worker: Worker, request: Request, blocks: int) -> None:
        self.take(worker, blocks)
        request.blocks += blocks

    def release(self, worker: Worker, request: Request) -> None:
        worker.free_blocks += request.blocks
        request.blocks = 0

    def kept_free(self, worker: Worker, d: Decision) -> int:
        """Blocks that an admission must leave; an empty worker admits whatever fits."""
        s = self.settings
        if s.kv_blocks is None or self.is_empty(worker):
            return 0
        return math.floor((d.watermark if s.watermark is None else s.watermark) * s.kv_blocks)

    def is_empty(self, worker: Worker) -> bool:
        """Nothing of its memory is in use."""
        return self.settings.kv_blocks is not None and worker.all_free == self.settings.kv_blocks

    # ---- admission -------------------------------------------------------------------------------------------------
    def admission(
        self, worker: Worker, request: Request, computed: int, d: Decision, new: list[Request]
    ) -> tuple[int, int] | None:
        """Blocks that must be free and blocks that are taken, to have `computed` tokens after this batch; None if it
        does not fit. `new` are those that were admitted in this step."""
        s = self.settings
        prompt = self.blocks(request.prefill_tokens)
        must_fit = taken = prompt
        if d.kv_rule == KV_CHUNK:
            taken = self.blocks(computed)
        elif d.kv_rule in (KV_RESERVE, KV_DECLARED):
            rest = request.declared_tokens - request.emitted_tokens - 1
            tokens = d.reserve_tokens if d.kv_rule == KV_RESERVE else request.prefill_tokens + rest
            must_fit = taken = max(prompt, self.blocks(tokens))
            if self.is_empty(worker) and s.kv_blocks is not None:
                must_fit = taken = min(must_fit, s.kv_blocks)
        else:
            assert d.kv_rule in (KV_PROMPT, KV_ESTIMATE)
            if d.kv_rule == KV_ESTIMATE and s.kv_blocks is not None and not self.is_empty(worker):
                free = worker.all_free * s.block_tokens
                running = sum(r.still_needs(d.reserve_tokens) for r in worker.present if r not in new)
                thought = d.reserve_ratio * running + sum(r.still_needs(d.reserve_tokens) for r in new)
                if request.prefill_tokens + request.still_needs(d.reserve_tokens) > free - thought:
                    return None
        if worker.all_free - must_fit < self.kept_free(worker, d):
            return None
        return must_fit, taken

    # ---- who goes --------------------------------------------------------------------------------------------------
    def make_room(self, worker: Worker, request: Request, blocks: int, batch: Batch, d: Decision) -> bool:
        """Takes running requests out until so many blocks are free; False if the request itself went."""
        while worker.all_free < blocks:
            victim = self.victim(worker, request, batch, d)
            alone = worker.running == [victim]  # then it is recomputed
            worker.running.remove(victim)
            self.release(worker, victim)
            victim.evictions += 1
            victim.away_tokens = victim.helpers = 0  # what helpers have of it is lost
            batch.evicted += 1
            if d.swap and not alone:
                victim.status = SWAPPED
                worker.swapped.append(victim)
                worker.swapped.sort(key=lambda r: r.index)
                worker.swap_tokens += victim.computed_tokens
            else:
                victim.status = WAITING
                victim.computed_tokens = victim.hit_tokens = 0
                victim.prefill_tokens = victim.prompt_tokens + victim.emitted_tokens
                self.queue_of(victim).resumed.insert(0, victim)
            if victim is request:
                return False
        return True

    def victim(self, worker: Worker, request: Request, batch: Batch, d: Decision) -> Request:
        there = [r for r in worker.running[worker.running.index(request) :] if r in worker.present]
        candidates = [r for r in reversed(there) if not batch.holds(r)]  # of equals the last
        if d.victim == VICTIM_FEWEST:
            return min(candidates, key=lambda r: (r.emitted_tokens, -r.prompt_tokens))
        if d.victim == VICTIM_PRIORITY:
            return min(candidates, key=lambda r: r.weight)
        assert d.victim == VICTIM_LAST
        return candidates[0]

    # ---- who comes back from the host ------------------------------------------------------------------------------
    def swap_in(self, worker: Worker, request: Request, d: Decision) -> bool:
        """It takes the blocks of its tokens and wants one more free, for its next. Reading: d.max_running counts those
        that are leaving too."""
        s = self.settings
        if len(worker.running) + len(worker.incoming) >= min(d.max_running, s.max_running):
            return False
        blocks = self.blocks(request.computed_tokens)
        if worker.all_free - (blocks + 1) < self.kept_free(worker, d) and not self.is_empty(worker):
            return False
        worker.swapped.remove(request)
        worker.swap_tokens += request.computed_tokens
        self.give(worker, request, blocks)
        return True

    # ---- the prefix cache ------------------------------------------------------------------------------------------
    def finish(self, worker: Worker, request: Request) -> None:
        s = self.settings
        kept = 0
        if s.prefix_cache and request.session >= 0:
            kept = (request.prompt_tokens + request.output_tokens - 1) // s.block_tokens
        self.release(worker, request)
        if kept:
            worker.free_blocks -= kept
            worker.cache.append((request, kept))

    def hit(self, worker: Worker, request: Request, requests: list[Request]) -> int:
        """Blocks of its prompt that the worker's cache has. Reading: 0 leaves the entry as it is."""
        if request.emitted_tokens or request.previous < 0:
            return 0
        previous = requests[request.previous]
        if previous.status != FINISHED or previous.worker != worker.index:
            return 0
        cached = sum(blocks for r, blocks in worker.cache if r is previous)
        size = self.settings.block_tokens
        return min(cached, request.shared_tokens // size, (request.prompt_tokens - 1) // size)

    def use_up(self, worker: Worker, request: Request, hit: int, requests: list[Request]) -> None:
        """The cached blocks become its own; the rest of the entry is freed."""
        previous = requests[request.previous]
        entry = next(entry for entry in worker.cache if entry[0] is previous)
        worker.cache.remove(entry)
        worker.free_blocks += entry[1]
        self.give(worker, request, hit)


def place_for(worker: Worker, request: Request, d: Decision) -> int:
    """Where it joins the running list. Reading: under NEVER_MIX vLLM v0 decodes, and evicts, by arrival."""
    place = len(worker.running)
    while d.packing == NEVER_MIX and place > 0 and worker.running[place - 1].index > request.index:
        place -= 1
    return place
