"""Orca: iteration-level scheduling of whole prompts and decodes in one batch.

Rule: every iteration runs all admitted requests; new ones join in order of arrival, whole prompts, while fewer than
max_running run and the longest possible sequence can be reserved in KV. No token budget, so a long prompt delays every
decode beside it.
Source: Yu et al., "Orca: A Distributed Serving System for Transformer-Based Generative Models" (OSDI 2022), section
3.1-3.2, Algorithm 1. Defaults: 128 requests and a reservation of 4,096 tokens, as Vidur's Orca scheduler.
"""

from __future__ import annotations

from baselines.parameters import whole
from llm_env.records import KV_RESERVE, UNLIMITED, Decision, View, decision, policy


def make(max_running: int = 128, reserve_tokens: int = 4096):
    """Orca.

    Args:
        max_running: most requests in a batch.
        reserve_tokens: KV tokens reserved per request at admission.
    """
    whole("max_running", max_running)
    whole("reserve_tokens", reserve_tokens, 0)

    @policy
    def decide(view: View) -> Decision:
        return decision(
            UNLIMITED,
            max_running=max_running,
            whole_prompts=1,
            kv_rule=KV_RESERVE,
            reserve_tokens=reserve_tokens,
        )

    return decide
