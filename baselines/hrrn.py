"""HRRN, highest response ratio next: short prompts first, but waiting counts in favour.

Rule: Sarathi's batches; the queue by (waiting time + prefill time) / prefill time, the largest first. A short prompt
rises quickly, a long one rises too and cannot starve.
Source: Brinch Hansen, "An analysis of response ratio scheduling" (IFIP Congress 1971). SGLang has the order as a
schedule policy, "hrrn". The service is the prefill alone, since output lengths are unknown; partly prefilled prompts
compete with their rest, where the source never preempts.
"""

from __future__ import annotations

from baselines.parameters import TokenBudget
from baselines.sarathi import make_ordered
from llm_env.records import RESPONSE_RATIO


def make(token_budget: TokenBudget = 512, max_running: int = 128, chunk_tokens: int = 0):
    """Highest response ratio next.

    Args:
        token_budget: most tokens in a batch (decodes are never held back), or "slo".
        max_running: most admitted requests.
        chunk_tokens: most tokens of one prompt in a batch; 0 for no limit.
    """
    return make_ordered(token_budget, max_running, RESPONSE_RATIO, chunk_tokens)
