"""What a router sees and is paid; by hand, S(b) = 10 + b ms at speed 1, targets of 100 ms and 20 ms."""

from __future__ import annotations

import numpy as np
import pytest
from toy import toy_state

from llm_env.core import route, step
from llm_env.dtypes import ACTIVE, DRAINED, ROUTING
from llm_env.records import decision
from llm_env.router import best_by_work
from llm_env.routing_features import (
    GLOBAL_FEATURE_NAMES,
    NUM_WORKER_FEATURES,
    WORKER_FEATURE_NAMES,
    num_routing_features,
    observe_arrival,
)
from llm_env.routing_reward import routing_terms
from llm_env.slo import judged

pytestmark = [pytest.mark.kernel, pytest.mark.nojit]


def asked(rows, workers=2, **settings):
    system = {"router": "agent", "speeds": (1.0, 2.0)[:workers], **settings.pop("system", {})}
    return toy_state(rows, workers=workers, system=system, **settings)


def go_on(state, budget=10):
    """Batches until the next arrival or the end."""
    while state.system[0]["phase"] == ACTIVE:
        step(state, decision(budget))


def observed(state):
    """The features by name: of each worker, and the global ones."""
    num_workers = int(state.system[0]["num_prefill_workers"])
    out = np.full(num_routing_features(num_workers), np.nan, np.float32)
    observe_arrival(state, out)
    assert np.isfinite(out).all()
    ends = num_workers * NUM_WORKER_FEATURES
    rows = out[:ends].reshape(num_workers, NUM_WORKER_FEATURES)
    return [dict(zip(WORKER_FEATURE_NAMES, row.tolist(), strict=True)) for row in rows], dict(
        zip(GLOBAL_FEATURE_NAMES, out[ends:].tolist(), strict=True)
    )


def terms(state):
    out = np.zeros(2)
    total = routing_terms(state, np.ones(2), out)
    assert total == out.sum()
    return out.tolist()


def test_the_features_of_two_workers():
    # budgets of 10 and 30 tokens in 20 ms: 500/s and 1,500/s
    state = asked([(0.0, 25, 3), (0.01, 30, 3), (0.015, 15, 1)], blocks=20)
    route(state, 0)
    go_on(state)
    route(state, 1)
    go_on(state)  # at 15 ms: worker 0 computes 10 of 25 until 20 ms, worker 1 10 of 30 until 10 + 10 ms
    (slow, fast), pool = observed(state)
    assert slow["live"] == slow["queued"] == pytest.approx(25 / 500 / 0.1)
    assert fast["queued"] == pytest.approx(30 / 1500 / 0.1)
    assert (slow["own"], fast["own"]) == (pytest.approx(15 / 500 / 0.1), pytest.approx(15 / 1500 / 0.1))
    assert (slow["waiting"], slow["decode_share"], slow["cached"]) == (0, 0, 0)
    assert (slow["miss"], fast["miss"]) == (1, 0)  # .85 of the target; miss_from is .8
    assert (slow["running"], fast["running"]) == (pytest.approx(2 / 64), pytest.approx(1 / 64))
    assert (slow["free"], fast["free"]) == (pytest.approx(0.25), pytest.approx(0.25))
    assert slow["wait"] == pytest.approx((0.005 + 40 / 500) / 0.1)
    assert slow["kv_used"] == pytest.approx(3 / 20)  # 10 tokens in blocks of 4
    assert slow["kv_wanted"] == pytest.approx(3 / 20 + 15 / 80)
    assert (slow["slowness"], fast["slowness"]) == (pytest.approx(np.log(2)), 0)
    assert (slow["choice"], fast["choice"], fast["score"]) == (0, 1, 0)
    assert best_by_work(state, 2, 0, 2, True) == 1
    assert slow["score"] > 0
    assert pool["mean_live"] == pytest.approx((slow["live"] + fast["live"]) / 2)
    assert pool["mean_kv_wanted"] == pytest.approx((slow["kv_wanted"] + fast["kv_wanted"]) / 2)
    assert pool["least_wait"] == fast["wait"]
    assert pool["prompt"] == pytest.approx(np.log(16) / 8)
    assert pool["ttft_target"] == pytest.approx(-1)


def test_a_first_token_that_is_late_is_missed_at_its_deadline():
    state = asked([(0.0, 5, 1), (0.0, 60, 1), (0.2, 1, 1)], workers=1)
    route(state, 0)
    assert terms(state)[0] == 0
    route(state, 0)
    go_on(state)  # 10 tokens each 20 ms: the first is on time, all 65 are done after 135 ms
    assert state.system[0]["now_s"] == 0.2
    assert terms(state)[0] == -1  # known since 100 ms
    route(state, 0)
    go_on(state)
    assert (state.system[0]["phase"], terms(state)[0]) == (DRAINED, 0)


def test_a_broken_tbt_promise_and_a_rejected_request_are_misses():
    state = asked([(0.0, 8, 3), (0.05, 900, 1), (0.3, 1, 1)], workers=1, blocks=100)
    route(state, 0)
    assert state.system[0]["phase"] == ACTIVE
    state.workers[0]["held_until_s"] = 0.0
    step(state, decision(10))  # first token at 18 ms
    step(state, decision(10, hold_s=0.025))
    go_on(state)
    assert state.system[0]["now_s"] == 0.3
    assert terms(state)[0] == -2


def test_the_backlog_counts_live_work_and_ends_at_nothing():
    state = asked([(0.0, 25, 3), (0.0, 30, 3), (0.01, 15, 1)])
    route(state, 0)
    assert terms(state)[1] == pytest.approx(-25 / 500)
    route(state, 1)
    go_on(state)
    assert terms(state)[1] == pytest.approx(-30 / 1500)  # nothing has been computed at 10 ms: batches take 20 and 10
    route(state, 1)
    go_on(state)
    assert terms(state)[1] == pytest.approx(25 / 500 + 30 / 1500)


@pytest.mark.parametrize("horizon_s", [0.35, 1e6])
def test_the_misses_of_an_episode_add_up_to_those_of_its_requests(horizon_s):
    rng = np.random.default_rng(1)
    rows = [
        (float(t), int(a), int(b))
        for t, a, b in zip(
            np.sort(rng.integers(0, 300, 90)) / 1000, rng.integers(1, 40, 90), rng.integers(1, 9, 90), strict=True
        )
    ]
    fields = {"weight": rng.choice([1.0, 0.5, 3.0], 90)}
    state = asked(rows, blocks=11, max_running=4, horizon_s=horizon_s, fields=fields)
    total, steps = np.zeros(2), 0
    while state.system[0]["phase"] == ROUTING:
        route(state, steps % 2)
        go_on(state, 25)
        total += terms(state)
        steps += 1
    requests = state.requests
    missed = requests["weight"][~judged(requests)[:, 1 + int(state.system[0]["slo_rule"])]].sum()
    assert total[0] == pytest.approx(-missed)
    assert 0 < missed < requests["weight"].sum()
    assert state.system[0]["first_open"] == 90
