"""Imagined and true futures: laws given what is known, ranks and lists as in the system, and nothing hidden gets in."""

from __future__ import annotations

import numpy as np
import pytest
from toy import resumed_of, toy_requests, toy_scenario, toy_state

import baselines
from llm_env.build import load, new_states, single
from llm_env.config import (
    ChoiceLength,
    ClientSettings,
    ClosedLoopArrivals,
    GeometricLength,
    LognormalMixtureLength,
    Scenario,
    SessionSettings,
    SystemSettings,
    WorkloadSettings,
)
from llm_env.core import step
from llm_env.dtypes import ACTIVE, FUTURE, INF, RUNNING, WAITING
from llm_env.errors import UserError
from llm_env.futures import RELAXATION_S, Futures, Imagined, Known, draw_arrivals_from_rates, draw_outputs, unfinished
from llm_env.records import BY_DEADLINE, BY_LATEST_START, BY_PROMPT, decision, snapshot
from llm_env.rollout import continue_rollout
from llm_env.scenarios import load_scenario
from llm_env.workload import blank_requests, draw_workload
from llm_env.workload.lengths import length_probabilities

pytestmark = pytest.mark.kernel
CHAT = load_scenario("chat-bursty", ["workload.load=1.0"])


def busy(seed: int = 3, steps: int = 700, scenario=CHAT):
    """A system in the middle of an episode of bursty traffic; several wait."""
    requests = draw_workload(scenario, seed)
    states = load(new_states(scenario, 1, len(requests)), 0, requests, seed)
    state = single(continue_rollout(states, baselines.make_policy("moore-hodgson"), seed, steps))
    while state.system["num_waiting"][0] < 3:
        continue_rollout(states, baselines.make_policy("moore-hodgson"), seed, 1)
        assert state.system["phase"][0] == ACTIVE
    return state


def here_with(emitted: list[int], declared: int, prompt: int = 10) -> np.ndarray:
    requests = blank_requests(len(emitted))
    requests["emitted_tokens"], requests["declared_tokens"], requests["prompt_tokens"] = emitted, declared, prompt
    requests["output_tokens"] = -7  # the truth, which nothing may read
    return requests


# ---- outputs -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "law",
    [
        LognormalMixtureLength(w=(0.6, 0.4), mu=(2.0, 3.0), sigma=(0.5, 0.1), min_tokens=3, max_tokens=40),
        GeometricLength(p=0.1, max_tokens=40),
        ChoiceLength(tokens=(5, 9, 30), probabilities=(0.5, 0.3, 0.2)),
    ],
)
@pytest.mark.parametrize(("emitted", "declared"), [(0, 40), (8, 40), (8, 25)])
def test_outputs_follow_the_law_given_what_was_generated_and_declared(law, emitted, declared):
    drawn = draw_outputs(WorkloadSettings(output=law), here_with([emitted], declared), 20_000, np.random.default_rng(1))
    law_here = length_probabilities(law, 41)
    law_here[: emitted + 1] = 0.0
    law_here[declared + 1 :] = 0.0
    counts = np.bincount(drawn[:, 0], minlength=41) / len(drawn)
    if law_here.sum() > 0:
        assert np.abs(counts - law_here / law_here.sum()).max() < 0.015


def test_an_output_beyond_its_law_ends_with_the_next_token():
    workload = WorkloadSettings(output=GeometricLength(p=0.1, max_tokens=40))
    drawn = draw_outputs(workload, here_with([40, 60], 40), 5, np.random.default_rng(1))
    assert (drawn == [41, 61]).all()


def test_outputs_given_long_prompts_are_longer_where_they_are_correlated():
    workload = WorkloadSettings(correlation=0.8)
    short, long = (
        draw_outputs(workload, here_with([0], 1024, prompt), 2000, np.random.default_rng(1)).mean()
        for prompt in (60, 3000)
    )
    assert long > 2.0 * short
    everywhere = WorkloadSettings(correlation=0.8, output=GeometricLength(p=0.01))
    drawn = draw_outputs(everywhere, here_with([30] * 50, 1000, 300), 50, np.random.default_rng(1))
    assert drawn.min() > 30


def test_outputs_of_measured_pairs_are_those_that_are_longer():
    workload = WorkloadSettings(pairs={"prompt_tokens": (1, 2, 3, 4), "output_tokens": (5, 9, 30, 31)})
    drawn = draw_outputs(workload, here_with([9], 30), 50, np.random.default_rng(1))
    assert set(drawn.ravel().tolist()) == {30}


# ---- arrivals ------------------------------------------------------------------------------------------------------
def test_arrivals_come_at_the_recent_rate_and_relax_to_the_slow_one():
    system = toy_state([(0.0, 5, 5)]).system[0]
    system["now_s"], system["rate_s"], system["rate_fast"], system["rate_slow"] = 100.0, 100.0, 10.0, 2.0
    times_s, counts = draw_arrivals_from_rates(system, 105.0, 4000, np.random.default_rng(1))
    expected = 2.0 * 5.0 + 8.0 * RELAXATION_S * (1.0 - np.exp(-5.0 / RELAXATION_S))
    assert counts.mean() == pytest.approx(expected, rel=0.02)
    assert counts.var() == pytest.approx(expected, rel=0.1)  # Poisson
    come = np.arange(times_s.shape[1]) < counts[:, None]
    assert np.isfinite(times_s[come]).all()
    assert np.isinf(times_s[~come]).all()
    assert (np.diff(np.where(come, times_s, 1e9), axis=1) >= 0).all()
    first = ((times_s >= 100.0) & (times_s < 101.0)).sum() / 4000
    assert first == pytest.approx(2.0 + 8.0 * RELAXATION_S * (1.0 - np.exp(-1.0 / RELAXATION_S)), rel=0.05)


# ---- rows ----------------------------------------------------------------------------------------------------------
def test_a_row_is_the_present_and_its_future_with_the_same_ranks_and_lists():
    state = busy()
    futures, here = Futures(CHAT, 4), unfinished(state)
    drawn = Imagined(CHAT, futures, 5).draw(state, here, float(state.system["now_s"][0]) + 5.0)
    futures.fill(state, here, drawn)
    now_s = float(state.system["now_s"][0])
    for m in range(4):
        copy = single(futures.states, 1 + m)
        n = int(copy.system["num_requests"][0])
        q = copy.requests[:n]
        assert n == len(here) + drawn.counts[m]
        assert copy.system["next_arrival"][0] == len(here)
        assert (q["row"][: len(here)] == state.requests["row"][here]).all()
        assert (q["status"][len(here) :] == FUTURE).all()
        assert ((q["arrival_s"][len(here) :] > now_s) & (q["arrival_s"][len(here) :] <= now_s + 5.0)).all()
        assert (q["output_tokens"] > q["emitted_tokens"]).all()
        assert (q["declared_tokens"] >= q["output_tokens"]).all()
        running = copy.running[0, : copy.workers["num_running"][0]]
        assert (q["row"][running] == state.requests["row"][state.running[0, : len(running)]]).all()
        assert sorted(running) == np.flatnonzero(q["status"] == RUNNING).tolist()
        due_s = q["arrival_s"] + q["ttft_target_s"]
        for which, key in (
            (BY_PROMPT, q["prompt_tokens"]),
            (BY_DEADLINE, due_s),
            (BY_LATEST_START, q["latest_start_s"]),
        ):
            order = copy.order[which - 1, :n]
            assert order.tolist() == np.argsort(key, kind="stable").tolist()
            assert (copy.rank[which - 1, order] == np.arange(n)).all()


@pytest.mark.nojit
def test_evicted_requests_keep_their_places_at_the_front():
    # 10 blocks of 4 tokens; two prompts of 16 fill 8 of them, their decodes take the others, then the last is evicted
    state = toy_state([(0.0, 16, 20), (0.0, 16, 20), (0.05, 4, 4)], blocks=10, per_token_ms=0.1)
    for _ in range(6):  # tokens 1 to 5, and the batch in which the sixth of the second finds no block
        step(state, decision(40, max_running=2))
    assert resumed_of(state) == [1]
    futures, here = Futures(toy_scenario(blocks=10, per_token_ms=0.1), 1), unfinished(state)
    futures.fill(state, here, Known(futures).draw(state, here, 1e3))
    copy = single(futures.states, 1)
    assert [copy.requests["row"][i] for i in resumed_of(copy)] == [state.requests["row"][i] for i in resumed_of(state)]


@pytest.mark.nojit
def test_rows_grow_with_the_backlog():
    scenario = toy_scenario()
    rows = [(0.0, 5, 5)] * 400
    state = single(load(new_states(scenario, 1, 400), 0, toy_requests(rows, scenario), 0))
    futures, here = Futures(scenario, 2), unfinished(state)
    futures.fill(state, here, Imagined(scenario, futures, 0).draw(state, here, 1.0))
    assert futures.states.requests.shape[1] >= 400
    assert (futures.states.requests["status"][1:, :400] == WAITING).all()


# ---- what may be known ---------------------------------------------------------------------------------------------
def hidden_otherwise(state):
    """The same present with another truth: outputs of whoever is unfinished, later arrivals, and noise."""
    other, rng = snapshot(state), np.random.default_rng(9)
    q, come = other.requests, int(other.system["next_arrival"][0])
    here = unfinished(other)
    q["output_tokens"][here] = q["emitted_tokens"][here] + rng.integers(1, 300, len(here))
    q["arrival_s"][come:] += 0.37
    q["prompt_tokens"][come:] = 77
    other.noise[:] *= 3.0
    return other


def test_imagined_futures_know_nothing_hidden():
    state = busy()
    end_s = float(state.system["now_s"][0]) + 5.0
    drawn = []
    for present in (state, hidden_otherwise(state)):
        futures, here = Futures(CHAT, 4), unfinished(present)
        futures.fill(present, here, Imagined(CHAT, futures, 5).draw(present, here, end_s))
        drawn.append(futures.states)
    n = int(drawn[0].system["num_requests"].max())
    for name in ("requests", "order", "rank"):
        mine, others = (getattr(states, name)[1:, ..., :n] for states in drawn)
        assert mine.tobytes() == others.tobytes(), name
    for name in ("system", "workers", "running", "queues", "noise", "clients"):
        assert getattr(drawn[0], name)[1:].tobytes() == getattr(drawn[1], name)[1:].tobytes(), name


def test_noise_of_imagined_futures_is_not_that_of_the_run():
    scenario = load_scenario("chat-bursty", ['system.service.setup_noise="exponential"'])
    state = single(new_states(scenario, 1, 8))
    state = single(load(new_states(scenario, 1, 500), 0, draw_workload(scenario, 5), 5))
    futures = Futures(scenario, 2)
    Imagined(scenario, futures, 5)
    assert futures.states.noise[1, 0].mean() == pytest.approx(1.0, abs=0.05)
    assert not np.isin(futures.states.noise[1, 0, :50], state.noise[0]).any()


def test_the_true_future_is_the_true_one():
    state = busy()
    futures, here = Futures(CHAT, 1), unfinished(state)
    now_s, come = float(state.system["now_s"][0]), int(state.system["next_arrival"][0])
    drawn = Known(futures).draw(state, here, now_s + 5.0)
    assert (drawn.output_tokens[0] == state.requests["output_tokens"][here]).all()
    coming = state.requests["arrival_s"][come:]
    assert drawn.counts[0] == ((coming > now_s) & (coming <= now_s + 5.0)).sum()


@pytest.mark.parametrize(
    ("system", "workload", "field"),
    [
        ({"workers": 2}, {}, "system.workers"),
        ({}, {"arrivals": ClosedLoopArrivals(users=3, think_s=1.0)}, "workload.arrivals"),
        ({}, {"clients": ClientSettings(count=3)}, "workload.clients"),
        ({}, {"sessions": SessionSettings()}, "workload.sessions"),
    ],
)
def test_systems_without_futures_are_refused(system, workload, field):
    scenario = Scenario(system=SystemSettings(**system), workload=WorkloadSettings(**workload))
    with pytest.raises(UserError, match=f"look-ahead: {field}"):
        Futures(scenario, 1)


def test_blank_arrivals_are_never_reached():
    state = busy()
    futures, here = Futures(CHAT, 6), unfinished(state)
    drawn = Imagined(CHAT, futures, 5).draw(state, here, float(state.system["now_s"][0]) + 5.0)
    beyond = np.arange(drawn.arrivals.shape[1]) >= drawn.counts[:, None]
    assert (drawn.arrivals["arrival_s"][beyond] == INF).all()
