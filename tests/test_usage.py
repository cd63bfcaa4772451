"""What workers did: shares of their time add up in every layout, and the numbers of a batch are those of its tokens."""

from __future__ import annotations

import numpy as np
import pytest

from baselines import make_policy
from llm_env.config import Scenario, with_changes
from llm_env.metrics import summarise
from llm_env.rollout import rollout
from llm_env.scenarios import load_scenario
from llm_env.workload import draw_workload

LAYOUTS = {
    "one": {},
    "unequal": {"system.workers": 3, "system.speeds": [1.0, 0.5, 2.0]},
    "pools": {"system.workers": 3, "system.layout": "disaggregated", "system.prefill_workers": 1},
    "parallel": {"system.workers": 3, "system.layout": "parallel-prefill"},
    "cut off": {"episode.arrivals_s": 20.0, "episode.horizon_s": 20.0, "workload.load": 2.0},
    "noisy": {"system.service.setup_noise": "exponential"},
}


def summary_of(scenario: Scenario, policy: str = "sarathi"):
    state = rollout(scenario, make_policy(policy), draw_workload(scenario, 1), 1, record=True)
    return state, summarise(state, scenario)


@pytest.mark.parametrize("name", LAYOUTS)
def test_time_of_workers_is_lost_or_counted_twice(name):
    base = {"episode.arrivals_s": 30.0, "episode.warmup_s": 0.0, "episode.horizon_s": 200.0}
    _, s = summary_of(with_changes(load_scenario("chat-bursty"), base | LAYOUTS[name]))
    assert s.prefill_time_share + s.decode_time_share + s.idle_time_share == pytest.approx(1.0, abs=1e-12)
    assert s.prefill_time_share + s.decode_time_share == pytest.approx(s.utilisation, abs=1e-9)
    assert min(s.prefill_time_share, s.decode_time_share) > 0
    if name == "cut off":
        assert s.unfinished > 0


def test_changing_roles_counts_as_work():
    scenario = with_changes(load_scenario("roles"), {"episode.arrivals_s": 60.0, "episode.horizon_s": 300.0})
    state, s = summary_of(scenario, "role-switch")
    assert state.system[0]["num_switches"] > 0
    log = state.batch_log[: int(state.system[0]["num_batches"])]
    busy_s = float((log["end_s"] - log["start_s"]).sum())
    assert s.utilisation == pytest.approx(busy_s / (s.makespan_s * len(state.workers)))


def test_batches_of_unequal_workers_are_held_against_one_budget():
    changes = {"system.workers": 2, "system.speeds": [1.0, 2.0], "episode.arrivals_s": 30.0}
    state, s = summary_of(with_changes(load_scenario("chat-bursty"), changes))
    budgets = state.workers["slo_budget"]
    assert budgets[1] > budgets[0]
    log = state.batch_log[: int(state.system[0]["num_batches"])]
    shares = [(b["prefill_tokens"] + b["decode_tokens"]) / budgets[b["worker"]] for b in log]
    assert s.slo_budget_share == pytest.approx(np.mean(shares))
