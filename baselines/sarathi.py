"""Sarathi-Serve: stall-free batches of all decodes and as much chunked prefill as a token budget leaves.

Rule: all running decodes; then partly prefilled prompts; then new requests in order of arrival, each a chunk of at
most what is left of the budget, while fewer than max_running are admitted.
Source: Agrawal et al., "Taming Throughput-Latency Tradeoff in LLM Inference with Sarathi-Serve" (OSDI 2024), Algorithm
3 (stall-free batching) and section 4; budget 512 (their strict-SLO setting) and 128 requests as there. KV as in its
vLLM base: the whole prompt's blocks at admission, 1 % kept free. "slo" derives the budget from the TBT target, as the
paper's one-time profiling does.
"""

from __future__ import annotations

from baselines.parameters import TokenBudget, budget, whole
from llm_env.records import FCFS, KV_PROMPT, UNLIMITED, Decision, View, decision, policy


def make(token_budget: TokenBudget = 512, max_running: int = 128, chunk_tokens: int = 0):
    """Sarathi-Serve.

    Args:
        token_budget: most tokens in a batch (decodes are never held back), or "slo".
        max_running: most admitted requests.
        chunk_tokens: most tokens of one prompt in a batch; 0 for no limit.
    """
    return make_ordered(token_budget, max_running, FCFS, chunk_tokens)


def make_ordered(token_budget: TokenBudget, max_running: int, order: int, chunk_tokens: int = 0):
    """Sarathi-Serve with any queue order of `llm_env.records`."""
    fixed = budget(token_budget)
    whole("max_running", max_running)
    chunk = whole("chunk_tokens", chunk_tokens, 0) or UNLIMITED

    @policy
    def decide(view: View) -> Decision:
        tokens = fixed if fixed > 0 else int(view.slo_budget)
        return decision(
            tokens, chunk_tokens=chunk, max_running=max_running, order=order, kv_rule=KV_PROMPT, watermark=0.01
        )

    return decide
