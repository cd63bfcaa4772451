"""Batching studies, batch by batch: fixed sizes, dynamic sizes, static chunks, admission caps; and that no policy keeps
anybody waiting for ever, whatever the system."""

from __future__ import annotations

import numpy as np
import pytest
from play import chat_scenario, play, view_of

import baselines
from llm_env.config import Scenario, with_changes
from llm_env.dtypes import FINISHED, REJECTED
from llm_env.errors import UserError
from llm_env.rollout import rollout
from llm_env.scenarios import load_scenario
from llm_env.workload import draw_workload

NAMES = tuple(baselines.POLICIES)


# ---- fixed sizes ---------------------------------------------------------------------------------------------------
def test_fixed_batch_waits_for_its_size_and_runs_to_its_end():
    rows = [(0, 4, 3), (30, 4, 2), (35, 4, 1)]
    got = play("fixed-batch", rows, parameters={"batch_requests": 2, "timeout_ms": 100.0})
    assert got.batches == [[(0, 4), (1, 4)], [(0, 1), (1, 1)], [(0, 1)], [(2, 4)]]
    assert got.starts_ms == [30.0, 48.0, 60.0, 135.0]  # the third waits from 35 ms on for a fourth that never comes


def test_fixed_batch_may_join_running_decodes_when_it_is_full():
    rows = [(0, 4, 3), (30, 4, 2), (35, 4, 1), (40, 4, 1)]
    parameters = {"batch_requests": 2, "timeout_ms": 100.0, "join": True}
    got = play("fixed-batch", rows, parameters=parameters)
    assert got.batches == [[(0, 4), (1, 4)], [(0, 1), (1, 1), (2, 4), (3, 4)], [(0, 1)]]
    alone = play("fixed-batch", rows[:3], parameters=parameters)  # one is no full batch, but decodes go on
    assert alone.batches == [[(0, 4), (1, 4)], [(0, 1), (1, 1)], [(0, 1)], [(2, 4)]]


def test_fixed_batch_can_be_a_number_of_tokens():
    rows = [(0, 6, 1), (10, 3, 1), (20, 3, 1)]
    got = play("fixed-batch", rows, parameters={"batch_requests": 0, "batch_tokens": 12, "timeout_ms": 100.0})
    assert got.batches == [[(0, 6), (1, 3), (2, 3)]]
    assert got.starts_ms == [20.0]


def test_fixed_batch_needs_a_size():
    with pytest.raises(UserError, match="one of them must be above 0"):
        baselines.make_policy("fixed-batch", batch_requests=0)


# ---- dynamic sizes -------------------------------------------------------------------------------------------------
def test_dynamic_batch_waits_no_longer_than_its_delay():
    parameters = {"preferred_requests": 2, "max_delay_ms": 30.0}
    got = play("dynamic-batch", [(0, 4, 1)], parameters=parameters)
    assert got.starts_ms == [30.0]
    got = play("dynamic-batch", [(0, 4, 1), (5, 4, 1)], parameters=parameters)
    assert got.batches == [[(0, 4), (1, 4)]]
    assert got.starts_ms == [5.0]


def test_dynamic_batch_does_not_delay_decodes():
    parameters = {"preferred_requests": 2, "max_delay_ms": 30.0}
    got = play("dynamic-batch", [(0, 4, 3), (0, 4, 1), (1, 4, 1)], parameters=parameters)
    # at 18 ms the third has waited 17 ms: the decode goes without it; at 29 ms too; at 40 ms it is alone and joins
    assert got.batches == [[(0, 4), (1, 4)], [(0, 1)], [(0, 1)], [(2, 4)]]


def test_dynamic_batch_grows_its_cap_with_full_quick_batches():
    # 6 tokens take 16 ms, within the 20 ms target: the next cap is 8, which takes 18 ms, then 10
    parameters = {"preferred_requests": 1, "first_tokens": 6, "step_tokens": 2}
    got = play("dynamic-batch", [(0, 30, 1)], parameters=parameters)
    assert got.batches[:3] == [[(0, 6)], [(0, 8)], [(0, 10)]]


def test_dynamic_batch_backs_off_by_a_tenth_and_once_per_batch():
    decide = baselines.make_policy("dynamic-batch", preferred_requests=1, target_ms=50.0)
    slow = {"last_batch_s": 0.06, "last_batch_tokens": 200, "num_waiting": 1}
    assert decide(view_of(**slow, memory=200.0)).token_budget == 180
    assert decide(view_of(**slow, memory=-200.0)).token_budget == 200  # since then it has only held
    quick = {"last_batch_s": 0.04, "num_waiting": 1}
    assert decide(view_of(**quick, last_batch_tokens=200, memory=200.0)).token_budget == 216
    assert decide(view_of(**quick, last_batch_tokens=150, memory=200.0)).token_budget == 200  # was not full


# ---- static chunks and admission caps ------------------------------------------------------------------------------
def test_static_chunk_gives_prompts_the_same_share_however_many_decode():
    parameters = {"chunk_tokens": 4, "batch_tokens": 6}
    got = play("static-chunk", [(0, 10, 3), (0, 10, 1)], parameters=parameters)
    assert got.batches == [[(0, 4), (1, 2)], [(0, 4), (1, 2)], [(0, 2), (1, 4)], [(0, 1), (1, 2)], [(0, 1)]]


@pytest.mark.parametrize("name", ["sarathi", "sarathi-spf", "moore-hodgson", "hrrn"])
def test_chunk_tokens_caps_the_chunk_of_one_prompt(name):
    got = play(name, [(0, 9, 1), (0, 9, 1)], parameters={"token_budget": 10, "chunk_tokens": 4})
    assert got.batches[0] == [(0, 4), (1, 4)]


@pytest.mark.parametrize(
    "name", [n for n in NAMES if any(p.name == "max_running" for p in baselines.policy_info(n).parameters)]
)
def test_max_running_caps_admission(name):
    parameters = {"max_running": 2}
    if name == "rad":
        parameters["tile"] = 1
    got = play(name, [(0, 4, 3)] * 5, parameters=parameters)
    at_once = [len({i for i, _ in entries}) for entries in got.batches]
    assert max(at_once) <= 2


# ---- nobody waits for ever -----------------------------------------------------------------------------------------
SYSTEMS = {
    "one worker": {},
    "short of memory": {"system.kv": {"blocks": 180}},
    "two routed workers": {"system.workers": 2, "system.router": "least-tokens", "system.kv": {"blocks": 400}},
    "disaggregated": {
        "system.workers": 3,
        "system.layout": "disaggregated",
        "system.prefill_workers": 1,
        "system.kv": {"blocks": 400},
    },
    "parallel prefill": {"system.workers": 2, "system.layout": "parallel-prefill", "system.kv": {"blocks": 400}},
}


def drained(name: str, scenario: Scenario, seed: int) -> np.ndarray:
    """REQUEST of a whole run of a policy with its defaults."""
    state = rollout(scenario, baselines.make_policy(name), draw_workload(scenario, seed), seed)
    return state.requests[: int(state.system["num_requests"][0])]


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("name", NAMES)
def test_every_policy_drains_a_finite_workload(name, system):
    scenario = chat_scenario(load_scenario("chat"), 20.0, **SYSTEMS[system])
    requests = drained(name, with_changes(scenario, {"workload.load": 1.2}), 11)
    assert len(requests) > 20
    assert ((requests["status"] == FINISHED) | (requests["status"] == REJECTED)).all()
    assert (requests["status"] == FINISHED).sum() > 20
