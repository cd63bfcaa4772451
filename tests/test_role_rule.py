"""The rule for roles by hand, S(b) = 10 + b ms: 10 tokens or decodes in a batch are 500 tokens a second."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from play import view_of
from toy import run, toy_state

import baselines
from baselines import role_switch
from llm_env.actions import ROLES, to_decision
from llm_env.adaptive import NEUTRAL, ROLE, adaptive_decision
from llm_env.dtypes import FINISHED, ROLE_BOTH, ROLE_DECODE, ROLE_PREFILL
from llm_env.errors import UserError
from llm_env.records import MOORE_HODGSON
from llm_env.role_rule import (
    BOX,
    RoleRule,
    pool_work,
    role_decision,
    role_to_ask,
    rule_of,
    wanted_prefill_workers,
)
from llm_env.view import make_view

pytestmark = pytest.mark.nojit

RULE = RoleRule(
    prefill_tokens=10.0,
    decodes=10.0,
    occupancy=0.0,
    backlog_s=2.0,
    hysteresis=0.2,
    dwell_s=5.0,
    margin=1.0,
)
VIEW = view_of()._replace(
    now_s=100.0,
    num_workers=4,
    role=ROLE_PREFILL,
    prefill_workers=2,
    prompt_rate_per_s=750.0,
    output_rate_per_s=250.0,
)


def test_work_is_measured_in_something_else_than_workers():
    assert pool_work(VIEW, RULE) == pytest.approx((1.5, 0.5))
    # 500 tokens wait: 250 a second for 2 s; 3 requests that are lined up are 0.3 workers
    waiting = VIEW._replace(pool_live_tokens=500, num_lined_up=3)
    assert pool_work(waiting, RULE) == pytest.approx((2.0, 0.8))
    # 12 decodes are 1.2 workers; 70 % of the memory of two workers is 1.4
    present = VIEW._replace(pool_decodes=12, pool_kv_used=0.5)
    assert pool_work(present, RULE._replace(occupancy=1.0)) == pytest.approx((1.5, 1.2))
    assert pool_work(present._replace(pool_kv_used=0.7), RULE._replace(occupancy=1.0)) == pytest.approx((1.5, 1.4))
    assert pool_work(present, RULE._replace(occupancy=0.5)) == pytest.approx((1.5, 0.85))


@pytest.mark.parametrize(("weight", "wanted"), [(0.25, 2), (0.7, 2), (0.9, 3), (1.0, 3)])
def test_the_weight_of_prefill_work_does_not_move_the_split(weight, wanted):
    # 1.5 x weight and 0.5 workers of work: from weight 0.83 on 3 + 1 lowers the load of the prefill pool by a fifth
    assert wanted_prefill_workers(VIEW, RULE._replace(prefill_weight=weight)) == wanted


@pytest.mark.parametrize(("hysteresis", "wanted"), [(0.0, 3), (0.2, 3), (0.32, 3), (0.34, 2)])
def test_the_present_split_is_left_for_too_little(hysteresis, wanted):
    # 1.5 and 0.5 workers of work: the busier pool has 0.75 a worker under 2 + 2, and 0.5 under 3 + 1
    assert wanted_prefill_workers(VIEW, RULE._replace(hysteresis=hysteresis)) == wanted


amounts = st.floats(0.0, 5000.0)


@settings(max_examples=60, deadline=None)
@given(prompts=amounts, outputs=amounts, workers=st.integers(2, 9), data=st.data())
def test_another_split_would_be_better(prompts, outputs, workers, data):
    present = data.draw(st.integers(1, workers - 1))
    hysteresis = data.draw(st.floats(0.0, 0.9))
    view = VIEW._replace(
        num_workers=workers,
        prefill_workers=present,
        prompt_rate_per_s=prompts,
        output_rate_per_s=outputs,
    )
    wanted = wanted_prefill_workers(view, RULE._replace(hysteresis=hysteresis))

    def load(count: int) -> float:
        return max(prompts / count, outputs / (workers - count))

    least = min(load(count) for count in range(1, workers))
    if wanted == present:
        assert load(present) * (1.0 - hysteresis) <= least * (1 + 1e-9)
    else:
        assert load(wanted) == pytest.approx(least)
        assert load(wanted) < load(present) * (1.0 - hysteresis) * (1 + 1e-9)


def test_the_wrong_worker_asks_or_too_soon():
    few = VIEW._replace(role=ROLE_DECODE, num_decodes=3, pool_decodes=6)
    assert role_to_ask(few, RULE) == (ROLE_PREFILL, 101.0)
    assert role_to_ask(few._replace(num_decodes=4), RULE) == (0, 0.0), "it has more to send away than the other"
    assert role_to_ask(VIEW, RULE) == (0, 0.0), "it prefills already"
    assert role_to_ask(few._replace(role=ROLE_BOTH), RULE) == (0, 0.0)
    assert role_to_ask(few._replace(next_role=ROLE_PREFILL, memory=99.0), RULE) == (0, 99.0)
    assert role_to_ask(few._replace(memory=96.5), RULE) == (0, 96.5), "4.5 s ago"
    assert role_to_ask(few._replace(memory=95.9), RULE) == (ROLE_PREFILL, 101.0)
    decode = VIEW._replace(prompt_rate_per_s=100.0, output_rate_per_s=900.0)
    assert role_to_ask(decode, RULE) == (ROLE_DECODE, 101.0)
    assert role_to_ask(decode._replace(role=ROLE_DECODE, num_decodes=0), RULE) == (0, 0.0)


def test_the_adaptive_rule_asks_for_another_role():
    for value, role in ((0.5, ROLE_PREFILL), (0.2, 0), (-0.2, 0), (-0.5, ROLE_DECODE), (1.0, ROLE_PREFILL)):
        numbers = tuple(value if k == ROLE else neutral for k, neutral in enumerate(NEUTRAL))
        assert adaptive_decision(VIEW, numbers).role == role


@pytest.mark.kernel
def test_the_baseline_keeps_its_split_under_prompts_alone():
    # 8 tokens every 10 ms need 0.8 / (8 / 18) = 1.8 workers that prefill, and nobody ever decodes
    system = {
        "layout": "disaggregated",
        "prefill_workers": 1,
        "link": {"latency_ms": 0.0, "gbytes_per_s": "unlimited"},
        "roles": {"change": True, "switch_ms": 50.0},
    }
    rows = [(0.01 * k, 8, 1) for k in range(300)]
    late = {}
    for change in (False, True):
        state = toy_state(rows, workers=4, system=system)
        decide = baselines.make_policy("role-switch", prefill_tokens=8, decodes=4, change=change)
        run(state, decide)
        assert (state.requests["status"] == FINISHED).all()
        late[change] = int((state.requests["first_token_s"] - state.requests["arrival_s"] > 0.1).sum())
        assert (state.system[0]["num_switches"] > 0) == change
    assert late[True] < late[False] / 2


@pytest.mark.parametrize("wrong", [{"occupancy": 1.5}, {"dwell_s": -1.0}, {"prefill_tokens": 0}, {"decodes": 0}])
def test_the_baseline_takes_any_number(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        baselines.make_policy("role-switch", **wrong)


# ---- the box -------------------------------------------------------------------------------------------------------
def test_the_box_is_not_that_of_the_baseline():
    defaults = {name: p.default for name, p in inspect.signature(role_switch.make).parameters.items()}
    assert BOX.names == RoleRule._fields
    assert {name: BOX.neutral[BOX.names.index(name)] for name in defaults if name != "change"} == {
        name: value for name, value in defaults.items() if name != "change"
    }
    assert rule_of(BOX.to_unit(BOX.neutral)) == RoleRule(*BOX.neutral)


def test_an_action_is_decided_as_other_numbers():
    state = toy_state([(0.0, 5, 3), (0.0, 50, 3)], blocks=40)
    for seed in range(20):
        x = np.random.default_rng(seed).uniform(-1.2, 1.2, len(BOX.names))
        rule = RoleRule(*BOX.from_unit(x))
        assert to_decision(state, ROLES, np.zeros(4, np.int64), x) == role_decision(make_view(state), rule)


def test_the_batches_of_the_pools_are_alike():
    rule = RULE._replace(prefill_tokens=77.0, margin=1.25, slack_weight=0.5)
    prefill = role_decision(VIEW, rule)
    assert (prefill.token_budget, prefill.order, prefill.margin, prefill.slack_weight) == (77, MOORE_HODGSON, 1.25, 0.5)
    decode = role_decision(VIEW._replace(role=ROLE_DECODE), rule)
    assert (prefill.swap, decode.swap) == (0, 1)
    assert role_decision(VIEW._replace(role=ROLE_BOTH, slo_budget=31), rule).token_budget == 31


def test_the_greatest_hysteresis_lets_a_role_change():
    busy = VIEW._replace(role=ROLE_DECODE, prompt_rate_per_s=5000.0, output_rate_per_s=0.0)
    assert role_decision(busy, RULE._replace(hysteresis=0.3)).role == ROLE_PREFILL
    assert role_decision(busy, RULE._replace(hysteresis=1.0)).role == 0
