"""llm_env/slo.py: what each token does to a request's promises, worked out by hand."""

from __future__ import annotations

import math

import pytest
from toy import toy_state

from llm_env.dtypes import FINISHED, RULE_DEADLINE, RULE_MAX, RULE_P99, RUNNING, SLO_RULES
from llm_env.slo import slo_met, stamp_token, tbt_broken, ttft_met

pytestmark = [pytest.mark.kernel, pytest.mark.nojit]


def stamped(times_s, output_tokens, rule=RULE_MAX, arrival_s=0.0, weight=1.0):
    """State whose only request emitted its tokens at these times. TTFT target 100 ms, TBT target 20 ms."""
    state = toy_state([(arrival_s, 5, output_tokens)], rule=SLO_RULES[rule])
    request = state.requests[0]
    request["status"] = RUNNING
    request["weight"] = weight
    gaps = [stamp_token(state.system[0], request, time_s) for time_s in times_s]
    if len(times_s) == output_tokens:
        request["status"] = FINISHED
    return state, gaps


def test_the_first_token_is_stamped_and_has_no_gap():
    state, gaps = stamped([0.1], 3)
    r = state.requests[0]
    assert gaps == [-1.0]
    assert (r["first_token_s"], r["last_token_s"], r["emitted_tokens"]) == (0.1, 0.1, 1)
    assert math.isnan(r["max_tbt_s"])
    assert ttft_met(r)


def test_the_largest_gap_is_kept_and_late_gaps_are_counted():
    # gaps 20 ms (on the dot), 30 ms, 10 ms
    state, gaps = stamped([0.05, 0.07, 0.10, 0.11], 9)
    r = state.requests[0]
    assert gaps == pytest.approx([-1.0, 0.02, 0.03, 0.01])
    assert r["max_tbt_s"] == pytest.approx(0.03)
    assert r["late_gaps"] == 1


def test_a_ttft_on_the_deadline_is_met_and_a_microsecond_later_is_not():
    assert ttft_met(stamped([2.1], 1, arrival_s=2.0)[0].requests[0])
    assert not ttft_met(stamped([2.100001], 1, arrival_s=2.0)[0].requests[0])
    assert not ttft_met(stamped([], 1)[0].requests[0])


def test_rule_max_is_broken_by_one_late_gap():
    on_time = stamped([0.05, 0.07, 0.09], 3)[0].requests[0]
    late = stamped([0.05, 0.0701], 3)[0].requests[0]
    assert not tbt_broken(on_time, RULE_MAX)
    assert tbt_broken(late, RULE_MAX)


@pytest.mark.parametrize(("output_tokens", "allowed"), [(2, 0), (100, 0), (101, 1), (200, 1), (201, 2)])
def test_rule_p99_forgives_one_late_gap_in_each_full_hundred(output_tokens, allowed):
    # B tokens have B - 1 gaps, of which floor((B - 1) / 100) may be late
    times_s = [0.05]
    for k in range(1, output_tokens):
        times_s.append(times_s[-1] + (0.03 if k <= allowed else 0.01))
    assert not tbt_broken(stamped(times_s, output_tokens)[0].requests[0], RULE_P99)
    for k in range(allowed + 1, output_tokens):
        times_s[k] += 0.02  # one more late gap
    r = stamped(times_s, output_tokens)[0].requests[0]
    assert r["late_gaps"] == allowed + 1
    assert tbt_broken(r, RULE_P99)


def test_rule_deadline_forgives_a_late_gap_but_not_a_late_token():
    # due at 100, 120, 140 ms: a gap of 90 ms from an early first token is no offence
    early = stamped([0.01, 0.10, 0.14], 3)[0].requests[0]
    assert early["late_gaps"] == 2
    assert early["late_tokens"] == 0
    assert not tbt_broken(early, RULE_DEADLINE)
    assert tbt_broken(early, RULE_MAX)
    # every gap within 20 ms, but the first token is 1 ms late: tokens that are held back are not forgiven
    held = stamped([0.101, 0.120, 0.140], 3)[0].requests[0]
    assert held["late_gaps"] == 0
    assert held["late_tokens"] == 1
    assert tbt_broken(held, RULE_DEADLINE)


@pytest.mark.parametrize("rule", [RULE_MAX, RULE_P99, RULE_DEADLINE])
def test_an_unfinished_request_never_meets_its_slo(rule):
    state, _ = stamped([0.05, 0.06], 3, rule)
    assert not slo_met(state.requests[0], rule)
    state, _ = stamped([0.05, 0.06, 0.07], 3, rule)
    assert slo_met(state.requests[0], rule)


def test_the_first_token_reward_is_taken_back_once_when_the_tbt_promise_breaks():
    state, _ = stamped([0.05], 4, weight=2.0)
    system, r = state.system[0], state.requests[0]
    assert system["step_first_token"] == 2.0
    assert r["credit"] == 1
    stamp_token(system, r, 0.06)
    assert system["step_first_token"] == 2.0
    stamp_token(system, r, 0.09)  # a gap of 30 ms
    assert system["step_first_token"] == 0.0
    assert r["credit"] == -1
    stamp_token(system, r, 0.20)
    assert system["step_first_token"] == 0.0


def test_a_late_first_token_is_never_credited_and_never_debited():
    state, _ = stamped([0.15, 0.30], 3)
    assert state.system[0]["step_first_token"] == 0.0
    assert state.requests[0]["credit"] == 0


def test_tokens_on_time_are_counted_with_their_weight():
    # due at 100, 120 and 140 ms: the second is late
    state, _ = stamped([0.05, 0.13, 0.135], 4, weight=3.0)
    assert state.system[0]["step_token"] == 6.0
