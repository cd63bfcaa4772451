"""The slow twin itself, on systems small enough to be worked out by hand.

S(b) = 10 ms + b x 1 ms, blocks of 4 tokens.
"""

from __future__ import annotations

from typing import Any

import pytest
from reference_simulator import Simulator
from twin_compare import decisions_of, policy_of, run_twin
from twin_model import Request, Settings
from twin_orders import level
from twin_service import Linear, Staircase, Table

from llm_env.records import FAIR_CLIENTS, KV_DECLARED, LEAST_ATTAINED, UNLIMITED


def simulated(
    requests: list[Any], changes: dict[str, Any] | None = None, system: dict[str, Any] | None = None, **row: Any
) -> Simulator:
    """The end of a system whose every decision is `row`."""
    case = {
        "system": system or {},
        "changes": changes or {},
        "requests": [[*values[:3], 0.1, 0.02, *values[3:]] for values in requests],
        "decisions": [{"token_budget": UNLIMITED, **row}],
    }
    return run_twin(case, policy_of(case))


def finishes(twin: Simulator) -> list[float]:
    return [request.finish_s for request in twin.requests]


LINK = {"system.kv.bytes_per_token": 1_000_000, "system.link.latency_ms": 1.0, "system.link.gbytes_per_s": 1.0}
POOLS = {"system.layout": "disaggregated", "system.workers": 2, "system.prefill_workers": 1, **LINK}


def test_a_staircase_and_a_table():
    stairs = Staircase(0.01, 0.005, 4)
    assert [stairs.seconds(b) for b in (1, 4, 5)] == pytest.approx([0.015, 0.015, 0.02])
    assert [stairs.budget(s) for s in (0.012, 0.0151, 0.0201)] == [1, 4, 8]
    table = Table([(4, 0.01), (8, 0.02)])
    assert [table.seconds(b) for b in (2, 4, 6, 12)] == pytest.approx([0.01, 0.01, 0.015, 0.03])
    assert [table.budget(s) for s in (0.005, 0.015, 0.03)] == pytest.approx([1, 6, 12])
    assert table.line == pytest.approx((0.01, 0.0025, 4))


def test_round_robin_over_unequal_workers():
    # S(10) = 20 ms; the second worker is twice as fast
    changes = {"system.workers": 2, "system.speeds": [1.0, 2.0], "system.router": "round-robin"}
    twin = simulated([(0.0, 10, 1), (0.0, 10, 1), (0.1, 10, 1)], changes)
    assert finishes(twin) == pytest.approx([0.020, 0.010, 0.120])
    assert [r.home for r in twin.requests] == [0, 1, 0]


def test_least_tokens_counts_what_waits_and_runs_by_speed():
    # 0 to worker 0; 1: 20 / 1 against 0 / 2; 2: 20 / 1 against 10 / 2; 3: 20 against 40 / 2, a tie
    changes = {"system.workers": 2, "system.speeds": [1.0, 2.0], "system.router": "least-tokens"}
    twin = simulated([(0.0, 20, 1), (0.0, 10, 1), (0.0, 30, 1), (0.0, 5, 1)], changes)
    assert [r.home for r in twin.requests] == [0, 1, 1, 0]


def test_a_request_moves_over_the_link_before_it_decodes():
    # prefill until 20 ms, 1 ms of latency, 10 MB at 1 GB/s until 31 ms, two decodes of 11 ms
    twin = simulated([(0.0, 10, 3)], POOLS)
    assert twin.requests[0].first_token_s == pytest.approx(0.020)
    assert finishes(twin) == pytest.approx([0.053])
    assert twin.requests[0].worker == 1


def test_two_transfers_share_the_link():
    # both from 30 ms on, 20 MB together until 51 ms; a batch of two decodes takes 12 ms
    assert finishes(simulated([(0.0, 10, 2), (0.0, 10, 2)], POOLS)) == pytest.approx([0.063, 0.063])


def test_a_move_waits_for_room():
    # the second may move when the first has left the only place, at 42 ms: 1 + 10 + 11 ms more
    twin = simulated([(0.0, 10, 2), (0.0, 10, 2)], POOLS, {"max_running": 1, "blocks": 20}, max_running=1)
    assert twin.requests[1].first_token_s == pytest.approx(0.051)  # the prefill worker is full until 31 ms
    assert finishes(twin) == pytest.approx([0.042, 0.051 + 0.022])


def test_a_helper_shortens_a_prompt():
    # worker 0: 10 tokens until 20 ms and 10 until 40 ms; worker 1: 10 until 20 ms, on the link until 31 ms
    changes = {"system.layout": "parallel-prefill", "system.workers": 2, "system.parallel.min_tokens": 5, **LINK}
    twin = simulated([(0.0, 30, 2)], changes, token_budget=10)
    assert twin.requests[0].first_token_s == pytest.approx(0.040)
    assert finishes(twin) == pytest.approx([0.051])


def test_a_swapped_request_comes_back_where_it_was():
    # 0 to 25 ms: both prompts; to 37: a decode each. Then 0 needs the last blocks: 1 goes to the host with 9 tokens, 9
    # ms on top of S(1) = 11 ms. At 57 there are 2 blocks free and it needs 3; at 68 it returns, 9 ms more.
    host = {"system.kv.bytes_per_token": 1_000_000, "system.kv.host_gbytes_per_s": 1.0}
    twin = simulated([(0.0, 7, 4), (0.0, 8, 4)], host, {"blocks": 5}, swap=1)
    assert finishes(twin) == pytest.approx([0.068, 0.099])
    assert twin.requests[1].evictions == 1
    assert sum(batch.prefill_tokens for batch in twin.batches) == 15


def test_a_turn_finds_the_one_before_it():
    # 0 leaves 2 blocks; 1 begins with their 8 tokens and prefills 4: 14 ms
    turns = [(0.0, 8, 1, {"session": 0}), (0.1, 12, 1, {"session": 0, "previous": 0, "shared_tokens": 9})]
    twin = simulated(turns, {"system.kv.prefix_cache": True})
    assert finishes(twin) == pytest.approx([0.018, 0.114])
    assert twin.requests[1].hit_tokens == 8


def test_the_cache_gives_way_to_running_requests():
    # 4 blocks, 2 of them cached; a prompt of 12 takes 3, so that one full block is left to find
    first, other = (0.0, 8, 1, {"session": 0}), (0.05, 12, 1)
    last = (0.1, 12, 1, {"session": 0, "previous": 0, "shared_tokens": 9})
    twin = simulated([first, other, last], {"system.kv.prefix_cache": True}, {"blocks": 4})
    assert twin.requests[2].hit_tokens == 4


def test_declared_output_is_reserved():
    # 8 + 9 - 1 = 16 tokens are all 4 blocks: the second waits for the first
    rows = [(0.0, 8, 1, {"declared_tokens": 9}), (0.0, 4, 1)]
    assert finishes(simulated(rows, system={"blocks": 4}, kv_rule=KV_DECLARED)) == pytest.approx([0.018, 0.032])


def test_the_client_that_got_less_goes_first():
    rows = [(0.0, 10, 1, {"client": 0}), (0.0, 10, 1, {"client": 0}), (0.0, 10, 1, {"client": 1})]
    assert finishes(simulated(rows, token_budget=10, order=FAIR_CLIENTS)) == pytest.approx([0.020, 0.060, 0.040])


def test_levels_of_attained_service():
    # a prompt of 10 takes 20 ms; quanta are 8, 16, 32, 64: it joins level 2, whose quantum is over after 32 ms
    s = Settings(curve=Linear(0.01, 0.001))
    request = Request(0.0, 10, 9, 0.1, 0.02)
    d = decisions_of({"decisions": [{"token_budget": 1, "order": LEAST_ATTAINED, "quantum_s": 0.008}]})[0]
    assert level(s, d, request) == 2
    request.emitted_tokens = 2  # 20 + 11 ms
    assert level(s, d, request) == 2
    request.emitted_tokens = 3  # 42 ms; level 3 lasts until 32 + 64
    assert level(s, d, request) == 3


def test_a_gate_opens_when_enough_stand_at_it():
    # both prompts by 15 ms and 30 ms; request 0 waits with 1 token until request 1 has 1 as well, then both decode
    twin = simulated([(0.0, 5, 2), (0.0, 5, 2)], token_budget=5, gate_tokens=1, gate_count=2)
    assert finishes(twin) == pytest.approx([0.042, 0.042])
