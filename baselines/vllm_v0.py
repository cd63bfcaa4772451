"""vLLM v0: prefill first, never mixed.

Rule: if waiting prompts can be admitted, a batch of whole prompts in order of arrival; only if none can, one decode of
every running request. Decodes stall behind every burst of prompts. KV: the prompt's blocks at admission with 1 % of
the blocks kept free; when a decode finds no free block the last request is evicted and recomputed.
Source: Kwon et al., "Efficient Memory Management for LLM Serving with PagedAttention" (SOSP 2023), sections 4.3-4.5;
vllm/core/scheduler.py before v0.6 with chunked prefill off. Defaults as in Vidur's replica of it: 4,096 tokens,
128 requests. `padded` counts prompts x longest prompt against the budget, as early versions and Vidur do.
"""

from __future__ import annotations

from baselines.parameters import whole
from llm_env.records import KV_PROMPT, NEVER_MIX, Decision, View, decision, policy


def make(max_batched_tokens: int = 4096, max_running: int = 128, padded: bool = False):
    """VLLM v0.

    Args:
        max_batched_tokens: most prompt tokens in a prefill batch (a longer prompt goes alone).
        max_running: most admitted requests (max_num_seqs).
        padded: count every prompt of a batch as long as its longest.
    """
    whole("max_batched_tokens", max_batched_tokens)
    whole("max_running", max_running)
    count_padded = int(padded)

    @policy
    def decide(view: View) -> Decision:
        return decision(
            max_batched_tokens,
            max_running=max_running,
            packing=NEVER_MIX,
            whole_prompts=1,
            padded=count_padded,
            kv_rule=KV_PROMPT,
            watermark=0.01,
        )

    return decide
