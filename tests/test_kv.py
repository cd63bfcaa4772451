"""llm_env/kv.py: block counts, admission under the three rules, watermark, eviction; numbers worked out by hand."""

from __future__ import annotations

import pytest
from toy import batch_of, check_all, formed, running_of, toy_state

from llm_env.batching import form_batch
from llm_env.core import step
from llm_env.dtypes import DRAINED, FINISHED, REJECTED, WAITING
from llm_env.kv import blocks_for, evict, make_room
from llm_env.records import KV_CHUNK, KV_PROMPT, KV_RESERVE, decision, snapshot

pytestmark = [pytest.mark.kernel, pytest.mark.nojit]


def after(state, d):
    """(free blocks, blocks of each request, batch) after one decision, before the batch ends its work."""
    copy = snapshot(state)
    form_batch(copy, 0, d)
    return int(copy.workers[0]["free_blocks"]), copy.requests["blocks"].tolist(), batch_of(copy)


@pytest.mark.parametrize(("tokens", "blocks"), [(0, 0), (1, 1), (15, 1), (16, 1), (17, 2), (32, 2), (33, 3)])
def test_a_started_block_counts(tokens, blocks):
    assert blocks_for(tokens, 16) == blocks


# ---- rejected at arrival -------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("prompt", "output", "fits"),
    [
        (40, 1, True),  # 40 tokens = 10 blocks of 4
        (41, 1, False),
        (31, 10, True),  # 31 + 10 - 1 = 40: the last output token is never computed on
        (31, 11, False),
    ],
)
def test_what_can_never_fit_is_rejected_at_arrival_and_nothing_else_is(prompt, output, fits):
    state = toy_state([(0.5, prompt, output)], blocks=10)
    if not fits:
        assert state.requests[0]["status"] == REJECTED
        assert state.system[0]["num_rejected"] == 1
        assert state.system[0]["phase"] == DRAINED
        return
    while state.system[0]["phase"] != DRAINED:
        step(state, decision(100))
        check_all(state)
    assert state.requests[0]["status"] == FINISHED
    assert state.requests[0]["evictions"] == 0


# ---- admission -----------------------------------------------------------------------------------------------------
ROWS = [(0.0, 10, 9), (0.0, 21, 9), (0.0, 5, 9)]  # prompts of 3, 6 and 2 blocks of 4 tokens


def test_rule_prompt_takes_the_blocks_of_the_whole_prompt():
    # budget 12: request 0 whole (3 blocks), 2 tokens of request 1 (all its 6 blocks)
    state = toy_state(ROWS, blocks=12)
    assert after(state, decision(12, kv_rule=KV_PROMPT)) == (3, [3, 6, 0], [(0, 10), (1, 2)])
    # with 8 blocks request 1 does not fit beside request 0, and nobody overtakes it
    state = toy_state(ROWS, blocks=8)
    assert after(state, decision(100, kv_rule=KV_PROMPT)) == (5, [3, 0, 0], [(0, 10)])


def test_rule_chunk_takes_the_blocks_of_the_chunk_but_wants_the_prompt_to_fit():
    state = toy_state(ROWS, blocks=12)
    assert after(state, decision(12, kv_rule=KV_CHUNK)) == (8, [3, 1, 0], [(0, 10), (1, 2)])
    state = toy_state(ROWS, blocks=8)
    assert after(state, decision(12, kv_rule=KV_CHUNK)) == (5, [3, 0, 0], [(0, 10)])


def test_rule_reserve_takes_the_reservation_or_the_prompt_whichever_is_more():
    # 16 tokens = 4 blocks: request 0 takes 4, request 1 takes its 6, request 2 takes 4
    state = toy_state(ROWS, blocks=14)
    assert after(state, decision(100, kv_rule=KV_RESERVE, reserve_tokens=16)) == (
        0,
        [4, 6, 4],
        [(0, 10), (1, 21), (2, 5)],
    )
    state = toy_state(ROWS, blocks=13)
    assert after(state, decision(100, kv_rule=KV_RESERVE, reserve_tokens=16))[1] == [4, 6, 0]


def test_the_watermark_keeps_its_share_free():
    # 0.2 of 12 blocks = 2: after requests 0 and 1 three are free, and request 2 would leave one
    state = toy_state(ROWS, blocks=12)
    assert after(state, decision(100, kv_rule=KV_PROMPT))[1] == [3, 6, 2]
    assert after(state, decision(100, kv_rule=KV_PROMPT, watermark=0.2))[1] == [3, 6, 0]


def test_the_systems_watermark_overrides_the_policys():
    state = toy_state(ROWS, blocks=12, watermark=0.0)
    assert after(state, decision(100, kv_rule=KV_PROMPT, watermark=0.2))[1] == [3, 6, 2]
    state = toy_state(ROWS, blocks=12, watermark=0.2)
    assert after(state, decision(100, kv_rule=KV_PROMPT, watermark=0.0))[1] == [3, 6, 0]


def test_unlimited_memory_has_no_watermark():
    state = toy_state(ROWS)
    assert [i for i, _ in formed(state, decision(100, kv_rule=KV_PROMPT, watermark=0.99))] == [0, 1, 2]


@pytest.mark.parametrize("kv_rule", [KV_PROMPT, KV_CHUNK, KV_RESERVE])
def test_an_empty_worker_admits_in_spite_of_watermark_and_reservation(kv_rule):
    # the prompt needs 6 of 6 blocks, the reservation 25, the watermark keeps 3
    state = toy_state([(0.0, 21, 3), (0.0, 1, 1)], blocks=6)
    d = decision(100, kv_rule=kv_rule, reserve_tokens=100, watermark=0.5)
    assert after(state, d) == (0, [6, 0], [(0, 21)])
    steps = 0
    while state.system[0]["phase"] != DRAINED:
        step(state, d)
        check_all(state)
        steps += 1
        assert steps < 100
    assert (state.requests["status"] == FINISHED).all()


# ---- growth and eviction -------------------------------------------------------------------------------------------
def three_decoding(blocks):
    """Requests 0, 1 and 2 with 4 tokens in KV each (one full block) and their first token made."""
    state = toy_state([(0.0, 4, 8), (0.0, 4, 8), (0.0, 4, 8)], blocks=blocks)
    step(state, decision(12))
    return state


def test_the_last_request_that_is_not_in_the_batch_is_evicted():
    # 5 blocks, 3 held: decodes of 0 and 1 take the two free ones, the decode of 2 finds none and goes itself
    state = three_decoding(5)
    assert after(state, decision(100)) == (1, [2, 2, 0], [(0, 1), (1, 1)])
    # 4 blocks: 0 takes the free one; for 1 the last request, 2, is evicted
    state = three_decoding(4)
    assert after(state, decision(100)) == (0, [2, 2, 0], [(0, 1), (1, 1)])
    # 3 blocks: 0 evicts 2; 1 finds nobody behind it that is not in the batch, and goes itself
    state = three_decoding(3)
    assert after(state, decision(100)) == (1, [2, 0, 0], [(0, 1)])


def test_rule_prompt_evicts_already_when_no_block_is_free():
    # as vLLM v0: 5 tokens still fit into 2 blocks each, yet a decode wants a spare block
    state = toy_state([(0.0, 5, 8), (0.0, 5, 8)], blocks=4)
    step(state, decision(10, kv_rule=KV_PROMPT))
    assert state.workers[0]["free_blocks"] == 0
    assert after(state, decision(100))[2] == [(0, 1)]
    # under the other rules both decode
    state = toy_state([(0.0, 5, 8), (0.0, 5, 8)], blocks=4)
    step(state, decision(10, kv_rule=KV_CHUNK))
    assert after(state, decision(100))[2] == [(0, 1), (1, 1)]


def test_an_evicted_request_forgets_its_kv_but_not_its_tokens():
    state = three_decoding(100)
    for _ in range(2):
        step(state, decision(100))  # 3 tokens made, 6 in KV, 2 blocks each
    evict(state, 0, 1, 0)
    r = state.requests[1]
    assert (r["status"], r["computed_tokens"], r["emitted_tokens"], r["blocks"]) == (WAITING, 0, 3, 0)
    assert r["prefill_tokens"] == 4 + 3  # the prompt and what was generated
    assert r["evictions"] == 1
    assert running_of(state) == [0, 2]
    assert state.workers[0]["free_blocks"] == 100 - 2 * 2
    check_all(state)
    # the recomputation emits the next token
    step(state, decision(100))
    assert (r["emitted_tokens"], r["computed_tokens"]) == (4, 7)
    check_all(state)


def test_an_evicted_partial_prefill_is_no_partial_any_more():
    state = toy_state([(0.0, 4, 8), (0.0, 30, 8)], blocks=20)
    step(state, decision(10))  # 4 tokens of request 0, 6 of request 1
    assert state.workers[0]["num_partial"] == 1
    evict(state, 0, 1, 0)
    assert state.workers[0]["num_partial"] == 0
    assert state.requests[1]["prefill_tokens"] == 30
    check_all(state)


def test_make_room_evicts_no_more_than_it_must():
    state = three_decoding(4)
    assert make_room(state, 0, 0, 2, decision(100))
    assert running_of(state) == [0, 1]
    assert make_room(state, 0, 0, 3, decision(100))
    assert running_of(state) == [0]
    assert not make_room(state, 0, 0, 5, decision(100))  # more than there is: it goes itself
    assert running_of(state) == []
    assert state.workers[0]["free_blocks"] == 4


def test_nobody_is_admitted_in_a_batch_that_evicted():
    # 5 blocks: request 2 is evicted, one block is free, and request 3 would fit into it
    state = toy_state([(0.0, 4, 8), (0.0, 4, 8), (0.0, 4, 8), (0.0, 1, 1)], blocks=5, max_running=4)
    step(state, decision(12))
    assert running_of(state) == [0, 1, 2]
    assert after(state, decision(100)) == (1, [2, 2, 0, 0], [(0, 1), (1, 1)])
