"""VTC, virtual token counter: the client that has received least service goes first.

Rule: every client has a counter of the service it received: its prompt tokens when a request is admitted, two for each
output token. Of the clients that wait the one with the least counter is next, its requests in order of arrival. A
client that comes back to the queue is lifted to the least counter there, so that it cannot save up. Batches as in
`vllm-v0`: whole prompts alone, decodes only if no prompt can be admitted; a request is admitted if what all running
ones may still generate fits beside it.
Source: Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024), prices 1 and 2; read in
abstract and in the code of its authors, VTCReqQueue in slora/server/router/vtc_req_queue.py. The kernel keeps the
counters. Differs: its admission check knows which memory will have been freed by when and is a little bolder; 4,096
tokens and 128 requests are the defaults of `vllm-v0`.
"""

from __future__ import annotations

from baselines.parameters import whole
from llm_env.records import FAIR_CLIENTS, KV_ESTIMATE, NEVER_MIX, Decision, View, decision, policy


def make(max_batched_tokens: int = 4096, max_running: int = 128):
    """VTC.

    Args:
        max_batched_tokens: most prompt tokens in a prefill batch (a longer prompt goes alone).
        max_running: most admitted requests.
    """
    whole("max_batched_tokens", max_batched_tokens)
    whole("max_running", max_running)

    @policy
    def decide(view: View) -> Decision:
        return decision(
            max_batched_tokens,
            max_running=max_running,
            packing=NEVER_MIX,
            whole_prompts=1,
            order=FAIR_CLIENTS,
            kv_rule=KV_ESTIMATE,
        )

    return decide
