"""What a router knows of a worker, and the score made of it; by hand, S(b) = 10 + b ms at speed 1, TBT target 20 ms."""

from __future__ import annotations

import pytest
from toy import toy_state

from llm_env.config import RoutingSettings
from llm_env.core import step
from llm_env.records import decision
from llm_env.worker_load import (
    expected_work_s,
    new_tokens,
    predicted_ttft_s,
    routing_weights,
    score,
    slowness,
    worker_load,
)

pytestmark = [pytest.mark.kernel, pytest.mark.nojit]

NOTHING = dict.fromkeys(RoutingSettings.model_fields, 0.0) | {"memory_from": 0.5, "miss_from": 1.0}


def two_workers(rows, routing=None, blocks=None, **settings):
    """Worker 0 of speed 1 (budget 10 tokens in 20 ms) and worker 1 of speed 2 (30 tokens); round robin."""
    system = {"router": "round-robin", "speeds": (1.0, 2.0), "routing": RoutingSettings(**(NOTHING | (routing or {})))}
    return toy_state(rows, workers=2, system=system, blocks=blocks, **settings)


def test_an_idle_worker_has_nothing_and_its_rate():
    state = two_workers([(0.0, 4, 1), (9.0, 4, 1)])
    load = worker_load(state, 1)
    assert load._replace(rate_per_s=0.0) == (0, 0, 0, 0, 0, 0.0, 0.0, 0.0, 0.0)
    assert load.rate_per_s == pytest.approx(30 / 0.020)
    assert worker_load(state, 0).rate_per_s == pytest.approx(10 / 0.020)
    assert (slowness(state, 0), slowness(state, 1)) == (1.0, 0.0)


def test_waiting_and_begun_prompts_are_queued_until_their_batch_has_ended():
    state = two_workers([(0.0, 25, 3), (0.0, 1, 9), (0.0, 7, 3)])  # worker 0: 25 and 7
    assert worker_load(state, 0).queued_tokens == 32
    step(state, decision(10))
    load = worker_load(state, 0)  # 10 of them are being computed, which takes 20 ms
    assert (load.queued_tokens, load.num_waiting, load.num_running, load.num_decodes) == (32, 1, 1, 0)
    assert load.free_s == pytest.approx(0.020)
    step(state, decision(10))  # worker 1: 1 token, (10 + 1) / 2 ms
    step(state, decision(10))
    assert (worker_load(state, 1).num_decodes, worker_load(state, 1).queued_tokens) == (1, 0)


def test_the_hopeless_are_queued_but_not_live():
    # TTFT target 100 ms; on the fastest worker 3,000 tokens take 2 s: hopeless from the start
    state = two_workers([(0.0, 3000, 3), (0.0, 1, 9), (0.0, 7, 3)])
    load = worker_load(state, 0)
    assert (load.queued_tokens, load.live_tokens) == (3007, 7)
    step(state, decision(10))  # the long one is begun: its first token could still be due
    step(state, decision(10))
    while state.system[0]["now_s"] <= 0.1:
        step(state, decision(10))
    load = worker_load(state, 0)
    assert load.queued_tokens > load.live_tokens == 0


def test_memory_in_use_and_memory_that_will_be_wanted():
    state = two_workers([(0.0, 8, 3), (0.0, 1, 9), (0.0, 16, 3)], blocks=10)  # 40 tokens
    assert worker_load(state, 0).kv_waiting == pytest.approx(24 / 40)
    step(state, decision(8))
    load = worker_load(state, 0)
    assert (load.kv_used, load.kv_waiting) == (pytest.approx(2 / 10), pytest.approx(16 / 40))


def test_expected_work_and_ttft():
    state = two_workers([(0.0, 25, 3), (0.0, 1, 9), (0.0, 7, 3), (0.0, 60, 1)])
    state.requests["home"][3] = 0
    load = worker_load(state, 0)._replace(queued_tokens=100, live_tokens=40, num_decodes=5, free_s=0.003)
    assert expected_work_s(state, 0, 3, load) == pytest.approx((100 + 60) / 500)
    assert predicted_ttft_s(state, 0, 3, load) == pytest.approx(0.003 + (40 + 60) / (500 * 0.5))


@pytest.mark.parametrize(
    ("routing", "seconds"),
    [
        ({}, 0.2),  # (40 live + 60) / 500
        ({"running_ms": 3.0}, 0.2 + 0.003 * 4 * 2),  # 4 run on a worker half as fast as the fastest
        ({"long_ms_per_1k_tokens": 500.0}, 0.2 + 0.5 * 0.060),
        ({"slow_ms": 7.0}, 0.2 + 0.007),
        ({"kv_ms": 100.0}, 0.2 + 0.1 * 0.3),
        ({"memory_ms": 100.0}, 0.2 + 0.1 * (0.3 + 0.1 + 60 / 200 - 0.5)),
        ({"miss_ms": 50.0}, 0.2 + 0.05),  # 203 ms at least, the target is 100 ms
        ({"miss_ms": 50.0, "miss_from": 4.1}, 0.2),
    ],
)
def test_each_weight_of_the_score(routing, seconds):
    state = two_workers([(0.0, 25, 3), (0.0, 1, 9), (0.0, 7, 3), (0.0, 60, 1)], routing, blocks=50)
    load = worker_load(state, 0)._replace(
        queued_tokens=100, live_tokens=40, num_running=4, num_decodes=5, free_s=0.003, kv_used=0.3, kv_waiting=0.1
    )
    assert score(state, 0, 3, load) == pytest.approx(seconds)


def test_what_the_prefix_cache_has_need_not_be_prefilled():
    state = toy_state(
        [(0.0, 10, 2), (0.5, 22, 2)],
        workers=2,
        blocks=50,
        kv={"prefix_cache": True},
        system={"router": "session-sticky"},
        fields={"session": [0, 0], "previous": [-1, 0], "shared_tokens": [0, 12]},
    )
    while state.system[0]["now_s"] < 0.5:
        step(state, decision(100))
    assert (new_tokens(state, 0, 1), new_tokens(state, 1, 1)) == (22 - 8, 22)  # 2 whole blocks of 4 of the 11 tokens


def test_the_settings_are_taken_as_milliseconds():
    weights = routing_weights(RoutingSettings(running_ms=2.0, long_ms_per_1k_tokens=500.0, miss_from=0.9))
    assert weights[0] == 0.002
    assert weights[3] == pytest.approx(0.5 / 1000)
    assert weights[7] == 0.9
