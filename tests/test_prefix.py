"""The prefix cache: what a next turn finds, and who gives way for memory; by hand, blocks of 4, S(b) = 10 + b ms."""

from __future__ import annotations

import pytest
from toy import check_all, toy_state

from llm_env.core import step
from llm_env.records import KV_CHUNK, KV_PROMPT, decision
from llm_env.view import make_view

pytestmark = [pytest.mark.kernel, pytest.mark.nojit]


def sessions(rows, session, previous, shared, blocks=None, workers=1, router="shared"):
    fields = {"session": session, "previous": previous, "shared_tokens": shared}
    settings = {"blocks": blocks, "workers": workers, "kv": {"prefix_cache": True}, "system": {"router": router}}
    return toy_state(rows, fields=fields, **settings)


def played(state, kv_rule=KV_CHUNK):
    while state.system[0]["phase"] == 0:
        check_all(state)
        step(state, decision(100, kv_rule=kv_rule))
    check_all(state)
    return state


@pytest.mark.parametrize("kv_rule", [KV_CHUNK, KV_PROMPT])
@pytest.mark.parametrize("blocks", [None, 20])
def test_a_next_turn_prefills_what_is_new(blocks, kv_rule):
    # Turn 1 leaves 8 + 2 tokens of KV: 2 full blocks. Turn 2 has 16 tokens, 8 of them there: S(8) = 18 ms.
    state = played(sessions([(0.0, 8, 3), (1.0, 16, 1)], [0, 0], [-1, 0], [0, 11], blocks), kv_rule)
    assert state.requests["hit_tokens"].tolist() == [0, 8]
    assert state.requests[1]["finish_s"] == pytest.approx(1.018)
    assert state.system[0]["prefill_done"] == 8 + 8


def test_without_the_cache_it_prefills_everything():
    fields = {"session": [0, 0], "previous": [-1, 0], "shared_tokens": [0, 11]}
    state = played(toy_state([(0.0, 8, 3), (1.0, 16, 1)], fields=fields))
    assert state.requests[1]["finish_s"] == pytest.approx(1.026)


def test_the_last_token_of_a_prompt_is_always_computed():
    # everything is there, but a block must be left to compute
    state = played(sessions([(0.0, 8, 5), (1.0, 8, 1)], [0, 0], [-1, 0], [0, 8]))
    assert state.requests[1]["hit_tokens"] == 4


def test_only_whole_blocks_of_what_is_shared_are_found():
    state = played(sessions([(0.0, 8, 5), (1.0, 30, 1)], [0, 0], [-1, 0], [0, 7]))
    assert state.requests[1]["hit_tokens"] == 4


def test_another_worker_finds_nothing():
    rows = [(0.0, 8, 3), (1.0, 16, 1)]
    state = played(sessions(rows, [0, 0], [-1, 0], [0, 11], workers=2, router="round-robin"))
    assert state.requests["hit_tokens"].tolist() == [0, 0]
    state = played(sessions(rows, [0, 0], [-1, 0], [0, 11], workers=2, router="session-sticky"))
    assert state.requests["hit_tokens"].tolist() == [0, 8]


def test_a_turn_that_comes_before_the_end_of_the_last_finds_nothing():
    state = played(sessions([(0.0, 8, 9), (0.030, 20, 1)], [0, 0], [-1, 0], [0, 17]))
    assert state.requests["hit_tokens"].tolist() == [0, 0]


def test_cached_blocks_count_as_free_and_go_when_they_are_needed():
    # 5 blocks; turn 1 leaves 2. Request 1 (14 tokens) needs 4: one is taken, from the end, so turn 2 finds 4 tokens.
    state = sessions([(0.0, 8, 3), (0.5, 14, 1), (1.0, 16, 1)], [0, -1, 0], [-1, -1, 0], [0, 0, 11], blocks=5)
    while state.system[0]["next_arrival"] < 2:
        step(state, decision(100))
    view = make_view(state)
    assert (view.free_blocks, view.kv_used) == (5, 0.0)
    assert state.workers[0]["cached_blocks"] == 2
    played(state)
    assert state.requests["hit_tokens"].tolist() == [0, 0, 4]
    assert state.requests["evictions"].sum() == 0


def test_the_least_recently_finished_goes_first():
    # sessions 0 and 1 leave 2 blocks each of 5; request 2 takes 3: one is free, so both go from session 0
    rows = [(0.0, 8, 3), (0.2, 8, 3), (0.5, 11, 1), (1.0, 16, 1), (1.5, 16, 1)]
    state = sessions(rows, [0, 1, -1, 1, 0], [-1, -1, -1, 1, 0], [0, 0, 0, 11, 11], blocks=5)
    played(state)
    assert state.requests["hit_tokens"].tolist() == [0, 0, 0, 8, 0]


def test_a_decode_takes_cached_blocks_before_anybody_is_evicted():
    state = played(sessions([(0.0, 8, 3), (0.5, 7, 10)], [0, -1], [-1, -1], [0, 0], blocks=4))
    assert state.requests["evictions"].sum() == 0
    assert state.workers[0]["cached_blocks"] == 0
