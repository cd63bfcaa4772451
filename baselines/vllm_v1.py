"""vLLM v1: one token budget for whatever runs, then for the queue.

Rule: running requests in order of admission, decodes and prompt chunks alike, each gets what it needs while the budget
lasts; then waiting requests in order of arrival while fewer than max_running run and the whole prompt fits in free KV
(blocks are taken only for the chunk). Where a block is missing the last running request is preempted to the front of
the queue and recomputed, and nobody is admitted in that step. A chunk is at most long_prefill_threshold tokens, unless
the request is the only one.
Source: vllm/v1/core/sched/scheduler.py, `Scheduler.schedule` (version 0.33). Defaults: max_num_batched_tokens 2,048 and
max_num_seqs 128 (vllm/config/scheduler.py); a server's own defaults are larger on larger GPUs.
"""

from __future__ import annotations

from baselines.parameters import TokenBudget, budget, whole
from llm_env.records import KV_CHUNK, LIST_ORDER, UNLIMITED, Decision, View, decision, policy


def make(token_budget: TokenBudget = 2048, max_running: int = 128, long_prefill_threshold: int = 0):
    """VLLM v1.

    Args:
        token_budget: most tokens in a batch (max_num_batched_tokens), or "slo".
        max_running: most admitted requests (max_num_seqs).
        long_prefill_threshold: most tokens of one prompt in a batch; 0 for no limit.
    """
    fixed = budget(token_budget)
    whole("max_running", max_running)
    whole("long_prefill_threshold", long_prefill_threshold, 0)

    @policy
    def decide(view: View) -> Decision:
        tokens = fixed if fixed > 0 else int(view.slo_budget)
        chunk = UNLIMITED
        if long_prefill_threshold > 0 and view.num_running + view.num_waiting > 1:
            chunk = long_prefill_threshold
        return decision(tokens, chunk_tokens=chunk, max_running=max_running, packing=LIST_ORDER, kv_rule=KV_CHUNK)

    return decide
