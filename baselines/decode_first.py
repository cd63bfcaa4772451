"""Decode first: prompts are prefilled only while few requests decode, and never beside decodes.

Rule: if at least min_decodes requests decode, a batch of their decodes alone; otherwise a batch that prefills in order
of arrival within the budget. The decode-prioritising end of the trade-off: gaps stay small, first tokens wait.
Source: the decode-prioritizing end of the trade-off in Agrawal et al., "Sarathi-Serve" (OSDI 2024), section 2; with
min_decodes = 1 no prompt starts before all running requests are done.
"""

from __future__ import annotations

from baselines.parameters import TokenBudget, budget, whole
from llm_env.records import KV_PROMPT, NEVER_MIX, Decision, View, decision, policy


def make(token_budget: TokenBudget = 512, max_running: int = 128, min_decodes: int = 1):
    """Decode first.

    Args:
        token_budget: most tokens in a prefill batch, or "slo".
        max_running: most admitted requests.
        min_decodes: from this many decoding requests on, prompts wait.
    """
    fixed = budget(token_budget)
    whole("max_running", max_running)
    whole("min_decodes", min_decodes)

    @policy
    def decide(view: View) -> Decision:
        tokens = fixed if fixed > 0 else int(view.slo_budget)
        prefill = 0 if view.num_decodes >= min_decodes else tokens
        return decision(
            tokens,
            prefill_tokens=prefill,
            max_running=max_running,
            packing=NEVER_MIX,
            kv_rule=KV_PROMPT,
            watermark=0.01,
        )

    return decide
