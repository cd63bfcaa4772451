"""The rules of serving engines, batch by batch: SGLang, TensorRT-LLM, DistServe, Splitwise."""

from __future__ import annotations

import pytest
from play import play, view_of

import baselines
from llm_env.errors import UserError

DISAGGREGATED = {
    "system.workers": 2,
    "system.layout": "disaggregated",
    "system.prefill_workers": 1,
    "system.link": {"latency_ms": 0.0, "gbytes_per_s": "unlimited"},
}


# ---- SGLang --------------------------------------------------------------------------------------------------------
CHUNKS = {"chunked_prefill_tokens": 8, "max_prefill_tokens": 16}


def test_sglang_prefills_all_chunks_before_any_decode():
    # the second prompt comes in two chunks; an engine that mixes would decode beside them
    got = play("sglang", [(0, 6, 3), (1, 10, 2)], parameters=CHUNKS)
    assert got.batches == [[(0, 6)], [(1, 8)], [(1, 2)], [(0, 1), (1, 1)], [(0, 1)]]


def test_sglang_mixed_chunk_counts_decodes_against_the_chunk():
    got = play("sglang", [(0, 6, 3), (1, 10, 2)], parameters={**CHUNKS, "mixed_chunk": True})
    assert got.batches == [[(0, 6)], [(0, 1), (1, 7)], [(0, 1), (1, 3)], [(1, 1)]]


def test_sglang_without_chunks_never_cuts_a_prompt():
    parameters = {"chunked_prefill_tokens": 0, "max_prefill_tokens": 8}
    got = play("sglang", [(0, 6, 1), (0, 6, 1)], parameters=parameters)
    assert got.batches == [[(0, 6)], [(1, 6)]]


# 40 tokens of memory. After its prefill the first request holds 8 and may still make 19; the second wants 8 + 12 = 20
RESERVED = [(0, 8, 5), (1, 8, 1)]
DECLARED = {"declared_tokens": [20, 12]}


def test_sglang_reserves_the_ratio_of_what_running_requests_may_still_make():
    # free 32 - 0.7 x 19 = 18.7 < 20: the second waits, though its prompt alone would fit
    first = play("sglang", RESERVED, columns=DECLARED, blocks=10).batches
    assert first[:2] == [[(0, 8)], [(0, 1)]]
    # free 32 - 0.07 x 19 = 30.7: it goes
    bold = play("sglang", RESERVED, columns=DECLARED, blocks=10, parameters={"conservativeness": 0.1}).batches
    assert bold[:2] == [[(0, 8)], [(1, 8)]]


def test_sglang_clips_what_a_request_may_still_make():
    # clipped at 4 tokens: 8 + 4 = 12 <= 32 - 0.7 x 4
    got = play("sglang", RESERVED, columns=DECLARED, blocks=10, parameters={"clip_tokens": 4}).batches
    assert got[:2] == [[(0, 8)], [(1, 8)]]


def test_sglang_ratio_falls_with_each_decode_batch():
    # one decay step: 0.098 after the first decode batch: 20 <= 28 - 0.098 x 18
    got = play("sglang", RESERVED, columns=DECLARED, blocks=10, parameters={"decay_steps": 1}).batches
    assert got[:3] == [[(0, 8)], [(0, 1)], [(1, 8)]]
    slow = play("sglang", RESERVED, columns=DECLARED, blocks=10).batches
    assert slow[:3] == [[(0, 8)], [(0, 1)], [(0, 1)]]


def test_sglang_ratio_knows_decode_batches_retractions_and_idle_times():
    decide = baselines.make_policy("sglang")
    decay = 0.7 * 0.86 / 600
    busy = {"num_running": 3, "num_decodes": 3, "memory": 0.5, "head_age_s": 1.0, "last_batch_tokens": 3}
    assert decide(view_of()).reserve_ratio == pytest.approx(0.7)
    assert decide(view_of(**busy)).reserve_ratio == pytest.approx(0.5 - decay)
    assert decide(view_of(**busy, last_prefill_tokens=3)).reserve_ratio == pytest.approx(0.5)  # was a prefill batch
    retracted = {**busy, "last_evicted": 1, "emitted_tokens": 33, "declared_tokens": 99}
    assert decide(view_of(**retracted)).reserve_ratio == pytest.approx((33 - 3 + 20 * 3) / (99 + 1))
    assert decide(view_of(**{**retracted, "declared_tokens": 9})).reserve_ratio == 1.0
    assert decide(view_of(memory=0.1, num_running=0, head_age_s=0.0)).reserve_ratio == pytest.approx(0.7)  # was idle
    least = {**busy, "memory": 0.7 * 0.14}
    assert decide(view_of(**least)).reserve_ratio == pytest.approx(0.7 * 0.14)


def test_sglang_retracts_the_fewest_outputs_then_the_longest_prompt():
    # 16 tokens of memory: the second takes the last block at once, the first needs one for its ninth token. Both have
    # made three: the one with the longer prompt goes, not the last in the list
    got = play("sglang", [(0, 6, 5), (0, 4, 5)], blocks=4, parameters={"clip_tokens": 1})
    assert got.batches[:4] == [[(0, 6), (1, 4)], [(0, 1), (1, 1)], [(0, 1), (1, 1)], [(1, 1)]]
    assert list(got.state.requests["evictions"]) == [1, 0]


# ---- TensorRT-LLM --------------------------------------------------------------------------------------------------
def test_tensorrt_llm_admits_only_what_can_run_to_its_end():
    # 40 tokens: 8 held, 23 to come; 8 + 12 do not fit beside them, but their first step would
    rows, columns = [(0, 8, 24), (1, 8, 4)], {"declared_tokens": [24, 12]}
    safe = play("tensorrt-llm", rows, columns=columns, blocks=10)
    assert safe.batches[:2] == [[(0, 8)], [(0, 1)]]
    bold = play("tensorrt-llm", rows, columns=columns, blocks=10, parameters={"capacity": "max-utilization"})
    assert bold.batches[:2] == [[(0, 8)], [(0, 1), (1, 8)]]


def test_tensorrt_llm_evicts_only_under_max_utilization():
    rows = [(0, 8, 20), (0, 8, 20), (1, 8, 20)]
    safe = play("tensorrt-llm", rows, blocks=10)
    assert safe.state.system[0]["num_evictions"] == 0
    bold = play("tensorrt-llm", rows, blocks=10, parameters={"capacity": "max-utilization"})
    assert bold.state.system[0]["num_evictions"] > 0


@pytest.mark.parametrize(
    ("tokens", "chunked", "expected"),
    [
        (10, False, [[(0, 4)], [(0, 1), (1, 8)], [(0, 1), (1, 1)]]),
        (8, False, [[(0, 4)], [(0, 1)], [(0, 1)], [(1, 8)], [(1, 1)]]),  # 7 tokens are left beside the decode
        (8, True, [[(0, 4)], [(0, 1), (1, 7)], [(0, 1), (1, 1)], [(1, 1)]]),
    ],
)
def test_tensorrt_llm_counts_decodes_and_prompts_against_max_num_tokens(tokens, chunked, expected):
    parameters = {"max_num_tokens": tokens, "chunked_context": chunked}
    assert play("tensorrt-llm", [(0, 4, 3), (1, 8, 2)], parameters=parameters).batches == expected


def test_tensorrt_llm_names_the_capacities():
    with pytest.raises(UserError, match="capacity: expected one of guaranteed-no-evict, max-utilization"):
        baselines.make_policy("tensorrt-llm", capacity="static")


# ---- DistServe and Splitwise ---------------------------------------------------------------------------------------
THREE = [(0, 4, 3), (0, 5, 2), (0, 6, 2)]


def test_distserve_prefills_whole_prompts_here_and_decodes_there():
    got = play("distserve", THREE, changes=DISAGGREGATED, parameters={"prefill_tokens": 10})
    assert got.of_worker(0) == [[(0, 4), (1, 5)], [(2, 6)]]  # 6 tokens are more than is left: they are not cut
    # the first two decode while the third prefills; it joins when its KV has come
    assert got.of_worker(1)[0] == [(0, 1), (1, 1)]
    assert all(tokens == 1 for entries in got.of_worker(1) for _, tokens in entries)


def test_distserve_on_a_mixed_worker_never_mixes():
    got = play("distserve", THREE, parameters={"prefill_tokens": 10})
    assert got.batches == [[(0, 4), (1, 5)], [(2, 6)], [(0, 1), (1, 1), (2, 1)], [(0, 1)]]


def test_distserve_swaps_out_instead_of_recomputing():
    changes = {**DISAGGREGATED, "system.router": "least-tokens"}
    got = play("distserve", [(0, 4, 8), (0, 4, 8)], changes=changes, blocks=5)
    assert got.state.system[0]["num_evictions"] > 0
    assert sum(tokens for entries in got.of_worker(0) for _, tokens in entries) == 8  # every prompt once


def test_splitwise_prefers_prompts_until_decodes_were_left_out_too_often():
    rows = [(0, 4, 4), (1, 10, 1), (1, 10, 1), (1, 10, 1)]
    got = play("splitwise", rows, parameters={"max_tokens": 10, "max_preemptions": 1})
    assert got.batches == [[(0, 4)], [(1, 10)], [(0, 1)], [(2, 10)], [(0, 1)], [(3, 10)], [(0, 1)]]
    patient = play("splitwise", rows, parameters={"max_tokens": 10, "max_preemptions": 4})
    assert patient.batches == [[(0, 4)], [(1, 10)], [(2, 10)], [(3, 10)], [(0, 1)], [(0, 1)], [(0, 1)]]


def test_splitwise_fills_what_prompts_leave_with_decodes():
    got = play("splitwise", [(0, 4, 2), (0, 4, 2), (1, 9, 1)], parameters={"max_tokens": 10})
    assert got.batches == [[(0, 4), (1, 4)], [(2, 9), (0, 1)], [(1, 1)]]


def test_splitwise_splits_the_phases():
    got = play("splitwise", THREE, changes=DISAGGREGATED, parameters={"max_tokens": 10})
    assert got.of_worker(0) == [[(0, 4), (1, 5)], [(2, 6)]]
    assert all(tokens == 1 for entries in got.of_worker(1) for _, tokens in entries)
