"""When a worker of disaggregated pools should change role: a rule for whoever decides, with a handful of numbers.

The work of each pool is measured in workers: how many it takes to keep up with what arrives and what waits. The rule
wants the split of the workers under which the busier pool has the least work for each of its workers, and changes
towards it if that is clearly better than the present split and this worker has kept its role for a while. Knows Views
only.

Source: the two pools sized by the ratio of their loads: Patel et al., "Splitwise" (ISCA 2024), section 4.5 (machine
pools provisioned for a workload), and Wu et al., "Arrow" (arXiv:2505.11916, 2025), which moves instances by the load of
both sides; the form, with hysteresis and a dwell time, is this project's.
"""

from __future__ import annotations

from typing import NamedTuple

from llm_env.boxes import Box, Parameter, natural_number
from llm_env.dtypes import ROLE_BOTH, ROLE_DECODE, ROLE_PREFILL
from llm_env.jit import njit
from llm_env.records import KV_CHUNK, KV_PROMPT, MOORE_HODGSON, Decision, View, decision
from llm_env.service import linear_seconds


class RoleRule(NamedTuple):
    """The numbers of the rule, in the order of PARAMETERS, which says what they are."""

    prefill_tokens: float
    decodes: float
    occupancy: float
    backlog_s: float
    hysteresis: float
    dwell_s: float
    margin: float
    prefill_weight: float = 1.0
    slack_weight: float = 1.0


PARAMETERS = (  # their neutral values are the defaults of the baseline `role-switch`
    Parameter("prefill_tokens", 64.0, 8192.0, 1024.0, "log", "most tokens in a batch of a worker that prefills"),
    Parameter("decodes", 4.0, 512.0, 96.0, "log", "requests that a busy worker is thought to decode at once"),
    Parameter("occupancy", 0.0, 1.0, 0.5, "linear", "0 takes the decode work from what arrives, 1 from what decodes"),
    Parameter("backlog_s", 0.1, 100.0, 2.0, "log", "prompts that wait are to be gone after so long"),
    Parameter("hysteresis", 0.0, 1.0, 0.2, "linear", "share by which a split must lower the greater load; 1: never"),
    Parameter("dwell_s", 0.0, 60.0, 5.0, "linear", "a worker asks for another role only so long after it last did"),
    Parameter("margin", 0.5, 2.0, 1.0, "log", "factor on the time that a prompt is thought to need"),
    Parameter("prefill_weight", 0.25, 4.0, 1.0, "log", "factor on the work of the prefill pool"),
    Parameter("slack_weight", 0.0, 1.0, 1.0, "linear", "1 sorts by deadline, 0 by remaining prefill time"),
)
BOX = Box(PARAMETERS)
_LOW, _SPAN, _IS_LOG = BOX.low, BOX.span, BOX.is_log


@njit
def _natural(k, x) -> float:
    return natural_number(_LOW[k], _SPAN[k], _IS_LOG[k], x[k])


@njit
def rule_of(x) -> RoleRule:
    """The rule that an action means. Args: x: (len(PARAMETERS),) floats in [-1, 1]."""
    return RoleRule(
        _natural(0, x),
        _natural(1, x),
        _natural(2, x),
        _natural(3, x),
        _natural(4, x),
        _natural(5, x),
        _natural(6, x),
        _natural(7, x),
        _natural(8, x),
    )


@njit
def role_decision(view: View, rule: RoleRule) -> Decision:
    """The next batch of a worker of either pool, and the role that it asks for.

    Workers that prefill take prompts in Moore-Hodgson order, with their whole KV from the start; workers that decode
    take all their requests, and swap to the host where a block is missing. Where there are no pools, tau* in a batch.
    """
    both = view.role == ROLE_BOTH
    role, memory = role_to_ask(view, rule)
    return decision(
        int(view.slo_budget) if both else int(rule.prefill_tokens),
        order=MOORE_HODGSON,
        margin=rule.margin,
        slack_weight=rule.slack_weight,
        kv_rule=KV_CHUNK if both else KV_PROMPT,
        swap=1 if view.role == ROLE_DECODE else 0,
        memory=memory,
        role=role,
    )


@njit
def pool_work(view: View, rule: RoleRule) -> tuple[float, float]:
    """The work of the prefill and of the decode pool, in workers of the speed of the one at hand."""
    setup_s, per_token_s, free = view.setup_s, view.per_token_s, view.free_tokens
    prefill_rate = rule.prefill_tokens / linear_seconds(setup_s, per_token_s, free, rule.prefill_tokens, 1.0, 1.0)
    decode_rate = rule.decodes / linear_seconds(setup_s, per_token_s, free, rule.decodes, 1.0, 1.0)
    prompts = view.prompt_rate_per_s + view.pool_live_tokens / rule.backlog_s
    present = max(view.pool_decodes / rule.decodes, view.pool_kv_used * (view.num_workers - view.prefill_workers))
    decode = (1.0 - rule.occupancy) * view.output_rate_per_s / decode_rate + rule.occupancy * present
    return rule.prefill_weight * prompts / prefill_rate, decode + view.num_lined_up / rule.decodes


@njit
def wanted_prefill_workers(view: View, rule: RoleRule) -> int:
    """The split under which the busier pool has the least work a worker; the present one if that is nearly as good."""
    prefill, decode = pool_work(view, rule)
    now = max(prefill / view.prefill_workers, decode / (view.num_workers - view.prefill_workers))
    best, least = view.prefill_workers, now * (1.0 - rule.hysteresis)
    for count in range(1, view.num_workers):
        load = max(prefill / count, decode / (view.num_workers - count))
        if load < least:
            best, least = count, load
    return best


@njit
def role_to_ask(view: View, rule: RoleRule) -> tuple[int, float]:
    """The role to ask for, 0 for none, and what to remember (`Decision.memory`): when the worker last asked, from 1 on.

    Of the workers that decode those with fewer requests than the mean go first: they have less to send away.
    """
    if view.role == ROLE_BOTH or view.next_role > 0:
        return 0, view.memory
    if view.memory > 0.0 and view.now_s - (view.memory - 1.0) < rule.dwell_s:
        return 0, view.memory
    wanted = wanted_prefill_workers(view, rule)
    if view.role == ROLE_PREFILL and wanted < view.prefill_workers:
        return ROLE_DECODE, 1.0 + view.now_s
    few = view.num_decodes * (view.num_workers - view.prefill_workers) <= view.pool_decodes
    if view.role == ROLE_DECODE and wanted > view.prefill_workers and few:
        return ROLE_PREFILL, 1.0 + view.now_s
    return 0, view.memory
