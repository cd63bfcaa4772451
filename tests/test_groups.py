"""Who gets what: groups add up to all, quarters are of each workload, Jain's index by hand, clients if known."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest

from llm_env.evaluation import Arguments, main, make_study
from llm_env.groups import FEWEST, fairness, groups_of, quarters
from llm_env.study import CellResult, Study, run_study
from tests.test_study import SHORT

CLASSES = (
    SHORT
    + """
[[slo.classes]]
name = "tight, first"
ttft_ms = 500.0
tbt_ms = 150.0
share = 0.3
[[slo.classes]]
name = "loose"
ttft_ms = 4000.0
tbt_ms = 500.0
share = 0.7
"""
)


@pytest.fixture
def study(tmp_path) -> Study:
    path = tmp_path / "classes.toml"
    path.write_text(CLASSES)
    return make_study(Arguments(scenario=str(path), baselines=("sarathi-spf:slo", "fcfs"), seeds=3, loads=(0.5, 0.9)))


def test_the_groups_of_a_kind_are_all_measured_requests(study):
    cells = [cell for _, _, new in run_study(study, 1) for cell in new]
    groups = groups_of(study, cells)
    for kind in ("class", "prompt"):
        for load in (0.5, 0.9):
            mine = [g for g in groups if (g.kind, g.load, g.policy) == (kind, load, "fcfs")]
            those = [c for c in cells if (c.load, c.contender) == (load, "fcfs")]
            assert sum(g.requests for g in mine) == sum(c.summary["num_requests"] for c in those)
    assert [g.name for g in groups[:6]] == [
        *("tight, first", "loose"),
        *("shortest quarter", "second quarter", "third quarter", "longest quarter"),
    ]
    assert not [g for g in groups if g.kind == "client"]
    tight = next(g for g in groups if g.name == "tight, first")
    shares = []
    for cell in cells:
        if (cell.load, cell.contender) == (0.5, "sarathi-spf:slo"):
            q = cell.requests
            which = (q["arrival_s"] >= 4.0) & (q["arrival_s"] < 20.0) & (q["slo_class"] == 0)
            shares.append(q["slo_met"][which].mean())
    assert tight.attainment == pytest.approx(np.mean(shares))


def test_quarters_hold_equal_prompts_together():
    assert quarters(np.array([5, 1, 3, 7])).tolist() == [2, 0, 1, 3]
    assert quarters(np.array([4, 4, 4, 4, 9])).tolist() == [0, 0, 0, 0, 3]
    assert quarters(np.zeros(0)).size == 0


def cell_of(clients, met):
    n = len(clients)
    requests = {
        "arrival_s": np.full(n, 10.0),
        "prompt_tokens": np.arange(n),
        "slo_class": np.zeros(n, np.int64),
        "client": np.array(clients),
        "slo_met": np.array(met, bool),
        "first_token_s": np.full(n, 11.0),
    }
    return CellResult(None, "x", 0, {}, requests, np.zeros((0, 2)), np.zeros(0), {})


def test_jains_index_and_the_worst_client_by_hand(study):
    few = [9] * (FEWEST - 1)
    cell = cell_of([0] * 10 + [1] * 10 + few, [1] * 10 + [1] * 5 + [0] * 5 + [0] * len(few))
    jain, worst = fairness([cell], study)
    assert jain == pytest.approx((1 + 0.5) ** 2 / (2 * (1 + 0.25)))
    assert worst == 0.5
    same = cell_of([0] * 10 + [1] * 10, [1] * 20)
    nobody = cell_of([0] * 10 + [1] * 10, [0] * 20)
    assert fairness([same], study) == (1.0, 1.0)
    assert fairness([nobody], study) == (1.0, 0.0)
    assert all(math.isnan(value) for value in fairness([cell_of([-1] * 20, [1] * 20)], study))


def test_clients_are_told_where_they_are_known(tmp_path):
    out = tmp_path / "out"
    words = [
        "--scenario",
        "multi-tenant",
        "--change",
        "episode.arrivals_s=200",
        "episode.horizon_s=400",
        "--seeds",
        "2",
    ]
    assert main([*words, "--baselines", "vtc", "--processes", "1", "--out", str(out)]) == 0
    (row,) = json.loads((out / "results.json").read_text())["rows"]
    assert 0 < row["client_jain_index"] <= 1
    assert 0 <= row["client_worst_attainment"] <= row["slo_attainment_p99"] + 0.5
    kinds = {line["kind"] for line in csv.DictReader((out / "groups.csv").open())}
    assert {"class", "prompt"} <= kinds


def test_names_with_commas_are_quoted(study, tmp_path):
    out = tmp_path / "out"
    path = tmp_path / "classes.toml"
    words = ["--scenario", str(path), "--baselines", "fcfs", "--seeds", "2", "--processes", "1", "--out", str(out)]
    assert main(words) == 0
    names = [line["name"] for line in csv.DictReader((out / "groups.csv").open())]
    assert names[0] == "tight, first"
