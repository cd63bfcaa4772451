"""Sarathi-Serve with shortest-prompt-first: the same batches, the queue sorted by remaining prefill.

Rule: as `baselines.sarathi`, but prefill goes to the prompt with the least left to prefill, waiting or partly done.
Source: shortest remaining processing time, Schrage, "A proof of the optimality of the shortest remaining processing
time discipline" (Operations Research 16(3), 1968), applied to prompts, whose length is known. Long prompts can starve.
"""

from __future__ import annotations

from baselines.parameters import TokenBudget
from baselines.sarathi import make_ordered
from llm_env.records import SHORTEST_PREFILL


def make(token_budget: TokenBudget = 512, max_running: int = 128, chunk_tokens: int = 0):
    """Sarathi-Serve, shortest remaining prefill first.

    Args:
        token_budget: most tokens in a batch (decodes are never held back), or "slo".
        max_running: most admitted requests.
        chunk_tokens: most tokens of one prompt in a batch; 0 for no limit.
    """
    return make_ordered(token_budget, max_running, SHORTEST_PREFILL, chunk_tokens)
