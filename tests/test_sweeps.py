"""python -m llm_env sweep: an axis changes what it says and nothing else; its files are paired and repeatable."""

from __future__ import annotations

import csv
import dataclasses
import json

import numpy as np
import pytest

from llm_env.aggregate import Row
from llm_env.cli import main
from llm_env.config import with_changes
from llm_env.metrics import Interval
from llm_env.scenarios import load_scenario
from llm_env.study import Study, baseline_contender, run_unit, traffic_at
from llm_env.sweep_plots import finding_of
from llm_env.sweeps import AXES, GROUPS, SweepRow, sweep_points
from llm_env.workload import draw_workload, request_rate
from tests.test_study import SHORT

SEED = 2_000_000


@pytest.fixture
def short(tmp_path):
    path = tmp_path / "short.toml"
    path.write_text(SHORT)
    return str(path)


def study_of(short, *policies, **changes):
    scenario = load_scenario(short)
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    return Study(with_changes(scenario, changes), tuple(map(baseline_contender, policies)), (), (SEED, SEED + 1))


def workload_of(point):
    return draw_workload(traffic_at(point.study, point.study.load_labels()[0]), SEED)


@pytest.mark.parametrize("name", AXES)
def test_the_study_as_it_is_is_not_a_point_of_its_axes(short, name):
    study = study_of(short, "sarathi:300", system__service__setup_ms=30.0, slo__classes__0__tbt_ms=140.0)
    now = 300 if name == "chunk" else AXES[name].now(study.scenario)
    (point,) = sweep_points(study, name, [now])
    as_it_is = study if name != "load" else dataclasses.replace(study, loads=(now,))
    label = as_it_is.load_labels()[0]
    (first,) = run_unit(as_it_is, study.contenders[0], label, (SEED,))
    (second,) = run_unit(point.study, point.study.contenders[0], label, (SEED,))
    for what in ("final_sha256", "slo_attainment"):
        assert second.summary[what] == first.summary[what]


@pytest.mark.parametrize("name", [name for name in AXES if name != "load"])
def test_requests_differ_between_the_points_of_an_axis(short, name):
    base = draw_workload(load_scenario(short), SEED)
    hashes = set()
    for point in sweep_points(study_of(short, "sarathi"), name):
        requests = workload_of(point)
        for column in ("arrival_s", "prompt_tokens", "output_tokens"):
            assert (requests[column] == base[column]).all()
        (cell,) = run_unit(point.study, point.study.contenders[0], None, (SEED,))
        hashes.add((cell.summary["final_sha256"], cell.summary["slo_attainment"]))
    assert len(hashes) > 1, "nothing is changed at all"


def test_targets_are_not_scaled_alike(short):
    study = study_of(short, "sarathi")
    (point,) = sweep_points(study, "slo-scale", [0.5])
    (before,), (after,) = study.scenario.slo.classes, point.study.scenario.slo.classes
    assert (after.ttft_ms, after.tbt_ms) == (before.ttft_ms / 2, before.tbt_ms / 2)
    assert set(workload_of(point)["ttft_target_s"]) == {before.ttft_ms / 2e3}


def test_a_held_load_is_not_the_same_share_of_the_capacity_of_each_point(short):
    study = study_of(short, "sarathi")
    points = sweep_points(study, "service-setup", [20, 45.5, 90], "load")
    rates = [request_rate(traffic_at(point.study, None)) for point in points]
    assert rates[0] > rates[1] == request_rate(study.scenario) > rates[2]


def test_more_load_is_not_more_requests_or_noise_is_not_noise(short):
    points = sweep_points(study_of(short, "sarathi"), "load", [1.0, 0.5])
    assert [point.value for point in points] == [0.5, 1.0]
    assert len(workload_of(points[0])) < len(workload_of(points[1]))
    none, some = sweep_points(study_of(short, "sarathi"), "noise-per-token-lognormal", [0, 0.5])
    assert none.study.scenario.system.service.per_token_noise == "none"
    service = some.study.scenario.system.service
    assert (service.per_token_noise, service.per_token_noise_cv) == ("lognormal", 0.5)


def test_a_budget_reaches_the_policy_under_its_name(short):
    points = sweep_points(study_of(short, "sarathi", "moore-hodgson:slo,max_running=64"), "chunk", [100, 200])
    labels = [[contender.label for contender in point.study.contenders] for point in points]
    assert labels == [["sarathi", "moore-hodgson:slo,max_running=64"]] * 2
    given = dict(points[1].study.contenders[1].parameters)
    assert (given["token_budget"], given["max_running"]) == (200, 64)


def test_files_depend_on_processes_or_on_what_was_kept(short, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("llm_env.processes.ALONE_S", 0.0)
    words = ["sweep", "slo-scale", "--scenario", short, "--policies", "sarathi:slo", "sarathi-spf:slo", "--seeds", "2"]
    found = []
    for name, processes in (("a", "1"), ("b", "2")):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        assert main([*words, "--values", "0.5", "1", "--processes", processes, "--out", "out"]) == 0
        found.append({path: path.read_bytes() for path in (tmp_path / name / "out").glob("sweep.*")})
    assert len(found[0]) == 3
    assert list(found[0].values()) == list(found[1].values())
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 100
    monkeypatch.setattr("llm_env.study.run_unit", lambda *_: pytest.fail("what is kept is run again"))
    assert main([*words, "--values", "0.5", "1", "--processes", "1", "--out", "out"]) == 0
    assert {path: path.read_bytes() for path in found[1]} == found[1]


def test_csv_json_and_cells_disagree(short, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["sweep", "chunk", "--scenario", short, "--policies", "sarathi", "sarathi-spf", "--seeds", "2", "--json"]
    assert main([*words, "--values", "128", "512", "--processes", "1", "--out", str(out)]) == 0
    results = json.loads(capsys.readouterr().out)
    assert results == json.loads((out / "sweep.json").read_text())
    rows = list(csv.DictReader((out / "sweep.csv").open()))
    assert [(row["value"], row["policy"]) for row in rows] == [
        (value, policy) for value in ("128.0", "512.0") for policy in ("sarathi", "sarathi-spf")
    ]
    for row, flat in zip(rows, results["rows"], strict=True):
        for name in ("slo_attainment_p99", "ttft_p99_s", "ttft_p99_s_ci95", "tbt_p99_s_ci95", "difference_wins"):
            assert flat[name] is None if row[name] == "" else float(row[name]) == flat[name]
    point = sweep_points(study_of(short, "sarathi"), "chunk", [512])[0].study
    cells = run_unit(point, point.contenders[0], None, point.seeds)
    assert results["rows"][2]["ttft_p99_s"] == pytest.approx(np.mean([cell.summary["ttft_p99_s"] for cell in cells]))


def test_a_group_has_a_panel_less_than_axes(short, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["sweep", "service", "--scenario", short, "--policies", "sarathi:slo", "--seeds", "2", "--processes", "1"]
    assert main([*words, "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    rows = list(csv.DictReader((out / "sweep.csv").open()))
    assert tuple(dict.fromkeys(row["axis"] for row in rows)) == GROUPS["service"]
    for name in GROUPS["service"]:
        assert AXES[name].title in shown


@pytest.mark.parametrize(
    ("loose", "finding"),
    [
        ("sarathi", "sarathi keeps the most promises at 2 of 2 values (1 tied)"),
        ("sarathi-spf", "sarathi-spf keeps the most promises at 2 of 2 values (1 tied)"),
    ],
)
def test_who_is_named_first_is_said_to_lead_where_all_tie(short, loose, finding):
    def row(point, name):
        share = 0.5 if point is second and name != loose else 0.9
        attained = {"max": Interval(share, 0.1)}
        return SweepRow(point, Row(None, name, False, 2, 9, attained, None, None, {}, False, "max", "max"), {})

    first, second = sweep_points(study_of(short, "sarathi", "sarathi-spf"), "slo-scale", [1, 2])
    rows = [row(point, name) for point in (first, second) for name in ("sarathi", "sarathi-spf")]
    assert finding_of(rows) == finding


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["chunk", "--policies", "kv-aware"], "chunk: kv-aware: expected policies with the parameter token_budget"),
        (["chunk", "--policies", "sarathi", "--values", "1.5"], "values: chunk: expected whole numbers, got 1.5"),
        (["chunk", "--policies", "sarathi", "--values", "0"], "token_budget"),
        (["load", "--policies", "sarathi", "--values", "0"], "values: load: expected above 0 and at most 10, got 0"),
        (["load", "--policies", "sarathi", "--values", "1", "1"], "values: one is given twice: 1 1"),
        (["load", "--policies", "sarathi", "--load", "1"], "--load: not with the axis load"),
        (["load", "--policies", "sarathi", "--hold", "load"], "hold: not with the axis load"),
        (["service", "--policies", "sarathi", "--values", "1"], "values: service is several axes: give one of"),
        (["slo-scale", "--policies", "sarathi", "--values", "0"], "slo.classes.0.ttft_ms"),
        (["noise-setup-gamma", "--policies", "sarathi", "--values", "9"], "setup_noise_cv"),
        (["speed", "--policies", "sarathi"], "speed"),
        (["load"], "give at least one of --policies and --agents"),
        (["slo-scale", "--policies", "sarathi", "--scenario", "generalist"], "sweep: the scenario varies"),
    ],
)
def test_bad_input_is_no_clear_error(short, tmp_path, capsys, words, message):
    assert main(["sweep", "--scenario", short, "--out", str(tmp_path / "out"), *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
