"""llm_env/ranking.py and what orders.py makes of scores: candidates change places among themselves, and nobody else."""

from __future__ import annotations

from math import isnan, log1p, log10

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import formed, running_of, toy_state

import baselines
from llm_env.actions import RANKED, to_decision
from llm_env.adaptive import NAMES, NEUTRAL, to_unit
from llm_env.config import with_changes
from llm_env.core import step
from llm_env.dtypes import ACTIVE, RUNNING, WAITING
from llm_env.features import NUM_FEATURES
from llm_env.ranking import (
    CANDIDATE_FEATURES,
    NUM_REQUEST_FEATURES,
    REQUEST_FEATURES,
    observe_candidates,
    observed,
    write_scores,
)
from llm_env.records import MOORE_HODGSON, MOST_RANKED, decision, snapshot
from llm_env.rollout import rollout
from llm_env.scenarios import load_scenario
from llm_env.systems import Systems
from llm_env.workload import draw_workload

pytestmark = pytest.mark.kernel
nojit = pytest.mark.nojit

NAMED = [name for name, *_ in REQUEST_FEATURES]
CLASSES = [
    {"name": "fast", "ttft_ms": 1000.0, "tbt_ms": 100.0, "weight": 4.0, "share": 0.3},
    {"name": "slow", "ttft_ms": 8000.0, "tbt_ms": 500.0, "share": 0.7},
]


def order_of(state, ranked, budget=10_000):
    """Requests of the batch that Moore-Hodgson forms, in its order; the scores are those of the State."""
    return [i for i, _ in formed(state, decision(budget, order=MOORE_HODGSON, ranked=ranked))]


def with_scores(state, scores):
    copy = snapshot(state)
    write_scores(copy, np.array([*scores, *[0.0] * (MOST_RANKED - len(scores))]))
    return copy


def candidates_of(state):
    """Partly prefilled prompts in list order, feasible waiting requests by deadline; the first MOST_RANKED."""
    r, now_s = state.requests, state.system[0]["now_s"]
    waiting = [i for i in range(state.system[0]["num_requests"]) if r[i]["status"] == WAITING]
    on_time = [i for i in waiting if r[i]["latest_start_s"] >= now_s]
    partial = [i for i in running_of(state) if r[i]["computed_tokens"] < r[i]["prefill_tokens"]]
    return [*partial, *sorted(on_time, key=lambda i: (r[i]["arrival_s"] + r[i]["ttft_target_s"], i))][:MOST_RANKED]


# ---- places --------------------------------------------------------------------------------------------------------
@nojit
def test_scores_change_places_by_hand():
    # deadlines 0.1, 0.2, 0.3, 0.4 s and room for all: Moore-Hodgson serves 0, 1, 2, 3
    state = toy_state([(0.0, 3, 1)] * 4, [0.1, 0.2, 0.3, 0.4])
    assert order_of(state, 0) == order_of(state, 1) == [0, 1, 2, 3]
    assert order_of(with_scores(state, [0.5, 0.5, 0.5, 0.5]), 1) == [0, 1, 2, 3]
    # j - 8 x score: 0, 1, 2, 3 - 8 x 0.3 = 0.6
    assert order_of(with_scores(state, [0.0, 0.0, 0.0, 0.3]), 1) == [0, 3, 1, 2]
    assert order_of(with_scores(state, [-1.0, 0.0, 0.5, 1.0]), 1) == [3, 2, 1, 0]
    assert order_of(with_scores(state, [-9.0, 0.0, 0.5, 9.0]), 1) == [3, 2, 1, 0], "beyond the box not clipped"
    assert order_of(with_scores(state, [-1.0, 0.0, 0.5, 1.0]), 0) == [0, 1, 2, 3], "nobody asked for it"


@nojit
def test_candidates_may_be_turned_round_altogether_and_the_others_stay():
    count = MOST_RANKED + 3
    state = toy_state([(0.0, 1, 1)] * count, [0.5 + 0.01 * k for k in range(count)], max_running=count)
    expected = [*reversed(range(MOST_RANKED)), *range(MOST_RANKED, count)]
    assert order_of(with_scores(state, np.linspace(-1, 1, MOST_RANKED)), 1) == expected


@nojit
def test_partly_prefilled_prompts_are_the_first_candidates():
    # request 0 is partly prefilled and due between the others
    state = toy_state([(0.0, 30, 1), (0.001, 4, 1), (0.001, 4, 1)], [0.5, 0.3, 0.7])
    step(state, decision(5))
    assert state.requests[0]["status"] == RUNNING
    assert order_of(with_scores(state, [0.0, 0.0, 0.0]), 1) == [1, 0, 2]
    assert order_of(with_scores(state, [1.0, -1.0, 0.0]), 1) == [0, 2, 1]


@nojit
def test_who_was_evicted_meanwhile_has_no_score():
    # 5 blocks of 4: request 0 decodes and needs one more, so that request 1 goes, which is partly prefilled
    state = toy_state([(0.0, 4, 9), (0.0, 20, 1), (0.001, 3, 1)], blocks=6, ttft_ms=1000.0)
    step(state, decision(23))
    assert running_of(state) == [0, 1]
    scored = with_scores(state, [1.0, -1.0])
    d = decision(30, order=MOORE_HODGSON, ranked=1)
    assert formed(scored, d) == [(0, 1)]


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.tuples(st.floats(0, 0.2), st.integers(1, 60), st.just(1)), min_size=1, max_size=24),
    ttft=st.lists(st.floats(0.02, 0.6), min_size=24, max_size=24),
    scores=st.lists(st.floats(-1, 1), min_size=MOST_RANKED, max_size=MOST_RANKED),
    steps=st.integers(0, 4),
)
def test_places_are_those_of_a_plain_sort(rows, ttft, scores, steps):
    state = toy_state(sorted(rows), ttft[: len(rows)], max_running=30)
    for _ in range(steps):
        if state.system[0]["phase"] == ACTIVE:
            step(state, decision(7, order=MOORE_HODGSON))
    if state.system[0]["phase"] != ACTIVE:
        return
    before, candidates = order_of(state, 0), candidates_of(state)
    places = [k for k, i in enumerate(before) if i in candidates]
    score = dict(zip(candidates, scores, strict=False))
    keys = {before[place]: j - MOST_RANKED / 2 * score[before[place]] for j, place in enumerate(places)}
    expected = list(before)
    for place, i in zip(places, sorted(keys, key=lambda i: keys[i]), strict=True):
        expected[place] = i
    assert order_of(with_scores(state, scores), 1) == expected


@pytest.mark.parametrize("score", [0.0, -0.7])
def test_equal_scores_decide_as_the_adaptive_rule_bit_for_bit(score):
    changes = {"episode.arrivals_s": 20.0, "episode.warmup_s": 2.0, "workload.load": 1.1}
    changes |= {"system.kv.blocks": 900, "slo.classes": CLASSES}
    scenario = with_changes(load_scenario("chat-bursty"), changes)
    requests = draw_workload(scenario, 5)
    numbers = [0.5 if name in ("fill", "class_weight") else p for name, p in zip(NAMES, NEUTRAL, strict=True)]
    other = rollout(scenario, baselines.make_policy("adaptive", fill=0.5, class_weight=0.5), requests, 5)
    systems = Systems([scenario], 1, "ranked")
    systems.reset(0, 5)
    systems.set_actions(np.concatenate([np.full(MOST_RANKED, score), to_unit(numbers)])[None])
    while systems.active()[0]:
        assert systems.step(systems.active()).observations.shape == (1, NUM_FEATURES + len(CANDIDATE_FEATURES))
    assert systems.state(0).requests[: len(requests)].tobytes() == other.requests.tobytes()


def test_ranking_saves_what_the_rule_would_drop():
    """Of two prompts one can be on time: Moore-Hodgson serves the shorter, an agent may save the one that weighs 5."""
    earned = {}
    for scores in ([0.0, 0.0], [1.0, -1.0]):
        state = toy_state([(0.0, 40, 1), (0.0, 30, 1)], ttft_ms=100.0, fields={"weight": [5.0, 1.0]})
        floats = np.concatenate([scores, np.zeros(MOST_RANKED - 2), to_unit(NEUTRAL)])
        total = 0.0
        while state.system[0]["phase"] == ACTIVE:
            step(state, to_decision(state, RANKED, np.zeros(4, np.int64), floats))
            total += float(state.system[0]["step_first_token"])
        earned[scores[0]] = total
    assert earned == {0.0: 1.0, 1.0: 5.0}


# ---- what is seen --------------------------------------------------------------------------------------------------
def seen(state):
    out = np.full(MOST_RANKED * NUM_REQUEST_FEATURES + 2, np.nan, np.float32)
    observe_candidates(state, out)
    assert np.isnan(out[-2:]).all(), "more is written than there are features"
    return out[:-2].reshape(MOST_RANKED, NUM_REQUEST_FEATURES)


def expected_row(state, c, candidates):
    s, r = state.system[0], state.requests[candidates[c]]
    left = {i: int(state.requests[i]["prefill_tokens"] - state.requests[i]["computed_tokens"]) for i in candidates}
    mine, ahead = left[candidates[c]], sum(left[i] for i in candidates[: c + 1])
    due_s = r["last_token_s"] + r["tbt_target_s"] if r["emitted_tokens"] else r["arrival_s"] + r["ttft_target_s"]
    predicted = float(r["predicted_tokens"])
    return {
        "present": 1.0,
        "place": c / 16,
        "partial": r["computed_tokens"] / r["prefill_tokens"],
        "tokens": log1p(mine) / 12,
        "seconds": mine * 0.002 / r["ttft_target_s"],  # S(10) = 20 ms
        "slack": (due_s - s["now_s"] - mine * 0.002) / r["ttft_target_s"],
        "age": (s["now_s"] - r["arrival_s"]) / r["ttft_target_s"],
        "ahead": ahead * 0.002 / max(due_s - s["now_s"], 1e-9),
        "weight": r["weight"],
        "declared": log1p(r["declared_tokens"]) / 12,
        "predicted": 0.0 if isnan(predicted) else log1p(predicted) / 12,
        "ttft_target": log10(r["ttft_target_s"] / 0.1),
        "tbt_target": log10(r["tbt_target_s"] / 0.02),
        "kv": _missing_blocks(r) / max(1, state.workers[0]["free_blocks"]) if s["kv_limited"] else 0.0,
    }


def _missing_blocks(r):
    return max(0, -(-int(r["prefill_tokens"]) // 4) - int(r["blocks"]))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), steps=st.integers(0, 12), blocks=st.sampled_from([None, 40]))
def test_each_candidate_is_seen_as_a_look_at_it_says(seed, steps, blocks):
    rng, n = np.random.default_rng(seed), 26
    rows = list(zip(np.sort(rng.uniform(0, 0.2, n)), rng.integers(1, 60, n), rng.integers(1, 9, n), strict=True))
    fields = {"weight": rng.integers(1, 5, n) / 4, "predicted_tokens": rng.choice((np.nan, 3.0, 900.0), n)}
    fields |= {"tbt_target_s": rng.choice((0.02, 0.2), n)}
    state = toy_state(rows, rng.uniform(0.05, 0.9, n).tolist(), fields=fields, blocks=blocks)
    for _ in range(steps):
        if state.system[0]["phase"] == ACTIVE:
            step(state, decision(int(rng.integers(1, 20)), order=MOORE_HODGSON))
    if state.system[0]["phase"] != ACTIVE:
        return
    candidates, found = candidates_of(state), seen(state)
    assert (found[len(candidates) :] == 0.0).all()
    for c in range(len(candidates)):
        for k, (name, low, high, _) in enumerate(REQUEST_FEATURES):
            wanted = min(max(expected_row(state, c, candidates)[name], low), high)
            assert found[c, k] == pytest.approx(wanted, abs=1e-5), name


@nojit
def test_what_is_seen_under_each_form_of_action():
    assert len(observed("box")) == NUM_FEATURES
    names = [name for name, *_ in observed("ranked")]
    assert len(names) == len(set(names)) == NUM_FEATURES + MOST_RANKED * NUM_REQUEST_FEATURES
    assert names[NUM_FEATURES : NUM_FEATURES + 2] == ["request_0_present", "request_0_place"]
    state = toy_state([(0.0, 5, 3)] * 2)
    before = snapshot(state)
    assert seen(state)[:, NAMED.index("present")].tolist() == [1.0, 1.0] + [0.0] * (MOST_RANKED - 2)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(before, state, strict=True)), "looking changed something"
