"""A recorded run is the run itself, and what it says of every batch is what the kernel's own log says."""

from __future__ import annotations

import math

import numpy as np
import pytest
from golden_runs import SYSTEMS, policy_of, requests_of, scenario_of
from toy import toy_requests, toy_scenario

import agents
from agents.run import run_agent
from llm_env.actions import BUDGET_LEVELS, MIX_HALF, MOST_FLOATS, MULTIDISCRETE
from llm_env.build import load, new_states, single
from llm_env.choices import choice_of_action
from llm_env.config import with_changes
from llm_env.dtypes import FINISHED, FUTURE
from llm_env.errors import UserError
from llm_env.recorder import ENTRY, SAMPLE, Recording, record_agent, record_run
from llm_env.rollout import rollout
from llm_env.scenarios import load_scenario
from llm_env.workload import blank_requests, draw_workload

ROLES = {  # pools that change, by swapping
    "system.layout": "disaggregated",
    "system.workers": 4,
    "system.prefill_workers": 2,
    "system.roles": {"change": True, "switch_ms": 50.0},
    "system.kv.blocks": 180,
}
CASES = [
    ("one worker", "sarathi", {}),  # chunked prefill
    ("one worker", "vllm-v0", {}),  # prefill or decode
    ("evictions", "vllm-v1", {}),
    ("evictions", "sglang", {}),
    ("evictions", "distserve", {}),  # swaps
    ("evictions", "fastserve", {}),
    ("three workers, round-robin", "moore-hodgson", {}),
    ("disaggregated", "distserve", {}),  # migrations
    ("disaggregated, routed, tight", "vllm-v1", {}),
    ("disaggregated", "role-switch", ROLES),
    ("parallel prefill", "sarathi", {}),
    ("parallel prefill, routed, tight", "vllm-v1", {}),
    ("prefix cache, sticky", "sarathi", {}),
    ("rule max, the horizon comes first", "sarathi", {}),
    ("noise, three workers", "sarathi", {}),
    ("closed loop", "sarathi", {}),
    ("short holds", "wait", {}),
]


def recorded(case, until_s=math.inf):
    """Recording and final State of one of CASES."""
    system, policy, changes = case
    scenario = with_changes(scenario_of(SYSTEMS[system]), changes)
    requests = requests_of(SYSTEMS[system], scenario)
    decide = policy_of(policy)
    before = requests.tobytes()
    recording = record_run(scenario, decide, requests, 3, until_s)
    assert requests.tobytes() == before, "the workload was changed"
    return recording, rollout(scenario, decide, requests, 3, record=True)


def test_the_recorded_run_of_an_agent_is_another_than_that_of_a_study():
    scenario = with_changes(load_scenario("chat-bursty"), {"episode.arrivals_s": 30.0, "episode.warmup_s": 0.0})
    agent, seeds = agents.load("chat-bursty"), (11, 12, 13)
    assert isinstance(agent, agents.NumpyAgent)
    recording = record_agent(scenario, agent, lambda seed: draw_workload(scenario, seed), seeds)
    state = run_agent(agent, scenario, seeds).state(0)
    system = state.system[0]
    requests = state.requests[: system["num_requests"]]
    assert recording.requests.tobytes() == requests[np.argsort(requests["row"], kind="stable")].tobytes()
    assert recording.batches.tobytes() == state.batch_log[: system["num_batches"]].tobytes()
    held = np.bincount(recording.entries["batch"], weights=recording.entries["prefill"])
    assert held.tolist() == recording.batches["prefill_tokens"].tolist()
    assert len(recording.choices) == len(recording.samples) == system["epoch"]


def test_choices_are_not_those_that_formed_the_batches():
    recording, _ = recorded(("one worker", "sarathi", {}))
    choices, batches = recording.choices, recording.batches
    assert set(choices["token_budget"]) == {512}
    began = np.isin(choices["time_s"], batches["start_s"])
    assert choices["time_s"][began].tolist() == batches["start_s"].tolist()
    assert (np.diff(choices["time_s"]) >= 0).all()
    assert (choices["num_waiting"] == recording.samples["num_waiting"]).all()  # one queue: the View's and the system's
    assert (choices["kv_used"] == recording.samples["kv_used"]).all()


@pytest.mark.nojit
def test_the_budget_of_an_action_is_not_the_one_that_it_means():
    scenario = toy_scenario()
    states = load(new_states(scenario, 1, 4, record=True), 0, toy_requests([(0.0, 100, 3)], scenario), 0)
    state, floats = single(states), np.zeros(MOST_FLOATS)
    budget = float(state.system[0]["slo_budget"])
    for level, factor in enumerate(BUDGET_LEVELS):
        made = choice_of_action(state, MULTIDISCRETE, np.array([level, MIX_HALF, 0, 0]), floats)
        assert made["token_budget"][0] == max(1, int(budget * factor))
        assert made["prefill_tokens"][0] == max(1, made["token_budget"][0] // 2)
        assert made["chunk_tokens"][0] == 128


def sums(recording, name=None):
    """Of the entries of each batch: how many, or their tokens."""
    weights = None if name is None else recording.entries[name]
    return np.bincount(recording.entries["batch"], weights, len(recording.batches))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}: {case[1]}")
def test_entries_are_not_those_of_the_batch_or_recording_changes_the_run(case):
    recording, state = recorded(case)
    system = state.system[0]
    requests = state.requests[: system["num_requests"]]
    assert recording.requests.tobytes() == requests[np.argsort(requests["row"], kind="stable")].tobytes()
    assert recording.batches.tobytes() == state.batch_log[: system["num_batches"]].tobytes()
    assert recording.end_s == system["now_s"]
    assert len(recording.samples) == system["epoch"]
    assert case[2] is not ROLES or system["num_switches"] > 0, "the case does not show what it is for"
    assert case[0] != "evictions" or recording.requests["evictions"].any(), "the case does not show what it is for"
    assert (sums(recording) == recording.batches["num_requests"]).all()
    assert (sums(recording, "prefill") == recording.batches["prefill_tokens"]).all()
    assert (sums(recording, "decode") == recording.batches["decode_tokens"]).all()
    entries = recording.entries
    assert (np.diff(entries["batch"]) >= 0).all()
    assert ((entries["prefill"] > 0) != (entries["decode"] > 0)).all(), "an entry is prefill or decode"
    assert len(np.unique(entries[["batch", "row"]])) == len(entries), "a request is in one batch twice"


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}: {case[1]}")
def test_tokens_are_given_to_another_request(case):
    recording, _ = recorded(case)
    requests, entries = recording.requests, recording.entries
    places = np.searchsorted(requests["row"], entries["row"])
    prefill, decode = (np.bincount(places, entries[name], len(requests)) for name in ("prefill", "decode"))
    plain = (requests["status"] == FINISHED) & (requests["evictions"] == 0)
    assert plain.any()
    assert (prefill[plain] == (requests["prompt_tokens"] - requests["hit_tokens"])[plain]).all()
    assert (decode[plain] == requests["output_tokens"][plain] - 1).all()
    assert (prefill[requests["status"] == FUTURE] == 0).all()
    starts = np.full(len(requests), math.inf)
    np.minimum.at(starts, places, recording.batches["start_s"][entries["batch"]])
    began = np.isfinite(starts)
    assert (starts[began] == requests["first_scheduled_s"][began]).all()


@pytest.mark.nojit
def test_a_small_run_is_not_recorded_as_it_goes_by_hand():
    scenario = toy_scenario(blocks=16)  # S(b) = 10 ms + b x 1 ms, blocks of 4 tokens
    requests = toy_requests([(0.0, 12, 2), (0.001, 4, 1)], scenario)
    recording = record_run(scenario, policy_of("sarathi token_budget=8"), requests, 0)
    batches = [(0, 0, 8, 0), (1, 0, 4, 0), (1, 1, 4, 0), (2, 0, 0, 1)]
    assert recording.entries.tolist() == batches
    assert recording.batches["end_s"].tolist() == pytest.approx([0.018, 0.036, 0.047])
    times, waiting, running, used = (recording.samples[name].tolist() for name in SAMPLE.names or ())
    assert times == pytest.approx([0.0, 0.018, 0.036])
    assert (waiting, running) == ([1, 1, 0], [0, 1, 1])
    assert used == pytest.approx([0.0, 3 / 16, 3 / 16])  # sarathi takes all blocks of a prompt at once
    assert recording.end_s == pytest.approx(0.047)


def test_a_part_of_a_run_is_not_its_beginning():
    case = CASES[0]
    (whole, _), (part, _) = recorded(case), recorded(case, 4.0)
    n, m = len(part.batches), len(part.entries)
    assert 0 < n < len(whole.batches)
    assert part.batches.tobytes() == whole.batches[:n].tobytes()
    assert part.entries.tobytes() == whole.entries[:m].tobytes()
    assert part.samples.tobytes() == whole.samples[: len(part.samples)].tobytes()
    assert part.samples["time_s"][-1] < 4.0 <= part.end_s
    assert (part.requests["status"] == FUTURE).any()


def test_a_run_without_requests_cannot_be_recorded():
    scenario = toy_scenario()
    recording = record_run(scenario, policy_of("sarathi"), blank_requests(0), 0)
    assert [len(part) for part in recording[:4]] == [0, 0, 0, 0]
    assert (recording.entries.dtype, recording.samples.dtype) == (ENTRY, SAMPLE)
    assert isinstance(recording, Recording)


@pytest.mark.parametrize("until_s", [0.0, -1.0, math.nan])
def test_an_impossible_end_is_accepted(until_s):
    scenario = toy_scenario()
    with pytest.raises(UserError, match="until_s: expected seconds above 0"):
        record_run(scenario, policy_of("sarathi"), toy_requests([(0.0, 4, 1)], scenario), 0, until_s)
