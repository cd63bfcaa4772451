"""Splitwise: prompt machines batch few prompts, token machines as many decodes as fit, mixed machines prompts first.

Rule: by the role of the worker. Prefill: whole prompts in order of arrival, at most max_tokens in a batch. Decode:
every request that has arrived, at most max_batch. Both (its mixed pool): prompts first within max_tokens, then as many
decodes as the batch has room for, those that wait longest first; if decodes have been displaced max_preemptions times
in a row, the next batch takes them first.
Source: Patel et al., "Splitwise: Efficient Generative LLM Inference Using Phase Splitting" (ISCA 2024).
Read in abstract; the rule is that of its authors' simulator, splitwise-sim: SplitwiseInstance.select_batch in
instance.py, defaults from configs/start_state/splitwise.yaml (2,048 tokens, 512 requests, 4 preemptions, which are
counted there per request and here per worker). Its scheduler joins the shortest queue by tokens:
`system.router = "least-tokens"`.
"""

from __future__ import annotations

from baselines.parameters import whole
from llm_env.dtypes import ROLE_BOTH
from llm_env.records import DECODES_FIRST, KV_PROMPT, PREFILL_FIRST, Decision, View, decision, policy


def make(max_tokens: int = 2048, max_batch: int = 512, max_preemptions: int = 4):
    """Splitwise.

    Args:
        max_tokens: most tokens in a batch.
        max_batch: most requests in a batch.
        max_preemptions: batches in a row that may leave decodes out on a mixed worker.
    """
    whole("max_tokens", max_tokens)
    whole("max_batch", max_batch)
    whole("max_preemptions", max_preemptions, 0)

    @policy
    def decide(view: View) -> Decision:
        displaced = 0.0  # memory: how many batches in a row had no room for all decodes
        packing, prefill = PREFILL_FIRST, max_tokens
        if view.role == ROLE_BOTH and view.num_decodes + view.waiting_tokens > max_tokens and view.num_decodes > 0:
            displaced = view.memory + 1.0
            if displaced > max_preemptions:
                displaced, packing = 0.0, DECODES_FIRST
                prefill = max_tokens if view.num_decodes + view.head_tokens <= max_tokens else 0
        return decision(
            max_tokens,
            prefill_tokens=prefill,
            max_decodes=min(max_batch, max_tokens),
            max_running=max_batch,
            packing=packing,
            whole_prompts=1,
            kv_rule=KV_PROMPT,
            memory=displaced,
        )

    return decide
