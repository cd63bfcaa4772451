"""The rules of schedulers from papers, batch by batch: FastServe, VTC, SLAI, RAD, learning to rank, HRRN, priority,
WAIT and Nested WAIT."""

from __future__ import annotations

import pytest
from play import play, view_of

import baselines


# ---- FastServe -----------------------------------------------------------------------------------------------------
def test_fastserve_lets_a_short_prompt_skip_past_a_long_one():
    # a prompt of 5 takes 15 ms, within the first quantum of 16; one of 30 takes 60 ms and joins the third level
    rows = [(0, 4, 2), (1, 30, 1), (2, 5, 1)]
    got = play("fastserve", rows, parameters={"quantum_ms": 16.0, "max_prefill_tokens": 30})
    assert got.batches == [[(0, 4)], [(2, 5), (0, 1)], [(1, 30)]]


def test_fastserve_demotes_who_has_used_its_quantum():
    # prefill 14 ms, a decode 11 ms: below 16 ms level 0, below 48 level 1, then level 2; one decode at a time
    parameters = {"quantum_ms": 16.0, "starve_s": 0.0, "max_batch": 1}
    got = play("fastserve", [(0, 4, 6), (0, 4, 6)], parameters=parameters)
    assert [entries[0][0] for entries in got.batches[1:]] == [0, 1, 0, 0, 0, 1, 1, 1, 0, 1]  # taking turns: 0, 1, 0, 1


def test_fastserve_starvation_limit_overrides_the_levels():
    # after two batches of the other the one that got nothing for 22 ms goes first
    parameters = {"quantum_ms": 16.0, "starve_s": 0.02, "max_batch": 1}
    got = play("fastserve", [(0, 4, 6), (0, 4, 6)], parameters=parameters)
    assert [entries[0][0] for entries in got.batches[1:]] == [0, 1, 0, 0, 1, 0, 1, 1, 0, 1]


def test_fastserve_swaps_out_instead_of_recomputing():
    got = play("fastserve", [(0, 4, 8), (0, 4, 8)], blocks=4)
    assert got.state.system[0]["num_evictions"] > 0
    assert [entries for entries in got.batches if any(tokens > 1 for _, tokens in entries)] == [[(0, 4), (1, 4)]]


# ---- VTC -----------------------------------------------------------------------------------------------------------
def test_vtc_serves_the_client_with_the_least_service():
    # 5 tokens of a prompt and 2 for its output token: client 1, lifted to 5 when it comes, is behind client 0 with 7
    rows, columns = [(0, 5, 1), (0, 5, 1), (0, 5, 1), (1, 5, 1)], {"client": [0, 0, 0, 1]}
    got = play("vtc", rows, columns=columns, parameters={"max_batched_tokens": 5})
    assert got.batches == [[(0, 5)], [(3, 5)], [(1, 5)], [(2, 5)]]


def test_vtc_never_mixes():
    got = play("vtc", [(0, 5, 3), (1, 5, 2)], columns={"client": [0, 1]})
    assert got.batches == [[(0, 5)], [(1, 5)], [(0, 1), (1, 1)], [(0, 1)]]


# ---- SLAI ----------------------------------------------------------------------------------------------------------
LONG_AND_SHORT = [(0, 4, 5), (1, 30, 1), (1, 8, 1)]


def test_slai_holds_decodes_that_are_not_due_and_takes_the_shortest_prompt():
    got = play("slai", LONG_AND_SHORT, tbt_ms=1000.0, parameters={"token_budget": 10, "offset": 1.0})
    assert got.batches[:3] == [[(0, 4)], [(2, 8), (1, 2)], [(1, 10)]]
    # when prompts leave room, the decode goes too: 8 of the 30 tokens are left
    assert [sorted(entries) for entries in got.batches[3:6]] == [[(1, 10)], [(0, 1), (1, 8)], [(0, 1)]]


def test_slai_runs_a_decode_whose_last_schedulable_time_has_come():
    # its token is due 10 ms from now, within one mean batch of 14 ms
    got = play("slai", LONG_AND_SHORT, tbt_ms=10.0, parameters={"token_budget": 10, "offset": 1.0})
    assert got.batches[:2] == [[(0, 4)], [(0, 1), (2, 8), (1, 1)]]


def test_slai_offset_grows_when_memory_is_short():
    decide = baselines.make_policy("slai")
    crowded = {"num_waiting": 9, "waiting_tokens": 9000, "num_decodes": 5, "num_running": 5, "last_batch_s": 0.02}
    assert decide(view_of(**crowded, kv_used=0.95)).decode_within_s == pytest.approx(5 * 0.02)
    assert decide(view_of(**crowded, kv_used=0.97)).decode_within_s == pytest.approx(10 * 0.02)
    mean_s = 0.04 + (0.02 - 0.04) / 16
    assert decide(view_of(**crowded, memory=0.04)).decode_within_s == pytest.approx(5 * mean_s)


# ---- RAD -----------------------------------------------------------------------------------------------------------
def test_rad_alternates_between_whole_tiles_of_prefill_and_of_decodes():
    # tiles of 2 tokens: 4 of the budget of 5 are used; with 3 admitted it decodes, two at a time, until less than a
    # tile is left; only then the fourth prompt starts, though a slot was free before
    parameters = {"tile": 2, "token_budget": 5, "max_running": 3}
    got = play("rad", [(0, 4, 3)] * 4, parameters=parameters)
    assert got.batches == [
        [(0, 4)],
        [(1, 4)],
        [(2, 4)],
        [(0, 1), (1, 1)],
        [(0, 1), (2, 1)],
        [(1, 1), (2, 1)],
        [(3, 4)],
        [(3, 1)],
        [(3, 1)],
    ]


# ---- learning to rank, HRRN, priority ------------------------------------------------------------------------------
PREDICTED = {"predicted_tokens": [50.0, 5.0, 20.0]}


def test_predicted_shortest_follows_the_prediction_not_the_prompt():
    got = play(
        "predicted-shortest",
        [(0, 8, 1), (0, 10, 1), (0, 9, 1)],
        columns=PREDICTED,
        parameters={"token_budget": 10, "starve_iterations": 0},
    )
    assert got.batches == [[(1, 10)], [(2, 9), (0, 1)], [(0, 7)]]


def test_predicted_shortest_promotes_who_has_waited_too_long():
    # after one batch of 20 ms both have waited for more than 1 x 10 ms: now by arrival
    got = play(
        "predicted-shortest",
        [(0, 10, 1)] * 3,
        columns=PREDICTED,
        parameters={"token_budget": 10, "starve_iterations": 1},
    )
    assert got.batches == [[(1, 10)], [(0, 10)], [(2, 10)]]


def test_hrrn_lets_a_long_prompt_that_has_waited_go_before_a_short_one_that_has_not():
    # at 20 ms: (20 + 60) / 60 = 1.33 against (1 + 15) / 15 = 1.07; shortest first would take the other
    got = play("hrrn", [(0, 10, 1), (0, 30, 1), (19, 5, 1)], parameters={"token_budget": 10})
    assert got.batches[1] == [(1, 10)]
    # (19 + 15) / 15 = 2.27: now the short one; first come first served would not
    got = play("hrrn", [(0, 10, 1), (0, 30, 1), (1, 5, 1)], parameters={"token_budget": 10})
    assert got.batches[1] == [(2, 5), (1, 5)]


def test_priority_goes_by_weight_then_by_arrival():
    got = play("priority", [(0, 10, 1)] * 3, columns={"weight": [1.0, 5.0, 1.0]}, parameters={"token_budget": 10})
    assert got.batches == [[(1, 10)], [(0, 10)], [(2, 10)]]


def test_priority_evicts_the_least_weight_not_the_last():
    # 16 tokens: 7 + 1 and 5 take all four blocks; the first needs a fifth and is lighter than the second
    got = play("priority", [(0, 7, 4), (1, 5, 3)], columns={"weight": [1.0, 5.0]}, blocks=4)
    assert got.batches[:3] == [[(0, 7)], [(0, 1), (1, 5)], [(1, 1)]]
    assert list(got.state.requests["evictions"]) == [1, 0]


# ---- WAIT and Nested WAIT ------------------------------------------------------------------------------------------
def test_wait_holds_decodes_too_until_enough_prompts_wait():
    rows = [(0, 4, 3), (50, 4, 1), (80, 4, 1), (90, 4, 1)]
    got = play("wait", rows, parameters={"threshold": 2, "timeout_ms": 200.0})
    # the first waits for the second, its decode from 68 ms on for two more
    assert got.batches[:2] == [[(0, 4), (1, 4)], [(0, 1), (2, 4), (3, 4)]]
    assert got.starts_ms[:2] == [50.0, 90.0]


def test_wait_ends_each_hold_after_the_timeout():
    rows = [(0, 4, 3), (50, 4, 1), (80, 4, 1)]
    got = play("wait", rows, parameters={"threshold": 2, "timeout_ms": 100.0})
    assert got.batches == [[(0, 4), (1, 4)], [(0, 1), (2, 4)], [(0, 1)]]
    assert got.starts_ms == [50.0, 168.0, 283.0]  # 68 + 100; 168 + 15 + 100


def test_wait_takes_no_more_than_its_threshold():
    got = play("wait", [(0, 4, 1)] * 3, parameters={"threshold": 2, "timeout_ms": 10.0})
    assert got.batches == [[(0, 4), (1, 4)], [(2, 4)]]


def test_wait_threshold_of_the_fluid_is_the_arrivals_of_an_iteration():
    decide = baselines.make_policy("wait")
    idle = {"num_waiting": 2, "now_s": 50.0, "rate_slow_per_s": 30.0, "last_batch_s": 0.1}
    assert decide(view_of(**idle)).hold_s > 0  # 3 arrive in 0.1 s
    assert decide(view_of(**{**idle, "num_waiting": 3})).hold_s == 0
    assert decide(view_of(**idle, num_workers=2)).hold_s == 0  # half of them are for the other worker


def test_nested_wait_admits_in_groups_while_decodes_go_on():
    rows = [(0, 4, 3), (10, 4, 2), (24, 4, 1)]
    got = play("nested-wait", rows, parameters={"threshold": 2, "timeout_ms": 50.0})
    assert got.batches == [[(0, 4), (1, 4)], [(0, 1), (1, 1)], [(0, 1)], [(2, 4)]]
    assert got.starts_ms == [10.0, 28.0, 40.0, 74.0]


def test_nested_wait_gathers_requests_again_at_the_gate():
    # the first stands at the gate with 2 tokens until the second has as many; without a gate it would go on
    rows, parameters = [(0, 4, 4), (1, 4, 3)], {"threshold": 1, "gate_tokens": 2, "gate_count": 2}
    got = play("nested-wait", rows, parameters=parameters)
    assert got.batches == [[(0, 4)], [(0, 1), (1, 4)], [(1, 1)], [(0, 1), (1, 1)], [(0, 1)]]
    free = play("nested-wait", rows, parameters={**parameters, "gate_tokens": 0})
    assert free.batches == [[(0, 4)], [(0, 1), (1, 4)], [(0, 1), (1, 1)], [(0, 1), (1, 1)]]


def test_nested_wait_keeps_its_buffer_free():
    # 40 tokens, of which 16 stay free: 16 + 16 do not fit, though the memory has room
    rows = [(0, 16, 2), (0, 16, 2)]
    got = play("nested-wait", rows, blocks=10, parameters={"threshold": 2, "buffer": 0.4})
    assert got.batches[0] == [(0, 16)]
    got = play("nested-wait", rows, blocks=10, parameters={"threshold": 2, "buffer": 0.1})
    assert got.batches[0] == [(0, 16), (1, 16)]
