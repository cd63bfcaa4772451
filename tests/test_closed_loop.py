"""llm_env/closed_loop.py: users who wait for their answers, by hand, against open loops, and against theory."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from numba import config
from toy import check_all, toy_scenario, toy_script

from baselines import make_policy
from llm_env.build import load, new_states, single
from llm_env.config import Scenario, with_changes
from llm_env.core import step
from llm_env.dtypes import ACTIVE, DRAINED, FINISHED, NEVER, NOBODY, REJECTED
from llm_env.records import State, decision
from llm_env.rollout import rollout
from llm_env.scenarios import load_scenario
from llm_env.view import make_view
from llm_env.workload import draw_workload
from llm_env.workload.generate import blank_requests

pytestmark = pytest.mark.kernel
EVERYTHING = decision(1000)


def played(
    users: Sequence[Sequence[tuple[float, int, int]]], d=EVERYTHING, changes: dict[str, Any] | None = None, **settings
) -> State:
    """A toy system run to its end by one decision, checked at every step. S(b) = 10 ms + b x 1 ms."""
    scenario = with_changes(toy_scenario(**settings), changes or {})
    requests = toy_script(users, scenario)
    state = single(load(new_states(scenario, 1, 1, True), 0, requests, 0))
    check_all(state)
    while state.system[0]["phase"] == ACTIVE:
        step(state, d)
        check_all(state)
        assert state.system[0]["epoch"] < 500
    return state


def asked(state: State) -> np.ndarray:
    return state.requests[: state.system[0]["num_requests"]]


def closed(users: int, think_s: float, **changes: Any) -> Scenario:
    arrivals = {"kind": "closed-loop", "users": users, "think_s": think_s}
    times = {"episode.arrivals_s": 200.0, "episode.warmup_s": 5.0, "episode.horizon_s": 2000.0}
    return with_changes(load_scenario("chat"), {"workload.arrivals": arrivals, **times, **changes})


# ---- by hand -------------------------------------------------------------------------------------------------------
@pytest.mark.nojit
def test_one_user_alone():
    # thinks until 1.000; prefill of 5 tokens until 1.015, two decodes of 11 ms until 1.037
    # thinks 0.5 s until 1.537; prefill of 10 tokens until 1.557; thinks 0.2 s; prefill of 1 token until 1.768
    state = played([[(1.0, 5, 3), (0.5, 10, 1), (0.2, 1, 1)]])
    assert state.system[0]["phase"] == DRAINED
    assert asked(state)["arrival_s"].tolist() == pytest.approx([1.0, 1.537, 1.757])
    assert asked(state)["finish_s"].tolist() == pytest.approx([1.037, 1.557, 1.768])


@pytest.mark.nojit
def test_two_users_share_a_worker():
    # 1.000: user 0, 5 tokens until 1.015. 1.010: user 1. 1.015: a decode and 10 tokens, 21 ms, until 1.036: user 1 is
    # served and thinks until 1.236; user 0 decodes until 1.047 and thinks until 1.547
    # 1.236: user 1, 3 tokens until 1.249, a decode until 1.260. 1.547: user 0, 5 tokens until 1.562
    state = played([[(1.0, 5, 3), (0.5, 5, 1)], [(1.01, 10, 1), (0.2, 3, 2)]])
    q = asked(state)
    assert q["client"].tolist() == [0, 1, 1, 0]
    assert q["row"].tolist() == [0, 2, 3, 1]
    assert q["arrival_s"].tolist() == pytest.approx([1.0, 1.01, 1.236, 1.547])
    assert q["finish_s"].tolist() == pytest.approx([1.047, 1.036, 1.26, 1.562])


@pytest.mark.nojit
@pytest.mark.parametrize(("end_s", "sent"), [(1.0, 0), (1.2, 1), (1.5, 2), (100.0, 3)])
def test_a_user_who_would_ask_at_the_end_or_later_stops(end_s, sent):
    # 15.625 + 0.9765625 ms x b is 1/64 s + b/1024 s, so the times are exact: asks at 1.0, 1.25 and 1.5
    users = [[(1.0, 1, 1), (0.25 - 17 / 1024, 1, 1), (0.25 - 17 / 1024, 1, 1)]]
    exact = {"setup_ms": 15.625, "per_token_ms": 0.9765625}
    state = played(users, changes={"episode.arrivals_s": end_s}, **exact)
    assert asked(state)["arrival_s"].tolist() == [1.0, 1.25, 1.5][:sent]
    assert state.system[0]["phase"] == DRAINED


@pytest.mark.nojit
def test_a_refused_user_thinks_from_the_refusal_on_also_while_all_workers_are_busy():
    # 4 blocks of 4 tokens: 17 tokens never fit. User 0 keeps the worker busy from 0.010 to 0.036; the refusals of user
    # 1 are at 0.011, 0.016 and 0.021, long before anybody looks at them
    state = played([[(0.01, 16, 1)], [(0.011, 17, 1), (0.005, 17, 1), (0.005, 17, 1), (0.005, 2, 1)]], blocks=4)
    q = asked(state)
    assert q["status"].tolist() == [FINISHED, REJECTED, REJECTED, REJECTED, FINISHED]
    assert q["arrival_s"].tolist() == pytest.approx([0.01, 0.011, 0.016, 0.021, 0.026])
    assert q["first_scheduled_s"][4] == pytest.approx(0.036)


@pytest.mark.nojit
def test_a_hold_ends_when_somebody_asks_and_not_before_if_all_wait():
    scenario = with_changes(toy_scenario(), {"system.max_hold_ms": 700.0})
    requests = toy_script([[(0.0, 1, 1)], [(0.5, 1, 1)]], scenario)
    state = single(load(new_states(scenario, 1, 1), 0, requests, 0))
    seen = []
    for _ in range(2):
        step(state, decision(10, hold_s=100.0))
        seen.append(float(state.system[0]["now_s"]))
    assert seen == [0.5, 1.2]


def test_users_whose_requests_lie_apart_are_taken_for_more_users():
    scenario = toy_scenario()
    requests = toy_script([[(0.0, 1, 1)], [(0.5, 1, 1)], [(0.5, 1, 1)]], scenario)
    requests["client"] = [0, 1, 0]
    with pytest.raises(ValueError, match="must lie together"):
        load(new_states(scenario, 1, 1), 0, requests, 0)


def test_somebody_asks_again_at_the_moment_of_an_answer():
    scenario = toy_scenario()
    with pytest.raises(ValueError, match="must think"):
        load(new_states(scenario, 1, 1), 0, toy_script([[(0.0, 1, 1), (0.0, 1, 1)]], scenario), 0)


# ---- on every path -------------------------------------------------------------------------------------------------
CLASSES = {
    "slo.classes": [
        {"name": "fast", "ttft_ms": 300.0, "tbt_ms": 100.0, "share": 0.5},
        {"name": "slow", "ttft_ms": 9000.0, "tbt_ms": 400.0, "share": 0.5, "weight": 0.5},
    ]
}
MEMORY = {"system.kv.blocks": 500, "system.workers": 2}
POOLS = {"system.workers": 3, "system.layout": "disaggregated", "system.prefill_workers": 1, "system.router": "shared"}
RUNS = [
    ("sarathi", CLASSES),
    ("vllm-v0", MEMORY),
    ("moore-hodgson", {**CLASSES, **MEMORY}),
    ("sarathi-spf", CLASSES),
    ("vtc", MEMORY),
    ("distserve", {**CLASSES, **POOLS, "system.kv.bytes_per_token": 100_000}),
]
WRITTEN_BEFORE = ("prompt_tokens", "output_tokens", "predicted_tokens", "slo_class", "ttft_target_s", "tbt_target_s")
WRITTEN_BEFORE += ("weight", "client", "declared_tokens", "arrival_s")
NOT_COMPARED = {"row", "think_s", "tenant"}  # places in the script or among its clients


@pytest.mark.parametrize(("name", "changes"), RUNS)
def test_the_same_arrivals_as_an_open_loop_run_otherwise(name, changes):
    """Ranks that are found one by one must be those of a sort of all: then every order gives the same bytes."""
    scenario = closed(60, 4.0, **changes)
    decide = make_policy(name)
    first = rollout(scenario, decide, draw_workload(scenario, 3), 3, record=True)
    q = asked(first)
    assert len(q) > 100
    replay = blank_requests(len(q))
    for field in WRITTEN_BEFORE:
        replay[field] = q[field]
    second = rollout(scenario, decide, replay, 3, record=True)
    for field in set(q.dtype.names or ()) - NOT_COMPARED:
        assert q[field].tobytes() == asked(second)[field].tobytes(), field
    n = first.system[0]["num_batches"]
    assert first.batch_log[:n].tobytes() == second.batch_log[: second.system[0]["num_batches"]].tobytes()


@pytest.mark.parametrize(("name", "changes"), RUNS)
def test_a_user_has_two_requests_at_once_or_another_thought_than_the_script_says(name, changes):
    scenario = closed(60, 4.0, **changes)
    script = draw_workload(scenario, 3)
    q = asked(rollout(scenario, make_policy(name), script, 3))
    assert (np.diff(q["arrival_s"]) >= 0).all()
    assert (q["arrival_s"] < scenario.episode.arrivals_s).all()
    for field in ("prompt_tokens", "output_tokens", "predicted_tokens", "slo_class", "think_s", "client"):
        assert (q[field] == script[field][q["row"]]).all()
    for user in range(60):
        mine, own = q[q["client"] == user], np.flatnonzero(script["client"] == user)
        assert mine["row"].tolist() == own[: len(mine)].tolist(), "not in the order of the script"
        ends_s = np.where(mine["status"] == REJECTED, mine["arrival_s"], mine["finish_s"])
        assert (mine["arrival_s"] == np.append(0.0, ends_s[:-1]) + mine["think_s"]).all()
        if len(mine) and ends_s[-1] != NEVER and len(own) > len(mine):
            assert ends_s[-1] + script["think_s"][own[len(mine)]] >= scenario.episode.arrivals_s, "stopped too early"


def final_hash() -> str:
    scenario = closed(9, 2.0, **CLASSES, **MEMORY, **{"episode.arrivals_s": 8.0})
    states = load(new_states(scenario, 1, 1), 0, draw_workload(scenario, 5), 5)
    state, decide = single(states), make_policy("moore-hodgson")
    while state.system[0]["phase"] == ACTIVE:
        step(state, decide(make_view(state)))
    return hashlib.sha256(state.requests.tobytes()).hexdigest()


@pytest.mark.skipif(bool(config.DISABLE_JIT), reason="compares with compiled code")
def test_compiled_and_plain_python_runs_end_in_the_same_bytes():
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1", "PYTHONPATH": paths}
    code = "from test_closed_loop import final_hash; print(final_hash())"
    plain = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert plain.stdout.strip() == final_hash()


def test_an_open_loop_after_a_closed_one_in_the_same_arrays_starts_anew():
    scenario, other = closed(20, 2.0), load_scenario("chat")
    script, rows = draw_workload(scenario, 1), draw_workload(other, 1)[:50]
    states = load(new_states(other, 1, 1), 0, script, 1)
    step(single(states), decision(512))
    states = load(states, 0, rows, 1)
    alone = load(new_states(other, 1, 1), 0, rows, 1)
    for _ in range(300):
        step(single(states), decision(512))
        step(single(alone), decision(512))
    assert states.requests[0, :50].tobytes() == alone.requests[0, :50].tobytes()
    assert states.system["num_requests"][0, 0] == 50


def test_a_system_that_makes_room_for_another_forgets_nothing():
    scenario = closed(20, 2.0)
    script, larger = draw_workload(scenario, 1), draw_workload(closed(200, 2.0), 2)
    alone = load(new_states(scenario, 1, 1), 0, script, 1)
    pair = load(new_states(scenario, 2, 1), 0, script, 1)
    for k in range(600):
        if k == 100:
            pair = load(pair, 1, larger, 2)
        step(single(alone), decision(512))
        step(single(pair), decision(512))
        check_all(single(pair)) if k % 50 == 0 else None
    n = alone.system["num_requests"][0, 0]
    assert n > 20
    assert pair.requests[0, :n].tobytes() == alone.requests[0, :n].tobytes()


# ---- theory --------------------------------------------------------------------------------------------------------
UNIT = {  # one token takes 1 s, exponential: with fcfs and one token a request, a server with exponential service
    "system.service": {"setup_ms": 1000.0, "per_token_ms": 0.0, "free_tokens": 0, "setup_noise": "exponential"},
    "workload.prompt": {"kind": "fixed", "tokens": 1},
    "workload.output": {"kind": "fixed", "tokens": 1},
}


def repairman(users: int, think_s: float, seconds: float, **changes: Any) -> Scenario:
    times = {"episode.arrivals_s": seconds, "episode.warmup_s": 0.0, "episode.horizon_s": 10 * seconds}
    return closed(users, think_s, **{**times, **UNIT, **changes})


def mean_value_analysis(users: int, think_s: float, service_s: float) -> tuple[float, float]:
    """Throughput and response time of a server with exponential service and users who think. Exact.

    The times of thought may have any distribution: users who think do not queue (a BCMP network).

    Source: Reiser and Lavenberg, "Mean-value analysis of closed multichain queuing networks" (JACM 27(2), 1980);
        Baskett et al., "Open, closed, and mixed networks of queues" (JACM 22(2), 1975), stations of type 3.
    """
    queue, throughput, response_s = 0.0, 0.0, 0.0
    for n in range(1, users + 1):
        response_s = service_s * (1.0 + queue)
        throughput = n / (think_s + response_s)
        queue = throughput * response_s
    return throughput, response_s


@pytest.mark.parametrize("users", [1, 2, 5, 12])
def test_the_machine_repairman_has_another_throughput_or_response_time(users):
    """Tolerance: 4.5 standard errors over 20 independent runs, each measured after its first tenth."""
    scenario, found = repairman(users, 4.0, 2000.0), []
    decide = make_policy("fcfs")
    for seed in range(20):
        q = asked(rollout(scenario, decide, draw_workload(scenario, seed), seed))
        late = q[(q["finish_s"] >= 200.0) & (q["finish_s"] < 2000.0)]
        found.append((len(late) / 1800.0, float((late["finish_s"] - late["arrival_s"]).mean())))
    means, errors = np.mean(found, axis=0), np.std(found, axis=0, ddof=1) / np.sqrt(len(found))
    expected = np.array(mean_value_analysis(users, 4.0, 1.0))
    assert (errors < 0.05 * expected).all(), "too few runs to tell anything"
    assert (np.abs(means - expected) <= 4.5 * errors).all(), (means, expected, errors)


@pytest.mark.parametrize("name", ["sarathi", "vllm-v1", "moore-hodgson"])
@pytest.mark.parametrize("users", [3, 30])
def test_the_response_time_law_fails(name, users):
    """R = N / X - Z.

    Every user's run is thoughts and responses without a gap, so over n answers to N users by the time T of the last
    one, N T = n (mean thought + mean response) + the time from each user's last answer to T. With this last term it is
    exact. Without it, and with the mean of the distribution for Z, the law is off by at most that term, less than one
    cycle a user, and the error of the mean of n thoughts: 4.5 Z cv / sqrt(n), cv^2 = exp(sigma^2) - 1.
    """
    think_s, sigma = 4.0, 0.5
    scenario = closed(users, think_s, **{"workload.arrivals.think_sigma": sigma, "episode.arrivals_s": 400.0})
    q = asked(rollout(scenario, make_policy(name), draw_workload(scenario, 7), 7))
    assert (q["status"] == FINISHED).all()
    n, end_s = len(q), q["finish_s"].max()
    last_s = np.array([q["finish_s"][q["client"] == user].max() for user in range(users)])
    response_s, thought_s = (q["finish_s"] - q["arrival_s"]).mean(), q["think_s"].mean()
    assert users * end_s == pytest.approx(n * (thought_s + response_s) + (end_s - last_s).sum(), rel=1e-9)
    law_s = users / (n / end_s) - think_s
    edge_s = (end_s - last_s).sum() / n
    noise_s = 4.5 * think_s * np.sqrt(np.expm1(sigma**2) / n)
    assert response_s - noise_s <= law_s <= response_s + edge_s + noise_s


def test_a_worker_rests_although_nobody_thinks():
    scenario = toy_scenario()
    users = [[(1e-6, 5, 4)] * 30 for _ in range(3)]
    state = rollout(scenario, make_policy("sarathi"), toy_script(users, scenario), 0)
    assert state.system[0]["num_finished"] == 90
    # idle until the first arrival and once per moment at which all three think
    assert state.system[0]["now_s"] - state.system[0]["busy_s"] <= 31 * 3 * 1e-6


def test_more_users_lower_the_throughput():
    decide, rates = make_policy("sarathi"), []
    for users in (1, 4, 16, 64, 256):
        scenario = closed(users, 4.0)
        q = asked(rollout(scenario, decide, draw_workload(scenario, 2), 2))
        rates.append(int(((q["finish_s"] > 20.0) & (q["finish_s"] <= 200.0)).sum()))
    # the last two are both at capacity: the same but for the lengths that happen to be asked for, 4.5 standard errors
    # of a Poisson count
    assert all(a < b for a, b in pairwise(rates[:4])), rates
    assert rates[4] > rates[3] - 4.5 * np.sqrt(rates[3]), rates


def test_nobody_is_served_as_a_conversation():
    q = draw_workload(closed(5, 4.0), 0)
    assert (q["session"] == NOBODY).all()
    assert (q["previous"] == NOBODY).all()
