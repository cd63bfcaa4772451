"""llm_env/workload/closed_loop.py: what users will ask is drawn before a run, the same for every policy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from llm_env.bounds import slo_bound
from llm_env.cli import main
from llm_env.config import Scenario, with_changes
from llm_env.errors import UserError
from llm_env.evaluation import main as evaluate
from llm_env.scenarios import load_scenario
from llm_env.systems import drawn_from
from llm_env.workload import capacity_requests_per_s, closed_loop, draw_workload, estimated_rate, request_rate
from llm_env.workload.generate import draw_traffic

CLOSED = ["--change", "workload.arrivals.kind=closed-loop", "workload.arrivals.users=5"]


def closed(**changes: Any) -> Scenario:
    base = with_changes(load_scenario("chat"), {"workload.arrivals.kind": "closed-loop"})
    return with_changes(base, {f"workload.arrivals.{name}": value for name, value in changes.items()})


def test_a_thought_has_another_distribution():
    # the logarithm is normal with deviation s and mean log(think_s) - s^2 / 2: 4.5 standard errors of mean and
    # variance. Only the first thoughts are looked at: that later ones are there depends on the sum.
    for sigma in (0.0, 0.5, 2.0):
        script = draw_workload(closed(users=1500, think_s=0.5, think_sigma=sigma), 3)
        first = np.append(True, np.diff(script["client"]) != 0)
        log = np.log(script["think_s"][first])
        assert len(log) == 1500, "somebody never asks"
        assert log.mean() == pytest.approx(np.log(0.5) - sigma**2 / 2, abs=4.5 * sigma / np.sqrt(1500) + 1e-12)
        assert log.var() == pytest.approx(sigma**2, abs=4.5 * sigma**2 * np.sqrt(2 / 1500) + 1e-12)


def test_a_run_could_need_more_than_the_script_has():
    """With answers that take no time the last scripted request comes before the end, and one more would not."""
    scenario = closed(users=20, think_s=10.0)
    script, end_s = draw_workload(scenario, 1), scenario.episode.arrivals_s
    assert (np.diff(script["client"]) >= 0).all()
    for user in range(20):
        mine = script[script["client"] == user]
        assert mine["think_s"].sum() < end_s
        assert mine["arrival_s"][0] == mine["think_s"][0]
        assert np.isinf(mine["arrival_s"][1:]).all()
    longer = with_changes(scenario, {"episode.arrivals_s": end_s + 5.0, "episode.horizon_s": 1e6})
    for user in range(20):
        mine, more = (draw_workload(s, 1) for s in (scenario, longer))
        thoughts, more_thoughts = (q["think_s"][q["client"] == user] for q in (mine, more))
        assert (more_thoughts[: len(thoughts)] == thoughts).all()
        beyond_s = np.cumsum(more_thoughts)[len(thoughts) :]
        assert (beyond_s >= end_s).all()


def test_another_user_changes_what_the_others_ask():
    few, many = (draw_workload(closed(users=n, think_s=20.0), 4) for n in (7, 8))
    same = many[: len(few)]
    assert len(many) > len(few)
    for name in ("client", "think_s", "prompt_tokens", "output_tokens", "slo_class", "arrival_s", "row"):
        assert (few[name] == same[name]).all()


def test_another_seed_gives_the_same_script_or_the_same_seed_another():
    a, b, c = (draw_workload(closed(users=5, think_s=20.0), seed) for seed in (1, 1, 2))
    assert a.tobytes() == b.tobytes()
    assert a["think_s"][:5].tolist() != c["think_s"][:5].tolist()


def test_thoughts_depend_on_lengths_or_lengths_on_thoughts():
    a = draw_workload(closed(users=5, think_s=20.0), 1)
    b = draw_workload(with_changes(closed(users=5, think_s=20.0), {"workload.prompt.max_tokens": 512}), 1)
    assert (a["think_s"] == b["think_s"]).all()
    assert (a["output_tokens"] == b["output_tokens"]).all()
    short = draw_workload(closed(users=5, think_s=20.0, think_sigma=0.0), 1)
    n = min(len(a), len(short))
    assert (a["prompt_tokens"][:n] == short["prompt_tokens"][:n]).all()


def test_open_loops_have_thoughts():
    assert (draw_workload(load_scenario("chat"), 0)["think_s"] == -1.0).all()


def test_a_script_beyond_all_memory_is_begun(monkeypatch):
    with pytest.raises(UserError, match=r"workload\.arrivals\.users"):
        draw_workload(closed(users=100_000, think_s=1e-4), 0)
    monkeypatch.setattr(closed_loop, "MAX_EXPECTED", 1000)  # where most thoughts are far shorter than their mean
    with pytest.raises(UserError, match=r"workload\.arrivals\.users"):
        draw_workload(closed(users=100, think_s=30.0, think_sigma=3.0), 0)


# ---- no rate -------------------------------------------------------------------------------------------------------
def test_a_rate_or_load_of_a_closed_loop_is_made_up():
    scenario = closed(users=5)
    script = draw_workload(scenario, 0)
    for ask in (
        lambda: request_rate(scenario),
        lambda: draw_workload(scenario, 0, 1.0),
        lambda: draw_traffic(scenario, 0),
        lambda: drawn_from(scenario, (0.5, 0.9)),
    ):
        with pytest.raises(UserError, match=r"workload\.arrivals\.kind is closed-loop"):
            ask()
    with pytest.raises(UserError, match="closed-loop"):
        with_changes(scenario, {"workload.load": 0.5})
    with pytest.raises(UserError, match="wait for their answers"):
        slo_bound(script, scenario)


@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        (evaluate, ["--scenario", "chat", *CLOSED, "--baselines", "fcfs", "--loads", "0.5", "--seeds", "1"]),
        (evaluate, ["--scenario", "chat", *CLOSED, "--baselines", "fcfs", "--bound", "--seeds", "1"]),
        (main, ["simulate", "--scenario", "chat", *CLOSED, "--load", "0.5", "--policy", "fcfs"]),
    ],
)
def test_a_program_that_is_asked_for_a_load_of_a_closed_loop_runs(program, arguments, tmp_path, capsys):
    out = tmp_path / "out"
    assert program([*arguments, "--out", str(out)]) == 2
    assert "wait for their answers" in " ".join(capsys.readouterr().err.split())
    assert not out.exists()


def test_the_estimated_rate_is_above_what_is_possible():
    open_loop = load_scenario("chat")
    assert estimated_rate(open_loop) == request_rate(open_loop)
    capacity = capacity_requests_per_s(open_loop)
    assert estimated_rate(closed(users=100_000, think_s=1.0)) == capacity
    assert estimated_rate(closed(users=1, think_s=1e6)) == pytest.approx(1e-6, rel=1e-5)
    hopeless = with_changes(closed(users=3, think_s=2.0), {"system.service.setup_ms": 1e4})  # no batch meets the target
    assert estimated_rate(hopeless) == 1.5
