"""Each policy's rule, seen in the batches it forms; and the table of policies: parameters, errors, documentation."""

from __future__ import annotations

import numpy as np
import pytest

import baselines
from llm_env.config import Scenario, with_changes
from llm_env.dtypes import FINISHED
from llm_env.errors import UserError
from llm_env.rollout import rollout
from llm_env.scenarios import load_scenario
from llm_env.workload import blank_requests, draw_workload

NAMES = tuple(baselines.POLICIES)
PLENTY = Scenario.model_validate({"episode": {"horizon_s": 1e6}})  # unlimited KV, S(b) = 45.5 + 0.30 max(0, b - 64) ms


def batches(policy: str, requests: list[tuple[float, int, int]], scenario: Scenario = PLENTY, **parameters):
    """(prefill, decode) tokens of each batch, for requests of (arrival_s, prompt_tokens, output_tokens)."""
    drawn = blank_requests(len(requests))
    drawn["arrival_s"], drawn["prompt_tokens"], drawn["output_tokens"] = zip(*requests, strict=True)
    drawn["ttft_target_s"], drawn["tbt_target_s"] = 2.0, 0.15
    state = rollout(scenario, baselines.make_policy(policy, **parameters), drawn, 0, record=True)
    assert (state.requests["status"] == FINISHED).all()
    log = state.batch_log[: state.system["num_batches"][0]]
    return list(zip(log["prefill_tokens"].tolist(), log["decode_tokens"].tolist(), strict=True))


def test_fcfs_runs_one_request_to_its_end_before_the_next():
    assert batches("fcfs", [(0, 100, 3), (0, 50, 2)]) == [(100, 0), (0, 1), (0, 1), (50, 0), (0, 1)]


def test_request_level_lets_nobody_join_a_running_batch():
    # two fit into the prefill budget; the third waits until both are done, though one ends early
    got = batches("request-level", [(0, 100, 2), (0, 100, 4), (0, 100, 2)], token_budget=200)
    assert got == [(200, 0), (0, 2), (0, 1), (0, 1), (100, 0), (0, 1)]


def test_orca_adds_whole_prompts_to_running_decodes():
    got = batches("orca", [(0, 100, 3), (0.05, 700, 2)])
    assert got == [(100, 0), (700, 1), (0, 2)]


def test_orca_admits_no_more_than_max_running():
    assert batches("orca", [(0, 10, 2)] * 3, max_running=2) == [(20, 0), (0, 2), (10, 0), (0, 1)]


def test_vllm_v0_never_mixes_and_prefills_first():
    got = batches("vllm-v0", [(0, 100, 4), (0.05, 300, 2)])
    assert got == [(100, 0), (300, 0), (0, 2), (0, 1), (0, 1)]


def test_vllm_v0_padding_counts_every_prompt_as_the_longest():
    requests = [(0, 100, 1), (0, 300, 1), (0, 100, 1)]
    assert batches("vllm-v0", requests, max_batched_tokens=600) == [(500, 0)]
    assert batches("vllm-v0", requests, max_batched_tokens=600, padded=True) == [(400, 0), (100, 0)]


def test_vllm_v1_gives_the_budget_to_running_requests_first():
    # step 2: the rest of the first prompt (88), then the second's; step 3: one decode, then the second's
    got = batches("vllm-v1", [(0, 600, 3), (0, 700, 2)], token_budget=512)
    assert got == [(512, 0), (512, 0), (276, 1), (0, 2)]


def test_vllm_v1_long_prefill_threshold_spares_a_lone_request():
    alone = batches("vllm-v1", [(0, 500, 1)], token_budget=512, long_prefill_threshold=100)
    assert alone == [(500, 0)]
    # two requests: 100 each until the first is done, then the other is alone and takes the rest
    two = batches("vllm-v1", [(0, 200, 1), (0, 500, 1)], token_budget=512, long_prefill_threshold=100)
    assert two == [(200, 0), (200, 0), (300, 0)]


def test_sarathi_never_holds_decodes_back_and_fills_with_chunks():
    got = batches("sarathi", [(0, 10, 4), (0, 10, 4), (0.02, 300, 2)], token_budget=102)
    assert got == [(20, 0), (100, 2), (100, 2), (100, 2), (0, 1)]


def test_sarathi_spf_serves_the_shortest_prompt_first():
    got = batches("sarathi-spf", [(0, 300, 1), (0, 100, 1), (0, 200, 1)], token_budget=100)
    assert got == [(100, 0)] * 6
    drawn = blank_requests(2)
    drawn["prompt_tokens"], drawn["output_tokens"] = [300, 100], 1
    drawn["ttft_target_s"], drawn["tbt_target_s"] = 2.0, 0.15
    for name, first in (("sarathi", 0), ("sarathi-spf", 1)):
        state = rollout(PLENTY, baselines.make_policy(name, token_budget=100), drawn, 0)
        assert np.argmin(state.requests["first_token_s"]) == first


def test_decode_first_prefills_only_while_few_decode():
    requests = [(0, 100, 3), (0.05, 100, 2)]
    assert batches("decode-first", requests) == [(100, 0), (0, 1), (0, 1), (100, 0), (0, 1)]
    assert batches("decode-first", requests, min_decodes=2) == [(100, 0), (100, 0), (0, 2), (0, 1)]


def test_slack_fill_takes_the_largest_chunk_that_keeps_the_decode_on_time():
    # S(b) <= 150 ms up to b = 64 + 104.5 / 0.30 = 412: one decode and 411 prefill tokens
    got = batches("slack-fill", [(0, 100, 5), (0.05, 1000, 2)])
    assert got == [(100, 0), (411, 1), (411, 1), (178, 1), (0, 2)]


def test_moore_hodgson_drops_the_prompt_that_would_make_others_late():
    """12,000 tokens cannot be on time beside the others and are dropped; FCFS serves them first and misses all."""
    prompts = [5000, 900, 900, 900]
    requests = [(0.0, prompt, 1) for prompt in prompts]
    drawn = blank_requests(len(requests))
    drawn["prompt_tokens"], drawn["output_tokens"] = prompts, 1
    drawn["ttft_target_s"], drawn["tbt_target_s"] = 2.0, 0.15
    on_time = {}
    for name in ("sarathi", "moore-hodgson"):
        state = rollout(PLENTY, baselines.make_policy(name, token_budget="slo"), drawn, 0)
        on_time[name] = int((state.requests["first_token_s"] <= 2.0).sum())
    assert on_time == {"sarathi": 1, "moore-hodgson": 3}


def test_random_depends_on_its_seed_alone():
    requests = [(0.1 * k, 100 + 37 * k, 5) for k in range(12)]
    assert batches("random", requests, seed=1) == batches("random", requests, seed=1)
    assert batches("random", requests, seed=1) != batches("random", requests, seed=2)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("workers", [1, 2])
def test_every_policy_serves_a_light_load_to_the_end(name, workers):
    scenario = with_changes(
        load_scenario("chat"),
        {"system.workers": workers, "workload.rate_per_s": 0.02, "episode.horizon_s": 2000.0},
    )
    state = rollout(scenario, baselines.make_policy(name), draw_workload(scenario, 7), 7)
    n = int(state.system["num_requests"][0])
    assert n > 0
    assert (state.requests["status"][:n] == FINISHED).all()


def test_slo_budget_follows_the_tbt_target():
    tight = with_changes(PLENTY, {"slo.classes": [{"tbt_ms": 75.5}]})  # tau* = 64 + 30 / 0.30 = 164
    assert batches("sarathi", [(0, 400, 1)], tight, token_budget="slo") == [(164, 0), (164, 0), (72, 0)]


# ---- the table -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", NAMES)
def test_every_policy_states_its_rule_and_its_source(name):
    info = baselines.policy_info(name)
    assert info.summary
    assert "Rule:" in info.rule
    assert any(word in info.rule for word in ("Source:", "Lindley", "Hash:")), info.rule


@pytest.mark.parametrize(
    ("name", "texts", "words"),
    [
        ("sarathy", [], "did you mean 'sarathi'"),
        ("sarathi", ["budget=3"], "unknown parameter 'budget'"),
        ("sarathi", ["token_budget"], "expected key=value"),
        ("sarathi", ["token_budget=0"], "token_budget: expected"),
        ("sarathi", ["token_budget=-5"], "token_budget: expected"),
        ("sarathi", ["token_budget=1_000"], "expected an integer"),
        ("sarathi", ["token_budget=many"], 'or "slo"'),
        ("sarathi", ["max_running=1", "max_running=2"], "given twice"),
        ("vllm-v0", ["padded=yes"], "expected true or false"),
        ("moore-hodgson", ["margin=nan"], "margin: expected a number"),
        ("moore-hodgson", ["margin=one"], "margin: expected a number"),
        ("slack-fill", ["order=lifo"], "order: expected one of"),
        ("fcfs", ["token_budget=1"], "it has: none"),
    ],
)
def test_a_wrong_parameter_is_named_with_what_is_allowed(name, texts, words):
    with pytest.raises(UserError) as caught:
        baselines.make_policy(name, **baselines.parse_parameters(name, texts))
    assert words in str(caught.value)


def test_parameters_are_read_as_their_kind():
    texts = ["token_budget=slo", "max_running=7", "margin=1.5"]
    assert baselines.parse_parameters("moore-hodgson", texts) == {
        "token_budget": "slo",
        "max_running": 7,
        "margin": 1.5,
    }
