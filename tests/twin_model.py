"""What the slow twin (`reference_simulator`) works on: settings, requests, workers, batches, transfers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from twin_service import Linear, Staircase, Table

from llm_env.dtypes import FUTURE, RUNNING


@dataclass
class Settings:
    """The system, in seconds and tokens."""

    workers: int = 1
    max_running: int = 8
    max_hold_s: float = 1.0
    curve: Linear | Staircase | Table = field(default_factory=Linear)
    decode_fixed_s: float = 0.0  # of a batch with a decode
    cached_token_s: float = 0.0  # per token that a decode finds computed
    token_context_s: float = 0.0  # per prefill token and token computed before it or in its chunk
    kv_blocks: int | None = None  # None: unlimited
    block_tokens: int = 16
    watermark: float | None = None  # None: as the policy says
    slo_rule: int = 0
    ttft_target_s: float = 0.1
    tbt_target_s: float = 0.02
    horizon_s: float = math.inf
    arrivals_s: float = math.inf  # closed loops: nobody asks at this time or later
    noise: Sequence[Sequence[tuple[float, float]]] | None = None  # [worker][iteration]: factors on setup and on tokens
    layout: str = "replicas"
    prefill_workers: int = 0  # disaggregated: the first so many
    router: str = "shared"
    speeds: Sequence[float] | None = None
    prefix_cache: bool = False
    bytes_per_token: float = 0.0
    host_bytes_per_s: float = 25e9
    link_latency_s: float = 0.0
    link_bytes_per_s: float = math.inf
    helped_by: int = 4  # most workers at one prompt, with its own
    change_roles: bool = False
    switch_s: float = 1.0
    least_prefill: int = 1
    least_decode: int = 1
    helped_from: int = 512  # fewest tokens left of a prompt that is worth help

    def batch_time(self, tokens: float, worker: int | None = None, iteration: int = 0) -> float:
        """S(b), with the noise of one worker's iteration if a worker is named."""
        noise = self.noise[worker][iteration] if self.noise and worker is not None else (1.0, 1.0)
        return self.curve.seconds(tokens, *noise)

    def prefill_time(self, tokens: int) -> float:
        """Time to prefill alone on the fastest worker, in chunks of its SLO budget."""
        budget = int(self.curve.budget(self.tbt_target_s * self.fastest))
        whole, rest = divmod(tokens, budget)
        return (whole * self.batch_time(budget) + (self.batch_time(rest) if rest else 0.0)) / self.fastest

    @property
    def fastest(self) -> float:
        return max(self.speeds or (1.0,))


@dataclass(eq=False)
class Request:
    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    ttft_target_s: float
    tbt_target_s: float
    index: int = 0
    declared_tokens: int = 0  # 0: as many as it will make
    predicted_tokens: float = math.nan
    weight: float = 1.0
    client: int = -1
    session: int = -1
    previous: int = -1
    shared_tokens: int = 0
    think_s: float = -1.0  # closed loops: its user's thought before it
    status: int = FUTURE
    worker: int = -1
    home: int = -1
    prefill_tokens: int = 0  # what must be prefilled: the prompt, after an eviction also what was generated
    computed_tokens: int = 0
    emitted_tokens: int = 0
    placed_tokens: int = 0  # in its own worker's batch
    away_tokens: int = 0  # with helpers, being computed or gathered
    helpers: int = 0  # chunks of it that are there
    hit_tokens: int = 0
    blocks: int = 0
    kv_rule: int = -1
    first_scheduled_s: float = -1.0
    first_token_s: float = -1.0
    last_token_s: float = -1.0
    finish_s: float = -1.0
    max_tbt_s: float = math.nan
    late_gaps: int = 0
    late_tokens: int = 0
    evictions: int = 0

    def __post_init__(self) -> None:
        self.prefill_tokens = self.prompt_tokens
        self.declared_tokens = self.declared_tokens or self.output_tokens

    @property
    def left(self) -> int:
        """Tokens left to prefill that no other worker is at."""
        return self.prefill_tokens - self.computed_tokens - self.away_tokens

    @property
    def is_partial(self) -> bool:
        return self.computed_tokens < self.prefill_tokens

    @property
    def deadline_s(self) -> float:
        return self.arrival_s + self.ttft_target_s

    @property
    def load_tokens(self) -> int:
        return max(self.prefill_tokens, self.computed_tokens)

    def next_due_s(self, token: int) -> float:
        """When token 1, 2, ... is due under the deadline rule."""
        return self.arrival_s + self.ttft_target_s + (token - 1) * self.tbt_target_s

    def still_needs(self, cap: int) -> int:
        """Output that its client still allows, at most `cap` if that is above 0."""
        rest = self.declared_tokens - self.emitted_tokens
        return min(rest, cap) if cap > 0 else rest


@dataclass
class Entry:
    request: Request
    tokens: int
    decode: bool
    helps: bool = False
    context: int = 0  # prefill: tokens computed before, elsewhere and in this batch
    cached: int = 0  # decode: tokens computed before
    blocks: int = 0  # helps: held for the chunk
    evictions: int = 0  # helps: of the request when the chunk was taken


@dataclass
class Batch:
    worker: int
    start_s: float
    end_s: float = 0.0
    seconds: float = 0.0
    entries: list[Entry] = field(default_factory=list)
    prefill_tokens: int = 0
    decode_tokens: int = 0
    longest: int = 0  # tokens of its longest prefill
    prompts: int = 0  # how many entries prefill
    evicted: int = 0

    @property
    def tokens(self) -> int:
        return self.prefill_tokens + self.decode_tokens

    def holds(self, request: Request) -> bool:
        return any(entry.request is request for entry in self.entries)

    def add(self, entry: Entry) -> None:
        self.entries.append(entry)
        if entry.decode:
            self.decode_tokens += entry.tokens
        else:
            self.prefill_tokens += entry.tokens
            self.prompts += 1
            self.longest = max(self.longest, entry.tokens)

    def terms(self, s: Settings) -> tuple[float, float, float]:
        """What decodes, their cached tokens and the context of prefills add to S(b)."""
        decodes = [e for e in self.entries if e.decode]
        return (
            s.decode_fixed_s if decodes else 0.0,
            s.cached_token_s * sum(e.cached for e in decodes),
            s.token_context_s * sum(e.tokens * e.context for e in self.entries if not e.decode),
        )


@dataclass
class Queue:
    resumed: list[Request] = field(default_factory=list)  # evicted requests, the front of the queue first
    waiting: list[Request] = field(default_factory=list)  # the others, in order of arrival

    @property
    def all(self) -> list[Request]:
        return self.resumed + self.waiting


@dataclass
class Worker:
    index: int
    role: int
    queue: Queue | None  # None: it never prefills
    speed: float
    free_blocks: int  # without those of the cache
    running: list[Request] = field(default_factory=list)  # in order of admission, with those that are leaving
    incoming: list[Request] = field(default_factory=list)  # have a place here, their KV is on its way
    lined_up: list[Request] = field(default_factory=list)  # sent here by a router, no room yet
    swapped: list[Request] = field(default_factory=list)  # in order of arrival
    swap_tokens: int = 0  # since the last batch
    cache: list[tuple[Request, int]] = field(default_factory=list)  # finished turns and their blocks, oldest first
    batch: Batch | None = None  # what it executes
    last_batch: Batch | None = None
    last_evicted: int = 0
    memory: float = 0.0
    held_until_s: float = -1.0
    next_role: int = 0  # 0: it stays what it is
    switch_end_s: float | None = None
    iteration: int = 0

    @property
    def present(self) -> list[Request]:
        """Those that run and do not leave."""
        return [r for r in self.running if r.status == RUNNING]

    @property
    def all_free(self) -> int:
        """Free blocks with those of the cache."""
        return self.free_blocks + sum(blocks for _, blocks in self.cache)


@dataclass(eq=False)
class Transfer:
    """KV on its way from worker to worker."""

    request: Request
    source: Worker
    target: Worker | None  # None: not chosen yet
    tokens: int
    helps: bool
    blocks: int = 0  # helps: held on the source; else taken on the target
    evictions: int = 0
    started: bool = False
    data_s: float = math.inf  # when its latency is over
    bytes_left: float = 0.0


def blocks_for(tokens: int, block_tokens: int) -> int:
    return -(-tokens // block_tokens)
