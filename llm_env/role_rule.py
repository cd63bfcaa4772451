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

from llm_env.dtypes import ROLE_BOTH, ROLE_DECODE, ROLE_PREFILL
from llm_env.jit import njit
from llm_env.records import View
from llm_env.service import linear_seconds


class RoleRule(NamedTuple):
    """The numbers of the rule.

    Attributes:
        prefill_tokens: tokens of a prefill batch: what a worker that prefills does in a second follows from it.
        decodes: requests in a decode batch of a busy worker: what a worker that decodes does follows from it.
        occupancy: 0 takes the decode work from what arrives, 1 from what decodes now, between them the mixture.
        backlog_s: waiting prompts, and prefilled requests without room, are to be gone after so long.
        hysteresis: the wanted split must lower the load of the busier pool by this share.
        dwell_s: a worker that has asked for a role does not ask for the other one before so long.
    """

    prefill_tokens: float
    decodes: float
    occupancy: float
    backlog_s: float
    hysteresis: float
    dwell_s: float


@njit
def pool_work(view: View, rule: RoleRule) -> tuple[float, float]:
    """The work of the prefill and of the decode pool, in workers of the speed of the one at hand."""
    setup_s, per_token_s, free = view.setup_s, view.per_token_s, view.free_tokens
    prefill_rate = rule.prefill_tokens / linear_seconds(setup_s, per_token_s, free, rule.prefill_tokens, 1.0, 1.0)
    decode_rate = rule.decodes / linear_seconds(setup_s, per_token_s, free, rule.decodes, 1.0, 1.0)
    prompts = view.prompt_rate_per_s + view.pool_live_tokens / rule.backlog_s
    present = max(view.pool_decodes / rule.decodes, view.pool_kv_used * (view.num_workers - view.prefill_workers))
    decode = (1.0 - rule.occupancy) * view.output_rate_per_s / decode_rate + rule.occupancy * present
    return prompts / prefill_rate, decode + view.num_lined_up / rule.decodes


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
