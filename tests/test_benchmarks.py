"""benchmarks/: every group gives figures, tables and JSON hold them, the guard's arithmetic. No speed is asserted."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from fnmatch import fnmatchcase

import numpy as np
import pytest

from benchmarks import backlog, child, guard, kernel, million, report
from benchmarks.__main__ import GROUPS, main
from benchmarks.measure import FULL, QUICK, Effort, Figure, Lap, Sample, alternate, rate_figure, time_figure
from benchmarks.targets import TARGETS, verdict
from llm_env.errors import InputOutputError, UserError
from llm_env.records import QUEUE_ORDERS, snapshot
from llm_env.workload import draw_workload, read_traffic

TINY = Effort(
    name="tiny",
    rounds=2,
    seconds=1e-6,
    backlogs=(60, 90),
    trace_requests=200,
    warm_steps=2,
    study_seeds=1,
    processes=(1,),
    cold_start=False,
)
RATE = Figure(name="a/rate", value=10.0, unit="steps/CPU-s", ratio=0.5, better="more", spread=0.1)
TIME = Figure(name="a/time", value=2.0, unit="ms", ratio=100.0, better="less")


# ---- measuring -----------------------------------------------------------------------------------------------------
def test_a_work_is_not_measured_in_every_round():
    calls = []

    def work():
        calls.append(1)
        return Lap(3, 5e-6)

    samples = alternate({"x": work, "y": work}, replace(TINY, rounds=4, seconds=9e-6))
    assert len(calls) == 2 + 2 * 4 * 2  # a first call to warm up; then two laps of 5 us make up 9 us
    assert samples["x"].rates == [6 / 1e-5] * 4
    assert len(samples["y"].ratios) == 4


def test_a_ratio_is_not_to_the_calibrations_around_it(monkeypatch):
    speeds = iter([10.0, 20.0, 30.0])
    monkeypatch.setattr("benchmarks.measure.calibration", lambda seconds: next(speeds))
    sample = alternate({"x": lambda: Lap(60, 1.0)}, TINY)["x"]
    assert sample.ratios == [60 / 15, 60 / 25]


def test_figures_are_not_medians_of_the_rounds():
    sample = Sample([10.0, 20.0, 40.0], [1.0, 2.0, 4.0])
    rate = rate_figure("a/b", "steps", sample, "", "peer", Sample([5.0] * 3, [4.0, 4.0, 2.0]))
    assert (rate.value, rate.ratio, rate.better, rate.spread) == (20.0, 2.0, "more", 1.5)
    assert rate.peer_ratio == 0.5  # of 1/4, 2/4 and 4/2: rounds are paired
    time = time_figure("a/b", "ms", sample)
    assert (time.value, time.ratio, time.better) == (50.0, 0.5, "less")
    assert rate_figure("a/b", "steps", Sample([1.0], [1.0])).spread is None


# ---- groups --------------------------------------------------------------------------------------------------------
SLOW = ("kernel", "vector", "ppo", "startup")


@pytest.mark.parametrize("group", [pytest.param(g, marks=pytest.mark.slow) if g in SLOW else g for g in GROUPS])
def test_a_group_gives_no_figures(group):
    figures = GROUPS[group](TINY)
    assert figures
    assert len({figure.name for figure in figures}) == len(figures)
    for figure in figures:
        assert figure.name.startswith(f"{group}/")
        assert figure.value > 0
        assert figure.ratio > 0


def test_a_lap_of_the_kernel_is_not_one_whole_run():
    scenario = kernel.busy_chat()
    requests = draw_workload(scenario, 0)
    work = kernel.batches(scenario, kernel.make_ordered(512, 128, 0), requests)
    units = {work().units for _ in range(3)}
    assert len(units) == 1
    assert units.pop() > len(requests)


def test_about_40_requests_do_not_run():
    # what the documentation says of the kernel's figures
    scenario = kernel.busy_chat()
    running = kernel.situation(scenario, kernel.make_ordered(512, 128, 0), draw_workload(scenario, 0)).num_running
    assert 35 <= running <= 45


def test_a_backlog_is_not_as_large_as_it_says():
    states = backlog.with_backlog(backlog.patient_chat(), 90)
    assert states.system["num_waiting"][0, 0] in range(85, 91)
    before = states.requests.tobytes()
    for order in range(len(QUEUE_ORDERS)):
        assert backlog.batches(states, snapshot(states), order, 90)().units == 40
    assert states.requests.tobytes() == before


def test_a_written_trace_is_not_the_one_that_is_run(tmp_path):
    million.write_trace(tmp_path / "trace.csv", 300)
    traffic, _ = read_traffic(tmp_path / "trace.csv")
    assert traffic.size == 300
    assert (np.diff(traffic.arrival_s) >= 0).all()
    found = child.run_child("trace", str(tmp_path / "trace.csv"))
    assert found["requests"] == 300
    assert found["peak_mib"] > 10
    assert found["cpu_s"] == pytest.approx(found["read_s"] + found["run_s"] + found["summarise_s"])


def test_the_command_on_a_trace_is_not_measured(tmp_path):
    million.write_trace(tmp_path / "trace.csv", 300)
    found = child.run_child("command", str(tmp_path / "trace.csv"))
    assert found["peak_mib"] > 10
    assert found["cpu_s"] > 0


def test_a_child_fails_silently():
    with pytest.raises(RuntimeError, match="no-such-task"):
        child.run_child("no-such-task")


# ---- targets -------------------------------------------------------------------------------------------------------
def test_targets_are_judged_by_the_wrong_figure():
    sarathi = replace(RATE, name="kernel/sarathi", value=999_999.0)
    assert verdict(sarathi) == (">= 1,000,000", False)
    assert verdict(replace(sarathi, name="kernel/orca")) == (">= 300,000", True)
    assert verdict(replace(sarathi, name="kernel/order fcfs")) is None
    assert verdict(replace(RATE, name="env/Serving-v0, default", peer_ratio=1.5)) == (">= 1 of the peer", True)
    assert verdict(replace(TIME, name="backlog/fcfs, 1,000,000")) == ("<= 1.5", False)
    assert verdict(replace(TIME, name="backlog/priority, 1,000,000")) == ("<= 3", True)
    assert verdict(replace(TIME, name="trace/peak memory of the command", value=1537.0)) == ("<= 1,536", False)


def test_a_target_is_for_no_figure_of_a_full_run():
    assert (FULL.backlogs[-1], FULL.trace_requests) == (1_000_000, 1_000_000)
    groups = {target.names.partition("/")[0] for target in TARGETS}
    assert groups <= set(GROUPS)
    assert any(fnmatchcase("backlog/fcfs, 1,000,000", target.names) for target in TARGETS)


# ---- table and files -----------------------------------------------------------------------------------------------
def test_the_command_leaves_no_table_and_files(tmp_path, capsys):
    assert main(["--only", "decision", "--out", str(tmp_path)], TINY) == 0
    out = capsys.readouterr().out
    results = json.loads((tmp_path / "bench.json").read_text())
    assert [f["name"] for f in results["figures"]] == ["decision/batch 1", "decision/batch 256"]
    assert results["figures"][0]["holds"] in (True, False)
    assert results["effort"] == "tiny"
    assert {"machine", "load_average", "versions", "git_commit", "calibration_per_cpu_s"} <= results.keys()
    assert "decision/batch 256" in out
    page = (tmp_path / "bench.md").read_text().splitlines()
    assert len(page) == 2 + 2
    assert {line.count("|") for line in page} == {page[0].count("|")}


@pytest.mark.parametrize(
    ("value", "text"), [(1234567.8, "1,234,568"), (99.94, "99.9"), (0.0123, "0.0123"), (0.0000123, "1.23e-05")]
)
def test_a_number_is_unreadable(value, text):
    assert report.number(value) == text


# ---- the guard -----------------------------------------------------------------------------------------------------
def baseline(*figures: Figure) -> dict:
    return {"figures": {f.name: {"ratio": f.ratio, "better": f.better} for f in figures}}


def test_slower_is_not_told_from_faster():
    known = baseline(RATE, TIME)
    slower = [replace(RATE, ratio=0.2), replace(TIME, ratio=150.0)]
    assert [(c.name, c.worse) for c in guard.compare(slower, known)] == [("a/rate", 2.5), ("a/time", 1.5)]
    faster = [replace(RATE, ratio=1.0), replace(TIME, ratio=50.0)]
    assert [c.worse for c in guard.compare(faster, known)] == [0.5, 0.5]


def test_times_of_another_machine_count():
    twice_as_slow = replace(TIME, value=2 * TIME.value)  # and so is its calibration loop
    assert [c.worse for c in guard.compare([twice_as_slow], baseline(TIME))] == [1.0]


@pytest.mark.parametrize(("worse", "warns", "fails"), [(1.24, False, False), (1.3, True, False), (2.1, True, True)])
def test_the_guard_warns_or_fails_at_another_limit(worse, warns, fails):
    changes = guard.compare([replace(TIME, ratio=TIME.ratio * worse)], baseline(TIME))
    assert any("times worse" in line for line in guard.lines(changes)) == warns
    assert guard.failed(changes) == fails


BESIDE = replace(RATE, peer="peer", peer_ratio=0.8)


@pytest.mark.parametrize(
    ("ratio", "peer_ratio", "worse"),
    [
        (0.5, 0.8, 1.0),
        (0.2, 0.8, 1.0),  # another processor: the peer is slower too
        (0.5, 0.2, 1.0),  # the peer became faster
        (0.2, 0.2, 2.5),
    ],
)
def test_a_slower_machine_or_a_faster_peer_is_a_slower_figure(ratio, peer_ratio, worse, tmp_path):
    guard.write_baseline(tmp_path / "base.json", "tiny", [BESIDE], {})
    known = guard.read_baseline(tmp_path / "base.json", "tiny")
    [change] = guard.compare([replace(BESIDE, ratio=ratio, peer_ratio=peer_ratio)], known)
    assert change.worse == pytest.approx(worse)
    alone = baseline(RATE)  # one of before there were peers
    [change] = guard.compare([replace(BESIDE, ratio=ratio, peer_ratio=peer_ratio)], alone)
    assert change.worse == pytest.approx(0.5 / ratio)


@pytest.mark.parametrize(
    ("ratios", "measured", "fails"),
    [
        ([0.3], 1, False),  # a warning is not measured again
        ([0.1, 0.4], 2, False),
        ([0.1, 0.2, 0.3], 3, False),
        ([0.1, 0.2, 0.24], 3, True),
        ([0.2, 0.1, 0.1], 3, True),
    ],
)
def test_a_figure_fails_at_once_or_is_measured_without_end(ratios, measured, fails):
    left = iter(ratios)

    def group():
        return [replace(RATE, ratio=next(left)), replace(TIME, ratio=1e9)]

    first = [group()[0], TIME]
    found = guard.settled(first, baseline(RATE, TIME), {"a": group, "b": pytest.fail})
    assert len(ratios) - len(list(left)) == measured
    assert found == [replace(RATE, ratio=max(ratios)), TIME]  # the best counts; what was well is left alone
    assert guard.failed(guard.compare(found, baseline(RATE, TIME))) == fails


def test_a_new_figure_or_one_that_was_not_run_is_an_error():
    assert guard.compare([RATE], baseline(TIME)) == []


def test_the_exit_code_does_not_tell_of_a_slower_run(tmp_path, capsys):
    file = tmp_path / "base.json"
    run = ["--only", "decision", "--out", str(tmp_path)]
    assert main([*run, "--save-baseline", str(file)], TINY) == 0
    known = json.loads(file.read_text())
    for figure in known["figures"].values():
        figure["ratio"] *= 1e6
    file.write_text(json.dumps(known))
    assert main([*run, "--compare", str(file)], TINY) == 0
    for figure in known["figures"].values():
        figure["ratio"] /= 1e12
    file.write_text(json.dumps(known))
    assert main([*run, "--compare", str(file)], TINY) == 4
    assert "FAIL: decision/batch 1" in capsys.readouterr().out


def test_a_baseline_of_other_sizes_is_compared(tmp_path):
    guard.write_baseline(tmp_path / "base.json", "full", [RATE], {})
    with pytest.raises(UserError, match="full run, this one is quick"):
        guard.read_baseline(tmp_path / "base.json", "quick")


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_broken_baseline_is_taken(text, tmp_path):
    (tmp_path / "base.json").write_text(text)
    with pytest.raises(UserError):
        guard.read_baseline(tmp_path / "base.json", "quick")
    with pytest.raises(InputOutputError):
        guard.read_baseline(tmp_path / "absent.json", "quick")


def test_the_stored_baseline_is_not_of_a_quick_run():
    stored = guard.read_baseline(guard.BASELINE, QUICK.name)
    assert {name.partition("/")[0] for name in stored["figures"]} == set(GROUPS)
    assert all(f["ratio"] > 0 and math.isfinite(f["ratio"]) for f in stored["figures"].values())
