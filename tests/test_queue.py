"""llm_env/queue.py: bitmap trees equal sorted sets, and the queue's aggregates equal a look at every request."""

from __future__ import annotations

from bisect import bisect_left, insort
from math import exp

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import check_queue, formed, members, toy_scenario, toy_state

from llm_env.build import new_states, single, with_capacity
from llm_env.core import step
from llm_env.dtypes import ACTIVE
from llm_env.kv import evict
from llm_env.queue import (
    RATE_FAST_S,
    RATE_SLOW_S,
    head,
    lowest_bit,
    slack_bucket,
    tree_add,
    tree_levels,
    tree_next,
    tree_remove,
)
from llm_env.records import (
    MOORE_HODGSON,
    NUM_SETS,
    SET_ARRIVAL,
    SET_DEADLINE,
    SET_FEASIBLE,
    SET_HOPELESS,
    SET_LATEST_START,
    SET_PROMPT,
    decision,
)

pytestmark = pytest.mark.kernel
nojit = pytest.mark.nojit


# ---- trees ---------------------------------------------------------------------------------------------------------
@nojit
@pytest.mark.parametrize("bit", [0, 1, 5, 30, 31])
def test_lowest_bit_ignores_the_bits_above(bit):
    assert lowest_bit(np.int64(1 << bit)) == bit
    assert lowest_bit(np.int64((1 << bit) | (1 << 31))) == bit


@nojit
@pytest.mark.parametrize(
    ("capacity", "starts"),
    [(1, [0, 1]), (32, [0, 1]), (33, [0, 2, 3]), (1024, [0, 32, 33]), (1025, [0, 33, 35, 36]), (0, [0, 1])],
)
def test_a_tree_has_a_word_for_32_words_below(capacity, starts):
    assert tree_levels(capacity).tolist() == starts


@nojit
@settings(max_examples=40, deadline=None)
@given(data=st.data(), capacity=st.sampled_from([1, 31, 32, 33, 1000, 1025, 40_000]))
def test_a_tree_finds_what_a_sorted_set_finds(data, capacity):
    levels = tree_levels(capacity)
    tree = np.zeros(levels[-1], np.int64)
    expected: list[int] = []
    for member in data.draw(st.lists(st.integers(0, capacity - 1), max_size=60)):
        if member in expected:
            expected.remove(member)
            tree_remove(tree, levels, member)
        else:
            insort(expected, member)
            tree_add(tree, levels, member)
        start = data.draw(st.integers(0, capacity))
        place = bisect_left(expected, start)
        assert tree_next(tree, levels, start) == (expected[place] if place < len(expected) else -1)
        assert tree_next(tree, levels, 0) == (expected[0] if expected else -1)
    for member in expected:
        tree_remove(tree, levels, member)
    assert not tree.any(), "a level above remembers a word that is empty"


def test_a_tree_that_is_made_larger_keeps_its_members():
    states = new_states(toy_scenario(), 2, 40)
    for e in range(2):
        for member in (0, 5, 39):
            tree_add(single(states, e).sets[0, SET_ARRIVAL], single(states, e).levels, member)
    wide = with_capacity(states, 5000)
    for e in range(2):
        state = single(wide, e)
        assert members(state, SET_ARRIVAL) == [0, 5, 39]
        assert members(state, SET_PROMPT) == []
        tree_add(state.sets[0, SET_ARRIVAL], state.levels, 4999)
        assert members(state, SET_ARRIVAL) == [0, 5, 39, 4999]
    assert with_capacity(wide, 4000) is wide


# ---- slack buckets and cursors -------------------------------------------------------------------------------------
@nojit
def test_a_request_falls_through_every_bucket_as_time_passes():
    # S(b) = 10 + b ms; the prompt of 10 tokens takes 20 ms, so latest_start = 1.000 - 0.020 = 0.980 s. A first request
    # of one token and endless decodes of 11 ms keep the clock moving; it has the same target of 1 s.
    state = toy_state([(0.0, 1, 200), (0.0, 10, 1)], ttft_ms=1000.0)
    seen = {}
    while state.system[0]["now_s"] < 1.1:
        seen.setdefault(int(slack_bucket(state, 1)), float(state.system[0]["now_s"]))
        step(state, decision(1))  # room for one token: the decode, never the second request
        check_queue(state)
    # slack / target passes 0.75, 0.5, 0.25, 0.125 and 0 at 0.23, 0.48, 0.73, 0.855 and 0.98 s
    assert list(seen) == [5, 4, 3, 2, 1, 0]
    for bucket, edge_s in ((4, 0.23), (3, 0.48), (2, 0.73), (1, 0.855), (0, 0.98)):
        assert edge_s < seen[bucket] <= edge_s + 0.0111
    assert members(state, SET_HOPELESS) == [1]
    assert members(state, SET_FEASIBLE) == []


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.tuples(st.floats(0, 0.5), st.integers(1, 60), st.integers(1, 12)), min_size=1, max_size=40),
    ttft=st.lists(st.floats(0.02, 0.6), min_size=40, max_size=40),
    blocks=st.sampled_from([None, 20]),
    budget=st.integers(1, 30),
    order=st.integers(0, 4),
)
def test_sets_buckets_and_sums_equal_brute_force_after_every_step(rows, ttft, blocks, budget, order):
    rows = sorted(rows)
    state = toy_state(rows, ttft[: len(rows)], blocks=blocks)
    check_queue(state)
    for _ in range(60):
        if state.system[0]["phase"] != ACTIVE:
            break
        step(state, decision(budget, order=order))
        check_queue(state)


# ---- who is next ---------------------------------------------------------------------------------------------------
@nojit
def test_each_set_has_its_own_head():
    # prompts 8, 3, 5; deadlines 0.5, 0.4, 0.3; request 3 can no longer be on time (11 ms > 1 ms)
    state = toy_state([(0.0, 8, 1), (0.0, 3, 1), (0.0, 5, 1), (0.0, 1, 1)], [0.5, 0.4, 0.3, 0.001])
    assert head(state, 0, SET_ARRIVAL) == 0
    assert head(state, 0, SET_PROMPT) == 3
    assert head(state, 0, SET_DEADLINE) == 3
    assert head(state, 0, SET_LATEST_START) == 3
    assert head(state, 0, SET_FEASIBLE) == 2
    assert head(state, 0, SET_HOPELESS) == 3
    assert state.buckets[0, 0].sum() == 4
    assert state.buckets[0, :, 0].tolist() == [1, 1]


@nojit
@pytest.mark.parametrize("order", range(5))
def test_evicted_requests_stand_in_front_the_last_evicted_first(order):
    state = toy_state([(0.0, 4, 5), (0.0, 4, 5), (0.0, 4, 5), (0.0, 1, 1)], max_running=3)
    step(state, decision(12))  # 0, 1 and 2 have their first token; 3 waits
    evict(state, 0, 0, 0)
    evict(state, 0, 1, 0)  # now at position 1: request 2
    check_queue(state)
    for which_set in range(NUM_SETS):
        assert head(state, 0, which_set) == 2
    # 5 tokens each to prefill again (4 of the prompt, 1 generated), then whoever came last
    assert formed(state, decision(100, order=order)) == [(1, 1), (2, 5), (0, 5)]
    assert formed(state, decision(100, order=order, max_running=2)) == [(1, 1), (2, 5)]


@nojit
def test_an_evicted_request_that_returns_leaves_the_front():
    state = toy_state([(0.0, 4, 5), (0.0, 4, 5), (0.0, 4, 5)])
    step(state, decision(12))
    evict(state, 0, 2, 0)
    step(state, decision(100, order=MOORE_HODGSON))
    check_queue(state)
    assert state.queues[0]["num_resumed"] == 0
    assert head(state, 0, SET_ARRIVAL) == -1


def test_arrival_rates_are_exponential_averages():
    times_s = [0.0, 0.4, 1.0, 1.7]
    state = toy_state([(t, 1, 1) for t in times_s])
    while state.system[0]["phase"] == ACTIVE:
        step(state, decision(10))
    for name, window_s in (("rate_fast", RATE_FAST_S), ("rate_slow", RATE_SLOW_S)):
        expected = sum(exp(-(times_s[-1] - t) / window_s) / window_s for t in times_s)
        assert state.system[0][name] == pytest.approx(expected)
    assert state.system[0]["rate_s"] == times_s[-1]
