"""llm_env/adaptive.py: at its neutral numbers the rule is Moore-Hodgson, each number does what it says, and the box of
actions holds every setting of the baseline."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import formed, toy_state

import baselines
from llm_env.actions import ADAPTIVE, to_decision
from llm_env.adaptive import NAMES, NEUTRAL, PARAMETERS, adaptive_decision, from_unit, parameters_of, to_unit
from llm_env.config import with_changes
from llm_env.dtypes import FAR
from llm_env.records import (
    DROPPED_LAST,
    KV_CHUNK,
    KV_ESTIMATE,
    MOORE_HODGSON,
    VICTIM_LAST,
    VICTIM_PRIORITY,
    decision,
)
from llm_env.rollout import rollout
from llm_env.scenarios import load_scenario
from llm_env.systems import Systems
from llm_env.view import make_view
from llm_env.workload import draw_workload

pytestmark = pytest.mark.kernel
nojit = pytest.mark.nojit

LOW, HIGH = np.array([p.low for p in PARAMETERS]), np.array([p.high for p in PARAMETERS])
CLASSES = [
    {"name": "fast", "ttft_ms": 1000.0, "tbt_ms": 100.0, "weight": 4.0, "share": 0.3},
    {"name": "slow", "ttft_ms": 8000.0, "tbt_ms": 500.0, "share": 0.7},
]
SHORT = {"episode.arrivals_s": 25.0, "episode.warmup_s": 2.0, "workload.load": 1.1}
TIGHT = {**SHORT, "system.kv.blocks": 900, "slo.classes": CLASSES}


def numbers(**given):
    """The neutral numbers but for those given."""
    return tuple(float(given.get(name, neutral)) for name, neutral in zip(NAMES, NEUTRAL, strict=True))


def view(**fields):
    """A View of S(b) = 10 ms + b x 1 ms, targets of 100 ms and 20 ms (tau* = 10), with some fields changed."""
    return make_view(toy_state([(0.0, 5, 3)]))._replace(**{"urgent_slack_s": FAR, "urgent_tokens": 0, **fields})


def tokens(seen, **given):
    return adaptive_decision(seen, numbers(**given)).token_budget


# ---- Moore-Hodgson in the middle -----------------------------------------------------------------------------------
@pytest.mark.parametrize("changes", [SHORT, TIGHT])
def test_the_neutral_rule_is_moore_hodgson_bit_for_bit(changes):
    scenario = with_changes(load_scenario("chat-bursty"), changes)
    requests = draw_workload(scenario, 5)
    mine, theirs = (
        rollout(scenario, baselines.make_policy(name), requests, 5, record=True)
        for name in ("adaptive", "moore-hodgson")
    )
    assert mine.system["num_batches"][0] > 100
    for a, b in zip(mine, theirs, strict=True):
        assert a.tobytes() == b.tobytes()


def test_a_constant_action_is_the_baseline_with_its_numbers_bit_for_bit():
    given = {"budget": 1.3, "fill": 0.6, "kv_high": 0.85, "kv_budget": 0.376, "margin": 1.12, "slack_weight": 0.7}
    given |= {"drop": 3.5, "class_weight": 0.5, "reserve": 0.25, "urgency": 1.5, "slack_share": 0.95}
    given["watermark"] = 0.03
    scenario = with_changes(load_scenario("chat-bursty"), TIGHT)
    requests = draw_workload(scenario, 5)
    other = rollout(scenario, baselines.make_policy("adaptive", **given), requests, 5)
    systems = Systems([scenario], 1, "adaptive")
    systems.reset(0, 5)
    systems.set_actions(to_unit(numbers(**given)).astype(np.float32)[None])
    while systems.active()[0]:
        systems.step(systems.active())
    count = len(requests)
    assert systems.state(0).requests[:count].tobytes() == other.requests.tobytes()
    neutral = rollout(scenario, baselines.make_policy("adaptive"), requests, 5)
    assert neutral.requests.tobytes() != other.requests.tobytes()


def test_the_baseline_has_the_numbers_of_the_rule():
    defaults = {p.name: p.default for p in inspect.signature(baselines.adaptive.make).parameters.values()}
    assert defaults == {p.name: p.neutral for p in PARAMETERS}
    assert list(defaults) == list(NAMES)
    assert NAMES[-1] == "role"


# ---- the box -------------------------------------------------------------------------------------------------------
@nojit
def test_the_ends_and_the_neutral_point_of_the_box():
    assert from_unit(np.full(len(NAMES), -1.0)) == pytest.approx(LOW, rel=1e-4)
    assert from_unit(np.full(len(NAMES), 1.0)) == pytest.approx(HIGH, rel=1e-4)
    assert tuple(from_unit(to_unit(NEUTRAL).astype(np.float32))) == NEUTRAL
    assert (from_unit(np.full(len(NAMES), 9.0)) == from_unit(np.ones(len(NAMES)))).all(), "beyond the box not clipped"


@nojit
@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 1000), min_size=len(NAMES), max_size=len(NAMES)))
def test_numbers_of_few_digits_come_back_from_float32_exactly(thousandths):
    p = LOW + np.array(thousandths) / 1000 * (HIGH - LOW)
    p = np.array([float(f"{v:.5g}") if q.scale == "log" else round(v, 4) for v, q in zip(p, PARAMETERS, strict=True)])
    back = from_unit(to_unit(p).astype(np.float32))
    assert (back == p).all()
    assert (np.array(parameters_of(to_unit(p))) == back).all()


@nojit
def test_an_action_is_decided_as_its_numbers():
    state = toy_state([(0.0, 5, 3), (0.0, 50, 3)], blocks=40)
    for seed in range(20):
        x = np.random.default_rng(seed).uniform(-1.2, 1.2, len(NAMES))
        integers = np.zeros(4, np.int64)
        assert to_decision(state, ADAPTIVE, integers, x) == adaptive_decision(make_view(state), tuple(from_unit(x)))


# ---- budgets -------------------------------------------------------------------------------------------------------
@nojit
def test_the_static_budget_is_in_units_of_tau_star():
    assert [tokens(view(), budget=b) for b in (0.2, 0.5, 1.0, 2.5)] == [2, 5, 10, 25]
    assert tokens(view(slo_budget=1.0), budget=0.2) == 1


@nojit
def test_filling_takes_the_slack_of_the_most_urgent_decode():
    seen = view(num_decodes=1, min_decode_slack_s=0.0351)  # S(25) = 35 ms
    assert [tokens(seen, fill=f) for f in (0.0, 0.5, 1.0)] == [10, 15, 25]  # sqrt(10 x 25.1) = 15.8
    assert tokens(seen, fill=1.0, slack_share=0.5) == 7  # S(7.55) = 17.55 ms
    assert tokens(seen, fill=1.0, budget=0.2) == 25
    slack = baselines.make_policy("slack-fill", order="moore-hodgson")(seen)
    assert tokens(seen, fill=1.0) == slack.token_budget


@nojit
def test_a_decode_that_no_batch_can_save_does_not_stop_the_prompts():
    late = view(num_decodes=1, min_decode_slack_s=0.009)  # an empty batch takes 10 ms
    assert tokens(late, fill=1.0) == 10
    assert tokens(view(num_decodes=1, min_decode_slack_s=0.011), fill=1.0, slack_share=0.5) == 1
    assert tokens(view(num_decodes=1, min_decode_slack_s=0.012, decode_extra_s=0.003), fill=1.0) == 10


@nojit
def test_filling_leaves_room_for_what_decoding_adds():
    seen = view(num_decodes=1, min_decode_slack_s=0.0351, decode_extra_s=0.010)
    assert tokens(seen, fill=1.0) == 15  # S(15) + 10 ms = 35 ms
    assert tokens(seen, fill=1.0, slack_share=0.8) == 8  # 28.08 - 10 ms = S(8.08)
    assert tokens(seen) == 10


@nojit
def test_filling_without_decodes_stops_short_of_what_would_make_prompts_late():
    assert tokens(view(), fill=1.0) == 40  # S(40) = 50 ms, half of the TTFT target
    # the most urgent prompt must start within 20 ms and takes S(5) = 15 ms: S(25) = 35 ms
    assert tokens(view(urgent_slack_s=0.0201, urgent_tokens=5), fill=1.0) == 25
    assert tokens(view(urgent_slack_s=0.0001, urgent_tokens=1), fill=1.0) == 10, "below the static budget"
    # of a long prompt one chunk counts, S(10) = 20 ms
    assert tokens(view(urgent_slack_s=0.0201, urgent_tokens=500), fill=1.0) == 30


@nojit
def test_the_budget_is_short_while_memory_is_full():
    full = view(kv_used=0.9, num_decodes=1, min_decode_slack_s=0.0351)
    assert tokens(full, kv_high=0.9, kv_budget=0.4) == 4
    assert tokens(full, kv_high=0.9, kv_budget=0.4, fill=1.0) == 4
    assert tokens(full, kv_high=0.91, kv_budget=0.4) == 10
    assert tokens(view(kv_used=1.0), kv_high=1.0, kv_budget=0.4) == 10, "1 is never"
    assert tokens(full, kv_high=0.9, kv_budget=1.0, budget=0.5) == 5, "a short budget was raised"
    aware = baselines.make_policy("kv-aware")
    assert aware(full._replace(slo_budget=412.33, min_decode_slack_s=1.0)).token_budget == 155
    assert aware(full._replace(kv_used=0.89)) == adaptive_decision(full._replace(kv_used=0.0), numbers(fill=1.0))


# ---- the other numbers ---------------------------------------------------------------------------------------------
@nojit
def test_the_other_numbers_reach_the_decision():
    d = adaptive_decision(view(), NEUTRAL)
    assert d == decision(10, order=MOORE_HODGSON)
    assert (d.drop_weight, d.kv_rule, d.victim, d.decode_within_s) == (DROPPED_LAST, KV_CHUNK, VICTIM_LAST, FAR)
    given = {"margin": 1.25, "slack_weight": 0.5, "drop": 2.0, "class_weight": 0.75, "reserve": 0.25}
    d = adaptive_decision(view(), numbers(**given, urgency=0.5, watermark=0.125))
    assert d == decision(
        10,
        order=MOORE_HODGSON,
        margin=1.25,
        slack_weight=0.5,
        drop_weight=2.0,
        kv_rule=KV_ESTIMATE,
        reserve_ratio=0.25,
        watermark=0.125,
        victim=VICTIM_PRIORITY,
        decode_within_s=0.010,
        fill_decodes=1,
        class_weight=0.75,
    )


@nojit
def test_the_longest_for_its_weight_is_dropped():
    # Batches of 10 tokens take 20 ms: 60, 40 and 20 ms of prefill, 105 ms until the one deadline. One must go: the
    # longest, or of 60 / 4, 40 and 20 the second. The dropped go last.
    state = toy_state([(0.0, 30, 1), (0.0, 20, 1), (0.0, 10, 1)], ttft_ms=105.0, fields={"weight": [4.0, 1.0, 1.0]})

    def first(class_weight, weights=(4.0, 1.0, 1.0)):
        state.requests["weight"] = weights
        return formed(state, decision(10, order=MOORE_HODGSON, class_weight=class_weight))[0][0]

    assert [first(exponent) for exponent in (0.0, 0.2, 0.5, 1.0)] == [1, 1, 0, 0]  # 60 / 4^0.2 = 45.5, 60 / 4^0.5 = 30
    assert first(1.0, (1.0, 1.0, 1.0)) == 1
    assert first(1.0, (4.0, 4.0, 1.0)) == 0, "60 / 4, 40 / 4, 20: the third"


@pytest.mark.parametrize(
    ("name", "parameters", "words"),
    [
        ("adaptive", {"budget": 0.1}, "budget: expected a number from 0.2 to 4, got 0.1"),
        ("adaptive", {"role": 2.0}, "role: expected a number from -1 to 1, got 2.0"),
        ("kv-aware", {"kv_high": 0.1}, "kv_high: expected a number from 0.5 to 1, got 0.1"),
    ],
)
def test_a_number_out_of_its_range_is_named(name, parameters, words):
    with pytest.raises(Exception, match=words):
        baselines.make_policy(name, **parameters)
