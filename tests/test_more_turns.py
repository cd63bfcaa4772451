"""Sessions with their own probabilities of another turn, their own first prompt, or correlated lengths."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_env.config import (
    ChoiceLength,
    FixedLength,
    Length,
    LognormalLength,
    Scenario,
    SessionSettings,
    UniformLength,
    WorkloadSettings,
    with_changes,
)
from llm_env.errors import UserError
from llm_env.workload import draw_lengths, draw_workload, mean_length, mean_session_turns, mean_work, streams
from llm_env.workload.lengths import draw_request_lengths, length_cdf, length_probabilities
from llm_env.workload.sessions import HISTORY, _drawn_turns, _history_turns, _turns_of
from llm_env.workload.statistics import ks_distance

CHAINS = [(0.75,), (0.3, 0.9), (0.9, 0.5, 0.0), (0.02, 0.98), (0.0, 0.9), (0.5, 0.0, 0.9)]
LONG = LognormalLength(mu=7.0, sigma=0.5, max_tokens=20_000)


def workload_of(
    prompt: Length | None = None, output: Length | None = None, correlation=0.0, **sessions
) -> WorkloadSettings:
    default = WorkloadSettings()
    lengths = {"prompt": prompt or default.prompt, "output": output or default.output, "correlation": correlation}
    return default.model_copy(update={**lengths, "sessions": SessionSettings(**sessions)})


def drawn(workload: WorkloadSettings, sessions: int, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Arrival, prompt, output and session of all turns of sessions that begin at 0."""
    assert workload.sessions is not None
    return _turns_of(workload, workload.sessions, np.zeros(sessions), streams(seed))


def reached(more_turns: tuple[float, ...], turns: int) -> np.ndarray:
    """P(a session has a turn j), j = 1 .. turns, one factor after the other."""
    probabilities = [1.0]
    for j in range(turns - 1):
        probabilities.append(probabilities[-1] * more_turns[min(j, len(more_turns) - 1)])
    return np.array(probabilities)


# ---- the number of turns -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("more_turns", CHAINS, ids=str)
def test_a_turn_follows_with_another_probability(more_turns):
    n = 100_000
    turns = np.bincount(drawn(workload_of(more_turns=more_turns, max_context_tokens=1_048_576), n)[3])
    for j, expected in enumerate(reached(more_turns, 30), 1):
        assert (turns >= j).mean() == pytest.approx(expected, abs=5 * np.sqrt(expected * (1 - expected) / n))


@pytest.mark.parametrize("more_turns", CHAINS, ids=str)
def test_mean_or_spread_of_the_number_of_turns_is_off(more_turns):
    """E[N] = sum P(N >= j), E[N^2] = sum (2 j - 1) P(N >= j); the fourth moment of the draws gives the error of it."""
    n = 100_000
    workload = workload_of(
        FixedLength(tokens=1), FixedLength(tokens=1), more_turns=more_turns, max_context_tokens=20_000
    )
    survival = reached(more_turns, 5000)
    mean, square = survival.sum(), survival @ (2.0 * np.arange(1, 5001) - 1)
    turns = np.bincount(drawn(workload, n, seed=1)[3]).astype(float)
    assert turns.mean() == pytest.approx(mean, abs=5 * np.sqrt((square - mean**2) / n) + 1e-12)
    assert (turns**2).mean() == pytest.approx(square, abs=5 * (turns**2).std() / np.sqrt(n) + 1e-12)
    assert workload.sessions is not None
    assert _drawn_turns(workload.sessions) == pytest.approx(mean, rel=1e-12)
    assert mean_session_turns(workload) == pytest.approx(mean, rel=1e-7)


def test_one_probability_is_not_a_geometric_number_of_turns():
    chain, mean = workload_of(more_turns=(0.75,)), workload_of(mean_turns=4.0)
    assert mean_work(chain) == mean_work(mean)
    assert mean_session_turns(chain) == mean_session_turns(mean)
    same = workload_of(more_turns=(0.75, 0.75, 0.75))
    assert mean_work(same) == pytest.approx(mean_work(mean), rel=1e-9)
    np.testing.assert_array_equal(drawn(chain, 500)[3], drawn(same, 500)[3])


def test_a_higher_probability_makes_some_session_shorter():
    few, many = (np.bincount(drawn(workload_of(more_turns=q), 5000)[3]) for q in ((0.3, 0.6), (0.4, 0.7)))
    assert (many >= few).all()
    assert (many > few).any()


# ---- lengths of turns ----------------------------------------------------------------------------------------------
def test_first_prompts_are_those_of_other_turns_or_the_other_way_round():
    workload = workload_of(more_turns=(0.6,), first_prompt=LONG)
    _, prompt, output, session = drawn(workload, 30_000, seed=2)
    first = np.append(True, np.diff(session) > 0)
    added = prompt.copy()
    added[1:] -= np.where(first[1:], 0, prompt[:-1] + output[:-1])
    bound = np.sqrt(np.log(2e6) / 2)  # of sqrt(n) times the distance, see dkw in test_lengths.py
    assert ks_distance(added[first], length_cdf(LONG)) < bound / np.sqrt(first.sum())
    assert ks_distance(added[~first], length_cdf(workload.prompt)) < bound / np.sqrt((~first).sum())


def test_a_first_prompt_changes_outputs_or_other_prompts():
    """The prompts are quantiles of the same normals, so those of later turns stay (but for one at a rounding edge)."""
    plain, special = workload_of(more_turns=(0.6,)), workload_of(more_turns=(0.6,), first_prompt=LONG)
    first = np.zeros(5000, np.bool_)
    first[::3] = True
    x, y = draw_request_lengths(plain, 5000, streams(3), first=first)
    u, v = draw_request_lengths(special, 5000, streams(3), first=first)
    np.testing.assert_array_equal(y, v)
    assert (x[~first] != u[~first]).sum() <= 1
    assert (u[first] > x[first]).mean() > 0.9


@pytest.mark.parametrize("sessions", [{"more_turns": (0.5, 0.9)}, {"first_prompt": LONG}], ids=str)
@pytest.mark.parametrize("correlation", [0.0, 0.6])
def test_the_first_sessions_depend_on_how_many_follow(sessions, correlation):
    workload = workload_of(correlation=correlation, **sessions)
    for short, long in zip(drawn(workload, 20), drawn(workload, 300), strict=True):
        np.testing.assert_array_equal(short, long[: short.size])


# ---- rate and work -------------------------------------------------------------------------------------------------
def test_mean_work_without_a_limit_is_not_the_closed_form():
    """Turn j is first + (j - 1) new + j outputs - 1 tokens of work."""
    workload = workload_of(more_turns=(0.3, 0.8), first_prompt=LONG, max_context_tokens=500_000)
    survival, j = reached((0.3, 0.8), 500), np.arange(1, 501)
    work = mean_length(LONG) + (j - 1) * mean_length(workload.prompt) + j * mean_length(workload.output) - 1
    assert mean_session_turns(workload) == pytest.approx(survival.sum(), rel=1e-7)
    assert mean_work(workload) == pytest.approx(survival @ work / survival.sum(), rel=1e-7)


def by_convolution(workload: WorkloadSettings, more_turns: tuple[float, ...], limit: int) -> tuple[float, float]:
    """Mean turns of a session and work of a request: distributions of the context, turn by turn."""
    assert workload.sessions is not None
    first_prompt = workload.sessions.first_prompt or workload.prompt
    output = length_probabilities(workload.output, 100)
    first, new = (
        np.convolve(length_probabilities(lengths, 100), output) for lengths in (first_prompt, workload.prompt)
    )
    context = first
    turns, work = 1.0, context @ (np.arange(context.size) - 1.0)
    for j in range(limit):
        context = more_turns[min(j, len(more_turns) - 1)] * np.convolve(context, new)[: limit + 1]
        turns += context.sum()
        work += context @ (np.arange(context.size) - 1.0)
    return turns, work / turns


probabilities = st.one_of(st.just(0.0), st.floats(0, 0.99))


@given(
    more_turns=st.lists(probabilities, min_size=1, max_size=6).map(tuple),
    limit=st.integers(1, 120),
    first=st.one_of(st.none(), st.integers(1, 40).map(lambda k: UniformLength(min_tokens=k, max_tokens=k + 9))),
)
@settings(max_examples=60, deadline=None)
def test_mean_work_with_a_limit_is_not_the_sum_over_all_sessions(more_turns, limit, first):
    lengths = ChoiceLength(tokens=(3, 7), probabilities=(0.25, 0.75)), UniformLength(max_tokens=4)
    workload = workload_of(*lengths, more_turns=more_turns, first_prompt=first, max_context_tokens=limit)
    turns, work = by_convolution(workload, more_turns, limit)
    assert mean_session_turns(workload) == pytest.approx(turns, rel=1e-7)
    assert mean_work(workload) == pytest.approx(work, rel=1e-7)


@pytest.mark.parametrize("correlation", [-0.8, 0.0, 0.9])
@pytest.mark.parametrize(
    "sessions", [{"more_turns": (0.4, 0.9)}, {"more_turns": (0.8, 0.5), "first_prompt": LONG}], ids=str
)
def test_drawn_work_is_off_its_mean(sessions, correlation):
    """Also where prompts and outputs are correlated and the limit often cuts."""
    workload = workload_of(correlation=correlation, max_context_tokens=2500, **sessions)
    _, prompt, output, session = drawn(workload, 100_000, seed=4)
    turns = np.bincount(session)
    work = np.bincount(session, prompt + output - 1.0)
    error = (work - mean_work(workload) * turns).std() / turns.mean() / np.sqrt(turns.size)
    assert work.sum() / turns.sum() == pytest.approx(mean_work(workload), abs=5 * error)
    assert turns.mean() == pytest.approx(mean_session_turns(workload), abs=5 * turns.std() / np.sqrt(turns.size))


def test_a_correlation_does_not_change_what_the_limit_cuts():
    lengths = {"more_turns": (0.9,), "max_context_tokens": 3000}
    apart, together = (mean_session_turns(workload_of(correlation=rho, **lengths)) for rho in (-0.9, 0.9))
    assert abs(apart / together - 1) > 0.003


# ---- a stationary start --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("more_turns", [(0.02, 0.98), (0.5, 0.0)], ids=str)
def test_the_request_rate_is_not_the_stated_one_from_the_start(more_turns):
    """In the first 6 s of episodes much shorter than a session. 0.1 % is missing at the start."""
    sessions = {"more_turns": list(more_turns), "think_s": 20.0, "max_context_tokens": 1_048_576}
    changes = {"workload.sessions": sessions, "workload.rate_per_s": 5.0}
    short = {"episode.arrivals_s": 60.0, "workload.prompt": {"kind": "fixed", "tokens": 5}}
    scenario = with_changes(Scenario(), {**changes, **short})
    counts = np.array(
        [((r["arrival_s"] < 6.0).sum(), r.size) for r in (draw_workload(scenario, seed) for seed in range(80))]
    )
    for k, expected in enumerate((30.0, 300.0)):
        error = counts[:, k].std() / np.sqrt(len(counts))
        assert counts[:, k].mean() == pytest.approx(expected, abs=5 * error + 0.002 * expected)


@pytest.mark.parametrize("sigma", [0.0, 1.0])
@pytest.mark.parametrize("more_turns", CHAINS[:4], ids=str)
def test_more_than_is_documented_comes_of_sessions_that_are_too_old(more_turns, sigma):
    limit = 1_048_576
    workload = workload_of(more_turns=more_turns, think_s=1.0, think_sigma=sigma, max_context_tokens=limit)
    assert workload.sessions is not None
    age_s = drawn(workload, 200_000)[0]
    assert (age_s > _history_turns(workload.sessions)).mean() < 0.002


@given(mean_turns=st.floats(1, 1000))
@settings(max_examples=50, deadline=None)
def test_the_history_of_geometric_sessions_has_changed(mean_turns):
    assert _history_turns(SessionSettings(mean_turns=mean_turns)) == HISTORY * mean_turns
    if mean_turns > 1.001:
        chain = SessionSettings(more_turns=(1 - 1 / mean_turns,))
        assert _history_turns(chain) == pytest.approx(HISTORY * mean_turns, rel=1e-6)


def test_a_few_sessions_that_last_for_ever_are_cut_by_the_history():
    """One of 50 goes on for 1,000 turns: the mean alone would say 8 * 20 turns."""
    sessions = SessionSettings(more_turns=(0.02, 0.999))
    late = reached((0.02, 0.999), 40_000)[math.ceil(_history_turns(sessions)) :].sum()
    assert late / _drawn_turns(sessions) <= math.exp(-HISTORY) * 1.001


def test_turns_beyond_memory_are_drawn():
    """Most of these are never sent, since the context is short, but they would be drawn."""
    sessions = {"more_turns": [0.999_999_9], "max_context_tokens": 1000, "think_s": 0.001}
    endless = with_changes(Scenario(), {"workload.sessions": sessions, "workload.rate_per_s": 5.0})
    with pytest.raises(UserError, match=r"turns are expected .* workload\.sessions\.think_s or more_turns"):
        draw_workload(endless, 0)


def test_sessions_without_a_later_turn_are_other_requests():
    single = with_changes(Scenario(), {"workload.sessions": {"more_turns": [0.0, 0.9]}})
    requests, plain = draw_workload(single, 0), draw_workload(Scenario(), 0)
    np.testing.assert_array_equal(requests["session"], np.arange(plain.size))
    requests["session"] = -1
    assert requests.tobytes() == plain.tobytes()
    first = draw_lengths(Scenario().workload.prompt, plain.size, streams(0).prompt)
    np.testing.assert_array_equal(plain["prompt_tokens"], first)
