"""Moore-Hodgson Sarathi: serve the prompts that can be on time, the rest later, the hopeless last.

Rule: Sarathi's batches with the SLO-derived budget; the queue by earliest TTFT deadline, of which the longest prompts
are dropped to the back until the others can all meet theirs at the present prefill rate x margin. Looks at the 64 most
urgent feasible requests (`llm_env.batching.WINDOW`).
Source: Moore, "An n job, one machine sequencing algorithm for minimizing the number of late jobs" (Management Science
15(1), 1968), with Hodgson's simplification given there.
"""

from __future__ import annotations

from baselines.parameters import TokenBudget, budget, number, whole
from llm_env.records import KV_CHUNK, MOORE_HODGSON, UNLIMITED, Decision, View, decision, policy


def make(token_budget: TokenBudget = "slo", max_running: int = 128, margin: float = 1.0, chunk_tokens: int = 0):
    """Moore-Hodgson Sarathi.

    Args:
        token_budget: most tokens in a batch, or "slo": the largest batch within the TBT target.
        max_running: most admitted requests.
        margin: factor on the time a prompt is thought to need; above 1 drops more.
        chunk_tokens: most tokens of one prompt in a batch; 0 for no limit.
    """
    fixed = budget(token_budget)
    whole("max_running", max_running)
    factor = number("margin", margin, 0.1, 10.0)
    chunk = whole("chunk_tokens", chunk_tokens, 0) or UNLIMITED

    @policy
    def decide(view: View) -> Decision:
        tokens = fixed if fixed > 0 else int(view.slo_budget)
        return decision(
            tokens,
            chunk_tokens=chunk,
            max_running=max_running,
            order=MOORE_HODGSON,
            margin=factor,
            kv_rule=KV_CHUNK,
        )

    return decide
