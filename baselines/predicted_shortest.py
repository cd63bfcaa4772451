"""Learning to rank: the request that is predicted to have the shortest output goes first.

Rule: Sarathi's batches; the queue, and decodes if not all of them may go, by predicted output length. A request that
got no token for starve_iterations batches goes before all others. How good the predictions are is a setting of the
workload, not of the policy; requests without one come last.
Source: Fu et al., "Efficient LLM Scheduling by Learning to Rank" (NeurIPS 2024, arXiv:2408.15792); read in
abstract and in the code of its authors, vllm-ltr: Scheduler._general_schedule in vllm/core/scheduler.py and the options
of benchmarks/fair-*.sh (starvation after 200 iterations; chunked prefill with vLLM's 512 tokens and 256 requests of
then). An iteration is taken to last the least that a batch does, c: 200 are 9.1 s by default. Differs: there a promoted
request keeps its rank for ten iterations, and low ranks are preempted whenever a high one needs their slot.
"""

from __future__ import annotations

from baselines.parameters import TokenBudget, budget, whole
from llm_env.records import DECODE_BY_ORDER, KV_PROMPT, PREDICTED_SHORTEST, Decision, View, decision, policy


def make(token_budget: TokenBudget = 512, max_running: int = 256, starve_iterations: int = 200):
    """Predicted shortest first.

    Args:
        token_budget: most tokens in a batch, or "slo".
        max_running: most admitted requests.
        starve_iterations: batches without a token after which a request goes first; 0: never.
    """
    fixed = budget(token_budget)
    whole("max_running", max_running)
    whole("starve_iterations", starve_iterations, 0)

    @policy
    def decide(view: View) -> Decision:
        tokens = fixed if fixed > 0 else int(view.slo_budget)
        return decision(
            tokens,
            max_decodes=tokens,
            max_running=max_running,
            order=PREDICTED_SHORTEST,
            decode_order=DECODE_BY_ORDER,
            kv_rule=KV_PROMPT,
            watermark=0.01,
            starve_s=starve_iterations * view.setup_s,
        )

    return decide
