"""Kinds of requests whose shares follow the state of the arrivals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from llm_env.config import Scenario, scenario_from_dict, with_changes
from llm_env.errors import UserError
from llm_env.scenarios import load_scenario
from llm_env.workload import capacity_requests_per_s, capacity_tokens_per_s, draw_workload, mean_work
from llm_env.workload.arrivals import states_at
from llm_env.workload.kinds import draw_kinds, kind_shares, shares_by_state
from llm_env.workload.lengths import largest_output
from llm_env.workload.seeds import streams

CHAT, CODE = {"kind": "fixed", "tokens": 10}, {"kind": "uniform", "min_tokens": 100, "max_tokens": 200}
LONG, SHORT = {"kind": "geometric", "p": 0.02, "max_tokens": 400}, {"kind": "fixed", "tokens": 3}
MMPP = {"kind": "mmpp", "rates": [6.0, 2.0], "dwell_s": [5.0, 15.0]}


def kinds_of(chat: list[float], code: list[float]) -> list[dict[str, Any]]:
    return [
        {"name": "chat", "prompt": CHAT, "output": LONG, "shares": chat},
        {"name": "code", "prompt": CODE, "output": SHORT, "shares": code},
    ]


def scenario_of(kinds: list[dict[str, Any]] | None, arrivals: dict[str, Any] = MMPP, **workload: Any) -> Scenario:
    settings = {"arrivals": arrivals, "rate_per_s": 5.0, **workload}
    if kinds is not None:
        settings["kinds"] = kinds
    episode = {"arrivals_s": 2000.0, "warmup_s": 0.0, "horizon_s": 3000.0}
    return scenario_from_dict({"workload": settings, "episode": episode})


def test_the_mixture_does_not_follow_the_state():
    scenario = scenario_of(kinds_of([0.9, 0.25], [0.1, 0.75]))
    requests = draw_workload(scenario, 7)
    arrivals: Any = scenario.workload.arrivals
    state = states_at(arrivals, requests["arrival_s"], 2000.0, streams(7).modulation)
    is_chat = requests["prompt_tokens"] == 10
    assert (is_chat | (requests["prompt_tokens"] >= 100)).all()
    assert (requests["output_tokens"][~is_chat] == 3).all()
    for k, (share, rate) in enumerate(((0.9, 6.0), (0.25, 2.0))):
        mine = state == k
        assert is_chat[mine].mean() == pytest.approx(share, abs=5 * 0.5 / np.sqrt(mine.sum()))
        # where the state is right, so is its rate: 6 and 2 to each other, and 5 a second over 1/4 and 3/4 of the time
        steps = np.arange(0.005, 2000.0, 0.01)
        seconds = 0.01 * (states_at(arrivals, steps, 2000.0, streams(7).modulation) == k).sum()
        assert mine.sum() / seconds == pytest.approx(rate * 5.0 / 3.0, rel=5 / np.sqrt(mine.sum()))


def test_shares_and_work_of_all_requests_forget_that_busy_states_have_more():
    scenario = scenario_of(kinds_of([0.9, 0.25], [0.1, 0.75]))
    # 1/4 of the time at rate 6, 3/4 at 2: half of the requests each
    np.testing.assert_allclose(kind_shares(scenario.workload), [0.575, 0.425])
    mean_output = (1 - 0.98**400) / 0.02
    assert mean_work(scenario.workload) == pytest.approx(0.575 * (10 + mean_output) + 0.425 * 153 - 1)
    expected = capacity_tokens_per_s(scenario) / mean_work(scenario.workload)
    assert capacity_requests_per_s(scenario) == pytest.approx(expected)
    requests = draw_workload(scenario, 3)
    found = (requests["prompt_tokens"] + requests["output_tokens"] - 1).mean()
    assert found == pytest.approx(mean_work(scenario.workload), rel=0.05)
    assert (requests["declared_tokens"] == 400).all()
    assert largest_output(scenario.workload) == 400


def test_kinds_move_the_arrivals_or_another_load_the_lengths():
    kinds = kinds_of([0.9, 0.25], [0.1, 0.75])
    scenario = scenario_of(kinds)
    requests, plain = draw_workload(scenario, 11), draw_workload(scenario_of(None), 11)
    assert (requests["arrival_s"] == plain["arrival_s"]).all()
    assert requests.tobytes() == draw_workload(scenario, 11).tobytes()
    more = draw_workload(with_changes(scenario, {"workload.rate_per_s": 9.0}), 11)
    n = len(requests)
    same = (requests["prompt_tokens"] == 10) == (more["prompt_tokens"][:n] == 10)
    assert 0.5 < same.mean() < 1.0
    assert (requests["prompt_tokens"] == more["prompt_tokens"][:n])[same].all()
    assert (requests["output_tokens"] == more["output_tokens"][:n])[same].all()


def test_one_share_for_all_states_and_any_process():
    for arrivals in (MMPP, {"kind": "poisson"}, {"kind": "cox", "sigma": 0.5}):
        scenario = scenario_of(kinds_of([0.25], [0.75]), arrivals)
        np.testing.assert_allclose(kind_shares(scenario.workload), [0.25, 0.75])
        times = np.linspace(0, 1999, 4000)
        assert draw_kinds(scenario.workload, times, 2000.0, 5).mean() == pytest.approx(0.75, abs=0.035)
    mixed = scenario_of(
        [
            {"name": "a", "prompt": CHAT, "output": LONG, "shares": [0.5]},
            {"name": "b", "prompt": CHAT, "output": LONG, "shares": [0.5, 0.0]},
            {"name": "c", "prompt": CODE, "output": SHORT, "shares": [0.0, 0.5]},
        ]
    )
    np.testing.assert_allclose(shares_by_state(mixed.workload), [[0.5, 0.5, 0.0], [0.5, 0.0, 0.5]])


@pytest.mark.parametrize(
    ("kinds", "workload", "words"),
    [
        (kinds_of([0.9, 0.2], [0.1, 0.7]), {}, "must sum to 1 in each state, got 0.9 in state 1"),
        (kinds_of([0.9, 0.2, 0.1], [0.1]), {}, "one, or one for each of the 2 states of the arrivals, got 3"),
        (kinds_of([0.9, 0.2], [0.1, 0.8]), {"arrivals": {"kind": "poisson"}}, "'chat': expected one, got 2"),
        ([kinds_of([0.5], [0.5])[0]] * 2, {}, "two kinds share one name"),
        (kinds_of([0.9], [0.1]), {"correlation": 0.2}, "leave pairs, correlation and sessions out"),
        (kinds_of([0.9], [0.1]), {"sessions": {}}, "leave pairs, correlation and sessions out"),
        (kinds_of([0.9], [0.1]), {"clients": {"count": 2, "prompt_sigma": 1.0}}, "leave clients.prompt_sigma"),
    ],
)
def test_kinds_that_mean_nothing(kinds, workload, words):
    with pytest.raises(UserError, match=words):
        scenario_of(kinds, **{"arrivals": MMPP, **workload})


def test_closed_loops_have_no_kinds():
    with pytest.raises(UserError, match="closed-loop arrivals have no kinds"):
        scenario_from_dict({"workload": {"arrivals": {"kind": "closed-loop"}, "kinds": kinds_of([0.5], [0.5])}})


def test_the_shipped_scenario_has_another_capacity_than_its_text_says():
    scenario = load_scenario("roles")
    work = {kind.name: (kind.prompt, kind.output) for kind in scenario.workload.kinds or ()}
    assert list(work) == ["chat", "code"]
    assert capacity_tokens_per_s(scenario) == pytest.approx(7489, abs=0.5)
    assert capacity_requests_per_s(scenario) == pytest.approx(6.66, abs=0.005)
    assert "7,489 tokens/s, or 6.66 requests/s" in scenario.description
