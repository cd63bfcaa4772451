"""llm_env/sums.py: what a worker remembers of its running requests is what a look at each of them gives."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_core_properties import systems, workloads
from toy import running_of, toy_state

from baselines import POLICIES, make_policy
from llm_env.core import step, used_blocks
from llm_env.dtypes import ACTIVE
from llm_env.jit import IN_PLAIN_PYTHON
from llm_env.kv import evict
from llm_env.records import decision, snapshot
from llm_env.sums import keeps_tbt, running_sums
from llm_env.view import make_view

pytestmark = pytest.mark.kernel
EXAMPLES = 4 if IN_PLAIN_PYTHON else 60


def looked_at(state):
    """A copy of the state whose workers remember nothing."""
    copy = snapshot(state)
    copy.workers["summed"] = 0
    return copy


def remembered(state) -> bool:
    return bool(state.workers[state.system[0]["worker"]]["summed"])


def left_out(state, w) -> list[int]:
    """Places of the prompts of worker w with something left that are not in its batch."""
    q = state.requests[running_of(state, w)]
    left = q["prefill_tokens"] - q["computed_tokens"] - q["away_tokens"]
    return [place for place, r in enumerate(q) if r["in_batch"] == 0 and left[place] > 0]


@pytest.mark.nojit
@settings(max_examples=EXAMPLES, deadline=None)
@given(rows=workloads, system=systems, name=st.sampled_from(sorted(POLICIES)))
def test_what_is_known_without_a_look_is_what_a_look_at_everybody_gives(rows, system, name):
    state, decide = toy_state(rows, **system), make_policy(name)
    steps = 0
    while state.system[0]["phase"] == ACTIVE and steps < 400:
        assert make_view(state) == make_view(looked_at(state))
        for w in range(len(state.workers)):
            assert used_blocks(state, w) == state.requests["blocks"][running_of(state, w)].sum()
        w = state.system[0]["worker"]
        step(state, decide(make_view(state)))
        if state.workers[w]["busy"]:
            lead = state.workers[w]["leading_decodes"]
            assert all(place >= lead for place in left_out(state, w)), "a prompt stands before the first that is tried"
        steps += 1


@pytest.mark.nojit
def test_batches_of_everybody_are_remembered():
    """Or each View costs a pass again."""
    state = toy_state([(0.0, 6, 9), (0.0, 7, 5), (0.01, 8, 7)], blocks=40)
    seen = []
    while state.system[0]["phase"] == ACTIVE:
        seen.append(remembered(state))
        step(state, decision(64))
    assert not seen[0]
    assert all(seen[1:])


@pytest.mark.nojit
def test_a_batch_that_leaves_somebody_out_is_not_remembered():
    state = toy_state([(0.0, 6, 9), (0.0, 7, 5)])
    step(state, decision(64))
    assert remembered(state)
    step(state, decision(64, max_decodes=1))
    assert not remembered(state)


@pytest.mark.nojit
def test_holding_keeps_the_sums_and_eviction_forgets_them():
    state = toy_state([(0.0, 6, 9), (0.0, 7, 5), (0.05, 3, 2)], blocks=40)
    step(state, decision(64))
    before = make_view(state)
    step(state, decision(64, hold_s=0.004))
    assert remembered(state)
    assert make_view(state).now_s == pytest.approx(before.now_s + 0.004)
    assert make_view(state) == make_view(looked_at(state))
    assert make_view(state).min_decode_slack_s < before.min_decode_slack_s
    evict(state, 0, 0, 0)
    assert not remembered(state)
    assert make_view(state) == make_view(looked_at(state))
    assert running_sums(state, 0).context_tokens == 7


@pytest.mark.nojit
@pytest.mark.parametrize("late_gaps", [0, 1, 2])
@pytest.mark.parametrize("emitted", [1, 100, 101, 200, 201])
def test_one_gap_in_a_hundred_may_be_late_under_p99(late_gaps, emitted):
    state = toy_state([(0.0, 6, 300)], rule="p99")
    r = state.requests[0]
    r["late_gaps"], r["emitted_tokens"] = late_gaps, emitted
    assert keeps_tbt(r, int(state.system[0]["slo_rule"])) == (late_gaps <= (emitted - 1) // 100)
