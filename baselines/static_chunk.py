"""Static chunks: every batch has all decodes and prompt chunks of one fixed size.

Rule: all running decodes; beside them chunks of at most chunk_tokens of a prompt, batch_tokens prefill tokens in all,
however many decodes there are: partly prefilled prompts first, then new ones in order of arrival. So the prefill share
of a batch is constant, where Sarathi-Serve's shrinks as decodes join.
Source: Agrawal et al., "SARATHI: Efficient LLM Inference by Piggybacking Decodes with Chunked Prefills"
(arXiv:2308.16369, 2023), chunked prefills and decode-maximal batching; read in abstract and in a summary by others.
256 tokens is one of the chunk sizes studied there. With batch_tokens = chunk_tokens a batch holds one chunk as there,
but for the rest of a prompt, which the next one fills up.
"""

from __future__ import annotations

from baselines.parameters import whole
from llm_env.records import KV_CHUNK, UNLIMITED, Decision, View, decision, policy


def make(chunk_tokens: int = 256, batch_tokens: int = 256, max_running: int = 128):
    """Static chunks.

    Args:
        chunk_tokens: most tokens of one prompt in a batch.
        batch_tokens: most prefill tokens in a batch.
        max_running: most admitted requests.
    """
    whole("chunk_tokens", chunk_tokens)
    whole("batch_tokens", batch_tokens)
    whole("max_running", max_running)

    @policy
    def decide(view: View) -> Decision:
        return decision(
            UNLIMITED,
            prefill_tokens=batch_tokens,
            chunk_tokens=chunk_tokens,
            max_running=max_running,
            kv_rule=KV_CHUNK,
        )

    return decide
