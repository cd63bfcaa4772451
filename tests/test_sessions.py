"""Multi-turn sessions: what joins a turn to the one before it, how often they come, and how much work they are."""

from __future__ import annotations

import numpy as np
import pytest

from llm_env.config import (
    ChoiceLength,
    FixedLength,
    GammaArrivals,
    GeometricLength,
    LognormalLength,
    MMPP2Arrivals,
    PoissonArrivals,
    Scenario,
    SLOClass,
    SLOSettings,
    with_changes,
)
from llm_env.errors import UserError
from llm_env.scenarios import load_scenario
from llm_env.workload import (
    Windows,
    blank_requests,
    capacity_requests_per_s,
    capacity_tokens_per_s,
    draw_lengths,
    draw_workload,
    link_turns,
    mean_length,
    mean_session_turns,
    mean_work,
    streams,
)
from llm_env.workload.generate import draw_traffic
from llm_env.workload.sessions import HISTORY, _turns_of
from llm_env.workload_settings import SessionSettings

TWO_CLASSES = SLOSettings(classes=(SLOClass(name="a", share=0.4), SLOClass(name="b", ttft_ms=9000.0, share=0.6)))


def with_sessions(scenario: Scenario | None = None, changes: dict | None = None, **sessions) -> Scenario:
    return with_changes(scenario or Scenario(), {"workload.sessions": sessions, **(changes or {})})


def long_episode(**sessions) -> Scenario:
    """30,000 s at 10 requests per second, so long that its ends do not matter."""
    changes = {"workload.rate_per_s": 10.0, "episode.arrivals_s": 30_000.0, "episode.horizon_s": 30_000.0}
    return with_sessions(None, changes, **{"think_s": 2.0, **sessions})


def turn_numbers(requests: np.ndarray) -> np.ndarray:
    """(n,) 0 for the first turn of a session in the episode, 1 for the next, ..."""
    number = np.zeros(len(requests), np.int64)
    for i, previous in enumerate(requests["previous"]):
        if previous >= 0:
            number[i] = number[previous] + 1
    return number


# ---- turns ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("limit", [1500, 131_072])
def test_a_turn_does_not_follow_the_one_before_it(seed, limit):
    sessions = {"think_s": 20.0, "mean_turns": 5.0, "max_context_tokens": limit}
    scenario = with_sessions(load_scenario("chat"), {"workload.rate_per_s": 5.0}, **sessions)
    requests = draw_workload(scenario, seed)
    assert (np.diff(requests["arrival_s"]) >= 0).all()
    assert requests["arrival_s"][0] >= 0.0
    assert requests["arrival_s"][-1] < scenario.episode.arrivals_s
    last: dict[int, int] = {}
    for i, r in enumerate(requests):
        session = int(r["session"])
        if session not in last:
            assert session == len(last)  # numbered in order of arrival
            assert (r["previous"], r["shared_tokens"]) == (-1, 0)
        else:
            before = requests[last[session]]
            assert r["previous"] == last[session]
            assert r["shared_tokens"] == before["prompt_tokens"] + before["output_tokens"] < r["prompt_tokens"]
            assert r["prompt_tokens"] + r["output_tokens"] <= limit
        last[session] = i
    assert (requests["previous"] >= 0).sum() > 20
    np.testing.assert_array_equal(requests["row"], np.arange(requests.size))


def test_the_same_seed_gives_other_sessions():
    scenario = with_sessions(mean_turns=3.0)
    assert draw_workload(scenario, 4).tobytes() == draw_workload(scenario, 4).tobytes()
    assert draw_workload(scenario, 4).tobytes() != draw_workload(scenario, 5).tobytes()


@pytest.mark.parametrize("seed", range(3))
def test_sessions_of_one_turn_are_other_requests(seed):
    scenario = Scenario(slo=TWO_CLASSES)
    single, plain = draw_workload(with_sessions(scenario, mean_turns=1.0), seed), draw_workload(scenario, seed)
    np.testing.assert_array_equal(single["session"], np.arange(plain.size))
    single["session"] = -1
    assert single.tobytes() == plain.tobytes()


def test_the_number_of_turns_is_not_geometric():
    requests = draw_workload(long_episode(mean_turns=4.0), 0)
    turns = np.bincount(requests["session"])[requests["arrival_s"][turn_numbers(requests) == 0] < 29_000.0]
    q, n = 0.75, turns.size
    assert turns.mean() == pytest.approx(
        4.0, abs=5 * np.sqrt(q) / (1 - q) / np.sqrt(n) + 0.01
    )  # 0.01: cut at the start
    for k in (2, 5, 10):
        share = q ** (k - 1)
        assert (turns >= k).mean() == pytest.approx(share, abs=5 * np.sqrt(share / n) + 0.002)


@pytest.mark.parametrize("sigma", [0.0, 0.5, 1.0])
def test_users_think_for_another_time(sigma):
    requests = draw_workload(long_episode(mean_turns=4.0, think_sigma=sigma), 1)
    later = requests["previous"] >= 0
    gap_s = requests["arrival_s"][later] - requests["arrival_s"][requests["previous"][later]]
    n = gap_s.size
    assert gap_s.mean() == pytest.approx(2.0, abs=5 * gap_s.std() / np.sqrt(n) + 1e-9)
    assert np.log(gap_s).std() == pytest.approx(sigma, abs=5 * sigma / np.sqrt(2 * n) + 1e-6)


def test_what_a_user_adds_or_gets_is_not_drawn_from_its_distribution():
    scenario = long_episode(mean_turns=4.0)
    requests = draw_workload(scenario, 2)
    added = requests["prompt_tokens"] - requests["shared_tokens"]
    whole = requests["arrival_s"] > 100.0  # of sessions cut by the start the first turn here is long
    for drawn, settings in (
        (added[whole], scenario.workload.prompt),
        (requests["output_tokens"], scenario.workload.output),
    ):
        assert drawn.mean() == pytest.approx(mean_length(settings), abs=5 * drawn.std() / np.sqrt(drawn.size))


def test_the_first_sessions_depend_on_how_many_follow():
    """So the k-th session that begins in an episode is the same at every load."""
    workload = with_sessions(mean_turns=3.0).workload
    assert workload.sessions is not None
    few = _turns_of(workload, workload.sessions, np.zeros(20), streams(3))
    many = _turns_of(workload, workload.sessions, np.zeros(500), streams(3))
    for short, long in zip(few, many, strict=True):
        np.testing.assert_array_equal(short, long[: short.size])


def test_turns_of_one_session_have_several_classes_or_clients():
    scenario = with_sessions(Scenario(slo=TWO_CLASSES), {"workload.clients": {"count": 5}}, think_s=10.0)
    requests = draw_workload(scenario, 0)
    for session in range(requests["session"].max() + 1):
        turns = requests[requests["session"] == session]
        for name in ("slo_class", "ttft_target_s", "client"):
            assert len(set(turns[name].tolist())) == 1
    assert set(requests["client"].tolist()) == set(range(5))
    assert set(requests["slo_class"].tolist()) == {0, 1}


def test_a_history_beyond_memory_is_drawn():
    endless = with_sessions(think_s=1e9, mean_turns=10.0)
    with pytest.raises(UserError, match=r"turns are expected .* workload\.sessions\.think_s or mean_turns"):
        draw_workload(endless, 0)


# ---- rate and work -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "arrivals",
    [PoissonArrivals(), GammaArrivals(cv=2.0), MMPP2Arrivals(rate_ratio=4.0, busy_share=0.2, cycle_s=10.0)],
    ids=lambda arrivals: arrivals.kind,
)
def test_the_request_rate_of_sessions_is_not_the_stated_one_from_the_start(arrivals):
    """In episodes of 60 s, much shorter than a session, and in their first 6 s. 0.1 % is missing at the start."""
    changes = {"workload.rate_per_s": 5.0, "episode.arrivals_s": 60.0, "workload.arrivals": arrivals.model_dump()}
    scenario = with_sessions(None, changes, mean_turns=4.0, think_s=60.0)
    counts = np.array(
        [
            ((requests["arrival_s"] < 6.0).sum(), requests.size)
            for requests in (draw_workload(scenario, seed) for seed in range(300))
        ]
    )
    for k, expected in enumerate((30.0, 300.0)):
        error = counts[:, k].std() / np.sqrt(len(counts))
        assert counts[:, k].mean() == pytest.approx(expected, abs=5 * error + 0.002 * expected)


@pytest.mark.parametrize("sigma", [0.0, 1.0])
def test_more_than_is_documented_comes_of_sessions_that_are_too_old(sigma):
    workload = with_sessions(mean_turns=4.0, think_s=1.0, think_sigma=sigma).workload
    assert workload.sessions is not None
    age_s = _turns_of(workload, workload.sessions, np.zeros(200_000), streams(0))[0]
    assert (age_s > HISTORY * 4.0).mean() < 0.002


def test_mean_work_without_a_limit_is_not_the_closed_form():
    workload = with_sessions(load_scenario("chat"), mean_turns=4.0).workload
    one_turn = mean_length(workload.prompt) + mean_length(workload.output)
    assert mean_work(workload) == pytest.approx(4.0 * one_turn - 1.0, rel=1e-6)
    assert mean_session_turns(workload) == pytest.approx(4.0, rel=1e-6)
    assert mean_work(load_scenario("chat").workload) == one_turn - 1.0


def summed(probabilities: dict[int, float], q: float, limit: int) -> tuple[float, float]:
    """Mean turns and work of a session whose contexts are sums of draws, turn by turn: plain convolution."""
    turns = work = 0.0
    contexts = {0: 1.0}
    for turn in range(limit):
        following: dict[int, float] = {}
        for context, p in contexts.items():
            for tokens, share in probabilities.items():
                if turn == 0 or context + tokens <= limit:
                    following[context + tokens] = following.get(context + tokens, 0.0) + p * share * (
                        q if turn else 1.0
                    )
        turns += sum(following.values())
        work += sum(p * (context - 1) for context, p in following.items())
        contexts = following
    return turns, work


@pytest.mark.parametrize("limit", [1, 5, 9, 40, 63, 64, 200])
def test_mean_work_with_a_limit_is_not_the_sum_over_all_sessions(limit):
    prompt = ChoiceLength(tokens=(3, 7), probabilities=(0.25, 0.75))
    sessions = SessionSettings(mean_turns=5.0, max_context_tokens=limit)
    workload = Scenario().workload.model_copy(
        update={"prompt": prompt, "output": FixedLength(tokens=2), "sessions": sessions}
    )
    turns, work = summed({5: 0.25, 9: 0.75}, 0.8, limit)
    assert mean_session_turns(workload) == pytest.approx(turns, rel=1e-7)
    assert mean_work(workload) == pytest.approx(work / turns, rel=1e-7)


@pytest.mark.parametrize("limit", [800, 2500, 131_072])
@pytest.mark.parametrize("prompt", [LognormalLength(mu=5.0, sigma=1.0), GeometricLength(p=0.01, max_tokens=300)])
def test_drawn_work_is_off_its_mean(limit, prompt):
    sessions = {"mean_turns": 3.0, "max_context_tokens": limit}
    workload = with_sessions(None, {"workload.prompt": prompt.model_dump()}, **sessions).workload
    assert workload.sessions is not None
    _, tokens, output, session = _turns_of(workload, workload.sessions, np.zeros(100_000), streams(7))
    turns = np.bincount(session)
    work = np.bincount(session, tokens + output - 1.0)
    error = (work - mean_work(workload) * turns).std() / turns.mean() / np.sqrt(turns.size)
    assert work.sum() / turns.sum() == pytest.approx(mean_work(workload), abs=5 * error)
    assert turns.mean() == pytest.approx(mean_session_turns(workload), abs=5 * turns.std() / np.sqrt(turns.size))


def test_long_run_work_of_sessions_is_not_the_load_times_capacity():
    changes = {"workload.load": 0.8, "episode.arrivals_s": 40_000.0, "episode.horizon_s": 40_000.0}
    scenario = with_sessions(None, changes, mean_turns=4.0, think_s=5.0, max_context_tokens=4000)
    requests = draw_workload(scenario, 0)
    share = (requests["prompt_tokens"] + requests["output_tokens"] - 1) / 40_000.0 / capacity_tokens_per_s(scenario)
    by_session = np.bincount(requests["session"], share)
    assert share.sum() == pytest.approx(0.8, abs=5 * np.sqrt((by_session**2).sum()))  # a compound Poisson sum
    assert capacity_requests_per_s(scenario) < capacity_requests_per_s(Scenario()) / 2


# ---- links ---------------------------------------------------------------------------------------------------------
def linked(rows: list[tuple[float, int, int, int]]) -> np.ndarray:
    requests = blank_requests(len(rows))
    for name, column in zip(
        ("arrival_s", "prompt_tokens", "output_tokens", "session"), zip(*rows, strict=True), strict=True
    ):
        requests[name] = column
    link_turns(requests)
    return requests


def test_turns_are_linked_wrongly():
    requests = linked(
        [
            (0.0, 10, 5, 7),
            (1.0, 10, 5, -1),
            (1.0, 20, 5, 3),
            (2.0, 16, 4, 7),  # one token more than 10 + 5
            (3.0, 25, 5, 3),  # nothing new: another prompt
            (4.0, 90, 5, 3),
            (5.0, 10, 5, -1),
        ]
    )
    assert requests["previous"].tolist() == [-1, -1, -1, 0, 2, 4, -1]
    assert requests["shared_tokens"].tolist() == [0, 0, 0, 15, 0, 30, 0]


def test_nobody_to_link_fails():
    nobody = blank_requests(0)
    link_turns(nobody)
    assert nobody.shape == (0,)


@pytest.mark.parametrize("seed", range(5))
def test_a_window_links_turns_to_places_in_the_whole(seed):
    whole = draw_traffic(long_episode(mean_turns=4.0, think_s=30.0), 0).take(slice(20_000))
    scenario = with_changes(Scenario(), {"workload.prediction_sigma": 0.3})
    window = Windows(whole, scenario).cut(seed)
    assert 500 < window.size < 2000
    later = np.flatnonzero(window["previous"] >= 0)
    before = window[window["previous"][later]]
    np.testing.assert_array_equal(before["session"], window["session"][later])
    np.testing.assert_array_equal(before["prompt_tokens"] + before["output_tokens"], window["shared_tokens"][later])
    np.testing.assert_array_equal(np.unique(window["session"]).size, (window["previous"] == -1).sum())
    error = np.log(window["predicted_tokens"] / window["output_tokens"])
    np.testing.assert_allclose(error, 0.3 * streams(seed).prediction.standard_normal(window.size), atol=1e-12)


def test_new_tokens_share_their_draws_with_requests_without_sessions():
    """The streams of lengths are the same, so the first session's first turn has the first lengths."""
    workload = with_sessions(mean_turns=3.0).workload
    assert workload.sessions is not None
    turns = _turns_of(workload, workload.sessions, np.zeros(50), streams(9))
    assert turns[1][0] == draw_lengths(workload.prompt, 1, streams(9).prompt)[0]
    np.testing.assert_array_equal(turns[2], draw_lengths(workload.output, turns[2].size, streams(9).output))


def test_an_episode_without_sessions_fails():
    quiet = with_sessions(None, {"workload.rate_per_s": 1e-9}, mean_turns=3.0)
    assert draw_workload(quiet, 0).shape == (0,)


@pytest.mark.parametrize("seed", range(3))
def test_a_longer_episode_does_not_begin_with_a_shorter_one(seed):
    scenario = with_sessions(Scenario(slo=TWO_CLASSES), {"workload.rate_per_s": 3.0}, think_s=40.0)
    short, long = (
        draw_workload(with_changes(scenario, {"episode.arrivals_s": end_s}), seed) for end_s in (60.0, 120.0)
    )
    assert 0 < short.size < long.size
    assert short.tobytes() == long[: short.size].tobytes()
