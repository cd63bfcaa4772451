"""Request-level batching, as FasterTransformer behind a serving front end.

Rule: an idle worker takes waiting requests in order of arrival, whole prompts, until the batch is full; nobody joins or
leaves the batch until all its requests are done. KV is reserved for the longest sequence at admission.
Source: the baseline of Yu et al., "Orca" (OSDI 2022), section 2; "request-level batching", Algorithm 1 of Agrawal et
al., "Sarathi-Serve" (OSDI 2024). Defaults are this project's, but for the reservation: 2,048 tokens, the longest
sequence, as "Orca (Max)" in Kwon et al. (SOSP 2023), section 6.1.
"""

from __future__ import annotations

from baselines.parameters import whole
from llm_env.records import KV_RESERVE, Decision, View, decision, policy


def make(token_budget: int = 4096, max_running: int = 32, reserve_tokens: int = 2048):
    """Request-level batching.

    Args:
        token_budget: most prompt tokens in the one prefill batch.
        max_running: most requests in a batch.
        reserve_tokens: KV tokens reserved per request.
    """
    whole("token_budget", token_budget)
    whole("max_running", max_running)
    whole("reserve_tokens", reserve_tokens, 0)

    @policy
    def decide(view: View) -> Decision:
        prefill = token_budget if view.num_running == 0 else 0
        return decision(
            token_budget,
            prefill_tokens=prefill,
            max_running=max_running,
            whole_prompts=1,
            kv_rule=KV_RESERVE,
            reserve_tokens=reserve_tokens,
        )

    return decide
