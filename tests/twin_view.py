"""What a policy sees of the slow twin (`reference_simulator`)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from twin_model import Queue, Request, Worker

from llm_env.dtypes import FAR, FUTURE, MOVING, ROLE_DECODE, ROLE_PREFILL, RULE_DEADLINE
from llm_env.records import View

if TYPE_CHECKING:
    from reference_simulator import Simulator

UNLIMITED_BLOCKS = 1 << 40


def view(sim: Simulator, worker: Worker) -> View:
    """Readings: a worker that only decodes sees an empty queue; requests that are leaving are counted in num_moving
    and, as they are in its KV, in context_tokens; blocks of the prefix cache are free in `kv_used` too."""
    s, now_s = sim.settings, sim.now_s
    queue = worker.queue or Queue()
    slack_s = {id(r): r.deadline_s - s.prefill_time(r.prefill_tokens) - now_s for r in queue.waiting}
    hopeless = [r for r in queue.waiting if slack_s[id(r)] < 0]
    feasible = sorted((r for r in queue.waiting if slack_s[id(r)] >= 0), key=lambda r: r.deadline_s)
    urgent = [(slack_s[id(r)], r.prefill_tokens) for r in feasible[:2]] + [(FAR, 0), (FAR, 0)]
    partial = [r for r in worker.present if r.is_partial]
    decodes = [r for r in worker.present if not r.is_partial]
    ages_s = [now_s - r.arrival_s for r in sim.requests if r.status != FUTURE]
    setup_s, per_token_s, free_tokens = s.curve.line
    last = worker.last_batch
    helpable = sim.helpable(worker)
    head = queue.all[0] if queue.all else None
    return View(
        now_s=now_s,
        epoch=sim.epoch,
        worker=worker.index,
        num_workers=s.workers,
        setup_s=setup_s / worker.speed,
        per_token_s=per_token_s / worker.speed,
        free_tokens=free_tokens,
        ttft_target_s=s.ttft_target_s,
        tbt_target_s=s.tbt_target_s,
        slo_budget=s.curve.budget(s.tbt_target_s * worker.speed),
        max_running=s.max_running,
        num_waiting=len(queue.all),
        waiting_tokens=sum(r.prefill_tokens for r in queue.all),
        num_resumed=len(queue.resumed),
        num_hopeless=len(hopeless),
        hopeless_tokens=sum(r.prefill_tokens for r in hopeless),
        head_tokens=head.prefill_tokens if head else 0,
        head_age_s=now_s - head.arrival_s if head else 0.0,
        urgent_slack_s=urgent[0][0],
        urgent_tokens=urgent[0][1],
        second_slack_s=urgent[1][0],
        second_tokens=urgent[1][1],
        rate_fast_per_s=sum(math.exp(-age / 3) for age in ages_s) / 3,
        rate_slow_per_s=sum(math.exp(-age / 20) for age in ages_s) / 20,
        num_running=len(worker.present),
        num_decodes=len(decodes),
        num_partial=len(partial),
        partial_tokens=sum(r.left for r in partial),
        context_tokens=sum(r.computed_tokens for r in worker.running),
        min_decode_slack_s=min((_decode_slack(sim, r) for r in decodes), default=FAR),
        num_clean_decodes=sum(_is_clean(sim, r) for r in decodes),
        kv_blocks=UNLIMITED_BLOCKS if s.kv_blocks is None else s.kv_blocks,
        free_blocks=worker.all_free,
        block_tokens=s.block_tokens,
        kv_used=0.0 if s.kv_blocks is None else (s.kv_blocks - worker.all_free) / s.kv_blocks,
        last_batch_s=last.end_s - last.start_s if last else 0.0,
        last_batch_tokens=last.tokens if last else 0,
        role=worker.role,
        speed=worker.speed,
        num_moving=sum(r.status == MOVING for r in worker.running),
        num_swapped=len(worker.swapped),
        last_prefill_tokens=last.prefill_tokens if last else 0,
        last_evicted=worker.last_evicted,
        emitted_tokens=sum(r.emitted_tokens for r in worker.present),
        declared_tokens=sum(r.declared_tokens for r in worker.present),
        help_tokens=sum(r.left - r.placed_tokens for r in helpable),
        memory=worker.memory,
        decode_extra_s=(s.decode_fixed_s + s.cached_token_s * sum(r.computed_tokens for r in worker.running))
        / worker.speed,
        **_pools(sim, worker),
    )


def _pools(sim: Simulator, worker: Worker) -> dict[str, Any]:
    """Reading: swapped requests and those on their way count as those of a decode worker; rejected ones arrive too."""
    decoders = [w for w in sim.workers if w.role == ROLE_DECODE]
    names = View._fields[View._fields.index("next_role") :]
    if sim.settings.layout != "disaggregated":
        return dict.fromkeys(names, 0)
    s, now_s = sim.settings, sim.now_s
    waiting = [r for queue in sim.queues for r in queue.waiting]
    hopeless = [r for r in waiting if r.deadline_s - s.prefill_time(r.prefill_tokens) - now_s < 0]
    arrived = [r for r in sim.requests if r.status != FUTURE]
    shares = [0.0 if s.kv_blocks is None else 1.0 - w.all_free / s.kv_blocks for w in decoders]
    to_be = [w.next_role or w.role for w in sim.workers]
    counts = {
        "next_role": worker.next_role,
        "prefill_workers": to_be.count(ROLE_PREFILL),
        "pool_live_tokens": sum(r.prefill_tokens for queue in sim.queues for r in queue.all if r not in hopeless),
        "pool_decodes": sum(len(w.present) + len(w.incoming) + len(w.swapped) for w in decoders),
        "pool_kv_used": sum(shares) / max(1, len(shares)),
        "num_lined_up": len(sim.network.line),
    }
    for name, tokens in (("prompt", _prompt_tokens), ("output", _output_tokens)):
        counts[f"{name}_rate_per_s"] = sum(tokens(r) * math.exp(-(now_s - r.arrival_s) / 20) for r in arrived) / 20
    return counts


def _prompt_tokens(request: Request) -> float:
    return request.prompt_tokens


def _output_tokens(request: Request) -> float:
    """As predicted, at most what is declared, or that where nothing is predicted."""
    if math.isnan(request.predicted_tokens):
        return request.declared_tokens
    return min(request.declared_tokens, request.predicted_tokens)


def _decode_slack(sim: Simulator, request: Request) -> float:
    return request.last_token_s + request.tbt_target_s - sim.now_s  # Reading: the gap's limit under every SLO rule


def _is_clean(sim: Simulator, request: Request) -> bool:
    return (request.late_tokens if sim.settings.slo_rule == RULE_DEADLINE else request.late_gaps) == 0
