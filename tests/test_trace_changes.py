"""Options of reading: what they keep, drop and move, and that they say so. Statistics with fixed seeds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from adversarial_traces import own

from llm_env.errors import UserError
from llm_env.workload import ReadOptions, Traffic, read_trace, read_traffic, write_traffic
from llm_env.workload.statistics import dispersion, ks_distance, window_counts
from llm_env.workload.trace_report import detect_tick

ROWS = own("0,10,5", "1,20,50", "2,300,5", "3,30,30")


@pytest.fixture
def save(tmp_path):
    def save(content: str | Traffic, name: str = "trace.csv"):
        path = tmp_path / name
        if isinstance(content, str):
            path.write_text(content)
        else:
            write_traffic(path, content)
        return path

    return save


def bursts(num_windows: int, bursts_per_window: float, size: int) -> Traffic:
    """Poisson bursts of `size` requests at one moment each, every request of a burst with another client."""
    rng = np.random.default_rng(1)
    num_bursts = rng.poisson(num_windows * bursts_per_window)
    arrival_s = np.repeat(np.sort(rng.uniform(0, num_windows, num_bursts)), size)
    ones = np.ones(arrival_s.size, np.int32)
    return Traffic(arrival_s, ones, ones, rng.integers(0, 2000, arrival_s.size).astype(np.int32))


# ---- lengths -------------------------------------------------------------------------------------------------------
LIMITS = {"max_prompt_tokens": 100, "max_output_tokens": 40, "max_total_tokens": 50}


def test_long_requests_are_clipped_to_other_lengths(save):
    """300 + 5 tokens: the prompt is cut to 100, then to the 45 that 50 leave it."""
    traffic, report = read_traffic(save(ROWS), ReadOptions(**LIMITS, over_length="clip"))
    assert traffic.prompt_tokens.tolist() == [10, 10, 45, 20]
    assert traffic.output_tokens.tolist() == [5, 40, 5, 30]
    assert report.clipped == 3
    assert report.dropped == {}


def test_an_output_is_clipped_to_more_than_the_sum_leaves_it(save):
    traffic, _ = read_traffic(save(own("0,9,9")), ReadOptions(max_total_tokens=4, over_length="clip"))
    assert (traffic.prompt_tokens.tolist(), traffic.output_tokens.tolist()) == ([1], [3])


def test_long_requests_are_not_dropped_or_lose_their_place(save):
    path, options = save(ROWS), ReadOptions(**LIMITS, over_length="drop")
    traffic, report = read_traffic(path, options)
    assert traffic.arrival_s.tolist() == [0.0]
    assert report.dropped == {"longer than allowed": 3}
    assert read_trace(path, options=ReadOptions(max_output_tokens=40, over_length="drop"))["row"].tolist() == [0, 2, 3]


def test_long_requests_have_no_line(save):
    path = save(ROWS.replace("0,10,5", "0,10,0"))  # a row that is dropped still counts as a line
    with pytest.raises(UserError) as caught:
        read_traffic(path, ReadOptions(**LIMITS))
    assert str(caught.value).replace(str(path), "T").split("\n") == [
        "T:3:3: output_tokens: expected at most 40 (max_output_tokens), got 50",
        "T:3:2: prompt_tokens: expected at most 50 (max_total_tokens) with the output, got 20 + 50",
        "T:4:2: prompt_tokens: expected at most 100 (max_prompt_tokens), got 300",
        "T:4:2: prompt_tokens: expected at most 50 (max_total_tokens) with the output, got 300 + 5",
        "T:5:2: prompt_tokens: expected at most 50 (max_total_tokens) with the output, got 30 + 30",
        "3 requests are too long: over_length drops or clips them",
    ]


def test_limits_that_nothing_exceeds_change_something(save):
    plain, _ = read_traffic(save(ROWS))
    limited, report = read_traffic(save(ROWS), ReadOptions(max_total_tokens=305))
    assert [c.tolist() for c in plain[:3]] == [c.tolist() for c in limited[:3]]
    assert report.dropped == {}


# ---- times ---------------------------------------------------------------------------------------------------------
def test_a_window_begins_or_ends_elsewhere(save):
    traffic, report = read_traffic(save(ROWS), ReadOptions(start_s=1.0, end_s=3.0, time_scale=10.0))
    assert traffic.arrival_s.tolist() == [0.0, 10.0]
    assert traffic.prompt_tokens.tolist() == [20, 300]
    assert report.dropped == {"outside of the window": 2}


def test_an_empty_window_is_no_traffic(save):
    with pytest.raises(UserError, match=r"no request is left of 4 \(4 dropped: outside of the window\)"):
        read_traffic(save(ROWS), ReadOptions(start_s=9.0))


def test_ticks_are_not_spread_uniformly_or_mix(save):
    """Under the hypothesis the distance of Kolmogorov and Smirnov exceeds 1.95 / sqrt(n) with probability 0.001."""
    n = 20_000
    times = 3.0 * np.sort(np.random.default_rng(0).integers(0, 2000, n))
    rows = Traffic(times, np.arange(1, n + 1, dtype=np.int32), np.ones(n, np.int32))
    traffic, report = read_traffic(save(rows), ReadOptions(tick_s=3.0))
    assert traffic.prompt_tokens.tolist() == rows.prompt_tokens.tolist()
    within = traffic.arrival_s - times
    assert within.min() >= 0.0
    assert within.max() < 3.0
    assert ks_distance(within / 3.0, lambda x: x) < 1.95 / np.sqrt(n)
    assert report.tick_s is None
    again, _ = read_traffic(save(rows), ReadOptions(tick_s=3.0))
    other, _ = read_traffic(save(rows), ReadOptions(tick_s=3.0, seed=1))
    assert again.arrival_s.tobytes() == traffic.arrival_s.tobytes() != other.arrival_s.tobytes()


def test_a_tick_of_an_inexact_clock_is_put_into_the_tick_before(save):
    traffic, _ = read_traffic(save(own("0,1,1", "5.999,1,1", "6,1,1", "8.9,1,1")), ReadOptions(tick_s=3.0))
    assert np.floor(traffic.arrival_s / 3.0).tolist() == [0.0, 2.0, 2.0, 2.0]


@pytest.mark.parametrize("tick_s", [0.1, 1.0, 3.0, 60.0])
@pytest.mark.parametrize("zero_s", [0.0, 12345.678])
def test_a_coarse_grid_is_overlooked(tick_s, zero_s):
    ticks = np.sort(np.random.default_rng(0).integers(0, 500, 2000))
    late_s = np.random.default_rng(1).uniform(-0.001, 0.001, 500) * tick_s  # of each tick: the clock is not exact
    assert detect_tick(np.sort(zero_s + tick_s * ticks)) == tick_s
    assert detect_tick(np.sort(zero_s + tick_s * ticks + late_s[ticks])) == tick_s


def test_a_grid_is_seen_where_there_is_none():
    rng = np.random.default_rng(0)
    assert detect_tick(np.sort(rng.uniform(0, 1000, 2000))) is None
    assert detect_tick(np.repeat(np.sort(rng.uniform(0, 1000, 200)), 10)) is None  # bursts at any moment
    assert detect_tick(np.zeros(2000)) is None
    assert detect_tick(np.repeat(np.arange(9.0), 10)) is None  # too few to tell


def test_the_unit_of_timed_traces_is_fixed(save):
    line = '{"timestamp": %s, "input_length": 1, "output_length": 1}\n'
    path = save(line % "12.5" + line % "13", "trace.jsonl")
    for unit, times in (("s", [12.5, 13.0]), ("ms", [0.0125, 0.013])):
        assert read_traffic(path, ReadOptions(timestamp_unit=unit))[0].arrival_s.tolist() == times
    with pytest.raises(UserError, match="timestamp_unit: only for JSON lines, this is own columns"):
        read_traffic(save(ROWS), ReadOptions(timestamp_unit="s"))


# ---- shares --------------------------------------------------------------------------------------------------------
def test_thinning_keeps_bursts_or_another_share(save):
    """Bursts of 10 are 1 + keep * (10 - 1) as dispersed after thinning. The estimate from m windows has a standard
    error of about I * sqrt((2 + excess) / m), where the excess kurtosis of the counts is below 0.1: 5 % for I = 10.
    The share has one of sqrt(keep * (1 - keep) / n).
    """
    num_windows, keep = 2000, 0.25
    traffic = bursts(num_windows, 20.0, 10)
    thinned, report = read_traffic(save(traffic), ReadOptions(keep=keep))
    error = np.sqrt(2.1 / num_windows)
    for read, expected in ((traffic, 10.0), (thinned, 1.0 + keep * 9.0)):
        assert dispersion(window_counts(read.arrival_s, 1.0, 0.0, num_windows)) == pytest.approx(
            expected, rel=5 * error
        )
    assert thinned.size == pytest.approx(keep * traffic.size, abs=5 * np.sqrt(keep * (1 - keep) * traffic.size))
    assert report.dropped == {"thinned out one by one, which smooths bursts": traffic.size - thinned.size}


@pytest.mark.parametrize("name", ["client", "session"])
def test_clients_or_sessions_are_torn(save, name):
    """2,000 of them, each kept with probability 0.3: the standard error of the share is sqrt(0.3 * 0.7 / 2000)."""
    traffic = bursts(200, 50.0, 10)
    traffic = traffic._replace(**{"client": None, name: traffic.client})
    path, option = save(traffic), f"keep_{name}s"
    kept, _ = read_traffic(path, ReadOptions(**{option: 0.3}))
    before, after = getattr(traffic, name), getattr(kept, name)
    whole = np.isin(before, np.unique(after))
    assert kept.size == np.count_nonzero(whole)
    assert np.unique(after).size / 2000 == pytest.approx(0.3, abs=5 * np.sqrt(0.3 * 0.7 / 2000))
    wider, _ = read_traffic(path, ReadOptions(**{option: 0.6}))
    assert np.isin(after, getattr(wider, name)).all()
    other, _ = read_traffic(path, ReadOptions(**{option: 0.3}, seed=1))
    assert not np.array_equal(np.unique(after), np.unique(getattr(other, name)))
    first, _ = read_traffic(path, ReadOptions(**{option: 0.3}, end_s=20.0))
    assert np.isin(getattr(first, name), after).all()


def test_requests_without_a_session_are_kept_together(save):
    n = 10_000
    none = Traffic(np.arange(n) * 1.0, np.ones(n, np.int32), np.ones(n, np.int32), None, np.full(n, -1, np.int32))
    kept, _ = read_traffic(save(none), ReadOptions(keep_sessions=0.5))
    assert kept.size == pytest.approx(n / 2, abs=5 * np.sqrt(n / 4))


def test_clients_are_kept_where_there_are_none(save):
    for name in ("client", "session"):
        with pytest.raises(UserError, match=f"keep_{name}s: the trace does not say the {name} of its requests"):
            read_traffic(save(ROWS), ReadOptions(**{f"keep_{name}s": 0.5}))


# ---- the options themselves ----------------------------------------------------------------------------------------
BAD_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"time_scale": float("inf")}, "time_scale: expected a finite number above 0, got inf"),
    ({"tick_s": 0.0}, "tick_s: expected a finite number above 0, got 0.0"),
    ({"start_s": -1.0}, "start_s: expected a finite number of at least 0, got -1.0"),
    ({"end_s": 0.0}, "end_s: expected more than start_s, 0, got 0"),
    ({"start_s": 5.0, "end_s": 4.0}, "end_s: expected more than start_s, 5, got 4"),
    ({"keep": 0.0}, "keep: expected a number above 0 and at most 1, got 0.0"),
    ({"keep_clients": 1.5}, "keep_clients: expected a number above 0 and at most 1, got 1.5"),
    ({"keep_sessions": True}, "keep_sessions: expected a number above 0 and at most 1, got True"),
    ({"max_prompt_tokens": 0}, "max_prompt_tokens: expected an integer of at least 1, got 0"),
    ({"max_output_tokens": 1.5}, "max_output_tokens: expected an integer of at least 1, got 1.5"),
    ({"max_total_tokens": 1}, "max_total_tokens: expected an integer of at least 2, got 1"),
    ({"over_length": "cut"}, 'over_length: expected "error" or "drop" or "clip", got \'cut\''),
    ({"zero_output": "keep"}, 'zero_output: expected "drop" or "error", got \'keep\''),
    ({"timestamp_unit": "us"}, 'timestamp_unit: expected nothing or "s" or "ms", got \'us\''),
    ({"seed": -1}, "seed: expected an integer of at least 0, got -1"),
]


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS)
def test_a_wrong_option_is_taken(options, message):
    with pytest.raises(UserError) as caught:
        ReadOptions(**options)
    assert str(caught.value) == message
