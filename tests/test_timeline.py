"""A timeline is a valid trace of what the recording holds, fits into its limit, and says what it leaves out."""

from __future__ import annotations

import gzip
import json
import math
from collections import Counter, defaultdict
from functools import cache

import numpy as np
import pytest
from golden_runs import SYSTEMS, policy_of, requests_of, scenario_of
from toy import toy_requests, toy_scenario

from llm_env.cli import main
from llm_env.dtypes import FINISHED, LATE_TOLERANCE_S
from llm_env.errors import UserError
from llm_env.recorder import Recording, record_run
from llm_env.timeline import timeline_text, write_timeline

CASES = [
    ("one worker", "sarathi"),
    ("one worker", "vllm-v0"),
    ("evictions", "vllm-v1"),
    ("evictions", "distserve"),
    ("three workers, round-robin", "moore-hodgson"),
    ("disaggregated", "distserve"),
    ("parallel prefill, routed, tight", "vllm-v1"),
    ("prefix cache, sticky", "sarathi"),
    ("rule max, the horizon comes first", "sarathi"),
    ("closed loop", "sarathi"),
]
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}: {case[1]}")
NEEDED = {  # fields of each phase, beside those that every event has
    "X": {"dur", "tid", "cat", "args"},
    "b": {"id", "cat"},
    "e": {"id", "cat"},
    "C": {"args"},
    "i": {"s", "tid"},
    "M": {"args"},
}


def record(case, until_s=math.inf) -> Recording:
    system, policy = case
    scenario = scenario_of(SYSTEMS[system])
    return record_run(scenario, policy_of(policy), requests_of(SYSTEMS[system], scenario), 3, until_s)


recorded = cache(record)


def refuse_constant(text):
    raise AssertionError(f"{text} is no JSON")


def read(chunks):
    return json.loads(b"".join(chunks), parse_constant=refuse_constant)


def shown_events(recording, **arguments):
    return read(timeline_text(recording, {}, **arguments)[0])["traceEvents"]


def check_events(events):
    """Raises AssertionError: this is not how the Trace Event Format wants it, or tracks make no sense."""
    for event in events:
        missing = ({"ph", "ts", "pid", "name"} | NEEDED[event["ph"]]) - event.keys()
        assert not missing, (missing, event)
        assert type(event["ts"]) is int
        assert event["ts"] >= 0
        assert type(event.get("dur", 0)) is int
        assert event.get("dur", 0) >= 0
        assert max(event["ts"], event.get("dur", 0)) < 1 << 53  # whole in a double, which is what viewers read
        assert event["pid"] > 0  # thread 0 of process 0 is the idle task to a viewer
        assert isinstance(event["name"], str)
        assert isinstance(event.get("id", ""), str)
        if event["ph"] == "C":
            assert all(type(value) in (int, float) for value in event["args"].values())
        if event["ph"] == "i":
            assert event["s"] in ("t", "p", "g")
    ts = [event["ts"] for event in events]
    assert ts == sorted(ts), "events are not in order of time"
    assert all(e["dur"] > 0 and e["tid"] > 0 for e in events if e["ph"] == "X"), "a slice that nobody sees"
    series, places = defaultdict(set), defaultdict(set)
    for event in events:
        if event["ph"] == "C":
            series[event["pid"], event["name"]].add(tuple(event["args"]))
        elif event["ph"] in "be":
            places[event["cat"], event["id"]].add((event["pid"], event.get("scope")))
    assert all(len(names) == 1 for names in series.values()), "a counter changes its series"
    assert all(len(where) == 1 for where in places.values()), "a span's id means two things"
    open_slices, open_spans = defaultdict(list), defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            stack = open_slices[event["pid"], event["tid"]]
            while stack and stack[-1] <= event["ts"]:
                stack.pop()
            end = event["ts"] + event["dur"]
            assert not stack or end <= stack[-1], f"slices of a thread overlap: {event}"
            stack.append(end)
        elif event["ph"] in "be":
            stack = open_spans[event["cat"], event["id"]]
            if event["ph"] == "b":
                stack.append(event["name"])
            else:
                assert stack, f"a span ends that did not begin: {event}"
                assert stack.pop() == event["name"], event
    assert not any(open_spans.values()), "a span does not end"
    named = {(e["pid"], e["tid"]) for e in events if e["name"] == "thread_name"}
    assert {(e["pid"], e["tid"]) for e in events if e["ph"] in "Xi"} <= named, "a track has no name"


def phases_of(events, row):
    """(name, start, end) in µs of the phases of a request, and of its whole span at last."""
    stack, found = [], []
    for event in events:
        if event.get("id") == str(row):
            if event["ph"] == "b":
                stack.append(event)
            else:
                begun = stack.pop()
                found.append((begun["name"], begun["ts"], event["ts"]))
    return found


# ---- events --------------------------------------------------------------------------------------------------------
@every_case
def test_a_timeline_is_no_valid_trace(case):
    recording = recorded(case)
    check_events(shown_events(recording))


def test_a_small_timeline_is_not_as_worked_out_by_hand():
    scenario = toy_scenario(blocks=16, tbt_ms=10.0, ttft_ms=30.0)  # S(b) = 10 ms + b x 1 ms, blocks of 4 tokens
    requests = toy_requests([(0.0, 12, 2), (0.001, 4, 1)], scenario)
    events = shown_events(record_run(scenario, policy_of("sarathi token_budget=8"), requests, 0))
    slices = [(e["name"], e["ts"], e["dur"]) for e in events if e["ph"] == "X"]
    assert slices == [
        ("prefill batch", 0, 18_000),
        ("prefill", 0, 18_000),
        ("prefill batch", 18_000, 18_000),
        ("prefill", 18_000, 18_000),
        ("decode batch", 36_000, 11_000),
        ("decode", 36_000, 11_000),
    ]
    assert phases_of(events, 0) == [("prefill", 0, 36_000), ("decode", 36_000, 47_000), ("request 0", 0, 47_000)]
    assert phases_of(events, 1) == [
        ("queued", 1_000, 18_000),
        ("prefill", 18_000, 36_000),
        ("request 1", 1_000, 36_000),
    ]
    misses = [(e["name"], e["ts"], e["args"]["request"]) for e in events if e["ph"] == "i"]
    assert misses == [("TTFT missed", 30_000, 0), ("TTFT missed", 31_000, 1), ("TBT missed", 46_000, 0)]
    counters = [(e["name"], e["ts"], *e["args"].values()) for e in events if e["ph"] == "C"]
    assert [c for c in counters if c[0] == "waiting"] == [("waiting", 0, 1), ("waiting", 36_000, 0)]
    assert [c for c in counters if c[0] == "running"] == [("running", 0, 0), ("running", 18_000, 1)]
    assert [c for c in counters if c[0] == "KV used"] == [("KV used", 0, 0.0), ("KV used", 18_000, 18.75)]


def test_a_mixed_batch_is_not_shared_by_tokens():
    recording = recorded(("one worker", "sarathi"))
    events = [e for e in shown_events(recording) if e["ph"] == "X"]
    mixed = [k for k, e in enumerate(events) if e["name"] == "mixed batch"]
    assert mixed
    for k in mixed:
        whole, prefill, decode = events[k : k + 3]
        tokens = whole["args"]["prefill_tokens"], whole["args"]["decode_tokens"]
        assert (prefill["args"]["tokens"], decode["args"]["tokens"]) == tokens
        assert prefill["ts"] == whole["ts"]
        assert decode["ts"] == prefill["ts"] + prefill["dur"]
        assert prefill["dur"] + decode["dur"] == whole["dur"]
        assert prefill["dur"] == pytest.approx(whole["dur"] * tokens[0] / sum(tokens), abs=1)
        assert sum(prefill["args"]["requests"].values()) == tokens[0]
        assert len(decode["args"]["requests"].split(",")) == tokens[1]


@every_case
def test_phases_of_a_request_leave_gaps_or_do_not_end_with_it(case):
    recording = recorded(case)
    events = shown_events(recording)
    for r in recording.requests[recording.requests["status"] == FINISHED][:60]:
        *phases, (name, start, end) = phases_of(events, r["row"])
        assert name == f"request {r['row']}"
        assert (start, end) == (round(r["arrival_s"] * 1e6), round(r["finish_s"] * 1e6))
        assert [p[1] for p in phases] + [end] == [start] + [p[2] for p in phases]
        first_token = next(p[2] for p in phases if p[0] == "prefill")
        assert first_token == round(r["first_token_s"] * 1e6)


def test_an_evicted_request_does_not_queue_again():
    recording = recorded(("evictions", "vllm-v1"))
    events = shown_events(recording)
    evicted = recording.requests[(recording.requests["evictions"] > 0) & (recording.requests["status"] == FINISHED)]
    names = [[name for name, *_ in phases_of(events, row)[:-1]] for row in evicted["row"]]
    again = [each for each in names if each.count("prefill") > 1]
    assert again
    for each in again:
        assert "queued,prefill" in ",".join(each[2:]), each
        assert each[-1] in ("prefill", "decode"), each
    never = recording.requests["row"][recording.requests["evictions"] == 0]
    assert all([name for name, *_ in phases_of(events, row)].count("prefill") <= 1 for row in never)


@every_case
def test_misses_are_not_those_that_the_kernel_counts(case):
    recording = recorded(case)
    events = shown_events(recording)
    r = recording.requests
    found = Counter((e["name"], e["args"]["request"]) for e in events if e["ph"] == "i")
    done = r["status"] == FINISHED
    late = r["first_token_s"] > r["arrival_s"] + r["ttft_target_s"] + LATE_TOLERANCE_S
    assert [found["TTFT missed", row] for row in r["row"][done]] == late[done].astype(int).tolist()
    gaps = np.array([found["TBT missed", row] for row in r["row"]])
    assert gaps[done].tolist() == r["late_gaps"][done].tolist()
    for e in events:
        if e["name"] == "TTFT missed":
            (mine,) = r[r["row"] == e["args"]["request"]]
            assert e["ts"] == round((mine["arrival_s"] + mine["ttft_target_s"]) * 1e6)


@every_case
def test_counters_do_not_follow_the_samples(case):
    recording = recorded(case)
    events, samples = shown_events(recording), recording.samples
    ts = np.round(samples["time_s"] * 1e6).astype(int)
    for name, wanted in (("waiting", samples["num_waiting"]), ("running", samples["num_running"])):
        steps = [(e["ts"], e["args"]["requests"]) for e in events if e["ph"] == "C" and e["name"] == name]
        times, values = np.array(steps).T
        assert (np.diff(times) > 0).all()
        last = np.append(np.diff(ts) > 0, True)
        assert (values[np.searchsorted(times, ts[last], side="right") - 1] == wanted[last]).all()


# ---- limits --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("max_bytes", [13_000, 30_000, 100_000, 200_000, 300_000, 10_000_000])
@pytest.mark.parametrize("case", [("a long queue", "order shortest-prefill"), ("three workers, shared", "sarathi")])
def test_a_timeline_is_larger_than_allowed_or_does_not_say_what_is_missing(case, max_bytes):
    recording = recorded(case)
    chunks, shown = timeline_text(recording, {"policy": case[1]}, max_bytes)
    text = b"".join(chunks)
    assert shown.num_bytes == len(text) <= max_bytes
    trace = read(chunks)
    check_events(trace["traceEvents"])
    about = trace["otherData"]["shown"]
    assert trace["otherData"]["run"] == {"policy": case[1]}
    rows = {int(e["id"]) for e in trace["traceEvents"] if e["ph"] == "b"}
    assert len(rows) == about["requests"] == shown.num_requests
    arrived = set(recording.requests["row"][recording.requests["arrival_s"] <= about["until_s"]].tolist())
    assert about["requests_by_then"] == len(arrived)
    assert rows == {row for row in arrived if shown.every and row % shown.every == 0}
    slices = sum(e["name"].endswith("batch") for e in trace["traceEvents"])
    assert slices == about["batches"] == (recording.batches["end_s"] <= about["until_s"]).sum()
    assert max(e["ts"] for e in trace["traceEvents"]) <= round(about["until_s"] * 1e6)
    (name,) = [e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "process_name" and e["pid"] == 2]
    assert (name == "requests") == (shown.every == 1)
    assert name == "requests" or str(shown.every) in name
    whole = max_bytes >= 10_000_000
    assert whole == (about["until_s"] == recording.end_s and shown.every == 1)


def test_requests_are_left_out_although_there_is_room_or_time_is_cut_first():
    recording = recorded(("a long queue", "order shortest-prefill"))
    whole = timeline_text(recording, {})[1]
    assert (whole.every, whole.until_s) == (1, recording.end_s)
    exact = timeline_text(recording, {}, whole.num_bytes + 1000)[1]
    assert exact == whole
    fewer = timeline_text(recording, {}, whole.num_bytes * 3 // 4)[1]
    assert fewer.every > 1
    assert fewer.until_s == recording.end_s


@pytest.mark.parametrize("max_bytes", [-1, 0, 10_000])
def test_a_limit_that_leaves_nothing_is_accepted(max_bytes):
    recording = recorded(CASES[0], 1.0)
    with pytest.raises(UserError, match=f"max_bytes: expected at least .*, got {max_bytes}"):
        timeline_text(recording, {}, max_bytes)


def test_an_empty_recording_is_no_trace():
    scenario = toy_scenario()
    requests = toy_requests([(1.0, 4, 1)], scenario)[:0]
    events = shown_events(record_run(scenario, policy_of("sarathi"), requests, 0))
    check_events(events)
    assert {e["ph"] for e in events} == {"M"}


# ---- files and the command -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
def test_the_same_run_gives_other_bytes(tmp_path, name):
    for folder in "ab":
        write_timeline(tmp_path / folder / name, record(CASES[2]), {"seed": 3})
    a, b = ((tmp_path / folder / name).read_bytes() for folder in "ab")
    assert a == b
    text = gzip.decompress(a) if name.endswith(".gz") else a
    check_events(json.loads(text)["traceEvents"])
    with pytest.raises(UserError, match="exists already"):
        write_timeline(tmp_path / "a" / name, record(CASES[2]), {"seed": 3})


def test_simulate_writes_no_timeline_or_changes_its_run(tmp_path, capsys):
    path = tmp_path / "new" / "run.json.gz"
    command = ["simulate", "--scenario", "chat", "--change", "episode.arrivals_s=20", "episode.warmup_s=0"]
    assert main([*command, "--json"]) == 0
    alone = capsys.readouterr().out
    for _ in range(2):  # a file of that name is replaced
        assert main([*command, "--json", "--timeline", str(path)]) == 0
        assert capsys.readouterr().out == alone
    trace = json.loads(gzip.decompress(path.read_bytes()))
    check_events(trace["traceEvents"])
    summary = json.loads(alone)
    assert trace["otherData"]["run"] == {key: value for key, value in summary.items() if key != "summary"}
    assert main([*command, "--timeline", str(path), "--timeline-until-s", "5"]) == 0
    assert "timeline: " in capsys.readouterr().out
    shorter = json.loads(gzip.decompress(path.read_bytes()))
    assert 5 <= shorter["otherData"]["shown"]["until_s"] < 6
    assert [p.name for p in path.parent.iterdir()] == ["run.json.gz"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--timeline", "run.txt"], "timeline: expected a name that ends with .json or .json.gz, got 'run.txt'"),
        (["--timeline-until-s", "5"], "--timeline-until-s: only with --timeline FILE"),
        (["--timeline", "run.json", "--timeline-until-s", "0"], "--timeline-until-s: expected a number above 0"),
    ],
)
def test_wrong_options_of_a_timeline_are_badly_explained(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["simulate", "--scenario", "chat", *arguments]) == 2
    printed = capsys.readouterr()
    assert words in printed.err
    assert printed.out == ""
    assert list(tmp_path.iterdir()) == []
