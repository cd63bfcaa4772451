"""FastServe: skip-join multi-level feedback queue, preemptive at every token, KV swapped to the host.

Rule: level l has the quantum quantum_ms x 2^l. A prompt joins the first level whose quantum covers its prefill (skip-
join), and sinks one level whenever it has used its quantum there. A batch takes the highest level first, in order of
arrival within one: whole prompts of at most max_prefill_tokens together, and decodes up to max_batch. Who has had no
service for starve_s comes before all levels. Where a block is missing, KV moves to the host and back.
Source: Wu et al., "Fast Distributed Inference Serving for Large Language Models" (arXiv:2305.05920),
read in abstract and in the code of its authors: class MLFQ in fastserve/scheduler.py (base quantum 10 ms, factor 2,
starvation after 3 s, there looked for every 1,000 iterations) and its server's defaults, 256 requests and 2,048 tokens.
Differs: prompts of any level go before decodes when a batch is short of room; who is swapped is the last admitted, not
the lowest level, and nothing is swapped ahead of need; nobody is admitted while somebody is swapped out.
"""

from __future__ import annotations

from baselines.parameters import number, whole
from llm_env.records import (
    DECODE_BY_ORDER,
    KV_PROMPT,
    LEAST_ATTAINED,
    PREFILL_FIRST,
    Decision,
    View,
    decision,
    policy,
)


def make(
    quantum_ms: float = 10.0,
    starve_s: float = 3.0,
    max_batch: int = 256,
    max_prefill_tokens: int = 2048,
    max_running: int = 16384,
):
    """FastServe.

    Args:
        quantum_ms: quantum of the first level.
        starve_s: who got no token for longer goes first; 0: nobody.
        max_batch: most decodes in a batch.
        max_prefill_tokens: most prompt tokens in a batch (a longer prompt goes alone).
        max_running: most admitted requests; the source has no limit but memory.
    """
    quantum_s = number("quantum_ms", quantum_ms, 0.001, 1e6) / 1e3
    starve = number("starve_s", starve_s, 0.0, 1e6)
    whole("max_batch", max_batch)
    whole("max_prefill_tokens", max_prefill_tokens)
    whole("max_running", max_running)

    @policy
    def decide(view: View) -> Decision:
        return decision(
            max_prefill_tokens + max_batch,
            prefill_tokens=max_prefill_tokens,
            max_decodes=max_batch,
            max_running=max_running,
            packing=PREFILL_FIRST,
            whole_prompts=1,
            order=LEAST_ATTAINED,
            decode_order=DECODE_BY_ORDER,
            kv_rule=KV_PROMPT,
            swap=1,
            quantum_s=quantum_s,
            starve_s=starve,
        )

    return decide
