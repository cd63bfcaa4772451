"""llm_env/actions.py: what actions mean, that none of them stops serving, and that masks hide only doubles."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import batch_of, check_all, toy_requests, toy_scenario, toy_state

from baselines import make_policy
from llm_env.actions import (
    ADAPTIVE,
    BOX,
    BOX_NAMES,
    BUDGET_LEVELS,
    CHUNK_LEVELS,
    DISCRETE,
    DISCRETE_TABLE,
    MASK_LENGTH,
    MIX_DECODE,
    MIX_FULL,
    MIX_HALF,
    MIX_PREFILL_FIRST,
    MIXES,
    MULTIDISCRETE,
    NVEC,
    ORDERS,
    describe,
    mask_actions,
    to_decision,
)
from llm_env.adaptive import NAMES
from llm_env.batching import form_batch
from llm_env.build import load, new_states, single
from llm_env.config import with_changes
from llm_env.core import step
from llm_env.dtypes import ACTIVE, DRAINED, FINISHED
from llm_env.features import NUM_FEATURES
from llm_env.part import Form, Part
from llm_env.records import DECODES_FIRST, FCFS, MOORE_HODGSON, PREFILL_FIRST, UNLIMITED, snapshot
from llm_env.reward import reward_weights
from llm_env.rollout import step_all
from llm_env.scenarios import load_scenario
from llm_env.view import make_view
from llm_env.workload import draw_workload

pytestmark = pytest.mark.kernel
nojit = pytest.mark.nojit

NO_FLOATS = np.zeros(4)
NO_INTEGERS = np.zeros(4, np.int64)
EXACT = BUDGET_LEVELS.index(1.0)


def from_levels(state, *levels):
    return to_decision(state, MULTIDISCRETE, np.array(levels, np.int64), NO_FLOATS)


def from_box(state, *floats):
    return to_decision(state, BOX, NO_INTEGERS, np.array(floats, np.float64))


# ---- what an action means ------------------------------------------------------------------------------------------
@nojit
def test_the_budgets_are_fractions_of_tau_star_and_one_of_them_is_exactly_it():
    # 64 + (150 - 45.5) / 0.3 = 412.33 tokens
    state = toy_state([(0.0, 5, 5)], setup_ms=45.5, per_token_ms=0.3, free_tokens=64, tbt_ms=150.0)
    budgets = [from_levels(state, level, MIX_FULL, 2, 0).token_budget for level in range(len(BUDGET_LEVELS))]
    assert budgets == [103, 206, 288, 350, 412, 515, 824, 2061]
    assert budgets[EXACT] == int(state.system[0]["slo_budget"])
    assert from_box(state, 0, 0, 0, 0).token_budget == 412


@nojit
def test_the_smallest_budget_is_one_token():
    state = toy_state([(0.0, 5, 5)], tbt_ms=5.0)  # below the setup time
    for levels in product(*map(range, NVEC)):
        d = from_levels(state, *levels)
        assert d.token_budget >= 1
        assert d.prefill_tokens >= 1


@nojit
def test_mixes_chunks_and_orders():
    state = toy_state([(0.0, 4, 9), (0.0, 30, 2)], max_running=4)  # tau* is 10
    step(state, from_levels(state, EXACT, MIX_FULL, 2, 0))
    assert state.workers[0]["num_partial"] == 1  # request 0 decodes, 1 has 24 of 30 left
    prefill = {mix: from_levels(state, EXACT, mix, 2, 0).prefill_tokens for mix in range(len(MIXES))}
    assert prefill == {MIX_DECODE: 0, MIX_HALF: 5, MIX_FULL: 10, MIX_PREFILL_FIRST: 10}
    assert from_levels(state, EXACT, MIX_FULL, 2, 0).packing == DECODES_FIRST
    assert from_levels(state, EXACT, MIX_PREFILL_FIRST, 2, 0).packing == PREFILL_FIRST
    assert [from_levels(state, 0, 0, chunk, 0).chunk_tokens for chunk in range(3)] == list(CHUNK_LEVELS)
    assert [from_levels(state, 0, 0, 0, order).order for order in range(5)] == list(ORDERS)


@nojit
def test_a_worker_without_decodes_prefills_even_if_the_action_favours_decodes():
    state = toy_state([(0.0, 30, 2)])
    assert from_levels(state, EXACT, MIX_DECODE, 2, 0).prefill_tokens == 10


@nojit
def test_a_discrete_action_means_its_line_of_the_table():
    state = toy_state([(0.0, 30, 2)])
    for index, levels in enumerate(DISCRETE_TABLE):
        action = np.array([index, 0, 0, 0], np.int64)
        assert to_decision(state, DISCRETE, action, NO_FLOATS) == from_levels(state, *levels)
    assert len(set(DISCRETE_TABLE)) == len(DISCRETE_TABLE)
    assert (EXACT, MIX_FULL, CHUNK_LEVELS.index(UNLIMITED), ORDERS.index(MOORE_HODGSON)) in DISCRETE_TABLE
    assert (EXACT, MIX_FULL, CHUNK_LEVELS.index(UNLIMITED), ORDERS.index(FCFS)) in DISCRETE_TABLE


@nojit
def test_box_actions_at_their_ends():
    state = toy_state([(0.0, 30, 2)])  # tau* is 10
    low, high = from_box(state, -1, -1, -1, -1), from_box(state, 1, 1, 1, 1)
    assert (low.token_budget, high.token_budget) == (3, 28)  # 10 x 2^-1.5 = 3.5, 10 x 2^1.5 = 28.3
    assert (low.slack_weight, high.slack_weight) == (0.0, 1.0)
    assert (low.margin, high.margin) == pytest.approx((1 / 1.5, 1.5))
    assert low.drop_weight < high.drop_weight
    assert from_box(state, -9, -9, -9, -9) == low, "an action out of range is not clipped"
    assert from_box(state, 9, 9, 9, 9) == high
    assert len(BOX_NAMES) == 4


@nojit
def test_words_for_levels():
    assert describe((EXACT, MIX_FULL, 2, 4)) == "1x full moore-hodgson"
    assert describe((0, MIX_DECODE, 0, 0)) == "0.25x decode fcfs, chunk 128"


# ---- no action stops serving ---------------------------------------------------------------------------------------
def drained_states(kind, integers, floats, blocks, max_steps=4000):
    """One system per action, in which that action is repeated until the end."""
    count = len(integers)
    scenario = toy_scenario(blocks=blocks, max_running=6, ttft_ms=200.0, tbt_ms=30.0)
    rng = np.random.default_rng(11)
    rows = list(zip(np.sort(rng.uniform(0, 0.5, 14)), rng.integers(1, 400, 14), rng.integers(1, 12, 14), strict=True))
    requests = toy_requests(rows, scenario)
    form = Form(step_all, kind, NUM_FEATURES, reward_weights)
    part = Part(scenario, lambda seed: requests, count, form)
    for e in range(count):
        part.load(e, 0)
    part.exchange.integers[:], part.exchange.floats[:, : floats.shape[1]] = integers, floats
    observations = np.zeros((count, NUM_FEATURES), np.float32)
    steps = 0
    while (busy := (part.states.system["phase"] == ACTIVE).any(axis=1)).any():
        steps += 1
        assert steps < max_steps, f"never drained: {np.flatnonzero(busy)[:10]}"
        part.exchange.todo[:] = busy
        part.step(observations)
        worker = part.states.workers[:, 0]
        served = (worker["batch_size"] > 0) | (worker["batch_evicted"] > 0)
        assert served[busy].all(), "an action dispatched nothing although there was work"
    return part.states._replace(requests=part.states.requests[:, : len(rows)])


@pytest.mark.parametrize("blocks", [None, 110])
def test_each_of_the_480_multidiscrete_actions_alone_serves_everybody(blocks):
    integers = np.array(list(product(*map(range, NVEC))), np.int64)
    assert len(integers) == 480
    states = drained_states(MULTIDISCRETE, integers, np.zeros((480, 4)), blocks)
    assert (states.system["phase"] == DRAINED).all()
    assert (states.requests["status"] == FINISHED).all()
    if blocks:
        assert (states.system["num_evictions"] > 0).any(), "memory was never short"


@pytest.mark.parametrize("blocks", [None, 110])
def test_each_discrete_action_alone_serves_everybody(blocks):
    integers = np.zeros((len(DISCRETE_TABLE), 4), np.int64)
    integers[:, 0] = np.arange(len(DISCRETE_TABLE))
    states = drained_states(DISCRETE, integers, np.zeros((len(integers), 4)), blocks)
    assert (states.requests["status"] == FINISHED).all()


@pytest.mark.parametrize("blocks", [None, 110])
def test_any_box_action_alone_serves_everybody(blocks):
    corners = np.array(list(product((-1.0, 0.0, 1.0), repeat=4)))
    floats = np.vstack([corners, np.random.default_rng(2).uniform(-1, 1, (40, 4))])
    states = drained_states(BOX, np.zeros((len(floats), 4), np.int64), floats, blocks)
    assert (states.requests["status"] == FINISHED).all()


@pytest.mark.parametrize("blocks", [None, 110])
def test_any_adaptive_action_alone_serves_everybody(blocks):
    rng, n = np.random.default_rng(2), len(NAMES)
    floats = np.vstack([rng.choice((-1.0, 0.0, 1.0), (120, n)), rng.uniform(-1, 1, (40, n))])
    states = drained_states(ADAPTIVE, np.zeros((len(floats), 4), np.int64), floats, blocks)
    assert (states.requests["status"] == FINISHED).all()


# ---- masks ---------------------------------------------------------------------------------------------------------
def masks_of(state):
    mask = np.zeros(MASK_LENGTH, np.bool_)
    mask_actions(state, mask)
    return np.split(mask, np.cumsum(NVEC)[:-1])


def batch_under(state, decision_):
    copy = snapshot(state)
    form_batch(copy, int(copy.system[0]["worker"]), decision_)
    return batch_of(copy, int(copy.system[0]["worker"])), copy.requests.tobytes()


def check_masked_actions_are_doubles(state):
    masks = masks_of(state)
    assert all(mask.any() for mask in masks), "a whole part of the action is masked"
    open_levels = [np.flatnonzero(mask) for mask in masks]
    unmasked = {batch_under(state, from_levels(state, *levels))[1] for levels in product(*open_levels)}
    for levels in product(*map(range, NVEC)):
        if not all(mask[level] for mask, level in zip(masks, levels, strict=True)):
            batch, result = batch_under(state, from_levels(state, *levels))
            assert result in unmasked, f"{describe(levels)} is masked but does something of its own: {batch}"


@nojit
def test_a_masked_action_means_the_same_as_one_that_is_not():
    nothing_to_prefill = toy_state([(0.0, 1, 9)] * 6, tbt_ms=20.0)
    step(nothing_to_prefill, from_levels(nothing_to_prefill, 7, MIX_FULL, 2, 0))
    assert nothing_to_prefill.workers[0]["num_running"] == 6  # more decodes than 0.25 tau* = 2 tokens
    check_masked_actions_are_doubles(nothing_to_prefill)
    nothing_decodes = toy_state([(0.0, 300, 2), (0.0, 200, 2)])
    check_masked_actions_are_doubles(nothing_decodes)
    step(nothing_decodes, from_levels(nothing_decodes, EXACT, MIX_FULL, 2, 0))
    check_masked_actions_are_doubles(nothing_decodes)


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 1000), blocks=st.sampled_from([None, 16]), steps=st.integers(0, 40))
def test_masks_hide_only_doubles_in_any_state(seed, blocks, steps):
    rng = np.random.default_rng(seed)
    rows = list(zip(np.sort(rng.uniform(0, 0.3, 8)), rng.integers(1, 40, 8), rng.integers(1, 12, 8), strict=True))
    state = toy_state(rows, blocks=blocks)
    for _ in range(steps):
        if state.system[0]["phase"] == ACTIVE:
            step(state, from_levels(state, *(int(rng.integers(n)) for n in NVEC)))
            check_all(state)
    if state.system[0]["phase"] == ACTIVE:
        check_masked_actions_are_doubles(state)


# ---- the heuristic in the middle of the box ------------------------------------------------------------------------
@pytest.mark.parametrize("load_factor", [0.8, 1.2])
def test_a_box_action_of_zeros_is_moore_hodgson_bit_for_bit(load_factor):
    scenario = with_changes(load_scenario("chat-bursty"), {"workload.load": load_factor})
    requests = draw_workload(scenario, 5)
    decide = make_policy("moore-hodgson")
    one, other = (single(load(new_states(scenario, 1, len(requests), True), 0, requests, 5)) for _ in range(2))
    while one.system[0]["phase"] == ACTIVE and one.system[0]["num_batches"] < 4000:
        step(one, from_box(one, 0, 0, 0, 0))
        step(other, decide(make_view(other)))
    count = int(one.system[0]["num_batches"])
    assert one.batch_log[:count].tobytes() == other.batch_log[:count].tobytes()
    assert one.requests.tobytes() == other.requests.tobytes()
