"""Commands summarise, plot and generate: what they print and write, and one clear error with nothing half-written."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

from llm_env.cli import main
from llm_env.config import with_changes
from llm_env.scenarios import load_scenario
from llm_env.traffic_plots import PICTURES
from llm_env.workload import generate, read_traffic
from llm_env.workload.summary import per_minute, summarise_traffic

HEADER = "arrival_s,prompt_tokens,output_tokens\n"


@pytest.fixture
def trace(tmp_path):
    path = tmp_path / "day1.csv"
    path.write_text(HEADER + "".join(f"{0.5 * k * k},{100 + 7 * k},{20 + k % 5}\n" for k in range(40)))
    return path


def workload(*arguments) -> int:
    return main(["workload", *map(str, arguments)])


def failure(arguments, capsys) -> tuple[int, str]:
    """Exit code and the one line of an error; nothing on stdout."""
    code = workload(*arguments)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "Traceback" not in printed.err
    (line,) = printed.err.splitlines()
    assert line.startswith("error: ")
    return code, line


# ---- mistakes ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ("summarise", 2, "give a trace file or --scenario NAME, one of the two"),
        ("plot DAY --scenario chat", 2, "one of the two"),
        ("summarise DAY --seed 1", 2, "--seed: only for a --scenario"),
        ("summarise DAY --minutes 1", 2, "--minutes: only for a --scenario"),
        ("summarise --scenario chat --tick-s 3", 2, "--tick-s: only for a trace"),
        ("summarise --scenario chat --rate 1 --load 1", 2, "--load: not allowed with argument --rate"),
        ("summarise --scenario chta", 2, 'unknown name "chta" (did you mean "chat"?)'),
        ("summarise DAY --service llama", 2, 'service: unknown name "llama"'),
        ("summarise DAY --tbt-ms 20", 2, "--tbt-ms 20: no batch meets a TBT target of 20 ms"),
        ("summarise no.csv", 3, "no.csv: cannot be read"),
        ("plot --scenario chat --minutes 0", 2, "--minutes: expected a number above 0"),
        ("plot --scenario chat --rate 1e-6", 2, "no request arrives within 120 s"),
        ("generate --scenario chat --rate 1e6 --minutes 100", 2, "at most 20000000"),
        ("generate --scenario chat --change workload.lode=1", 2, "workload.lode"),
        ("generate", 2, "required: --scenario"),
        ("generate --scenario chat --seed -1", 2, "--seed: expected an integer from 0"),
    ],
)
def test_a_mistake_is_taken_or_badly_explained(trace, tmp_path, capsys, arguments, code, words):
    out = tmp_path / ("out.csv" if arguments.startswith("generate") else "out")
    given = arguments.replace("DAY", str(trace)).split()
    found, line = failure([*given, "--out", out], capsys)
    assert (found, words in line) == (code, True), line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["day1.csv"]


@pytest.mark.parametrize("command", ["summarise", "plot", "generate"])
def test_closed_loops_are_drawn_without_a_server(tmp_path, capsys, command):
    arguments = [command, "--scenario", "chat", "--change", 'workload.arrivals={kind="closed-loop"}']
    code, line = failure([*arguments, "--out", tmp_path / "out.csv"], capsys)
    assert code == 2
    assert "run it with simulate instead" in line
    assert not list(tmp_path.iterdir())


def test_generate_replaces_a_file_unasked(tmp_path, capsys):
    out = tmp_path / "trace.csv"
    out.write_text("mine")
    arguments = ["generate", "--scenario", "chat", "--out", out]
    code, line = failure(arguments, capsys)
    assert (code, "--overwrite" in line, out.read_text()) == (2, True, "mine")
    assert workload(*arguments, "--overwrite") == 0
    assert out.read_text().startswith(HEADER)
    assert [path.name for path in tmp_path.iterdir()] == ["trace.csv"]


def test_a_write_that_breaks_off_leaves_a_part(tmp_path, capsys, monkeypatch):
    def interrupted(path, traffic, progress=None):
        path.write_text(HEADER)
        raise KeyboardInterrupt

    monkeypatch.setattr("llm_env.commands.generate.write_traffic", interrupted)
    assert workload("generate", "--scenario", "chat", "--out", tmp_path / "new" / "trace.csv") == 130
    assert not list(tmp_path.iterdir())


def test_a_file_is_taken_for_the_output_folder(trace, capsys):
    for command in ("summarise", "plot"):
        code, line = failure([command, trace, "--out", trace], capsys)
        assert (code, str(trace) in line) == (3, True)


# ---- summarise -----------------------------------------------------------------------------------------------------
def test_summarise_writes_other_figures_than_the_library_gives(trace, tmp_path, capsys):
    out = tmp_path / "out"
    assert workload("summarise", trace, "--out", out, "--service", "40,0.5,20", "--tbt-ms", 100) == 0
    printed = capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ["per_minute.csv", "summary.json"]
    traffic, _ = read_traffic(trace)
    expected = summarise_traffic(traffic)
    found = json.loads((out / "summary.json").read_text())
    assert found["summary"]["requests"] == 40
    assert found["summary"]["interarrival_cv"] == expected.interarrival_cv
    assert found["summary"]["prompt"]["p99"] == expected.prompt.p99
    assert found["summary"]["clients"] is None
    assert found["demand"]["capacity_tokens_per_s"] == pytest.approx(1400)  # 140 tokens in 100 ms
    assert f"{100 * expected.work_tokens_per_s / 1400:.1f}" in printed
    assert f"{expected.interarrival_cv:.2f}" in printed
    with (out / "per_minute.csv").open() as file:
        rows = list(csv.reader(file))
    table = per_minute(traffic)
    assert rows[0] == list(table)
    assert len(rows) == 1 + int(0.5 * 39 * 39 / 60) + 1
    assert np.array(rows[1:], float).T.tolist() == [column.tolist() for column in table.values()]


def test_json_is_not_the_file(trace, tmp_path, capsys):
    assert workload("summarise", trace, "--json", "--out", tmp_path / "out") == 0
    assert capsys.readouterr().out == (tmp_path / "out" / "summary.json").read_text()


def test_a_figure_that_does_not_exist_breaks_the_json(tmp_path, capsys):
    path = tmp_path / "one.csv"
    path.write_text(HEADER + "1,10,2\n")
    assert workload("summarise", path, "--json") == 0
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert (found["summary"]["requests_per_s"], found["demand"]["workers_mean"]) == (None, None)
    assert workload("summarise", path) == 0
    assert " nan" not in capsys.readouterr().out


def test_advice_on_ticks_is_kept_back(tmp_path, capsys):
    path = tmp_path / "ticks.csv"
    path.write_text(HEADER + "".join(f"{k // 5 * 3},100,20\n" for k in range(500)))
    assert workload("summarise", path) == 0
    assert "--tick-s 3" in capsys.readouterr().out
    assert workload("summarise", path, "--tick-s", 3) == 0
    assert "--tick-s" not in capsys.readouterr().out


def test_output_is_wider_than_the_page(capsys):
    assert workload("summarise", "--scenario", "chat", "--minutes", 60, "--change", "workload.clients.count=20") == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    assert any("clients" in line and " 20 " in line for line in lines)


# ---- plot ----------------------------------------------------------------------------------------------------------
def test_plot_says_other_pictures_than_it_writes(trace, tmp_path, capsys):
    out = tmp_path / "plots"
    assert workload("plot", trace, "--out", out) == 0
    printed = capsys.readouterr().out
    written = {path.stem for path in out.iterdir()}
    assert len(list(out.iterdir())) == 2 * len(written)
    assert written == set(PICTURES)  # 760 s are more than two minutes
    assert all(name in printed for name in written)


def test_a_picture_that_is_left_out_goes_unsaid_or_stays_from_other_traffic(tmp_path, capsys):
    path = tmp_path / "one.csv"
    path.write_text(HEADER + "1,10,2\n")
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "dispersion.png").write_text("of yesterday's traffic")
    assert workload("plot", path, "--out", tmp_path / "plots") == 0
    assert "dispersion: left out: " in capsys.readouterr().out
    assert not (tmp_path / "plots" / "dispersion.png").exists()


# ---- generate ------------------------------------------------------------------------------------------------------
def test_a_trace_is_written_over_itself_or_under_a_name_of_another_kind(trace, tmp_path, capsys):
    before = trace.read_bytes()
    other = tmp_path / "folder" / ".." / "day1.csv"
    (tmp_path / "folder").mkdir()
    code, line = failure(["convert", trace, "--keep", "0.5", "--out", other, "--overwrite"], capsys)
    assert (code, "is the trace that is read" in line, trace.read_bytes()) == (2, True, before)
    code, line = failure(["generate", "--scenario", "chat", "--out", tmp_path / "a.json"], capsys)
    assert (code, "ends with .csv or .csv.gz" in line) == (2, True)


def test_generate_writes_other_requests_than_are_drawn(tmp_path, capsys):
    out = tmp_path / "trace.csv.gz"
    changes = ["workload.clients.count=5", "workload.sessions.mean_turns=2", "workload.sessions.think_s=5"]
    arguments = ["--minutes", 3, "--load", 1.5, "--seed", 7, "--change", *changes]
    assert workload("generate", "--scenario", "chat", *arguments, "--out", out) == 0
    scenario = load_scenario("chat", changes)
    episode = {"episode.arrivals_s": 180.0, "episode.horizon_s": 240.0, "workload.load": 1.5}
    expected = generate.draw_traffic(with_changes(scenario, episode), 7)
    found, _ = read_traffic(out)
    for name, column in zip(expected._fields, expected, strict=True):
        assert np.array_equal(getattr(found, name), column), name
    printed = capsys.readouterr().out
    assert f"{expected.size:,} requests" in printed
    assert f"{expected.prompt_tokens.sum():,} prompt" in printed
    assert len(printed.splitlines()) == 1


def test_the_rate_is_not_the_one_asked_for(tmp_path):
    out = tmp_path / "trace.csv"
    assert workload("generate", "--scenario", "chat", "--minutes", 10, "--rate", 20, "--out", out) == 0
    # Poisson: the number has mean and variance 12,000; five standard deviations are 548
    assert abs(read_traffic(out)[0].size - 12_000) < 548


def test_another_process_writes_other_bytes(tmp_path):
    hashes = set()
    for name, hash_seed in (("a.csv.gz", "1"), ("b.csv.gz", "2")):
        arguments = ["--scenario", "chat-bursty", "--minutes", "5", "--seed", "3", "--out", str(tmp_path / name)]
        command = [sys.executable, "-m", "llm_env", "workload", "generate", *arguments]
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": hash_seed}, check=False)
        assert done.returncode == 0
        hashes.add(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    assert len(hashes) == 1
    assert (
        workload("generate", "--scenario", "chat-bursty", "--minutes", 5, "--seed", 4, "--out", tmp_path / "c.csv") == 0
    )
    assert (tmp_path / "c.csv").read_bytes() != gzip.decompress((tmp_path / "a.csv.gz").read_bytes())


def test_the_progress_bar_is_written_where_nobody_looks(tmp_path, capsys):
    assert workload("generate", "--scenario", "chat", "--out", tmp_path / "trace.csv") == 0
    assert capsys.readouterr().err == ""
