"""Slack filling: the largest chunk that still keeps the most urgent decode on time.

Rule: all decodes; then prefill up to the batch size b with S(b) = slack of the most urgent decode, so the budget
follows the decodes instead of being fixed. Without decodes, up to max_tokens.
Source: dynamic chunking of Goel et al., "Niyama: Breaking the Silos of LLM Inference Serving" (arXiv:2503.22562, 2025;
read in abstract), which sizes chunks by the slack of running requests; here with this project's S(b) as the predictor.
"""

from __future__ import annotations

from baselines.parameters import queue_order, whole
from llm_env.records import KV_CHUNK, Decision, View, decision, policy
from llm_env.service import largest_batch


def make(max_tokens: int = 8192, max_running: int = 128, order: str = "fcfs"):
    """Slack filling.

    Args:
        max_tokens: most tokens in a batch, whatever the slack.
        max_running: most admitted requests.
        order: queue order, one of `llm_env.records.QUEUE_ORDERS`.
    """
    whole("max_tokens", max_tokens)
    whole("max_running", max_running)
    by = queue_order(order)

    @policy
    def decide(view: View) -> Decision:
        tokens = max_tokens
        if view.num_decodes > 0:
            limit_s = view.min_decode_slack_s
            tokens = int(largest_batch(view.setup_s, view.per_token_s, view.free_tokens, limit_s, max_tokens))
        return decision(tokens, max_running=max_running, order=by, kv_rule=KV_CHUNK)

    return decide
