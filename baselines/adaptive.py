"""Adaptive: Moore-Hodgson order with a budget that follows slack and memory; the strongest hand-made rule, once tuned.

Rule: `llm_env.adaptive`. The budget is static, filled to the slack of the decodes, or between the two, and short while
memory is full; prompts by deadline, by length, or between the two, those that cannot all be on time dropped behind,
by their SLO weights if asked; admission by declared length or with a share of memory kept free; decodes all at once or
only when due. At its defaults it is `moore-hodgson` with as many requests as the system admits. Every setting is also a
point of the action space of llm_env/ServingAdaptive-v0.
Source: this project's trials; the parts as in `llm_env.adaptive`.
"""

from __future__ import annotations

from baselines.parameters import number
from llm_env.adaptive import PARAMETERS, adaptive_decision
from llm_env.records import Decision, View, policy


def make(
    budget: float = 1.0,
    fill: float = 0.0,
    kv_high: float = 1.0,
    kv_budget: float = 0.4,
    margin: float = 1.0,
    slack_weight: float = 1.0,
    drop: float = 16384.0,
    class_weight: float = 0.0,
    reserve: float = 0.0,
    urgency: float = 4.0,
    slack_share: float = 1.0,
    watermark: float = 0.0,
    role: float = 0.0,
):
    """Adaptive.

    Args:
        budget: static token budget, times tau*.
        fill: 0 for the static budget, 1 for the largest batch within the most urgent decode's slack, between them their
            geometric mixture.
        kv_high: share of KV in use from which on kv_budget holds; 1 for never.
        kv_budget: most tokens in a batch from there on, times tau*.
        margin: factor on the time a prompt is thought to need; above 1 drops more.
        slack_weight: 1 sorts by deadline, 0 by remaining prefill time, between them by the mixture.
        drop: how far the dropped stand behind the others, in TTFT targets; 16384 for behind all others.
        class_weight: exponent of SLO weights in who is dropped; above 0, evictions take the least weight first.
        reserve: share of the running requests' declared output that an admission must leave room for; 0 for none.
        urgency: only decodes that are late within so many TBT targets, others in what is left; 4 for all.
        slack_share: share of the slack that filling may take.
        watermark: share of KV blocks that an admission must leave free, unless the system states one.
        role: where workers may change role, above 1/3 asks to prefill and below -1/3 to decode.
    """
    given = locals()
    values = tuple(number(p.name, given[p.name], p.low, p.high) for p in PARAMETERS)

    @policy
    def decide(view: View) -> Decision:
        return adaptive_decision(view, values)

    return decide
