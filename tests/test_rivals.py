"""Rivals on validation workloads: as a study runs them, or left out where there is nothing to say."""

from __future__ import annotations

import pytest

from agents.validation import FIRST_VALIDATION_SEED, ValidationSet
from llm_env.config import with_changes
from llm_env.errors import UserError
from llm_env.rivals import RIVALS, rival_attainment, usual_rivals
from llm_env.scenarios import load_scenario
from llm_env.study import Study, baseline_contender, run_unit
from tests.test_population import SHORT

SEEDS = (FIRST_VALIDATION_SEED, FIRST_VALIDATION_SEED + 1)


def test_a_rival_attains_what_it_does_in_a_study():
    spec = "sarathi-spf:slo"
    against = ValidationSet(cases=(("a", SHORT, None),), seeds=SEEDS)
    contender = baseline_contender(spec)
    cells = run_unit(Study(SHORT, (contender,), (), SEEDS), contender, None, SEEDS)
    expected = sum(cell.summary["weighted_attainment"] for cell in cells) / 2
    assert rival_attainment((spec, "adaptive@tuned"), against) == {spec: pytest.approx(expected)}  # nothing was tuned
    assert set(rival_attainment(RIVALS, against)) == {"sarathi-spf:slo", "moore-hodgson:slo"}


def test_where_no_request_is_measured_nobody_is_a_rival():
    silent = with_changes(SHORT, {"workload": {"rate_per_s": 1e-6}})
    assert rival_attainment(("fcfs",), ValidationSet(cases=(("a", silent, None),), seeds=SEEDS)) == {}


def test_a_wrong_rival_is_an_error():
    with pytest.raises(UserError, match="nobody"):
        rival_attainment(("nobody",), ValidationSet(cases=(("a", SHORT, None),), seeds=SEEDS))


def test_the_rule_for_roles_is_no_rival_where_roles_change():
    roles = load_scenario("roles", ("episode.arrivals_s=20", "episode.warmup_s=2"))
    for change, expected in ((True, True), (False, False)):
        case = ("a", with_changes(roles, {"system.roles.change": change}), None)
        found = usual_rivals(ValidationSet(cases=(case,), seeds=SEEDS[:1]))
        assert ("role-switch@tuned" in found) == expected
