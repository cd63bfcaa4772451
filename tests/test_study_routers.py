"""Contenders with a routing rule of their own: the same requests, other workers; one clear error for a wrong rule."""

from __future__ import annotations

import pytest

from llm_env.config import with_changes
from llm_env.errors import UserError
from llm_env.rollout import rollout
from llm_env.scenarios import load_scenario
from llm_env.simulate import checked_policy
from llm_env.study import RULES, Study, baseline_contender, run_unit
from llm_env.systems import Systems
from llm_env.workload import draw_workload

SHORT = {"episode.arrivals_s": 12.0, "episode.warmup_s": 2.0, "episode.horizon_s": 60.0}


def test_a_contender_runs_with_its_own_router():
    scenario = with_changes(load_scenario("unequal-workers"), SHORT)
    contenders = [baseline_contender(spec) for spec in ("sarathi:256", "sarathi:256/score", "sarathi:256/random")]
    study = Study(scenario, tuple(contenders), (), (7,))
    cells = [run_unit(study, contender, None, (7,))[0] for contender in contenders]
    assert [cell.contender for cell in cells] == ["sarathi:256", "sarathi:256/score", "sarathi:256/random"]
    assert cells[0].summary == cells[1].summary  # the scenario's own rule
    assert cells[0].summary["ttft_mean_s"] != cells[2].summary["ttft_mean_s"]
    for column in ("arrival_s", "prompt_tokens", "output_tokens"):
        assert cells[0].requests[column].tolist() == cells[2].requests[column].tolist()


@pytest.mark.parametrize("spec", ["sarathi/", "sarathi/agent", "sarathi/best", "sarathi:256/score/score"])
def test_a_wrong_router_is_one_clear_error(spec):
    with pytest.raises(UserError, match=f"^{spec}: router: expected one of shared, round-robin, .*score, got"):
        baseline_contender(spec)


def test_nobody_is_asked_where_nobody_is():
    scenario = with_changes(load_scenario("unequal-workers"), SHORT | {"system.router": "agent"})
    decide = checked_policy(with_changes(scenario, {"system.router": "score"}), "sarathi", {})
    text = r"^system.router: 'agent' is for llm_env/Routing-v0 alone; expected one of shared, .*, score$"
    with pytest.raises(UserError, match=text):
        rollout(scenario, decide, draw_workload(scenario, 0), 0)
    with pytest.raises(UserError, match=text):
        checked_policy(scenario, "sarathi", {})
    with pytest.raises(UserError, match=text):
        Systems([scenario], 1)
    assert "agent" not in RULES
