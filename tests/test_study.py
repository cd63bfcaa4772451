"""evaluate.py: identical workloads, paired differences, equal bytes, and one clear error for each mistake."""

from __future__ import annotations

import csv
import gzip
import json
import os
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest

from llm_env import processes as processes_module
from llm_env import study as study_module
from llm_env.aggregate import aggregate, best_baseline
from llm_env.evaluation import main
from llm_env.scenarios import load_scenario
from llm_env.study import STANDARD_BASELINES, Contender, Study, baseline_contender, run_study, sort_cells
from llm_env.workload import draw_workload

ROOT = Path(__file__).resolve().parent.parent
SHORT = """
name = "short"
[system.kv]
blocks = 1200
[workload]
load = 0.8
[workload.arrivals]
kind = "mmpp2"
[episode]
arrivals_s = 20.0
warmup_s = 4.0
horizon_s = 60.0
"""


@pytest.fixture
def short(tmp_path: Path) -> str:
    path = tmp_path / "short.toml"
    path.write_text(SHORT)
    return str(path)


def run(*arguments: str) -> int:
    return main([*arguments, "--processes", "1"])


def read(path: Path) -> list[dict[str, str]]:
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    return list(csv.DictReader(text.splitlines()))


def test_every_policy_meets_the_same_requests(short, tmp_path):
    out = tmp_path / "out"
    assert run("--scenario", short, "--baselines", "sarathi", "moore-hodgson", "--seeds", "3", "--out", str(out)) == 0
    rows = read(out / "requests.csv.gz")
    asked = {}
    for row in rows:
        key = (row["seed"], row["request"])
        what = (row["arrival_s"], row["prompt_tokens"], row["output_tokens"])
        assert asked.setdefault(key, what) == what
    drawn = draw_workload(load_scenario(short), 2_000_000)
    mine = [row for row in rows if row["seed"] == "2000000" and row["policy"] == "sarathi"]
    assert [float(row["arrival_s"]) for row in mine] == drawn["arrival_s"].tolist()
    assert set(Counter(row["policy"] for row in rows).values()) == {len(asked)}


def test_same_seeds_give_the_same_bytes_with_one_process_and_with_two(short, tmp_path, monkeypatch):
    monkeypatch.setattr(processes_module, "ALONE_S", 0.0)
    found = []
    for name, processes in (("a", "1"), ("b", "1"), ("c", "2")):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)  # the name of --out is in the results
        arguments = ["--scenario", short, "--baselines", "sarathi", "random", "--seeds", "4", "--loads", "0.5", "1.0"]
        assert main([*arguments, "--price", "2", "--engine", "local", "--processes", processes, "--out", "out"]) == 0
        files = [path for path in Path("out").rglob("*") if path.is_file() and path.name != "times.json"]
        found.append({path: path.read_bytes() for path in files})
    assert Path("out/results.json") in found[0]
    assert Path("out/report.html") in found[0]
    assert found[0] == found[1] == found[2]


def test_results_name_everything_they_came_from(short, tmp_path):
    out = tmp_path / "out"
    assert run("--scenario", short, "--baselines", "sarathi:slo", "fcfs", "--seeds", "2", "--out", str(out)) == 0
    results = json.loads((out / "results.json").read_text())
    assert results["seeds"] == [2_000_000, 2_000_001]
    assert {"python", "numpy", "numba"} <= set(results["versions"])
    assert {"git_commit", "arguments", "scenario"} <= set(results)
    assert (out / "repro.sh").read_text().startswith("#!/bin/sh\n")
    row = results["rows"][0]
    assert row["policy"] == "sarathi:slo"
    for rule in ("max", "p99", "deadline"):
        assert 0 <= row[f"slo_attainment_{rule}"] <= 1
    names = {path.name for path in (out / "plots").iterdir()}
    assert names == {"attainment.png", "distributions.png", "batches.png"}
    assert load_scenario(str(out / "scenario.toml")) == load_scenario(short)
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


def test_a_policy_against_itself_differs_by_exactly_nothing(short):
    first, second = baseline_contender("sarathi"), baseline_contender("sarathi:512")
    study = Study(load_scenario(short), (first, second), (), (1, 2, 3))
    cells = [cell for _, _, new in run_study(study, 1) for cell in new]
    rows = aggregate(study, cells)
    other = next(row for row in rows if row.difference is not None)
    assert (other.difference.mean, other.difference.half_width) == (0.0, 0.0)


def test_difference_is_paired_seed_by_seed(short):
    names = ("moore-hodgson", "sarathi:slo")
    study = Study(load_scenario(short), tuple(map(baseline_contender, names)), (1.0,), tuple(range(6)))
    cells = sort_cells(study, [cell for _, _, new in run_study(study, 1) for cell in new])
    rows = aggregate(study, cells)
    values = {n: np.array([c.summary["slo_attainment_p99"] for c in cells if c.contender == n]) for n in names}
    best = best_baseline(rows, 1.0)
    other = next(row for row in rows if row.contender != best)
    assert other.difference.mean == pytest.approx((values[other.contender] - values[best]).mean())
    assert values[best].mean() == max(v.mean() for v in values.values())


def test_a_trace_is_run_whole_and_paired_by_blocks(short, tmp_path):
    rng = np.random.default_rng(0)
    arrivals = np.cumsum(rng.exponential(0.6, 400))
    lines = [f"{t},{rng.integers(20, 900)},{rng.integers(1, 60)}" for t in arrivals.tolist()]
    trace = tmp_path / "trace.csv"
    trace.write_text("\n".join(["arrival_s,prompt_tokens,output_tokens", *lines]) + "\n")
    out = tmp_path / "out"
    arguments = ("--scenario", short, "--trace", str(trace), "--baselines", "sarathi:slo", "vllm-v0", "--out", str(out))
    assert run(*arguments) == 0
    rows = json.loads((out / "results.json").read_text())["rows"]
    assert [(row["replications"], row["num_requests"]) for row in rows] == [(20, 400), (20, 400)]
    assert run(*arguments, "--loads", "0.7", "1.4") == 0
    rows = json.loads((out / "results.json").read_text())["rows"]
    assert [row["load"] for row in rows] == [0.7, 0.7, 1.4, 1.4]
    assert rows[0]["slo_attainment_p99"] > rows[2]["slo_attainment_p99"]


def test_a_growing_backlog_is_called_unstable(short, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("--scenario", short, "--baselines", "fcfs", "--seeds", "2", "--loads", "1.5", "--out", str(out)) == 0
    said = capsys.readouterr().out
    assert "fcfs †" in said
    assert "† unstable: the backlog grew" in said
    assert json.loads((out / "results.json").read_text())["rows"][0]["unstable"] is True


def test_the_table_fits_a_hundred_columns(short, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("--scenario", short, "--baselines", "all", "--seeds", "2", "--out", "out") == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100
    assert all(name in text for name in STANDARD_BASELINES)


def test_the_bound_changes_the_cells_or_is_passed_or_does_not_fit(short, tmp_path, capsys):
    arguments = ("--scenario", short, "--baselines", "all", "--seeds", "3", "--loads", "0.9", "2.0")
    assert run(*arguments, "--out", str(tmp_path / "without")) == 0
    assert "no policy can pass" not in capsys.readouterr().out
    assert run(*arguments, "--bound", "--out", str(tmp_path / "with")) == 0
    text = capsys.readouterr().out
    assert text.count("no policy can pass") == 2
    assert "bound, %" in text
    assert max(len(line) for line in text.splitlines() if str(tmp_path) not in line) <= 100
    without, found = (json.loads((tmp_path / out / "results.json").read_text()) for out in ("without", "with"))
    assert "bounds" not in without
    for name in ("cells.csv", "requests.csv.gz"):
        assert (tmp_path / "without" / name).read_bytes() == (tmp_path / "with" / name).read_bytes()
    bounds = {entry["load"]: entry for entry in found["bounds"]}
    assert bounds[2.0]["p99"] < 1
    for row in found["rows"]:
        for rule in ("max", "p99", "deadline"):
            assert row[f"slo_attainment_{rule}"] <= bounds[row["load"]][rule] + 1e-12, row["policy"]


def test_a_bound_of_a_trace_is_passed(short, tmp_path):
    trace, out = write_trace(tmp_path / "trace.csv", 0.0), tmp_path / "out"
    arguments = ("--scenario", short, "--trace", trace, "--time-scale", "0.25", "--baselines", "moore-hodgson")
    assert run(*arguments, "--bound", "--out", str(out)) == 0
    found = json.loads((out / "results.json").read_text())
    assert found["bounds"][0]["load"] is None
    assert found["rows"][0]["slo_attainment_p99"] <= found["bounds"][0]["p99"] < 1


def test_a_bound_of_a_noisy_system_is_made_up(tmp_path, capsys):
    noisy = tmp_path / "noisy.toml"
    noisy.write_text(SHORT + '[system.service]\nsetup_noise = "exponential"\n')
    assert run("--scenario", str(noisy), "--bound", "--out", str(tmp_path / "out")) == 2
    assert "the service time is noisy" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--scenario", "chatt"], 2, "chatt"),
        (["--baselines", "sarathee"], 2, "sarathee"),
        (["--baselines", "sarathi:budget=5"], 2, "budget"),
        (["--baselines", "none"], 2, "nothing to compare"),
        (["--seeds", "0"], 2, "seeds"),
        (["--loads", "0"], 2, "loads"),
        (["--loads", "nan"], 2, "loads"),
        (["--loads", "0.5", "0.5"], 2, "twice"),
        (["--agents", "no/such/run"], 2, "no/such/run"),
        (["--trace", "no-such.csv", "--baselines", "sarathi"], 3, "no-such.csv"),
        (["--processes", "0"], 2, "processes"),
        (["--trace-part", "0", "0.5"], 2, "trace_part: only for a trace"),
        (["--trace", "x.csv", "--trace-part", "0.5", "0.5"], 2, "trace_part: expected"),
    ],
)
def test_a_mistake_is_one_clear_error_and_leaves_nothing(arguments, code, words, tmp_path, capsys):
    out = tmp_path / "out"
    assert main([*arguments, "--out", str(out)]) == code
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert words in captured.err
    assert "Traceback" not in captured.err
    assert not out.exists()


def test_an_output_that_is_a_file_is_refused_before_the_work(tmp_path, capsys):
    out = tmp_path / "file"
    out.write_text("mine")
    assert run("--baselines", "sarathi", "--out", str(out)) == 3
    assert "file" in capsys.readouterr().err
    assert out.read_text() == "mine"


def test_wrong_usage_exits_with_2(capsys):
    assert main(["--no-such-flag"]) == 2
    assert "no-such-flag" in capsys.readouterr().err


def write_trace(path: Path, start_s: float) -> str:
    rng = np.random.default_rng(1)
    arrivals = start_s + np.cumsum(rng.integers(0, 4, 300)) / 4  # exact in binary, whatever is added
    lines = [f"{t},{rng.integers(20, 900)},{rng.integers(1, 60)}" for t in arrivals.tolist()]
    path.write_text("\n".join(["arrival_s,prompt_tokens,output_tokens", *lines]) + "\n")
    return str(path)


def test_results_on_a_trace_do_not_depend_on_when_its_log_began(short, tmp_path):
    cells = []
    for start_s in (0.0, 4096.0):
        out = tmp_path / f"out{start_s:g}"
        trace = write_trace(tmp_path / f"{start_s:g}.csv", start_s)
        assert run("--scenario", short, "--trace", trace, "--baselines", "sarathi:slo", "--out", str(out)) == 0
        cells.append((out / "cells.csv").read_bytes())
    assert cells[0] == cells[1]


def test_parts_of_a_trace_have_requests_in_common_or_lose_some(short, tmp_path):
    trace, rows = write_trace(tmp_path / "day.csv", 8.0), []
    for part in (("0", "0.7"), ("0.7", "1")):
        out = tmp_path / part[0]
        arguments = ("--scenario", short, "--trace", trace, "--baselines", "sarathi:slo", "--out", str(out))
        assert run(*arguments, "--trace-part", *part) == 0
        assert json.loads((out / "results.json").read_text())["arguments"]["trace_part"] == [float(x) for x in part]
        with gzip.open(out / "requests.csv.gz", "rt") as file:
            rows.append([int(row["request"]) for row in csv.DictReader(file)])
    assert rows[0] + rows[1] == list(range(300))
    assert min(map(len, rows)) > 60


def test_long_silences_make_empty_blocks(short, tmp_path):
    """Blocks are of equally many requests, so a silence of any length lies between two of them or within one."""
    lines = [f"{k * 0.25 + 1000 * (k // 50)},200,5" for k in range(400)]
    trace = tmp_path / "silent.csv"
    trace.write_text("\n".join(["arrival_s,prompt_tokens,output_tokens", *lines]) + "\n")
    out = tmp_path / "out"
    assert run("--scenario", short, "--trace", str(trace), "--baselines", "sarathi:slo", "--out", str(out)) == 0
    row = json.loads((out / "results.json").read_text())["rows"][0]
    assert (row["replications"], row["num_requests"]) == (20, 400)
    assert row["slo_attainment_p99_ci95"] is not None


def test_a_seed_without_requests_is_left_out_for_all_and_named(short, tmp_path, capsys):
    rare = tmp_path / "rare.toml"
    rare.write_text(SHORT.replace("load = 0.8", "rate_per_s = 0.1"))
    out = tmp_path / "out"
    arguments = ("--scenario", str(rare), "--baselines", "fcfs", "sarathi", "--seeds", "12", "--out", str(out))
    assert run(*arguments) == 0
    rows = json.loads((out / "results.json").read_text())["rows"]
    empty = sum(row["num_requests"] == "0" for row in read(out / "cells.csv") if row["policy"] == "fcfs")
    assert 0 < empty < 12
    assert {row["replications"] for row in rows} == {12 - empty}
    assert f"{empty} of 12 seeds" in capsys.readouterr().out
    assert all(row["slo_attainment_p99"] is not None for row in rows)


def test_a_system_that_can_serve_nobody_is_reported(short, tmp_path):
    tiny = tmp_path / "tiny.toml"
    tiny.write_text(SHORT.replace("blocks = 1200", "blocks = 1"))
    out = tmp_path / "out"
    assert run("--scenario", str(tiny), "--baselines", "sarathi", "--seeds", "2", "--out", str(out)) == 0
    assert json.loads((out / "results.json").read_text())["rows"][0]["slo_attainment_p99"] == 0


def test_pictures_of_an_earlier_study_do_not_stay(short, tmp_path):
    out = tmp_path / "out"
    for loads in (("0.6", "1.0"), ("0.3",)):
        arguments = ("--scenario", short, "--baselines", "sarathi", "--seeds", "2", "--out", str(out))
        assert run(*arguments, "--loads", *loads) == 0
    names = {path.name for path in (out / "plots").iterdir()}
    assert names == {"attainment.png", "batches.png", "distributions-load-0.3.png"}


def test_an_interrupted_study_drops_the_work_that_waits(short):
    study = Study(load_scenario(short), (baseline_contender("random"),), tuple(np.arange(1, 21) / 10), tuple(range(40)))
    results = run_study(study, 2)
    for _ in range(2):
        _, total, _ = next(results)
    began = time.monotonic()
    results.close()
    assert total == 40
    assert time.monotonic() - began < 20


def test_a_reader_that_stops_early_loses_no_results(short, tmp_path):
    out = tmp_path / "out"
    arguments = f"--scenario {short} --baselines sarathi --seeds 2 --processes 1 --out {out}"
    command = f"{sys.executable} evaluate.py {arguments} | head -1"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (out / "results.json").exists()


class Pool:
    """Stands in for a pool of processes: notes what it is given and runs it here."""

    def __init__(self, given: list, size: int, context) -> None:
        self.given, self.size, self.context = given, size, context

    def submit(self, function, *arguments):
        self.given.append(arguments)
        future: Future = Future()
        future.set_result(function(*arguments))
        return future

    def shutdown(self, **_):
        pass


def test_children_are_spawned_on_one_thread_once_a_baseline_and_an_agent_have_run_in_the_parent(monkeypatch):
    sarathi, fcfs = (Contender(name, name, (), "") for name in ("sarathi", "fcfs"))
    agent = Contender("agent:a", "", (), "a")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(processes_module, "ALONE_S", 0.0)
    given: list = []
    pools = []

    def pool(size, context, *_):
        pools.append(Pool(given, size, context))
        return pools[-1]

    monkeypatch.setattr(processes_module, "ProcessPoolExecutor", pool)
    monkeypatch.setattr(study_module, "run_unit", lambda _, contender, load, seeds: [(contender.label, seeds)])
    study = Study(load_scenario("chat"), (sarathi, fcfs, agent), (0.8, 0.9), (1, 2))
    results = list(run_study(study, 2))
    assert [new[0][0] for _, _, new in results[:2]] == ["sarathi", "agent:a"]
    assert [done for done, _, _ in results] == list(range(1, 11))
    assert len(given) == 8  # neither of the two again
    assert sorted(new[0] for _, _, new in results) == sorted(
        [(label, (seed,)) for label in ("sarathi", "fcfs") for seed in (1, 2)] * 2 + [("agent:a", (1, 2))] * 2
    )
    assert [(p.size, p.context.get_start_method()) for p in pools] == [(2, "spawn")]
    assert os.environ["OMP_NUM_THREADS"] == "1"


@pytest.mark.parametrize(("seconds_each", "here"), [(0.0, 10), (0.9, 5), (9.0, 3)])
def test_a_small_study_starts_processes_and_a_long_one_none(monkeypatch, seconds_each, here):
    """Two pieces run in the parent in any case, then others until two seconds have passed."""
    clock = [0.0]
    given: list = []

    def run_piece(_, contender, load, seeds):
        clock[0] += seconds_each
        return [(contender.label, load, seeds)]

    monkeypatch.setattr(processes_module, "ProcessPoolExecutor", lambda size, context, *_: Pool(given, size, context))
    monkeypatch.setattr(study_module, "run_unit", run_piece)
    monkeypatch.setattr(processes_module.time, "monotonic", lambda: clock[0])
    contenders = (Contender("sarathi", "sarathi", (), ""), Contender("agent:a", "", (), "a"))
    study = Study(load_scenario("chat"), (*contenders, Contender("fcfs", "fcfs", (), "")), (0.8, 0.9), (1, 2))
    results = list(run_study(study, 2))
    assert len(given) == 10 - here
    assert [(done, total) for done, total, _ in results] == [(k, 10) for k in range(1, 11)]
    assert len({new[0] for _, _, new in results}) == 10
