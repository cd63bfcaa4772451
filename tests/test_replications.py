"""Warm-up by MSER-5, seeds until precise enough, and intervals that cover what theory says of M/M/1."""

from __future__ import annotations

import json

import numpy as np
import pytest

from llm_env import theory
from llm_env.evaluation import Arguments, main, make_study
from llm_env.metrics import mean_ci
from llm_env.replications import pooled_ttft, with_warmup
from llm_env.rollout import rollout
from llm_env.study import run_study
from llm_env.validation_rows import workload
from llm_env.validation_stationary import mm
from llm_env.warmup import BATCH, binned, mser5
from tests.test_study import SHORT


# ---- MSER-5 --------------------------------------------------------------------------------------------------------
def brute_force(series):
    """By the definition, batch by batch."""
    k = len(series) // BATCH
    means = [np.mean(series[BATCH * j : BATCH * (j + 1)]) for j in range(k)]
    scores = [np.sum((np.array(means[d:]) - np.mean(means[d:])) ** 2) / (k - d) ** 2 for d in range(k // 2 + 1)]
    return BATCH * int(np.argmin(scores))


@pytest.mark.parametrize("seed", range(20))
def test_it_is_the_minimum_of_the_definition(seed):
    rng = np.random.default_rng(seed)
    series = rng.normal(size=203) + 6.0 * np.exp(-np.arange(203) / rng.uniform(3, 25))
    assert mser5(series) == brute_force(series) <= 95


def test_it_cuts_what_differs_and_no_more():
    rng = np.random.default_rng(0)
    series = rng.normal(size=400)
    series[:60] -= 8.0
    assert mser5(series) == 60
    assert mser5(rng.normal(size=400)) in range(0, 60, BATCH)


@pytest.mark.parametrize("series", [np.arange(200.0), np.zeros(15), np.full(100, np.nan)])
def test_a_series_that_does_not_settle_has_no_answer(series):
    assert mser5(series) is None


def test_bins_are_means_and_empty_ones_are_like_the_one_before():
    series = binned(np.array([0.1, 0.2, 2.5, 9.99, 10.0]), np.array([1.0, 3.0, 5.0, 7.0, 9.0]), 10.0, 5)
    assert series.tolist() == [2.0, 5.0, 5.0, 5.0, 8.0]
    late = binned(np.array([5.0]), np.array([4.0]), 10.0, 4)
    assert late.tolist() == [4.0, 4.0, 4.0, 4.0]


# ---- in a study ----------------------------------------------------------------------------------------------------
@pytest.fixture
def short(tmp_path):
    path = tmp_path / "short.toml"
    path.write_text(SHORT)
    return str(path)


def test_auto_measures_from_where_the_pooled_runs_have_settled(short):
    study = make_study(Arguments(scenario=short, baselines=("sarathi-spf:slo", "fcfs"), seeds=6, loads=(0.5,)))
    changed, remarks = with_warmup(study, "auto", 1)
    assert "by MSER-5 on 5 runs" in remarks[0]
    assert f"warm-up: {changed.scenario.episode.warmup_s:g} s" in remarks[0]
    cells = [cell for _, _, new in run_study(study, 1) for cell in new if cell.seed < 2_000_005]
    found = {
        name: mser5(pooled_ttft([cell for cell in cells if cell.contender == name], 20.0))
        for name in ("sarathi-spf:slo", "fcfs")
    }
    settled = [bins * 20.0 / 200 for bins in found.values() if bins is not None]
    assert changed.scenario.episode.warmup_s == np.ceil(max(settled)) > 0
    unsettled = [name for name, bins in found.items() if bins is None]
    assert len(remarks) == (2 if unsettled else 1)


def test_a_contender_that_never_settles_is_named_and_left_out(short):
    study = make_study(Arguments(scenario=short, baselines=("decode-first",), seeds=2, loads=(3.0,)))
    changed, remarks = with_warmup(study, "auto", 1)
    assert remarks[1].endswith("and left out: decode-first at load 3")
    assert changed.scenario.episode.warmup_s == 0


def test_a_given_warm_up_is_that_of_the_scenario_that_is_kept(short, tmp_path):
    out = tmp_path / "out"
    words = ["--scenario", short, "--baselines", "sarathi", "--seeds", "2", "--processes", "1", "--warmup-s", "7.5"]
    assert main([*words, "--out", str(out)]) == 0
    assert json.loads((out / "results.json").read_text())["scenario"]["episode"]["warmup_s"] == 7.5


def test_seeds_are_added_until_the_intervals_are_narrow(short, tmp_path, capsys):
    out, whole = tmp_path / "out", tmp_path / "whole"
    words = ["--scenario", short, "--baselines", "sarathi-spf:slo", "moore-hodgson", "--processes", "1"]
    assert main([*words, "--seeds", "3", "--precision", "0.03", "--out", str(out)]) == 0
    results = json.loads((out / "results.json").read_text())
    n = len(results["seeds"])
    assert n > 3
    for row in results["rows"]:
        assert row["slo_attainment_p99_ci95"] <= 0.03 / 1.03 * max(row["slo_attainment_p99"], 0.1)
    assert main([*words, "--seeds", str(n), "--out", str(whole)]) == 0
    assert (out / "cells.csv").read_bytes() == (whole / "cells.csv").read_bytes()
    assert main([*words, "--seeds", "3", "--precision", "0.0001", "--most-seeds", "5", "--out", str(out)]) == 0
    assert "not reached with 5 seeds" in capsys.readouterr().err
    assert len(json.loads((out / "results.json").read_text())["seeds"]) == 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--precision", "0"], "precision: expected more than 0"),
        (["--precision", "0.1", "--seeds", "1"], "at least 2 seeds"),
        (["--most-seeds", "0"], "most-seeds: expected"),
        (["--warmup-s", "soon"], 'expected a number of seconds or "auto", got "soon"'),
        (["--warmup-s", "20"], "expected 0 to less than 20, got 20"),
        (["--warmup-s", "nan"], "expected 0 to less than 20"),
    ],
)
def test_bad_input_is_one_clear_error(short, tmp_path, capsys, words, message):
    assert main(["--scenario", short, "--baselines", "sarathi", *words, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# ---- coverage ------------------------------------------------------------------------------------------------------
REPLICATIONS, CUSTOMERS = 30, 2500


@pytest.mark.parametrize("load", [0.7, 0.8, 0.9])
def test_intervals_over_30_replications_cover_the_mean_of_an_mm1_queue_as_often_as_they_say(load):
    """The time in the system, the first fifth of each run left out; seeds are fixed, so this cannot fail by chance."""
    case, studies = mm(1, load), 100
    decide, truth, covered = case.decide(), theory.mm1_sojourn(load, 1.0), 0
    for study in range(studies):
        means = []
        for seed in range(REPLICATIONS * study, REPLICATIONS * (study + 1)):
            arrivals = np.cumsum(np.random.default_rng([7, seed]).exponential(1 / load, CUSTOMERS))
            done = rollout(case.scenario, decide, workload(arrivals, 1, 1), seed).requests[:CUSTOMERS]
            means.append((done["finish_s"] - done["arrival_s"])[CUSTOMERS // 5 :].mean())
        mean, half = mean_ci(means)
        covered += abs(mean - truth) <= half
    assert 0.91 <= covered / studies <= 0.97
