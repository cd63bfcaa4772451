"""How baselines do on the workloads on which agents are validated: the lines beside a curve of training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

import baselines
from agents.validation import ValidationSet
from llm_env.metrics import weighted_attainment
from llm_env.rollout import rollout
from llm_env.study import baseline_contender
from llm_env.tuned import tuned_policies
from llm_env.workload import concrete, draw_workload

RIVALS = ("sarathi-spf:slo", "sarathi-spf@tuned", "moore-hodgson:slo", "adaptive@tuned")
WHERE_ROLES_CHANGE = "role-switch@tuned"


def usual_rivals(against: ValidationSet) -> dict[str, float]:
    """Mean attainment of RIVALS, and of the rule for roles where workers may change theirs (see `rival_attainment`)."""
    changing = any(scenario.system.roles.change for _, scenario, _ in against.cases)
    return rival_attainment((*RIVALS, WHERE_ROLES_CHANGE) if changing else RIVALS, against)


def rival_attainment(specs: Sequence[str], against: ValidationSet) -> dict[str, float]:
    """Mean attainment of baselines over all cases and seeds of a validation set.

    Args:
        specs: as `llm_env.study.baseline_contender` takes them. Those with tuned settings ("NAME@tuned") are left out
            where a scenario of the set has none.
        against: where they run; with nobody if no request is measured there.

    Raises:
        UserError: a spec is wrong.
    """
    names = {scenario.name for _, scenario, _ in against.cases}
    found = {}
    for spec in specs:
        policy = spec.partition("@")[0].partition(":")[0]
        if spec.endswith("@tuned") and any(policy not in tuned_policies(name) for name in names):
            continue
        values = _attainment(spec, against)
        if known := [value for value in values if not np.isnan(value)]:
            found[spec] = float(np.mean(known))
    return found


def _attainment(spec: str, against: ValidationSet) -> list[float]:
    values = []
    for _, scenario, workload in against.cases:
        contender = baseline_contender(spec, scenario.name)
        decide = baselines.make_policy(contender.policy, **dict(contender.parameters))
        for seed in against.seeds:
            requests = draw_workload(scenario, seed) if workload is None else workload(seed)
            episode = concrete(scenario, seed)
            values.append(weighted_attainment(rollout(episode, decide, requests, seed), episode))
    return values
