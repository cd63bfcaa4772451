"""What all arrival processes have in common: the mean rate, a stationary start, order, range and determinism."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import arrival_cases
import numpy as np
import pytest
from arrival_cases import ALL, CLIENTS, OF_CLIENTS, WITHOUT_CLIENTS, counts, draw
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from llm_env.config import (
    ArrivalPart,
    ClientArrivals,
    ClosedLoopArrivals,
    CoxArrivals,
    FlashCrowdArrivals,
    GammaArrivals,
    MMPP2Arrivals,
    MMPPArrivals,
    OnOffArrivals,
    PoissonArrivals,
    ProfileArrivals,
    SessionSettings,
    SuperposedArrivals,
    WeibullArrivals,
    WorkloadSettings,
)
from llm_env.errors import UserError
from llm_env.workload import draw_arrivals
from llm_env.workload.arrival_theory import expected_dispersion
from llm_env.workload.arrivals import draw_arrivals_of_clients, draw_session_starts
from llm_env.workload.seeds import history_streams, streams

ROOT = Path(__file__).resolve().parent.parent
every = pytest.mark.parametrize("name", ALL)


@every
def test_mean_rate_is_not_the_workloads_from_the_first_second_to_the_last(name):
    """One that starts outside its stationary state has too many or too few at first. Standard errors are the sample's:
    episodes are independent, so the mean of n counts has the standard deviation sd / sqrt(n)."""
    windows = ((0.0, 60.0), (0.0, 3.0), (28.0, 31.0), (57.0, 60.0))
    for window, n in zip(windows, counts(ALL[name], 4.0, 60.0, 700, windows), strict=True):
        mean = 4.0 * (window[1] - window[0])
        assert n.mean() == pytest.approx(mean, abs=5 * n.std() / np.sqrt(n.size)), window


@pytest.mark.parametrize("name", [n for n, p in WITHOUT_CLIENTS.items() if expected_dispersion(p, 4.0, math.inf)])
def test_long_run_rate_is_off_by_more_than_the_index_of_dispersion_allows(name):
    """Counts over a long time have the variance limit * mean, by the definition of the index of dispersion."""
    process, mean = WITHOUT_CLIENTS[name], 4.0 * 50_000.0
    limit = expected_dispersion(process, 4.0, math.inf)
    assert draw(process, 4.0, 50_000.0, 3)[0].size == pytest.approx(mean, abs=5 * math.sqrt(limit * mean))


# mmpp2 draws its periods and its arrivals from one stream
@pytest.mark.parametrize("name", [n for n in ALL if n not in ("mmpp2", "profile of mmpp2", "superposition")])
def test_a_longer_episode_does_not_begin_with_the_shorter_one(name):
    (short, sender), (long, senders) = draw(ALL[name], 5.0, 80.0, 2), draw(ALL[name], 5.0, 130.0, 2)
    assert short.size > 10
    np.testing.assert_allclose(long[: short.size], short, rtol=1e-9)
    assert long.size == short.size or long[short.size] >= 80.0 * (1 - 1e-9)
    if sender is not None and senders is not None and name != "superposition with clients":
        np.testing.assert_array_equal(senders[: short.size], sender)


@pytest.mark.parametrize("name", ["weibull", "regular weibull", "on-off", "on-off, uneven", "clients"])
def test_an_unmodulated_process_at_twice_the_rate_is_another_pattern(name):
    slow, fast = draw(ALL[name], 3.0, 100.0, 4)[0], draw(ALL[name], 6.0, 50.0, 4)[0]
    np.testing.assert_allclose(fast, slow / 2.0, rtol=1e-12)


@pytest.mark.parametrize("name", ["mmpp", "cox", "profile", "flash-crowd"])
def test_the_rate_changes_at_other_moments_when_only_its_mean_is_changed(name):
    """At a very high rate the counts of short windows show the path of the rate, but for their own relative error.

    A window of mean m has the standard error 1 / sqrt(m); the two draws are compared where m > 100.
    """
    edges = np.arange(0.0, 101.0)
    low, high = (np.histogram(draw(ALL[name], rate, 100.0, 5)[0], edges)[0] / rate for rate in (1000.0, 3000.0))
    seen = high > 0.1
    assert seen.sum() > 10
    np.testing.assert_allclose(low[seen], high[seen], atol=6 * np.sqrt(high[seen].max() / 1000.0 * 4 / 3))
    assert high.std() > 0.2 * high.mean()  # and there is something to see


def test_another_first_part_changes_the_second_one():
    """The parts share no stream: what is common to both draws is the second part, a tenth of the rate of 20."""
    second = ArrivalPart(share=0.1, arrivals=WITHOUT_CLIENTS["cox"])
    first = [ArrivalPart(share=0.9, arrivals=process) for process in (GammaArrivals(cv=2.0), CoxArrivals(tau_s=5.0))]
    drawn = [draw(SuperposedArrivals(parts=(part, second)), 20.0, 200.0, 3)[0] for part in first]
    assert np.isin(*drawn).sum() == draw_second_of_two(second.arrivals).size > 200


def draw_second_of_two(process):
    rngs = (rng.spawn(2)[1] for rng in (streams(3).arrivals, streams(3).modulation))
    return draw_arrivals(process, 2.0, 200.0, *rngs)


@every
def test_the_same_seed_twice_is_not_the_same(name):
    for first, second in zip(draw(ALL[name], 5.0, 50.0, 9), draw(ALL[name], 5.0, 50.0, 9), strict=True):
        np.testing.assert_array_equal(first, second)
    assert not np.array_equal(draw(ALL[name], 5.0, 50.0, 9)[0], draw(ALL[name], 5.0, 50.0, 10)[0])


def test_another_process_draws_other_bytes():
    code = "import arrival_cases; print(arrival_cases.digest())"
    paths = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONHASHSEED": "77"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == arrival_cases.digest()


# ---- any settings ----------------------------------------------------------------------------------------------------
cv = st.floats(0.01, 20)
seconds = st.floats(1e-2, 1e4)
sigma = st.floats(0, 5)


@st.composite
def mmpp(draw_value):
    n = draw_value(st.integers(2, 6))
    rates = draw_value(st.lists(st.floats(0, 1e3), min_size=n, max_size=n).filter(lambda r: max(r) > 1e-3))
    return MMPPArrivals(rates=rates, dwell_s=draw_value(st.lists(seconds, min_size=n, max_size=n)))


stationary = st.one_of(
    st.just(PoissonArrivals()),
    st.builds(GammaArrivals, cv=cv),
    st.builds(WeibullArrivals, cv=cv),
    st.builds(MMPP2Arrivals, rate_ratio=st.floats(1, 1000), busy_share=st.floats(0.01, 0.99), cycle_s=seconds),
    mmpp(),
    st.builds(
        OnOffArrivals,
        burst_requests=st.floats(2, 1e3),
        burst_sigma=st.floats(0, 2),
        off_share=st.floats(0.01, 0.99),
        off_sigma=st.floats(0, 2),
        gap_cv=cv,
    ),
    st.builds(CoxArrivals, sigma=st.floats(0, 3), tau_s=st.floats(1, 1e4), cv=cv),
)
changing = st.one_of(
    stationary,
    st.builds(
        ProfileArrivals,
        multipliers=st.lists(st.floats(0, 10), min_size=1, max_size=48).filter(lambda m: max(m) > 1e-3),
        period_s=st.floats(1, 1e5),
        start_s=st.none() | st.floats(0, 1e9),
        base=stationary,
    ),
    st.builds(
        FlashCrowdArrivals,
        multipliers=st.lists(st.floats(1, 100), min_size=1, max_size=4),
        every_s=seconds,
        duration_s=st.tuples(seconds, seconds).map(sorted).map(tuple),
        base=stationary,
    ),
    st.builds(ClientArrivals, log_cv_sd=st.floats(0, 3), window_sd=st.floats(0, 2), window_s=st.floats(1, 1e4)),
)


def laid_over(parts):
    return SuperposedArrivals(parts=tuple(ArrivalPart(share=1 / len(parts), arrivals=part) for part in parts))


@given(
    process=changing | st.lists(changing, min_size=1, max_size=3).map(laid_over),
    rate=st.floats(1e-3, 50),
    duration=st.floats(1e-3, 100),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=300, deadline=None)
def test_some_settings_crash_or_leave_the_episode_or_the_order(process, rate, duration, seed):
    workload = WorkloadSettings(arrivals=process, clients=CLIENTS)
    times, sender = draw_arrivals_of_clients(workload, rate, duration, streams(seed))
    assert times.dtype == np.float64
    assert times.ndim == 1
    assert (np.diff(times) >= 0).all()
    assert times.size == 0 or (times[0] >= 0 and times[-1] < duration)
    assert sender is not None
    assert sender.shape == times.shape
    assert ((sender >= 0) & (sender < CLIENTS.count)).all()


# ---- what cannot be drawn --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("process", "words"),
    [
        (WeibullArrivals(), "arrivals are expected"),
        (OF_CLIENTS["clients"], "arrivals are expected"),
        (WITHOUT_CLIENTS["superposition"], "arrivals are expected"),
    ],
)
def test_an_impossible_rate_is_tried_anyway(process, words):
    with pytest.raises(UserError, match=words):
        draw(process, 1e6, 1e6, 0)


@pytest.mark.parametrize(
    ("process", "words"),
    [
        (MMPPArrivals(rates=(1.0, 2.0), dwell_s=(1e-9, 1e-9)), "changes of state are expected"),
        (CoxArrivals(tau_s=1e-6), "steps of the rate are expected.*lengthen tau_s"),
        (ProfileArrivals(multipliers=(1.0, 2.0), period_s=1e-6), "changes of the rate are expected.*period_s"),
        (FlashCrowdArrivals(every_s=1e-6, duration_s=(1e-6, 1e-6)), "changes of the rate are expected"),
        (OnOffArrivals(burst_requests=1.0, burst_sigma=0.0), "no gaps.*raise burst_requests"),
    ],
)
def test_impossible_times_are_tried_anyway(process, words):
    with pytest.raises(UserError, match=words):
        draw_arrivals(process, 1.0, 100.0, np.random.default_rng(0))


def test_a_rate_that_rises_out_of_hand_takes_all_memory():
    """The mean is small, but the drawn state has a thousand times the mean rate."""
    process = MMPPArrivals(rates=(0.0, 1.0), dwell_s=(999.0, 1.0))
    with pytest.raises(UserError, match="happens to be that high"):
        draw_arrivals(process, 1e5, 150.0, np.random.default_rng(7))


@pytest.mark.parametrize("process", [ClosedLoopArrivals(), ClientArrivals(), laid_over([ClientArrivals()])], ids=str)
def test_arrivals_that_settings_alone_do_not_give_are_made_up(process):
    with pytest.raises(TypeError):
        draw_arrivals(process, 1.0, 10.0, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("following", "words"),
    [
        (((0.0, 1.0, 0.0), (1.0, 0.0, 0.0), (0.5, 0.5, 0.0)), "0 never leads to 2"),
        (((0.0, 1.0), (1.0, 0.0)), "3 rows"),
        (((0.5, 0.5, 0.0), (1.0, 0.0, 0.0), (0.5, 0.5, 0.0)), "must be 0"),
        (((0.0, 0.5, 0.0), (1.0, 0.0, 0.0), (0.5, 0.5, 0.0)), "sum to 1"),
    ],
)
def test_states_that_do_not_hang_together_are_accepted(following, words):
    with pytest.raises(ValidationError, match=words):
        MMPPArrivals(rates=(1.0, 2.0, 3.0), dwell_s=(1.0, 1.0, 1.0), following=following)


# ---- sessions --------------------------------------------------------------------------------------------------------
def test_sessions_before_the_episode_see_another_hour_of_the_day():
    """Three parts of 100 s, only the second with arrivals; the episode begins with it."""
    process = ProfileArrivals(multipliers=(0.0, 1.0, 0.0), period_s=300.0, start_s=100.0)
    workload = WorkloadSettings(arrivals=process, sessions=SessionSettings())
    starts, earlier = draw_session_starts(workload, 3.0, 150.0, 250.0, streams(1), history_streams(1))
    assert starts.size > 700  # of 900
    assert starts.max() < 100.0
    assert earlier.size > 300  # of 450, in the part 250 to 200 s before
    assert earlier.min() > -250.0
    assert earlier.max() < -200.0


def test_a_burst_ends_where_the_episode_begins():
    """States that last 1,000 s on average: who is busy just before 0 is nearly always busy just after it."""
    process = MMPPArrivals(rates=(0.0, 1.0), dwell_s=(1000.0, 1000.0))
    workload = WorkloadSettings(arrivals=process, sessions=SessionSettings())
    same = 0
    for seed in range(40):
        starts, earlier = draw_session_starts(workload, 5.0, 20.0, 20.0, streams(seed), history_streams(seed))
        same += (starts.size > 0) == (earlier.size > 0)
    # a state changes within 40 s with a probability of 4 %; independent ones would agree in half of the cases
    assert same > 33
