"""--what-if: the same requests on a changed system, differences that are paired, and errors that name the change."""

from __future__ import annotations

import csv
import dataclasses
import json

import numpy as np
import pytest

from llm_env.config import with_changes
from llm_env.evaluation import Arguments, main, make_study
from llm_env.metrics import paired_ci
from llm_env.statistics import sign_flip_test
from llm_env.study import run_study, traffic_at
from llm_env.what_if import changed_study
from llm_env.workload import draw_workload
from tests.test_study import SHORT


@pytest.fixture
def short(tmp_path):
    path = tmp_path / "short.toml"
    path.write_text(SHORT)
    return str(path)


def run(short, out, *more):
    words = ["--scenario", short, "--seeds", "3", "--loads", "0.5", "0.9", "--processes", "1", "--out", str(out)]
    return main([*words, *more])


def test_the_requests_are_those_of_the_system_as_it_is(short):
    study = make_study(Arguments(scenario=short, baselines=("sarathi",), seeds=2, loads=(0.9,)))
    changed = changed_study(study, "system.service.setup_ms=20;slo.classes.0.ttft_ms=500")
    assert changed.scenario.system.service.setup_ms == 20
    before, after = (draw_workload(traffic_at(s, 0.9), 5) for s in (study, changed))
    assert (before["arrival_s"] == after["arrival_s"]).all()
    assert (before["prompt_tokens"] == after["prompt_tokens"]).all()
    assert set(after["ttft_target_s"]) == {0.5}
    alone = draw_workload(with_changes(changed.scenario, {"workload.load": 0.9}), 5)
    assert len(alone) != len(after) or (alone["arrival_s"] != after["arrival_s"]).any()
    slower = changed_study(study, "slo.classes.0.tbt_ms=500")  # on which the capacity depends, and so what a load is
    for load, as_it_is in ((0.9, study), (None, dataclasses.replace(study, loads=()))):
        wanted, found = (traffic_at(s, load) for s in (as_it_is, dataclasses.replace(slower, loads=as_it_is.loads)))
        assert (draw_workload(wanted, 5)["arrival_s"] == draw_workload(found, 5)["arrival_s"]).all()
    hashes = [
        {cell.seed: cell.summary["final_sha256"] for _, _, new in run_study(s, 1) for cell in new}
        for s in (study, changed)
    ]
    assert hashes[0] != hashes[1]


def test_a_change_that_changes_nothing_makes_exactly_nothing(short, tmp_path):
    out, changes = tmp_path / "out", ("system.service.setup_ms=45.5", "slo.classes.0.ttft_ms=2000")
    assert run(short, out, "--baselines", "sarathi:slo", "fcfs", "--what-if", *changes) == 0
    found = json.loads((out / "results.json").read_text())["what_if"]
    assert len(found) == 8
    names = ("difference_to_as_it_is", "difference_to_as_it_is_ci95")
    assert {effect[name] for effect in found for name in names} == {0.0}


def test_differences_are_paired_with_the_system_as_it_is(short, tmp_path, capsys):
    out, change = tmp_path / "out", "system.workers=2;system.router=shortest-queue;slo.classes.0.ttft_ms=150"
    assert run(short, out, "--baselines", "sarathi:slo", "--what-if", change) == 0
    shown = capsys.readouterr().out
    assert "the same requests on a changed system" in shown
    assert max(map(len, shown.splitlines()[:-1])) <= 100  # the last one names the folder
    results = json.loads((out / "results.json").read_text())
    effect = next(e for e in results["what_if"] if e["load"] == 0.9)
    assert effect["change"] == change
    assert effect["difference_to_as_it_is"] < 0
    cells = [c for c in csv.DictReader((out / "cells.csv").open()) if c["load"] == "0.9"]
    before = np.array([float(c["slo_attainment"]) for c in cells])
    base = make_study(Arguments(scenario=short, seeds=3, loads=(0.9,), baselines=("sarathi:slo",)))
    after = [cell.summary["slo_attainment"] for _, _, new in run_study(changed_study(base, change), 1) for cell in new]
    mean, half = paired_ci(after, before)
    assert (effect["difference_to_as_it_is"], effect["difference_to_as_it_is_ci95"]) == (mean, half)
    assert effect["difference_to_as_it_is_p_value"] == sign_flip_test(np.array(after) - before)
    assert effect["difference_to_as_it_is_losses"] == sum(new < old for new, old in zip(after, before, strict=True))
    first = (out / "results.json").read_bytes()
    assert run(short, out, "--baselines", "sarathi:slo", "--what-if", change) == 0
    assert (out / "results.json").read_bytes() == first


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("", "what-if: expected KEY=VALUE"),
        ("system.workers", "expected SETTING=VALUE"),
        ("workload.load=2", "what-if: workload.load: expected a setting of system or slo"),
        ("episode.arrivals_s=2", "what-if: episode.arrivals_s"),
        ("system.engines=2", "system.engines"),
        ("service=none", "none"),
        ("service=llama3-70b-a100x2;service=llama3-70b-a100x4", "service is given twice"),
    ],
)
def test_a_change_that_cannot_be_made_is_one_clear_error(short, tmp_path, capsys, change, message):
    assert run(short, tmp_path / "out", "--baselines", "sarathi", "--what-if", change) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
