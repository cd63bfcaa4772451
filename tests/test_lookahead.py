"""The planner: it decides as its base where nothing else is tried, knows nothing hidden, and wins where it must."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from test_futures import CHAT, busy, hidden_otherwise
from toy import toy_requests, toy_scenario

import baselines
from baselines.lookahead import Lookahead, Planner, run_lookahead
from llm_env.aggregate import aggregate, best_baseline
from llm_env.build import load, new_states, single
from llm_env.config import Scenario
from llm_env.dtypes import ACTIVE
from llm_env.errors import UserError
from llm_env.evaluation import Arguments, make_study
from llm_env.features import NUM_FEATURES, observe
from llm_env.futures import Futures, Known, unfinished
from llm_env.records import snapshot
from llm_env.rollout import continue_rollout, rollout
from llm_env.scenarios import load_scenario
from llm_env.slo import slo_met
from llm_env.study import run_study
from llm_env.trials import CHANGES, SHORTEST, TRY, Change, Terms, look_ahead
from llm_env.workload import draw_workload

MOORE_HODGSON = baselines.make_policy("moore-hodgson")
SMALL = Lookahead(futures=2, more_futures=2, finalists=2, threshold=0.0, errors=0.0)


def good(state) -> int:
    """How many finished within their SLO."""
    n = int(state.system["num_requests"][0])
    return sum(bool(slo_met(r, state.system["slo_rule"][0])) for r in state.requests[:n])


def short_chat(seconds: float = 30.0) -> Scenario:
    return CHAT.model_copy(update={"episode": CHAT.episode.model_copy(update={"arrivals_s": seconds})})


# ---- where nothing else is tried -----------------------------------------------------------------------------------
@pytest.mark.parametrize("clairvoyant", [False, True])
@pytest.mark.parametrize("name", ["chat-bursty", "noisy-kv"])
def test_with_the_base_alone_a_run_is_that_of_the_base(name, clairvoyant):
    scenario = load_scenario(name, ["workload.load=1.0", "episode.arrivals_s=30", "episode.warmup_s=0"])
    drawn = draw_workload(scenario, 3)
    alone = Lookahead(changes=CHANGES[:1], futures=1, more_futures=0, clairvoyant=clairvoyant)
    planned, effort = run_lookahead(scenario, MOORE_HODGSON, drawn, 3, alone, record=True)
    plain = rollout(scenario, MOORE_HODGSON, drawn, 3, record=True)
    assert effort.plans > 20
    assert planned.requests[: len(drawn)].tobytes() == plain.requests[: len(drawn)].tobytes()
    batches = int(plain.system["num_batches"][0])
    assert planned.batch_log[:batches].tobytes() == plain.batch_log[:batches].tobytes()


@pytest.mark.parametrize(
    ("name", "policy"),
    [("chat-bursty", "moore-hodgson"), ("noisy-kv", "hrrn"), ("classes-two", "vllm-v0"), ("classes-two", "fastserve")],
)
def test_a_trial_of_the_base_in_the_true_future_is_what_then_happens(name, policy):
    """Lists, ranks, queues, evicted and swapped requests, noise: continued in the system itself, the base comes to the
    same tokens, blocks and times. Looked at all through an episode.
    """
    scenario, base = load_scenario(name, ["workload.load=1.0"]), baselines.make_policy(policy)
    drawn = draw_workload(scenario, 3)
    states = load(new_states(scenario, 1, len(drawn)), 0, drawn, 3)
    state, futures, evicted, swapped = single(states), Futures(scenario, 1), 0, 0
    costs, changes, which = np.zeros((1, 1)), np.zeros((1, 2)), np.zeros(1, np.int64)
    while state.system["phase"][0] == ACTIVE:
        end_s, here = float(state.system["now_s"][0]) + 3.0, unfinished(state)
        evicted += int(state.queues["num_resumed"][0])
        swapped += int(state.workers["num_swapped"][0])
        futures.fill(state, here, Known(futures).draw(state, here, end_s))
        steps = look_ahead()(futures.table, base, TRY, 0, 1, changes, which, Terms(8, end_s, 1.0, 0.3), costs)
        after, trial = snapshot(state), single(futures.states)
        continue_rollout(type(after)(*(array[None] for array in after)), base, 3, steps)
        if trial.system["phase"][0] == ACTIVE:  # else the clock went on to an arrival beyond the end
            assert trial.system["now_s"][0] == after.system["now_s"][0]
        q = trial.requests[: trial.system["num_requests"][0]]
        for field in ("status", "emitted_tokens", "computed_tokens", "last_token_s", "finish_s", "blocks", "evictions"):
            assert (q[field] == after.requests[field][q["row"]]).all(), field
        continue_rollout(states, base, 3, 37)
    assert swapped > 0 or policy != "fastserve"
    assert evicted > 0 or policy != "vllm-v0"


# ---- what may be known ---------------------------------------------------------------------------------------------
def test_a_plan_does_not_depend_on_what_is_hidden():
    state = busy()
    costs = []
    for present in (state, hidden_otherwise(state)):
        planner = Planner(CHAT, MOORE_HODGSON, SMALL)
        planner.choose(present)
        costs.append(planner.costs.copy())
    assert (costs[0] == costs[1]).all()
    assert len(np.unique(costs[0])) > 5


def test_the_bound_depends_on_it():
    state = busy()
    settings = Lookahead(clairvoyant=True)
    costs = []
    for present in (state, hidden_otherwise(state)):
        planner = Planner(CHAT, MOORE_HODGSON, settings)
        planner.choose(present)
        costs.append(planner.costs.copy())
    assert (costs[0] != costs[1]).any()


def test_equal_seeds_plan_equally():
    scenario = short_chat()
    drawn = draw_workload(scenario, 3)
    runs = [run_lookahead(scenario, MOORE_HODGSON, drawn, 3, SMALL) for _ in range(2)]
    assert runs[0][0].requests.tobytes() == runs[1][0].requests.tobytes()
    assert runs[0][1].changes == runs[1][1].changes
    assert sum(runs[0][1].changes[1:]) > 0


def test_labels_are_what_plans_saw_and_found():
    state = busy()
    planner = Planner(CHAT, MOORE_HODGSON, dataclasses.replace(SMALL, labels=True))
    chosen = planner.choose(state)
    features = np.zeros(NUM_FEATURES, np.float32)
    observe(state, features)
    (label,) = planner.effort.labels
    assert (label.features == features).all()
    assert label.chosen == chosen
    assert label.differences[0] == 0.0
    costs = planner.costs[: SMALL.futures]
    assert label.differences == pytest.approx((costs - costs[:, :1]).mean(axis=0))


# ---- where it must win ---------------------------------------------------------------------------------------------
@pytest.mark.nojit
def test_the_clairvoyant_serves_the_short_ones_that_its_base_leaves():
    """In batches of 50 tokens, 60 ms each, a prompt of 600 takes 720 ms. Nine short ones that come behind it are late,
    first come, first served, and need one batch if they go first: the long one cannot meet 300 ms anyhow.
    """
    scenario = toy_scenario(max_running=16, ttft_ms=300.0, tbt_ms=60.0, rule="max")
    rows = [(0.0, 600, 1), *((0.01, 5, 1) for _ in range(9))]
    requests = toy_requests(rows, scenario)
    base = baselines.make_policy("sarathi", token_budget=50)
    plain = rollout(scenario, base, requests, 0)
    assert good(plain) == 0
    changes = (CHANGES[0], Change("shortest", SHORTEST, 0.0))
    for clairvoyant in (True, False):
        settings = Lookahead(changes=changes, clairvoyant=clairvoyant, horizon_s=1.0, futures=2, more_futures=0)
        planned, effort = run_lookahead(scenario, base, requests, 0, settings)
        assert good(planned) == 9
        assert effort.changes[1] > 0


# ---- settings ------------------------------------------------------------------------------------------------------
class Clock:
    """Each look at it takes a millisecond."""

    now_s = 0.0

    def __call__(self) -> float:
        self.now_s += 1e-3
        return self.now_s


@pytest.mark.parametrize(("budget_ms", "trials", "whole"), [(0.0, 0, 0), (10.5, 10, 0), (30.5, 30, 2), (999.0, 41, 3)])
def test_the_time_box_is_kept(monkeypatch, budget_ms, trials, whole):
    """The first look is at the start and each trial asks once: 11 in each of 3 futures, 4 more in each of 2."""
    state = busy()
    monkeypatch.setattr("baselines.lookahead.time.perf_counter", Clock())
    planner = Planner(CHAT, MOORE_HODGSON, Lookahead(futures=3, more_futures=2, budget_ms=budget_ms, threshold=0.0))
    planner.costs[:] = np.nan
    chosen = planner.choose(state)
    assert np.isfinite(planner.costs).sum() == trials
    assert chosen == 0 or whole > 0


def test_with_time_enough_the_clock_changes_nothing():
    state = busy()
    costs = []
    for budget_ms in (None, 1e5):
        planner = Planner(CHAT, MOORE_HODGSON, Lookahead(futures=2, more_futures=2, finalists=2, budget_ms=budget_ms))
        costs.append((planner.choose(state), planner.costs.tolist()))
    assert costs[0] == costs[1]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"changes": ()}, "changes: expected one that changes nothing first"),
        ({"changes": CHANGES[1:]}, "changes: expected one that changes nothing first"),
        ({"horizon_s": 0.0}, "horizon_s: expected a number from 0.01 to 600"),
        ({"hold": 0}, "hold: expected an integer from 1 to 1000"),
        ({"futures": 0}, "futures: expected an integer from 1"),
        ({"threshold": -1.0}, "threshold: expected a number from 0"),
        ({"budget_ms": -1.0}, "budget_ms: expected a number from 0"),
    ],
)
def test_wrong_settings_are_one_clear_error(wrong, message):
    with pytest.raises(UserError, match=message):
        Lookahead(**wrong)


def test_several_workers_are_refused():
    scenario = toy_scenario(workers=2)
    with pytest.raises(UserError, match=r"look-ahead: system.workers: expected 1, got 2"):
        run_lookahead(scenario, MOORE_HODGSON, toy_requests([(0.0, 5, 5)], scenario), 0)


# ---- evaluate.py ---------------------------------------------------------------------------------------------------
def test_planners_are_contenders_beside_their_base_and_the_bound_is_marked():
    change = ("episode.arrivals_s=15", "episode.warmup_s=0", "workload.load=1.0")
    given = Arguments(
        baselines=("none",), lookahead=("moore-hodgson",), clairvoyant=("moore-hodgson",), seeds=1, change=change
    )
    study = make_study(given)
    cells = [cell for _, _, new in run_study(study, 1) for cell in new]
    rows = aggregate(study, cells)
    labels = ["moore-hodgson", "lookahead(moore-hodgson)", "bound:clairvoyant(moore-hodgson)"]
    assert [row.contender for row in rows] == labels
    assert best_baseline(rows, None) in labels[:2]
    assert rows[2].difference is not None, "a bound is compared with the best and never the best"
    assert len({row.num_requests for row in rows}) == 1


@pytest.mark.parametrize("form", ["lookahead", "clairvoyant"])
def test_a_trace_and_systems_without_futures_have_no_planners(form):
    specs = ("moore-hodgson",)
    with pytest.raises(UserError, match=r"look-ahead: workload\.sessions"):
        make_study(Arguments(baselines=("none",), scenario="agentic", **{form: specs}))
    with pytest.raises(UserError, match=f"{form}: the laws of a trace's lengths are not known"):
        make_study(Arguments(baselines=("none",), trace="day.csv", **{form: specs}))
