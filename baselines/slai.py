"""SLAI: decodes only when their next token is nearly due, so that prompts get the batches in between.

Rule: first the decodes whose last schedulable time has come, that is whose next token is due within offset x the mean
batch duration; then prefill, the shortest prompt first; then the other decodes while the token budget has room. The
offset is larger while more than memory_limit of the KV is in use, so that requests finish sooner.
Source: Bari, Hegde and de Veciana, "Optimal Scheduling Algorithms for LLM Inference: Theory and Practice"
(arXiv:2508.01002, 2025), read in abstract and in the code of its authors, sarathi/core/scheduler/slai_scheduler.py. 512
tokens, 128 requests and decodes are their configuration; offsets 5 and 10 with a limit of 96 % are the paper's section
7 as others cite it.
Differs: the mean is an exponential one over about 16 batches; partly prefilled prompts are not all before the waiting
ones, but merged by length. Where a TBT target is below offset x mean, as 5 x 60 ms against 150 ms, every decode is
always due and this is `sarathi-spf`.
"""

from __future__ import annotations

from baselines.parameters import TokenBudget, budget, number, whole
from llm_env.records import KV_PROMPT, SHORTEST_PREFILL, Decision, View, decision, policy

_SHARE = 1.0 / 16.0  # of the last batch in the mean


def make(
    token_budget: TokenBudget = 512,
    max_running: int = 128,
    max_decodes: int = 128,
    offset: float = 5.0,
    full_offset: float = 10.0,
    memory_limit: float = 0.96,
):
    """SLAI.

    Args:
        token_budget: most tokens in a batch, or "slo".
        max_running: most admitted requests.
        max_decodes: most decodes in a batch.
        offset: batches before its deadline from which on a decode is due.
        full_offset: the same while memory is short.
        memory_limit: share of KV in use from which on memory is short.
    """
    fixed = budget(token_budget)
    whole("max_running", max_running)
    whole("max_decodes", max_decodes)
    early = number("offset", offset, 0.0, 1000.0)
    full_early = number("full_offset", full_offset, 0.0, 1000.0)
    limit = number("memory_limit", memory_limit, 0.0, 1.0)

    @policy
    def decide(view: View) -> Decision:
        tokens = fixed if fixed > 0 else int(view.slo_budget)
        mean_s = view.memory + _SHARE * (view.last_batch_s - view.memory) if view.memory > 0.0 else view.last_batch_s
        return decision(
            tokens,
            max_decodes=min(max_decodes, tokens),
            max_running=max_running,
            order=SHORTEST_PREFILL,
            decode_within_s=(early if view.kv_used < limit else full_early) * mean_s,
            fill_decodes=1,
            kv_rule=KV_PROMPT,
            watermark=0.01,
            memory=mean_s,
        )

    return decide
