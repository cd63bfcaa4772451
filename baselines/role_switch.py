"""Role switch: workers of disaggregated pools prefill or decode as the load of the two pools asks.

Rule: `llm_env.role_rule`. The work of both pools, in workers, is what arrives (averages over 20 s) and what
waits; the split is wanted under which the busier pool has the least work a worker; a worker changes role towards it if
that lowers the greater load by `hysteresis` and it has not changed for dwell_s. Workers that prefill take up to
prefill_tokens of prompts in Moore-Hodgson order, with `margin`, and their whole KV from the start; workers that decode
take all their requests, and swap to the host where a block is missing. Where roles may not change it serves a fixed
split in the same way; where there are no pools, with tau* in a batch.
Source: `llm_env.role_rule`; batches as baselines/moore_hodgson and baselines/distserve.
"""

from __future__ import annotations

from baselines.parameters import number, whole
from llm_env.records import Decision, View, policy
from llm_env.role_rule import RoleRule, role_decision


def make(
    prefill_tokens: int = 1024,
    decodes: int = 96,
    occupancy: float = 0.5,
    backlog_s: float = 2.0,
    hysteresis: float = 0.2,
    dwell_s: float = 5.0,
    margin: float = 1.0,
    change: bool = True,
):
    """Role switch.

    Args:
        prefill_tokens: most tokens in a batch of a worker that prefills.
        decodes: requests that a busy worker is thought to decode at once.
        occupancy: 0 takes the decode work from what arrives, 1 from the requests that decode now, between them the
            mixture.
        backlog_s: prompts that wait are to be gone after so long.
        hysteresis: how much lower the load of the busier pool must become, as a share of it.
        dwell_s: least time between two changes of a worker.
        margin: factor on the time a prompt is thought to need; above 1 drops more.
        change: false never asks for a role: a fixed split, served in the same way.
    """
    whole("prefill_tokens", prefill_tokens)
    whole("decodes", decodes)
    asked = number("hysteresis", hysteresis, 0.0, 1.0)
    rule = RoleRule(
        float(prefill_tokens),
        float(decodes),
        number("occupancy", occupancy, 0.0, 1.0),
        number("backlog_s", backlog_s, 0.01, 1e6),
        asked if change else 1.0,
        number("dwell_s", dwell_s, 0.0, 1e6),
        number("margin", margin, 0.1, 10.0),
    )

    @policy
    def decide(view: View) -> Decision:
        return role_decision(view, rule)

    return decide
