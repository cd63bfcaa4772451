"""llm_env/batching.py: every packing and queue order gives the batch that its definition says."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import batch_of, check_all, formed, running_of, toy_state

from llm_env.batching import form_batch
from llm_env.core import step
from llm_env.dtypes import ACTIVE
from llm_env.orders import WINDOW
from llm_env.records import (
    DECODES_FIRST,
    EARLIEST_DEADLINE,
    FCFS,
    LEAST_SLACK,
    LIST_ORDER,
    MOORE_HODGSON,
    NEVER_MIX,
    PREFILL_FIRST,
    SHORTEST_PREFILL,
    UNLIMITED,
    decision,
)

pytestmark = pytest.mark.kernel
nojit = pytest.mark.nojit


def mixed():
    """Requests 0 and 1 decode; 2 has 24 of 30 prompt tokens left; 3 (12 tokens) and 4 (6 tokens) wait."""
    state = toy_state([(0.0, 4, 50), (0.0, 4, 50), (0.0, 30, 5), (0.0, 12, 5), (0.0, 6, 5)])
    step(state, decision(14))
    return state


def partial_before_decode():
    """The running list is [0, 1]: 0 has 20 of 30 prompt tokens left, 1 decodes; 2 (9 tokens) waits."""
    state = toy_state([(0.0, 30, 5), (0.0, 4, 50), (0.0, 9, 5)])
    step(state, decision(14, chunk_tokens=10))
    assert running_of(state) == [0, 1]
    return state


# ---- packings ------------------------------------------------------------------------------------------------------
@nojit
def test_decodes_first_fills_the_rest_of_the_budget_with_prefill():
    state = mixed()
    assert formed(state, decision(20)) == [(0, 1), (1, 1), (2, 18)]
    assert formed(state, decision(30)) == [(0, 1), (1, 1), (2, 24), (3, 4)]
    assert formed(state, decision(44)) == [(0, 1), (1, 1), (2, 24), (3, 12), (4, 6)]


@nojit
def test_decodes_first_never_holds_a_decode_back():
    assert formed(mixed(), decision(1)) == [(0, 1), (1, 1)]


@nojit
def test_prefill_first_gives_decodes_what_is_left():
    state = mixed()
    assert formed(state, decision(25, packing=PREFILL_FIRST)) == [(2, 24), (3, 1)]
    assert formed(state, decision(43, packing=PREFILL_FIRST)) == [(2, 24), (3, 12), (4, 6), (0, 1)]
    assert formed(state, decision(44, packing=PREFILL_FIRST)) == [(2, 24), (3, 12), (4, 6), (0, 1), (1, 1)]
    assert formed(state, decision(10, prefill_tokens=4, packing=PREFILL_FIRST)) == [(2, 4), (0, 1), (1, 1)]


@nojit
def test_prefill_first_holds_no_decode_back_where_nothing_is_prefilled():
    assert formed(mixed(), decision(1, prefill_tokens=0, packing=PREFILL_FIRST)) == [(0, 1), (1, 1)]
    assert formed(mixed(), decision(1, prefill_tokens=0, max_decodes=1, packing=PREFILL_FIRST)) == [(0, 1)]


@nojit
def test_list_order_serves_running_requests_as_they_were_admitted():
    state = partial_before_decode()
    assert formed(state, decision(10, packing=LIST_ORDER)) == [(0, 10)]
    assert formed(state, decision(21, packing=LIST_ORDER)) == [(0, 20), (1, 1)]
    assert formed(state, decision(25, packing=LIST_ORDER)) == [(0, 20), (1, 1), (2, 4)]
    # the same situation, decodes first
    assert formed(state, decision(10, packing=DECODES_FIRST)) == [(1, 1), (0, 9)]


@nojit
def test_list_order_stops_at_the_budget_even_for_decodes():
    assert formed(mixed(), decision(1, packing=LIST_ORDER)) == [(0, 1)]


@nojit
def test_never_mix_decodes_only_if_nothing_can_be_prefilled():
    state = mixed()
    assert formed(state, decision(100, packing=NEVER_MIX)) == [(2, 24), (3, 12), (4, 6)]
    assert formed(state, decision(100, prefill_tokens=0, packing=NEVER_MIX)) == [(0, 1), (1, 1)]


@nojit
def test_never_mix_keeps_the_running_list_in_order_of_arrival():
    state = toy_state([(0.0, 9, 5), (0.0, 4, 5)])
    form_batch(state, 0, decision(100, packing=NEVER_MIX, order=SHORTEST_PREFILL))
    assert running_of(state) == [0, 1]
    assert batch_of(state) == [(1, 4), (0, 9)]


# ---- limits --------------------------------------------------------------------------------------------------------
@nojit
def test_prefill_tokens_limits_all_prompts_together():
    assert formed(mixed(), decision(100, prefill_tokens=5)) == [(0, 1), (1, 1), (2, 5)]
    assert formed(mixed(), decision(100, prefill_tokens=26)) == [(0, 1), (1, 1), (2, 24), (3, 2)]
    assert formed(mixed(), decision(100, prefill_tokens=0)) == [(0, 1), (1, 1)]


@nojit
def test_chunk_tokens_limits_each_prompt():
    assert formed(mixed(), decision(10, chunk_tokens=3)) == [(0, 1), (1, 1), (2, 3), (3, 3), (4, 2)]


@nojit
def test_max_running_stops_admission_but_not_who_runs():
    assert formed(mixed(), decision(100, max_running=3)) == [(0, 1), (1, 1), (2, 24)]
    assert formed(mixed(), decision(100, max_running=4)) == [(0, 1), (1, 1), (2, 24), (3, 12)]
    assert formed(mixed(), decision(100, max_running=0)) == [(0, 1), (1, 1), (2, 24)]


@nojit
def test_the_systems_slots_bind_whatever_the_decision_says():
    state = toy_state([(0.0, 1, 2)] * 5, max_running=3)
    assert [i for i, _ in formed(state, decision(100, max_running=UNLIMITED))] == [0, 1, 2]


@nojit
def test_max_decodes_picks_those_that_waited_longest():
    state = toy_state([(0.0, 4, 50)] * 4)
    step(state, decision(16))  # all have their first token at 26 ms
    assert formed(state, decision(100, max_decodes=0)) == []
    assert formed(state, decision(100, max_decodes=2)) == [(0, 1), (1, 1)]  # equal times: by index
    step(state, decision(100, max_decodes=2))
    assert formed(state, decision(100, max_decodes=2)) == [(2, 1), (3, 1)]
    assert formed(state, decision(100, max_decodes=3)) == [(0, 1), (2, 1), (3, 1)]  # in list order
    step(state, decision(100, max_decodes=3))
    assert formed(state, decision(100, max_decodes=1)) == [(1, 1)]
    assert formed(state, decision(100, max_decodes=1, packing=NEVER_MIX)) == [(1, 1)]


@nojit
def test_list_order_counts_decodes_too():
    assert formed(mixed(), decision(100, max_decodes=1, packing=LIST_ORDER))[:2] == [(0, 1), (2, 24)]


@nojit
def test_whole_prompts_are_prefilled_at_once_or_not_at_all():
    # 40 tokens: 2 decodes, 24, 12, and the 6 of the last do not fit into 2
    assert formed(mixed(), decision(40, whole_prompts=1)) == [(0, 1), (1, 1), (2, 24), (3, 12)]
    # a prompt alone may exceed the budget
    assert formed(mixed(), decision(10, whole_prompts=1)) == [(0, 1), (1, 1), (2, 24)]
    # but in order of arrival the first that does not fit blocks those behind it
    state = toy_state([(0.0, 10, 2), (0.0, 30, 2), (0.0, 5, 2)])
    assert formed(state, decision(20, whole_prompts=1)) == [(0, 10)]


@nojit
def test_padding_counts_prompts_times_the_longest():
    state = toy_state([(0.0, 10, 2), (0.0, 12, 2), (0.0, 3, 2)])
    padded = {"packing": NEVER_MIX, "whole_prompts": 1, "padded": 1}
    assert formed(state, decision(23, **padded)) == [(0, 10)]  # 2 x 12 = 24
    assert formed(state, decision(24, **padded)) == [(0, 10), (1, 12)]
    assert formed(state, decision(35, **padded)) == [(0, 10), (1, 12)]  # 3 x 12 = 36
    assert formed(state, decision(36, **padded)) == [(0, 10), (1, 12), (2, 3)]
    assert formed(state, decision(5, **padded)) == [(0, 10)]


# ---- queue orders --------------------------------------------------------------------------------------------------
ORDERS_BY_HAND = [
    (FCFS, [0, 1, 2, 3]),
    (SHORTEST_PREFILL, [3, 1, 2, 0]),
    (EARLIEST_DEADLINE, [1, 3, 2, 0]),
    # alone, in chunks of 10 tokens: 200 tokens take 0.4 s, 3 take 13 ms, 5 take 15 ms, 2 take 12 ms
    (LEAST_SLACK, [0, 1, 3, 2]),
]


@nojit
@pytest.mark.parametrize(("order", "expected"), ORDERS_BY_HAND)
def test_waiting_requests_come_in_the_decisions_order(order, expected):
    state = toy_state([(0.0, 200, 2), (0.0, 3, 2), (0.0, 5, 2), (0.0, 2, 2)], [0.50, 0.20, 0.40, 0.30])
    assert [i for i, _ in formed(state, decision(1000, order=order))] == expected


@nojit
@pytest.mark.parametrize("order", [SHORTEST_PREFILL, EARLIEST_DEADLINE, LEAST_SLACK, MOORE_HODGSON])
def test_partly_prefilled_requests_compete_with_those_that_wait(order):
    # request 0 is admitted alone and gets 10 of 30 tokens; request 1 then comes with 6 tokens and a close deadline
    state = toy_state([(0.0, 30, 2), (0.01, 6, 2)], [1.0, 0.1])
    step(state, decision(10))
    assert formed(state, decision(12, order=order)) == [(1, 6), (0, 6)]
    assert formed(state, decision(12, order=FCFS)) == [(0, 12)]


@nojit
def test_shortest_prefill_looks_at_what_is_left_and_gives_ties_to_who_runs():
    state = toy_state([(0.0, 30, 2), (0.01, 11, 2), (0.01, 10, 2)])
    step(state, decision(20))  # 10 of request 0 are left
    assert formed(state, decision(100, order=SHORTEST_PREFILL)) == [(0, 10), (2, 10), (1, 11)]


@nojit
def test_moore_hodgson_puts_the_longest_behind_until_the_rest_are_on_time():
    # 1 ms per token: 0 alone is on time (20 <= 22), 1 then is not (30 > 25): the longest, 0, goes behind
    state = toy_state([(0.0, 20, 2), (0.0, 10, 2)], [0.022, 0.025], setup_ms=0.0)
    assert formed(state, decision(100, order=MOORE_HODGSON)) == [(1, 10), (0, 20)]
    assert formed(state, decision(100, order=EARLIEST_DEADLINE)) == [(0, 20), (1, 10)]
    # with room for both it is earliest deadline first
    state = toy_state([(0.0, 20, 2), (0.0, 10, 2)], [0.022, 0.031], setup_ms=0.0)
    assert formed(state, decision(100, order=MOORE_HODGSON)) == [(0, 20), (1, 10)]


@nojit
def test_the_margin_makes_prompts_count_longer():
    # 20 and 30 ms within 22 and 32 ms; with margin 1.09: 21.8 and 32.7 ms, so the longest is dropped
    state = toy_state([(0.0, 20, 2), (0.0, 10, 2)], [0.022, 0.032], setup_ms=0.0)
    assert formed(state, decision(100, order=MOORE_HODGSON, margin=1.0)) == [(0, 20), (1, 10)]
    assert formed(state, decision(100, order=MOORE_HODGSON, margin=1.09)) == [(1, 10), (0, 20)]


@nojit
def test_the_rate_is_that_of_a_full_batch():
    # S(40) = 10 + 40 ms for 40 tokens: 1.25 ms per token, so 20 + 12 tokens need 40 ms; S(20) / 20 = 1.5 ms: 48 ms
    state = toy_state([(0.0, 20, 2), (0.0, 12, 2)], [0.035, 0.041], tbt_ms=50.0)
    assert formed(state, decision(40, order=MOORE_HODGSON)) == [(0, 20), (1, 12)]
    assert formed(state, decision(20, order=MOORE_HODGSON)) == [(1, 12), (0, 8)]


@nojit
def test_drop_weight_and_slack_weight_change_the_key():
    state = toy_state([(0.0, 20, 2), (0.0, 10, 2), (0.0, 12, 2)], [0.022, 0.025, 0.9], setup_ms=0.0)
    assert [i for i, _ in formed(state, decision(100, order=MOORE_HODGSON))] == [1, 2, 0]
    # the drop ignored: by deadline alone
    assert [i for i, _ in formed(state, decision(100, order=MOORE_HODGSON, drop_weight=0.0))] == [0, 1, 2]
    # half a TTFT target (22 ms is the tightest) behind its deadline: before request 2
    assert [i for i, _ in formed(state, decision(100, order=MOORE_HODGSON, drop_weight=0.5))] == [1, 0, 2]
    # by prefill time alone
    by_time = decision(100, order=MOORE_HODGSON, slack_weight=0.0, drop_weight=0.0)
    assert [i for i, _ in formed(state, by_time)] == [1, 2, 0]


@nojit
def test_the_hopeless_come_last_in_order_of_arrival():
    # requests 0 and 2 need 20 and 30 ms and have 5: even at once they would be late
    state = toy_state([(0.0, 20, 2), (0.0, 10, 2), (0.0, 30, 2)], [0.005, 0.050, 0.001], setup_ms=0.0)
    assert formed(state, decision(100, order=MOORE_HODGSON)) == [(1, 10), (0, 20), (2, 30)]


def test_moore_hodgson_looks_at_the_most_urgent_window_only():
    # request 0 (50 tokens, due first) makes all others late: it is dropped, behind the WINDOW - 1 others it is compared
    # with but before those beyond the window, which keep their order by deadline
    others = WINDOW + 4
    rows = [(0.0, 50, 1)] + [(0.0, 1, 1)] * others
    due_s = [0.0505] + [0.0515 + 0.001 * k for k in range(others)]
    due_s[WINDOW - 1] = 0.0515 + 0.001 * (WINDOW - 2) - 0.0009  # the last in the window is late behind request 0
    state = toy_state(rows, due_s, setup_ms=0.0, max_running=128)
    order = [i for i, _ in formed(state, decision(1000, order=MOORE_HODGSON))]
    assert order == [*range(1, WINDOW), 0, *range(WINDOW, others + 1)]


def most_on_time(tokens, due_s):
    """The most requests that can be on time at 1 ms per token, over all subsets (served by deadline)."""
    by_deadline = sorted(range(len(tokens)), key=lambda i: due_s[i])
    for count in range(len(tokens), 0, -1):
        for chosen in combinations(by_deadline, count):
            if all(t <= due_s[i] for t, i in zip(np.cumsum([tokens[i] for i in chosen]) / 1e3, chosen, strict=True)):
                return count
    return 0


@nojit
@settings(max_examples=30, deadline=None)
@given(
    requests=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 60)), min_size=1, max_size=8),
)
def test_moore_hodgson_brings_as_many_on_time_as_any_order_could(requests):
    # one token per batch, S(1) = 1 ms: the prefill rate is constant; half a millisecond keeps sums and targets apart
    tokens = [t for t, _ in requests]
    due_s = [(d + 0.5) / 1e3 for _, d in requests]
    state = toy_state([(0.0, t, 1) for t in tokens], due_s, setup_ms=0.0)
    while state.system[0]["phase"] == ACTIVE:
        step(state, decision(1, order=MOORE_HODGSON))
    on_time = state.requests["first_token_s"] <= state.requests["ttft_target_s"]
    assert on_time.sum() == most_on_time(tokens, due_s)


@settings(max_examples=30, deadline=None)
@given(
    packing=st.integers(0, 3),
    order=st.integers(0, 4),
    whole=st.booleans(),
    kv_rule=st.integers(0, 2),
    blocks=st.sampled_from([None, 12]),
    seed=st.integers(0, 1000),
)
def test_no_batch_exceeds_the_decisions_limits(packing, order, whole, kv_rule, blocks, seed):
    rng = np.random.default_rng(seed)
    rows = [(float(t), int(p), int(b)) for t, p, b in zip(*_workload(rng), strict=True)]
    state = toy_state(rows, blocks=blocks)
    for _ in range(60):
        if state.system[0]["phase"] != ACTIVE:
            break
        budget, prefill, chunk = int(rng.integers(1, 40)), int(rng.integers(0, 40)), int(rng.integers(1, 20))
        decodes, slots = int(rng.integers(0, 6)), int(rng.integers(1, 8))
        before = running_of(state)
        d = decision(budget, prefill, chunk, decodes, slots, packing, whole, 0, order, kv_rule=kv_rule)
        step(state, d)
        check_all(state)
        worker = state.workers[0]
        made = int(worker["batch_tokens"] - worker["batch_prefill"])
        longest, prompts = int(worker["batch_longest"]), int(worker["batch_prompts"])
        assert made <= decodes
        assert worker["num_running"] <= max(slots, len(before))
        if packing == NEVER_MIX:
            assert made == 0 or prompts == 0
        if not whole:
            assert worker["batch_prefill"] <= prefill
            assert longest <= chunk
            assert worker["batch_tokens"] <= max(budget, made)
        elif prompts > 1:
            assert worker["batch_prefill"] <= prefill


def _workload(rng):
    n = 12
    return np.sort(rng.uniform(0, 0.2, n)), rng.integers(1, 30, n), rng.integers(1, 10, n)
