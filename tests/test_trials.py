"""Trials: what a change alters, and the price of an end, worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from test_futures import busy
from toy import toy_scenario, toy_state

import baselines
from llm_env.core import step
from llm_env.futures import Futures, Known, unfinished
from llm_env.records import UNLIMITED, decision
from llm_env.trials import CHANGES, TRY, Terms, changed, look_ahead
from llm_env.view import make_view

MOORE_HODGSON = baselines.make_policy("moore-hodgson")


pytestmark = pytest.mark.kernel


def price(state, mean_weight: float = 1.0, work_weight: float = 0.3, late_s: float = 0.0, **settings) -> float:
    """What the present of a state costs; with `late_s` as if a trial had ended so long after its horizon."""
    futures, here, now_s = Futures(toy_scenario(**settings), 1), unfinished(state), float(state.system["now_s"][0])
    futures.fill(state, here, Known(futures).draw(state, here, now_s))
    costs, terms = np.zeros((1, 1)), Terms(8, now_s - late_s, mean_weight, work_weight)
    steps = look_ahead()(futures.table, MOORE_HODGSON, TRY, 0, 1, np.zeros((1, 2)), np.zeros(1, np.int64), terms, costs)
    assert steps == 0
    return float(costs[0, 0])


# ---- changes -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.name)
def test_a_change_alters_what_it_says_and_nothing_else(change):
    view = make_view(busy())
    base = decision(400, chunk_tokens=300, max_running=100, watermark=0.1, memory=3.0)
    new = changed(view, base, change.kind, change.value)
    altered = {name for name in base._fields if getattr(new, name) != getattr(base, name)}
    allowed = {
        "base": set(),
        "decodes only": {"prefill_tokens"},
        "small budget": {"token_budget"},
        "smaller budget": {"token_budget"},
        "larger budget": {"token_budget"},
        "slack fill": {"token_budget"},
        "urgent decodes and fill": {"token_budget", "decode_within_s", "fill_decodes"},
        "no admission": {"max_running"},
        "shortest prefill": {"order", "slack_weight", "drop_weight"},
        "moore-hodgson": {"order"},
        "shortest and most urgent": {"order", "slack_weight", "drop_weight"},
    }
    assert altered == allowed[change.name]


def test_budgets_scale():
    view = make_view(busy())
    tokens = {c.name: changed(view, decision(400), c.kind, c.value).token_budget for c in CHANGES}
    assert tokens["smaller budget"] == 280
    assert tokens["larger budget"] == 560
    assert tokens["small budget"] == int(0.31 * view.slo_budget)


# ---- prices --------------------------------------------------------------------------------------------------------
# Full batches have 10 tokens and take 20 ms, so a prompt takes 2 ms a token; a first token is due after 100 ms.
ROWS = [(0.0, 50, 1), (0.0, 20, 1), (0.0, 20, 1)]


@pytest.mark.nojit
def test_a_price_is_who_will_be_dropped_and_the_work_that_is_left():
    """100 + 40 + 40 ms do not fit into 100: the longest is dropped. 90 prompt and 3 output tokens are 186 ms."""
    assert price(toy_state(ROWS)) == pytest.approx(1.0 + 0.3 * 0.186)


@pytest.mark.nojit
def test_weights_say_who_is_dropped_and_what_that_costs():
    """With three times the weight the long one stays, and the others go: two of weight 1, over a mean of 5/3."""
    state = toy_state(ROWS, fields={"weight": [3.0, 1.0, 1.0]})
    assert price(state, mean_weight=5.0 / 3.0, work_weight=0.0) == pytest.approx(2.0 * 3.0 / 5.0)


@pytest.mark.nojit
def test_the_hopeless_are_lost():
    state = toy_state([(0.0, 60, 1), (0.0, 20, 1)])  # 60 tokens take 120 ms
    assert price(state, work_weight=0.0) == pytest.approx(1.0)


@pytest.mark.nojit
def test_time_past_the_horizon_costs_as_work_does():
    state = toy_state([(0.0, 20, 1)])
    assert price(state, late_s=0.5) - price(state) == pytest.approx(0.3 * 0.5)


@pytest.mark.nojit
@pytest.mark.parametrize(("rule", "lost"), [("max", 1.0), ("p99", 0.0), ("deadline", 0.0)])
def test_a_token_that_is_overdue_counts_as_late(rule, lost):
    """Its first token came after 20 ms and the next is due 20 ms later; 30 ms later it is not there. With 200 tokens
    one late gap is allowed under p99, and its deadline is at 120 ms.
    """
    state = toy_state([(0.0, 10, 200), (0.0, 20, 1)], rule=rule)
    step(state, decision(10))
    step(state, decision(20, max_decodes=0))
    assert state.system["now_s"][0] == pytest.approx(0.05)
    assert price(state, work_weight=0.0, rule=rule) == pytest.approx(lost)


@pytest.mark.nojit
def test_who_finished_in_time_costs_nothing_and_who_did_not_its_weight():
    state = toy_state([(0.0, 10, 1), (0.0, 90, 1), (0.0, 20, 9)])
    step(state, decision(UNLIMITED, max_running=2))  # 110 ms: both are late
    assert len(unfinished(state)) == 1
    futures_price = price(state, work_weight=0.0)
    assert futures_price == pytest.approx(1.0)  # the third is hopeless; what is over cannot be changed


@pytest.mark.nojit
def test_a_trial_goes_on_with_the_base_and_pays_for_running_past_the_horizon():
    """The base needs two batches of 10 tokens, 40 ms, and has nothing to do then. Decodes only, there are none: the
    worker holds for its longest, the prompt is late, its 21 tokens are 42 ms of work.
    """
    state, scenario = toy_state([(0.0, 20, 1)]), toy_scenario()
    futures, here = Futures(scenario, 1), unfinished(state)
    futures.fill(state, here, Known(futures).draw(state, here, 0.05))
    changes = np.array([(change.kind, change.value) for change in CHANGES[:2]], np.float64)
    costs, terms = np.zeros((1, 2)), Terms(8, 0.05, 1.0, 0.3)
    steps = look_ahead()(futures.table, MOORE_HODGSON, TRY, 0, 1, changes, np.arange(2), terms, costs)
    assert steps == 3
    hold_s = float(state.system["max_hold_s"][0])
    assert hold_s > 0.1
    assert costs[0] == pytest.approx([0.0, 1.0 + 0.3 * (0.042 + hold_s - 0.05)])
