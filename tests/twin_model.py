"""What the slow twin (`reference_simulator`) works on: requests, workers, batches, and the time that a batch takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from llm_env.records import FUTURE

SLO_BUDGET_CAP = 1 << 20


@dataclass
class Settings:
    """The system, in seconds and tokens."""

    workers: int = 1
    max_running: int = 8
    max_hold_s: float = 1.0
    setup_s: float = 0.01
    per_token_s: float = 0.001
    free_tokens: int = 0
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
    noise: Sequence[Sequence[tuple[float, float]]] | None = None  # [worker][iteration]: factors on setup and on tokens

    def batch_time(self, tokens: float, worker: int | None = None, iteration: int = 0) -> float:
        """S(b), with the noise of one worker's iteration if a worker is named."""
        setup, per_token = self.noise[worker][iteration] if self.noise and worker is not None else (1.0, 1.0)
        return self.setup_s * setup + self.per_token_s * max(0, tokens - self.free_tokens) * per_token

    def terms(self, entries: Sequence[tuple[Request, int]]) -> tuple[float, float, float]:
        """What decodes, their cached tokens and the context of prefills add to S(b)."""
        decodes = [r for r, _ in entries if r.computed_tokens >= r.prefill_tokens]
        chunks = [(n, r.computed_tokens + n) for r, n in entries if r.computed_tokens < r.prefill_tokens]
        return (
            self.decode_fixed_s if decodes else 0.0,
            self.cached_token_s * sum(r.computed_tokens for r in decodes),
            self.token_context_s * sum(n * context for n, context in chunks),
        )

    @property
    def slo_budget(self) -> float:
        """b0 + (TBT target - c) / a: the largest batch within the TBT target, at least 1."""
        spare_s = self.tbt_target_s - self.setup_s
        if self.per_token_s == 0:
            return SLO_BUDGET_CAP if spare_s >= 0 else 1
        if spare_s < 0:
            return 1
        return min(max(self.free_tokens + spare_s / self.per_token_s, 1), SLO_BUDGET_CAP)


@dataclass(eq=False)
class Request:
    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    ttft_target_s: float
    tbt_target_s: float
    index: int = 0
    status: int = FUTURE
    prefill_tokens: int = 0  # what must be prefilled: the prompt, after an eviction also what was generated
    computed_tokens: int = 0
    emitted_tokens: int = 0
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

    @property
    def left(self) -> int:
        """Tokens left to prefill."""
        return self.prefill_tokens - self.computed_tokens

    @property
    def is_partial(self) -> bool:
        return self.left > 0

    @property
    def deadline_s(self) -> float:
        return self.arrival_s + self.ttft_target_s

    def next_due_s(self, token: int) -> float:
        """When token 1, 2, ... is due under the deadline rule."""
        return self.arrival_s + self.ttft_target_s + (token - 1) * self.tbt_target_s


@dataclass
class Batch:
    worker: int
    start_s: float
    end_s: float = 0.0
    seconds: float = 0.0
    entries: list[tuple[Request, int]] = field(default_factory=list)
    prefill_tokens: int = 0
    decode_tokens: int = 0
    longest: int = 0  # tokens of its longest prefill
    prompts: int = 0  # how many entries prefill
    evicted: int = 0

    @property
    def tokens(self) -> int:
        return self.prefill_tokens + self.decode_tokens

    def holds(self, request: Request) -> bool:
        return any(entry is request for entry, _ in self.entries)


@dataclass
class Worker:
    index: int
    free_blocks: int
    running: list[Request] = field(default_factory=list)  # in order of admission
    batch: Batch | None = None  # what it executes
    last_batch: Batch | None = None
    held_until_s: float = -1.0
    iteration: int = 0


def blocks_for(tokens: int, block_tokens: int) -> int:
    return -(-tokens // block_tokens)


def prefill_time(settings: Settings, tokens: int) -> float:
    """Time to prefill alone, in chunks of the SLO budget."""
    budget = int(settings.slo_budget)
    whole, rest = divmod(tokens, budget)
    return whole * settings.batch_time(budget) + (settings.batch_time(rest) if rest else 0.0)
