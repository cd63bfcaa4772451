"""Priority: the weightiest request first, and the least weighty is evicted first.

Rule: Sarathi's batches; the queue by the weight of the request's class, the greatest first, in order of arrival within
one; decodes by the same order if not all of them may go. Where a block is missing the running request of least weight
is evicted, even for one that was admitted later.
Source: Cobham, "Priority assignment in waiting line problems" (Operations Research 2(1), 1954), the head-of-the-line
discipline. vLLM has it as --scheduling-policy priority (vllm/v1/core/sched/scheduler.py), which evicts the lowest
priority, too. Low weights can starve while high ones keep coming.
"""

from __future__ import annotations

from baselines.parameters import TokenBudget, budget, whole
from llm_env.records import DECODE_BY_ORDER, KV_CHUNK, PRIORITY, VICTIM_PRIORITY, Decision, View, decision, policy


def make(token_budget: TokenBudget = 512, max_running: int = 128):
    """Priority.

    Args:
        token_budget: most tokens in a batch, or "slo".
        max_running: most admitted requests.
    """
    fixed = budget(token_budget)
    whole("max_running", max_running)

    @policy
    def decide(view: View) -> Decision:
        tokens = fixed if fixed > 0 else int(view.slo_budget)
        return decision(
            tokens,
            max_decodes=tokens,
            max_running=max_running,
            order=PRIORITY,
            decode_order=DECODE_BY_ORDER,
            victim=VICTIM_PRIORITY,
            kv_rule=KV_CHUNK,
        )

    return decide
