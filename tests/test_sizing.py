"""Capacity and fleet: the crossing is where a sweep has it, bad input is told, and costs add up."""

from __future__ import annotations

import json
import multiprocessing
import os

import numpy as np
import pytest

from llm_env.cli import main
from llm_env.config import with_changes
from llm_env.prices import Price
from llm_env.scenarios import load_scenario
from llm_env.sizing import STEP, Curve, capacities, fleet
from llm_env.study import Study, baseline_contender, run_unit
from llm_env.workload import capacity_requests_per_s
from tests.test_study import SHORT

SEEDS = tuple(range(2_000_000, 2_000_004))


@pytest.fixture
def short(tmp_path):
    path = tmp_path / "short.toml"
    path.write_text(SHORT)
    return str(path)


def test_the_capacity_is_where_the_curve_crosses_the_target(short):
    scenario, contender = load_scenario(short), baseline_contender("sarathi-spf:slo")
    lower, higher = capacities(scenario, contender, (0.8, 0.95), SEEDS)
    curve = Curve(scenario, contender, SEEDS)
    for found, target in ((lower, 0.8), (higher, 0.95)):
        k = round(found.load / STEP)
        assert curve.at(k).mean >= target > curve.at(k + 1).mean
        assert found.low_load <= found.load <= found.high_load
        assert found.rate_per_s == pytest.approx(found.load * capacity_requests_per_s(scenario))
        assert not found.at_least
    assert higher.load < lower.load


def test_what_is_never_reached_and_what_always_is(short):
    easy = with_changes(load_scenario(short), {"slo.classes.0.ttft_ms": 1e6, "slo.classes.0.tbt_ms": 1e6})
    hard = with_changes(load_scenario(short), {"slo.classes.0.ttft_ms": 1.0})
    contender = baseline_contender("sarathi")
    (always,), (never,) = (capacities(scenario, contender, (0.6,), SEEDS[:2]) for scenario in (easy, hard))
    assert (always.load, always.at_least) == (3.0, True)
    assert (never.load, never.high_load, never.at_least) == (0.0, 0.0, False)


def test_the_fleet_is_the_fewest_workers_that_do_and_is_paid_for(short):
    scenario = with_changes(load_scenario(short), {"workload.rate_per_s": 8.0})
    study = Study(scenario, (baseline_contender("sarathi-spf:slo"),), (), SEEDS)
    found = fleet(study, 0.8, Price(2.5, 2))
    assert found.workers is not None
    assert found.workers > 1
    assert found.attainment >= 0.8
    fewer = Study(
        with_changes(scenario, {"system.workers": found.workers - 1}), study.contenders, (), SEEDS, traffic=scenario
    )
    cells = run_unit(fewer, fewer.contenders[0], None, SEEDS)
    assert np.mean([cell.summary["slo_attainment"] for cell in cells]) < 0.8
    assert found.gpus == 2 * found.workers
    assert found.cost_per_hour == 2.5 * found.gpus
    one = fleet(study, 0.01, Price(1.0))
    assert one.workers == 1
    assert one.cost_per_million_output_tokens > one.cost_per_million_tokens > 0


def test_more_is_asked_than_there_may_be(short, capsys):
    words = ["fleet", "--scenario", short, "--rate", "2", "--policies", "sarathi", "--seeds", "2", "--processes", "1"]
    changed = ["--change", "slo.classes.0.ttft_ms=1"]
    assert main([*words, *changed, "--attainment", "0.9", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["fleet"]
    assert row["workers"] is None
    assert main([*words, *changed, "--attainment", "0.9"]) == 0
    assert "too few" in capsys.readouterr().out


def test_a_trace_needs_fewer_workers_when_it_is_stretched(short, tmp_path, capsys):
    trace = tmp_path / "trace.csv"
    arrivals = np.arange(400) * 0.1
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n" + "".join(f"{a:.2f},300,40\n" for a in arrivals))
    sizes = []
    for scale in ("1", "8"):
        words = [
            "fleet",
            "--scenario",
            short,
            "--trace",
            str(trace),
            "--time-scale",
            scale,
            "--policies",
            "sarathi:slo",
        ]
        assert main([*words, "--attainment", "0.9", "--json", "--processes", "1"]) == 0
        sizes.append(json.loads(capsys.readouterr().out)["fleet"][0]["workers"])
    assert sizes[0] > sizes[1] >= 1


def test_tables_fit_and_processes_do_not_matter(short, capsys):
    words = ["capacity", "--scenario", short, "--policies", "sarathi", "fcfs", "sarathi-spf:slo", "--seeds", "2"]
    shown = []
    for processes in ("1", "2"):
        assert main([*words, "--attainment", "0.8", "--processes", processes]) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]
    assert max(map(len, shown[0].splitlines())) <= 100


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["capacity", "--policies", "sarathi", "--attainment", "1"],
            "attainment: expected more than 0 and less",
        ),
        (["capacity"], "at least one of --policies and --agents"),
        (["capacity", "--policies", "nobody"], "nobody"),
        (["fleet", "--policies", "sarathi", "--time-scale", "2"], "only with --trace"),
        (["fleet", "--policies", "sarathi", "--trace", "x.csv", "--rate", "2"], "not with --trace"),
        (["fleet", "--policies", "sarathi", "--change", "system.speeds=[1.0]"], "fleet: expected equal replicas"),
    ],
)
def test_bad_input_is_one_clear_error(short, capsys, words, message):
    assert main([*words, "--scenario", short]) == 2
    assert message in capsys.readouterr().err


def test_a_scenario_that_varies_has_no_capacity(capsys):
    assert main(["capacity", "--scenario", "generalist", "--policies", "sarathi"]) == 2
    assert "the scenario varies" in capsys.readouterr().err


def test_a_process_that_dies_is_a_traceback_or_hangs(short, capsys, monkeypatch):
    monkeypatch.setattr("llm_env.commands.sizing.capacities", _die_in_a_child)
    monkeypatch.setattr("llm_env.processes.ALONE_S", 0.0)
    words = ["capacity", "--scenario", short, "--policies", "sarathi", "fcfs", "--seeds", "2", "--processes", "2"]
    assert main(words) == 2
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == (
        "",
        "error: a worker process died, perhaps out of memory: try fewer --processes\n",
    )


def _die_in_a_child(*_):
    if multiprocessing.parent_process() is not None:
        os._exit(9)
