"""Windows of traces: seeded, of the traffic that is there, at the cost of a window, of parts that do not overlap."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise

import numpy as np
import pytest

from llm_env.config import Scenario, with_changes
from llm_env.errors import UserError
from llm_env.workload import (
    Traffic,
    Windows,
    assign_classes,
    at_load,
    blank_requests,
    capacity_tokens_per_s,
    link_turns,
    part_of,
    read_trace,
    streams,
    trace_load,
    write_traffic,
)
from llm_env.workload.generate import declare_outputs, predict_outputs, requests_of
from llm_env.workload.seeds import draw_start

CLASSES = ({"name": "a", "share": 0.7}, {"name": "b", "share": 0.3, "ttft_ms": 500.0})
SCENARIO = with_changes(
    Scenario(), {"episode": {"arrivals_s": 30.0, "warmup_s": 2.0, "horizon_s": 60.0}, "slo.classes": CLASSES}
)


def some_traffic(n: int = 3000, first_s: float = 0.3, sessions: bool = True) -> Traffic:
    rng = np.random.default_rng(3)
    arrivals = first_s + np.cumsum(rng.exponential(0.4, n).round(1))  # some arrive together
    session = rng.integers(-1, 40, n).astype(np.int32) if sessions else None
    prompt, output = rng.integers(1, 900, (2, n)).astype(np.int32)
    return Traffic(arrivals, prompt, output, rng.integers(-1, 9, n).astype(np.int32), session)


def naive_window(traffic: Traffic, scenario: Scenario, seed: int, load: float | None) -> np.ndarray:
    """The definition at the cost of the whole trace: all of it scaled, and what lies in the window picked out."""
    whole = requests_of(traffic)
    declare_outputs(whole, scenario.workload, int(whole["output_tokens"].max()))
    if load is not None:
        whole = at_load(whole, scenario, load)
    arrivals, length_s = whole["arrival_s"], scenario.episode.arrivals_s
    start_s = draw_start(seed, arrivals[0], max(arrivals[0], arrivals[-1] - length_s))
    window = whole[(arrivals >= start_s) & (arrivals < start_s + length_s)].copy()
    window["arrival_s"] -= start_s
    window["row"] = np.arange(window.size)
    link_turns(window)
    rngs = streams(seed)
    assign_classes(window, scenario.slo, rngs.classes)
    predict_outputs(window, scenario.workload.prediction_sigma, rngs.prediction)
    return window


@pytest.mark.parametrize("load", [None, 0.2, 0.9, 3.0, 10.0])
@pytest.mark.parametrize("sessions", [False, True])
def test_a_window_is_not_what_a_scaled_copy_of_the_trace_has_there(load, sessions):
    traffic = some_traffic(sessions=sessions)
    windows = Windows(traffic, SCENARIO, scalable=load is not None)
    for seed in range(25):
        window = windows.cut(seed, load)
        assert window.tobytes() == naive_window(traffic, SCENARIO, seed, load).tobytes()
        assert window.tobytes() == windows.cut(seed, load).tobytes()
    assert windows.cut(1, load).tobytes() != windows.cut(2, load).tobytes()


def test_windows_at_a_load_do_not_have_it_on_average():
    """Of a trace of equal gaps and lengths every window has the load, but for one request more or less at an edge."""
    n = 5000
    equal = Traffic(np.arange(n) * 0.37, np.full(n, 300, np.int32), np.full(n, 20, np.int32))
    windows = Windows(equal, SCENARIO, scalable=True)
    for load in (0.3, 1.0):
        expected = SCENARIO.episode.arrivals_s / (0.37 * trace_load(equal, SCENARIO) / load)
        for seed in range(20):
            assert abs(windows.cut(seed, load).size - expected) <= 1


def test_a_window_costs_what_the_trace_costs():
    n = 2_000_000
    long = Traffic(np.arange(n) * 0.25, np.full(n, 300, np.int32), np.full(n, 20, np.int32))  # 32 MB
    windows = Windows(long, SCENARIO, scalable=True)
    windows.cut(0, 0.5)
    tracemalloc.start()
    try:
        size = windows.cut(1, 0.5).nbytes
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * size + 100_000 < long.arrival_s.nbytes / 4


def test_a_window_in_a_silence_is_moved_to_requests():
    arrivals = np.concatenate([np.linspace(0.0, 20.0, 41), np.linspace(1000.0, 1020.0, 41)])
    sessions = np.zeros(82, np.int32)
    traffic = Traffic(arrivals, np.arange(1, 83, dtype=np.int32), np.full(82, 5, np.int32), sessions, sessions)
    windows = Windows(traffic, SCENARIO, scalable=True)
    silent = 0
    for seed in range(40):
        start_s = draw_start(seed, 0.0, 1020.0 - 30.0)
        assert (windows.cut(seed).size == 0) == (20.0 < start_s <= 970.0)
        silent += 20.0 < start_s <= 970.0
    assert 30 < silent < 40


@pytest.mark.parametrize("asked", [0.4, 1.5])
def test_windows_of_bursts_between_long_silences_have_another_load_than_was_asked(asked):
    """Bursts of 1 to 59 requests in 5 s, silences of 200 s on average; windows of 30 s, so most hold nothing.

    The mean over n seeds has a standard error of the sample's deviation / sqrt(n). What is at the edges of the trace is
    in fewer windows than the rest: 30 s of more than 100,000 s, far below that.
    """
    rng = np.random.default_rng(8)
    sizes = rng.integers(1, 60, 500)
    begins = np.cumsum(5.0 + rng.exponential(200.0, sizes.size))
    arrivals = np.concatenate([b + np.sort(rng.random(k)) * 5.0 for b, k in zip(begins, sizes, strict=True)])
    prompt, output = rng.integers(1, 900, (2, arrivals.size)).astype(np.int32)
    windows = Windows(Traffic(arrivals, prompt, output), SCENARIO, scalable=True)
    per_window = SCENARIO.episode.arrivals_s * capacity_tokens_per_s(SCENARIO)
    loads = []
    for seed in range(3000):
        window = windows.cut(seed, asked)
        loads.append(float((window["prompt_tokens"] + window["output_tokens"] - 1).sum()) / per_window)
    assert min(loads) == 0.0
    assert abs(np.mean(loads) - asked) < 4 * np.std(loads) / np.sqrt(len(loads)) < asked / 4


def test_the_span_at_a_load_is_not_that_of_the_scaled_trace():
    traffic = some_traffic()
    windows = Windows(traffic, SCENARIO, scalable=True)
    own = trace_load(traffic, SCENARIO)
    assert windows.span_s() == traffic.span_s == pytest.approx(windows.span_s(own))
    assert windows.span_s(2.0) == pytest.approx(traffic.span_s * own / 2.0)
    for load in (
        own,
        2.0,
    ):  # windows longer than that hold all requests, whatever the seed
        for factor, fixed in ((1.001, True), (0.9, False)):
            length = with_changes(SCENARIO, {"episode": _lasting(windows.span_s(load) * factor)})
            cut = Windows(traffic, length, scalable=True).cut
            sizes = {cut(seed, load).size for seed in range(5)}
            assert (sizes == {traffic.size}) == fixed


def _lasting(seconds: float) -> dict[str, float]:
    return {"arrivals_s": seconds, "warmup_s": 0.0, "horizon_s": seconds}


def test_a_short_trace_is_cut():
    traffic = some_traffic(20)
    for seed in range(5):
        assert Windows(traffic, SCENARIO).cut(seed).size == 20
    one = traffic.take(slice(0, 1))
    window = Windows(one, SCENARIO).cut(0)
    assert (window.size, window["arrival_s"][0]) == (1, 0.0)
    with pytest.raises(UserError, match="one instant"):
        Windows(one, SCENARIO, scalable=True)


# ---- parts ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("share", [0.1, 0.5, 0.7, 0.9])
def test_windows_of_two_parts_have_a_request_in_common(share):
    traffic = some_traffic()._replace(prompt_tokens=np.arange(1, 3001, dtype=np.int32))  # tells requests apart
    found = []
    for part in ((0.0, share), (share, 1.0)):
        mine = Windows(traffic.take(part_of(traffic.arrival_s, part)), SCENARIO)
        found.append({int(p) for seed in range(60) for p in mine.cut(seed)["prompt_tokens"]})
    assert not found[0] & found[1]
    assert min(map(len, found)) > 100


def test_parts_that_follow_each_other_lose_or_repeat_requests():
    for traffic in (some_traffic(), some_traffic(50, 1e6), some_traffic()._replace(arrival_s=np.arange(3000) * 0.1)):
        cuts = (0.0, 0.1, 0.3, 0.7, 1.0)
        parts = [part_of(traffic.arrival_s, part) for part in pairwise(cuts)]
        assert [(a.stop, b.start) for a, b in pairwise(parts) if a.stop != b.start] == []
        assert (parts[0].start, parts[-1].stop) == (0, traffic.size)


def test_a_part_of_a_trace_run_whole_links_turns_that_are_not_there(tmp_path):
    path = tmp_path / "day.csv"
    write_traffic(path, some_traffic(400))
    assert read_trace(path, part=(0, 1)).tobytes() == read_trace(path).tobytes()
    late = read_trace(path, part=(0.5, 1.0))
    later = np.flatnonzero(late["previous"] >= 0)
    assert later.size > 50
    assert (late["session"][late["previous"][later]] == late["session"][later]).all()
    assert (late["previous"] < np.arange(late.size)).all()
    assert late["row"].tolist() == list(range(400 - late.size, 400))


@pytest.mark.parametrize(
    "part", [(0.7, 0.7), (0.7, 0.2), (-0.1, 1), (0, 1.1), (float("nan"), 1), 0.5, (0, 0.5, 1), "ab"]
)
def test_a_wrong_part_is_not_named(part):
    with pytest.raises(UserError, match=r"trace_part: expected \(from, to\)"):
        part_of(np.arange(5.0), part)


def test_an_empty_part_is_used():
    with pytest.raises(UserError, match=r"no request arrives between the shares 0.2 and 0.4"):
        part_of(np.array([0.0, 1.0, 9.0, 10.0]), (0.2, 0.4))


def test_a_blank_window_has_other_fields_than_a_drawn_workload():
    window = Windows(some_traffic(), SCENARIO).cut(0)
    blank = blank_requests(window.size)
    for name in ("status", "worker", "first_token_s", "finish_s", "max_tbt_s", "emitted_tokens", "row", "home"):
        np.testing.assert_array_equal(window[name], blank[name])
