"""DistServe: prefill workers batch whole prompts up to a token limit, decode workers run all decodes.

Rule: by the role of the worker. Prefill: waiting prompts in order of arrival, whole, while the batch stays within
prefill_tokens (a longer prompt goes alone) and max_batch requests; a prompt's KV stays until it has moved. Decode: one
token of every request that has arrived, up to max_batch; where a block is missing the last request is swapped out to
the host and returns before any other. Both (a layout that is not disaggregated): prompts first, never beside decodes,
as the colocated baseline of the paper.
Source: Zhong et al., "DistServe: Disaggregating Prefill and Decoding for Goodput-optimized Large Language Model
Serving" (OSDI 2024), read in abstract and in the code of its authors: ContextStageFCFSScheduler and
DecodingStageFCFSScheduler in distserve/context_stage_scheduler.py and decoding_stage_scheduler.py. Defaults are those
of its server: 4,096 prefill tokens and 256 requests; the paper's L_m is the length at which prefill saturates the GPU.
Its decode workers pull KV when they have room: `system.router = "shared"`.
"""

from __future__ import annotations

from baselines.parameters import TokenBudget, budget, whole
from llm_env.records import KV_PROMPT, NEVER_MIX, Decision, View, decision, policy


def make(prefill_tokens: TokenBudget = 4096, max_batch: int = 256):
    """DistServe.

    Args:
        prefill_tokens: most tokens in a prefill batch, L_m, or "slo".
        max_batch: most requests in a batch.
    """
    fixed = budget(prefill_tokens, "prefill_tokens")
    whole("max_batch", max_batch)

    @policy
    def decide(view: View) -> Decision:
        return decision(
            fixed if fixed > 0 else int(view.slo_budget),
            max_decodes=max_batch,
            max_running=max_batch,
            packing=NEVER_MIX,
            whole_prompts=1,
            kv_rule=KV_PROMPT,
            swap=1,
        )

    return decide
