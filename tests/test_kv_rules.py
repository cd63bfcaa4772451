"""Admission by declared budget and by estimate, victims, and swapping; by hand, blocks of 4, S(b) = 10 + b ms."""

from __future__ import annotations

import pytest
from toy import check_all, formed, running_of, toy_state

from llm_env.core import step
from llm_env.dtypes import FINISHED, SWAPPED
from llm_env.records import (
    KV_DECLARED,
    KV_ESTIMATE,
    KV_PROMPT,
    NEVER_MIX,
    VICTIM_FEWEST,
    VICTIM_PRIORITY,
    decision,
)
from llm_env.view import make_view

pytestmark = [pytest.mark.kernel, pytest.mark.nojit]


def admitted(state, **parameters) -> list[int]:
    return [i for i, _ in formed(state, decision(1000, **parameters))]


# ---- admission -----------------------------------------------------------------------------------------------------
def test_the_declared_budget_is_reserved_in_full():
    # prompt 5 + declared 12 - 1 = 16 tokens = 4 blocks each: two of three fit into 8 blocks, whatever they will make
    state = toy_state([(0.0, 5, 2)] * 3, blocks=8, fields={"declared_tokens": 12})
    assert admitted(state, kv_rule=KV_DECLARED) == [0, 1]
    assert admitted(state, kv_rule=KV_PROMPT) == [0, 1, 2]
    step(state, decision(1000, kv_rule=KV_DECLARED))
    assert state.workers[0]["free_blocks"] == 0
    assert make_view(state).declared_tokens == 24


def test_an_empty_worker_admits_what_is_declared_too_large():
    state = toy_state([(0.0, 5, 2)], blocks=3, fields={"declared_tokens": 500})
    assert admitted(state, kv_rule=KV_DECLARED) == [0]
    assert admitted(state, kv_rule=KV_ESTIMATE) == [0]


def test_guaranteed_no_evict_counts_what_everybody_may_still_need():
    # 8 blocks = 32 tokens. Request 0: 5 + 12; then 32 - 8 (2 blocks) - 12 = 12 < 5 + 12
    state = toy_state([(0.0, 5, 2)] * 3, blocks=8, fields={"declared_tokens": 12})
    assert admitted(state, kv_rule=KV_ESTIMATE) == [0]
    # and with what is declared clipped to 6: 32 - 8 - 6 = 18 >= 11; then 32 - 16 - 12 = 4
    assert admitted(state, kv_rule=KV_ESTIMATE, reserve_tokens=6) == [0, 1]


def test_the_ratio_weighs_running_requests_but_not_new_ones():
    # Request 0 runs, with 11 of 12 declared tokens left; request 1 needs 5 + 12 of the 32 - 8 free tokens
    state = toy_state([(0.0, 5, 9), (0.001, 5, 9), (0.001, 5, 9)], blocks=8, fields={"declared_tokens": 12})
    step(state, decision(1000, kv_rule=KV_ESTIMATE))
    ratio = {"kv_rule": KV_ESTIMATE, "prefill_tokens": 1000, "max_decodes": 0}
    assert admitted(state, reserve_ratio=0.6, **ratio) == [1]  # 24 - 6.6 >= 17; then 16 - 6.6 - 12 < 17
    assert admitted(state, reserve_ratio=0.7, **ratio) == []  # 24 - 7.7 < 17


def test_the_estimate_keeps_the_watermark_too():
    state = toy_state([(0.0, 5, 2), (0.0, 5, 2)], blocks=8, fields={"declared_tokens": 2})
    assert admitted(state, kv_rule=KV_ESTIMATE) == [0, 1]
    assert admitted(state, kv_rule=KV_ESTIMATE, watermark=0.7) == [0]  # 5 of 8 blocks stay free


# ---- victims -------------------------------------------------------------------------------------------------------
def victims_of(emitted=(1, 1, 1), prompts=(8, 8, 8), weights=(1.0, 1.0, 1.0), **parameters) -> list[int]:
    """Three decodes fill 6 blocks, and the next token of each needs one more; request 0 asks first."""
    state = toy_state([(0.0, 8, 12)] * 3, blocks=6, fields={"weight": list(weights)})
    step(state, decision(100))
    check_all(state)
    assert state.workers[0]["free_blocks"] == 0
    state.requests["emitted_tokens"], state.requests["prompt_tokens"] = emitted, prompts
    step(state, decision(100, **parameters))
    return [i for i in range(3) if state.requests[i]["evictions"] > 0]


def test_the_last_goes_by_default():
    assert victims_of() == [2]  # its two blocks are enough for the others


def test_the_fewest_output_tokens_go_even_ones_own():
    assert victims_of(emitted=(9, 5, 9), victim=VICTIM_FEWEST) == [1]
    assert victims_of(emitted=(5, 9, 9), victim=VICTIM_FEWEST) == [0]


def test_of_equals_the_longest_prompt_goes_then_the_last():
    assert victims_of(prompts=(8, 9, 8), victim=VICTIM_FEWEST) == [1]
    assert victims_of(victim=VICTIM_FEWEST) == [2]


def test_the_lightest_class_goes():
    assert victims_of(weights=(5.0, 1.0, 2.0), victim=VICTIM_PRIORITY) == [1]
    assert victims_of(weights=(2.0, 2.0, 2.0), victim=VICTIM_PRIORITY) == [2]


# ---- swapping ------------------------------------------------------------------------------------------------------
def test_a_swapped_request_keeps_its_kv_and_pays_the_link():
    # Prompts of 7 in one batch, S(14) = 24 ms; both decode, S(2) = 12. Then request 0 needs a third block of 4: request
    # 1 goes out with 8 tokens, 8 ms. Request 0 ends at 66; 8 ms to come back, and its tokens 3 and 4.
    state = toy_state([(0.0, 7, 4), (0.0, 7, 4)], blocks=4)
    statuses = set()
    while state.system[0]["phase"] == 0:
        check_all(state)
        step(state, decision(100, swap=1))
        statuses.add(int(state.requests[1]["status"]))
    assert SWAPPED in statuses
    assert [float(t) for t in state.requests["finish_s"]] == pytest.approx([0.066, 0.096])
    assert state.requests[1]["evictions"] == 1
    assert state.system[0]["prefill_done"] == 14  # nothing is computed twice


def test_nobody_is_admitted_while_somebody_is_swapped_out():
    state = toy_state([(0.0, 7, 9), (0.0, 7, 9), (0.04, 1, 2)], blocks=4)
    while state.requests[1]["status"] != SWAPPED:
        step(state, decision(100, swap=1))
    while state.requests[1]["status"] == SWAPPED:
        assert state.requests[2]["first_scheduled_s"] < 0
        step(state, decision(100, swap=1))
    assert make_view(state).num_swapped == 0


def test_a_request_that_is_alone_is_recomputed():
    # vLLM v0 wants a free block for every decode; a request that fills all memory would come and go for ever
    state = toy_state([(0.0, 4, 5)], blocks=2)
    while state.system[0]["phase"] == 0:
        check_all(state)
        step(state, decision(100, swap=1, kv_rule=KV_PROMPT))
    assert state.requests[0]["status"] == FINISHED


def test_swapped_requests_return_by_arrival():
    rows = [(0.0, 3, 30), (0.0, 3, 12), (0.0, 3, 12)]
    state = toy_state(rows, blocks=9)
    back = []
    while state.system[0]["phase"] == 0:
        before = {i for i in range(3) if state.requests[i]["status"] == SWAPPED}
        step(state, decision(100, swap=1, packing=NEVER_MIX))
        check_all(state)
        back += sorted(before & set(running_of(state)))
        assert running_of(state) == sorted(running_of(state))
    assert (state.requests["status"] == FINISHED).all()
    assert state.system[0]["prefill_done"] == 9
