"""Queue orders by a key, and who decodes if not all may: small situations in which only one answer is right."""

from __future__ import annotations

import numpy as np
import pytest
from toy import check_all, formed, toy_state

from llm_env.core import step
from llm_env.dtypes import FAR
from llm_env.records import (
    DECODE_BY_ORDER,
    FAIR_CLIENTS,
    LEAST_ATTAINED,
    LIST_ORDER,
    NEVER_MIX,
    PREDICTED_SHORTEST,
    PRIORITY,
    RESPONSE_RATIO,
    decision,
)

pytestmark = [pytest.mark.kernel, pytest.mark.nojit]


def order_of(state, order, **parameters) -> list[int]:
    """The requests that a decision with this order would prefill, in the order in which it takes them."""
    return [i for i, _ in formed(state, decision(10_000, order=order, **parameters))]


# ---- prompts -------------------------------------------------------------------------------------------------------
def test_shortest_prediction_goes_first_and_no_prediction_last():
    state = toy_state([(0.0, 5, 9)] * 4, fields={"predicted_tokens": [30.0, np.nan, 2.0, 30.0]})
    assert order_of(state, PREDICTED_SHORTEST) == [2, 0, 3, 1]


def test_who_starves_goes_before_the_shortest_prediction():
    # decided at 1 s: request 0 has waited for 1 s, request 1 for 0.1 s
    rows = [(0.0, 5, 9), (0.9, 5, 9), (1.0, 5, 9)]
    state = toy_state(rows, fields={"predicted_tokens": [500.0, 50.0, 5.0]})
    while state.system[0]["next_arrival"] < 3:
        step(state, decision(100, hold_s=0.05))
    assert order_of(state, PREDICTED_SHORTEST, starve_s=0.5) == [0, 2, 1]
    assert order_of(state, PREDICTED_SHORTEST, starve_s=2.0) == [2, 1, 0]


def test_highest_response_ratio_weighs_waiting_against_work():
    # At 0.1 s. S(1) = 11 ms: ratio (100 + 11) / 11 = 10. Prompts of 10 tokens take 20 ms, 100 of them 200 ms.
    # request 0: (100 + 200) / 200 = 1.5; request 1 (arrived at 70 ms): (30 + 20) / 20 = 2.5; request 2: 1.0
    rows = [(0.0, 100, 9), (0.07, 10, 9), (0.1, 1, 9)]
    state = toy_state(rows)
    while state.system[0]["next_arrival"] < 3:
        step(state, decision(100, hold_s=0.5))
    assert order_of(state, RESPONSE_RATIO) == [1, 0, 2]


def test_the_heavier_class_goes_first_then_who_came_first():
    state = toy_state([(0.0, 5, 9)] * 4, fields={"weight": [1.0, 2.0, 1.0, 2.0]})
    assert order_of(state, PRIORITY) == [1, 3, 0, 2]


def test_a_partly_prefilled_prompt_goes_before_its_equals():
    state = toy_state([(0.0, 30, 9), (0.01, 30, 9)], fields={"weight": [1.0, 1.0]})
    step(state, decision(10))
    assert formed(state, decision(10, order=PRIORITY)) == [(0, 10)]
    state.requests["weight"][1] = 2.0
    assert formed(state, decision(10, order=PRIORITY)) == [(1, 10)]


def test_a_long_prompt_joins_a_lower_level_and_service_moves_it_down():
    # quantum 20 ms: prompts of 10 tokens (20 ms) join level 0, of 20 (40 ms) level 1, of 50 (100 ms) level 3
    state = toy_state([(0.0, 50, 9), (0.0, 20, 9), (0.0, 10, 9), (0.0, 10, 9)])
    assert order_of(state, LEAST_ATTAINED, quantum_s=0.020) == [2, 3, 1, 0]
    assert order_of(state, LEAST_ATTAINED, quantum_s=0.200) == [0, 1, 2, 3]


def test_the_client_that_got_least_goes_first():
    # client 7 is charged 5 + 5, then client 3 has been charged nothing: its requests come first
    rows = [(0.0, 5, 1), (0.0, 5, 1), (0.001, 5, 9), (0.001, 5, 9)]
    state = toy_state(rows, fields={"client": [7, 7, 7, 3]})
    step(state, decision(10))  # requests 0 and 1; it ends at 20 ms
    counters = {int(c): float(state.clients[t]["service"]) for c, t in zip([7, 3], [1, 0], strict=True)}
    assert counters[7] == 2 * 5 + 2 * 2  # prompts, and two tokens that weigh 2 each
    assert order_of(state, FAIR_CLIENTS) == [3, 2]


def test_a_client_that_comes_back_is_lifted_to_those_that_wait():
    # Client 1 is served alone up to 10 + 2 x 1; when client 2 arrives while it waits, it starts from there, not from 0
    rows = [(0.0, 10, 1), (0.001, 10, 1), (0.002, 4, 1)]
    state = toy_state(rows, fields={"client": [1, 1, 2]})
    step(state, decision(10))
    assert [float(c["service"]) for c in state.clients[:2]] == [12.0, 10.0]
    # request 2 arrived at 2 ms, when client 1 had been charged its prompt (10) and waited with request 1


def test_an_idle_client_starts_from_who_was_served_last():
    rows = [(0.0, 10, 1), (0.5, 10, 1)]
    state = toy_state(rows, fields={"client": [1, 2]})
    step(state, decision(10))
    while state.system[0]["next_arrival"] < 2:
        step(state, decision(10))
    assert [float(c["service"]) for c in state.clients[:2]] == [12.0, 12.0]


# ---- decodes -------------------------------------------------------------------------------------------------------
def decoding(fields=None, tbt_s=None, rows=None):
    """Three requests that have one token each, made at 25, 26 and ... ms: prefilled one after the other."""
    state = toy_state(rows or [(0.0, 5, 20), (0.0, 5, 20), (0.0, 5, 20)], fields=fields)
    if tbt_s is not None:
        state.requests["tbt_target_s"] = tbt_s
    for _ in range(3):
        step(state, decision(5, max_decodes=0))  # S(5) = 15 ms each: tokens at 15, 30, 45 ms
    check_all(state)
    return state


def decodes_of(state, most, **parameters) -> list[int]:
    return [i for i, _ in formed(state, decision(100, max_decodes=most, **parameters))]


def test_the_oldest_token_goes_first_by_default():
    assert decodes_of(decoding(), 2) == [0, 1]


def test_decodes_go_by_the_order_if_they_are_to():
    state = decoding({"predicted_tokens": [9.0, 3.0, 5.0], "weight": [1.0, 5.0, 7.0]})
    by_order = {"decode_order": DECODE_BY_ORDER}
    assert decodes_of(state, 2, order=PREDICTED_SHORTEST, **by_order) == [1, 2]
    assert decodes_of(state, 1, order=PRIORITY, **by_order) == [2]
    assert decodes_of(state, 1, order=PRIORITY) == [0]


def test_only_urgent_decodes_go_unless_nothing_else_would():
    # at 45 ms; the next tokens are late at 15 + 40, 30 + 20 and 45 + 20 ms: slacks of 10, 5 and 20 ms
    state = decoding(tbt_s=[0.040, 0.020, 0.020, 0.020], rows=[(0.0, 5, 20)] * 3 + [(0.04, 5, 20)])
    assert formed(state, decision(3, decode_within_s=0.012)) == [(0, 1), (1, 1), (3, 1)]
    assert formed(state, decision(100, decode_within_s=0.007)) == [(1, 1), (3, 5)]
    assert formed(state, decision(2, decode_within_s=0.001, prefill_tokens=0)) == [(0, 1), (1, 1), (2, 1)]


def test_held_back_decodes_fill_what_is_left_of_the_budget():
    state = decoding(tbt_s=[0.040, 0.020, 0.020, 0.020], rows=[(0.0, 5, 20)] * 3 + [(0.04, 5, 20)])
    d = decision(7, decode_within_s=0.007, fill_decodes=1)
    assert formed(state, d) == [(1, 1), (3, 5), (0, 1)]


def test_a_gate_holds_decodes_until_enough_stand_there():
    state = decoding()
    step(state, decision(100, max_decodes=1, prefill_tokens=0))  # request 0 has 2 tokens, the others 1
    assert decodes_of(state, 9, gate_tokens=1, gate_count=3) == [0]
    assert decodes_of(state, 9, gate_tokens=1, gate_count=2) == [0, 1, 2]
    assert decodes_of(state, 9, gate_tokens=2, gate_count=2) == [1, 2]
    assert decodes_of(state, 9, gate_tokens=2, gate_count=2, packing=LIST_ORDER) == [1, 2]


def test_a_gate_never_stops_a_worker():
    state = decoding()
    assert decodes_of(state, 9, gate_tokens=1, gate_count=9) == [0, 1, 2]
    assert decodes_of(state, 9, gate_tokens=1, gate_count=9, packing=NEVER_MIX) == [0, 1, 2]


def test_memory_is_told_again():
    state = toy_state([(0.0, 5, 3)])
    step(state, decision(100, memory=0.75))
    from llm_env.view import make_view

    assert make_view(state).memory == 0.75
    assert make_view(state).last_prefill_tokens == 5
    assert decision(5).decode_within_s == FAR
