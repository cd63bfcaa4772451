"""Schedulers of textbooks that no engine has, for the validation only: each as simple as the formula it is held to."""

from __future__ import annotations

from llm_env.records import FCFS, KV_PROMPT, NEVER_MIX, SHORTEST_PREFILL, UNLIMITED, View, decision, policy


def priority():
    """One request per batch, the shortest prompt first: Cobham's non-preemptive priority if lengths are classes."""

    @policy
    def decide(view: View):
        return decision(UNLIMITED, max_running=1, whole_prompts=1, order=SHORTEST_PREFILL)

    return decide


def one_by_one(max_running: int):
    """One token of one request per batch, in order of arrival: a queue with a single server at each worker."""

    @policy
    def decide(view: View):
        return decision(1, max_decodes=1, max_running=max_running, order=FCFS)

    return decide


def alternating(token_budget: int, max_running: int):
    """vLLM v0 held to its budget in decode batches too: at most `token_budget` decodes, those that wait longest.

    The engine decodes all that run, so the formula for its capacity with such batches is for this one.
    """

    @policy
    def decide(view: View):
        return decision(
            token_budget,
            max_decodes=token_budget,
            max_running=max_running,
            packing=NEVER_MIX,
            whole_prompts=1,
            kv_rule=KV_PROMPT,
        )

    return decide
