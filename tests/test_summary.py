"""Figures of traffic against hand computation: rates, bursts, lengths, clients, sessions, minutes, and demand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from llm_env.config import Scenario, ServiceSettings, SLOClass, SLOSettings, SystemSettings
from llm_env.errors import UserError
from llm_env.workload import summary as summary_module
from llm_env.workload.summary import demand, per_minute, summarise_traffic
from llm_env.workload.traffic import Traffic


def make(arrival_s, prompt=None, output=None, client=None, session=None) -> Traffic:
    n = len(arrival_s)

    def column(values, default):
        return np.array(default if values is None else values, np.int32)

    optional = (None if values is None else np.array(values, np.int32) for values in (client, session))
    return Traffic(np.array(arrival_s, float), column(prompt, [10] * n), column(output, [2] * n), *optional)


# Six requests in 200 s: two at once, three minutes of which the second is empty, and a minute begun
TOY = make(
    [5.0, 5.0, 25.0, 130.0, 131.0, 205.0],
    prompt=[100, 200, 300, 400, 500, 600],
    output=[6, 5, 4, 3, 2, 1],
    client=[7, 7, 7, 9, -1, 3],
    session=[0, 1, 0, 0, -1, 1],
)


def test_rates_of_the_toy_are_not_those_by_hand():
    s = summarise_traffic(TOY)
    assert (s.requests, s.span_s) == (6, 200.0)
    assert s.requests_per_s == pytest.approx(5 / 200)
    assert s.prompt_tokens_per_s == pytest.approx(350 * 5 / 200)
    assert s.output_tokens_per_s == pytest.approx(3.5 * 5 / 200)
    assert s.work_tokens_per_s == pytest.approx((350 + 3.5 - 1) * 5 / 200)
    assert s.prefill_share == pytest.approx(2100 / 2121)


def test_bursts_of_the_toy_are_not_those_by_hand():
    s = summarise_traffic(TOY)
    gaps = [0, 20, 105, 1, 74]
    assert s.interarrival_cv == pytest.approx(np.std(gaps, ddof=1) / 40)
    assert s.longest_silence_s == 105
    assert s.same_instant_share == pytest.approx(2 / 6)
    assert s.tick_s is None
    # whole windows from 5 s on: 3 of 60 s with 3, 0, 2 (the last, at 200 s, is in a part of one)
    assert s.dispersion_60s == pytest.approx(np.var([3, 0, 2], ddof=1) / (5 / 3))
    assert s.peak_to_mean_60s == pytest.approx(3 / (5 / 3))
    tens = np.zeros(20)  # of 10 s: 5, 5 | 25 | 130, 131
    tens[[0, 2, 12]] = 2, 1, 2
    assert s.dispersion_10s == pytest.approx(np.var(tens, ddof=1) / np.mean(tens))
    assert s.peak_to_mean_10s == pytest.approx(2 / 0.25)
    assert s.peak_to_mean_1s == pytest.approx(2 / (5 / 200))


def test_correlations_of_the_toy_are_not_those_by_hand():
    s = summarise_traffic(TOY)
    assert s.rank_correlation == pytest.approx(-1)
    x, y = np.log([100, 200, 300, 400, 500, 600]), np.log([6, 5, 4, 3, 2, 1])
    expected = np.mean((x - x.mean()) * (y - y.mean())) / (x.std() * y.std())
    assert s.log_correlation == pytest.approx(expected)


def test_clients_and_sessions_that_are_unknown_are_counted():
    s = summarise_traffic(TOY)
    assert s.clients == 3  # 7, 9, 3
    assert s.top_1_percent_clients_share == pytest.approx(3 / 5)  # one client of three, rounded up
    assert s.sessions == 2
    assert (s.turns_mean, s.turns_max) == (2.5, 3)
    many = make(np.arange(1000.0), client=np.r_[np.zeros(500), np.ones(301), np.arange(2, 201)])  # 201 clients
    s = summarise_traffic(many)
    assert s.top_1_percent_clients_share == pytest.approx((500 + 301 + 1) / 1000)  # three of them
    assert s.top_10_percent_clients_share == pytest.approx((801 + 19) / 1000)  # twenty-one


def test_traffic_without_the_columns_has_clients_or_sessions():
    s = summarise_traffic(make([0.0, 1.0], client=[-1, -1]))
    assert (s.clients, s.top_1_percent_clients_share, s.sessions, s.turns_mean) == (None, None, None, None)


def test_length_figures_are_not_numpys():
    rng = np.random.default_rng(1)
    tokens = rng.integers(1, 5000, 999)
    s = summarise_traffic(make(np.arange(999.0), prompt=tokens))
    figures = (s.prompt.p1, s.prompt.p5, s.prompt.p25, s.prompt.p50, s.prompt.p75, s.prompt.p95, s.prompt.p99)
    assert figures == tuple(np.percentile(tokens, [1, 5, 25, 50, 75, 95, 99]))
    assert (s.prompt.mean, s.prompt.max) == (tokens.mean(), tokens.max())
    assert (s.output.p1, s.output.p99, s.output.mean) == (2, 2, 2)


def test_sums_of_tokens_overflow_32_bits():
    traffic = make(np.linspace(0, 30, 5000), prompt=[1_000_000] * 5000, output=[1_000_000] * 5000)
    assert per_minute(traffic)["total_tokens"].tolist() == [10_000_000_000]
    assert summarise_traffic(traffic).prompt.mean == 1_000_000


@pytest.mark.parametrize("arrival_s", [[5.0], [5.0, 5.0, 5.0]])
def test_one_instant_has_rates(arrival_s):
    s = summarise_traffic(make(arrival_s))
    for value in (s.requests_per_s, s.work_tokens_per_s, s.dispersion_1s, s.peak_to_mean_60s):
        assert math.isnan(value)
    assert s.same_instant_share == (len(arrival_s) > 1)


def test_no_requests_are_summarised():
    with pytest.raises(UserError, match="no requests"):
        summarise_traffic(make([]))
    assert {len(column) for column in per_minute(make([])).values()} == {0}


def test_a_clock_that_ticks_is_overlooked():
    ticks = np.repeat(np.arange(100) * 3.0 + np.tile([0, 0.003], 50), 4)
    s = summarise_traffic(make(ticks))
    assert (s.same_instant_share, s.tick_s) == (1.0, 3.0)


# ---- minutes -------------------------------------------------------------------------------------------------------
def test_minutes_of_the_toy_are_not_those_by_hand():
    table = per_minute(TOY)
    assert list(table) == [
        "minute",
        "requests",
        "prompt_tokens",
        "output_tokens",
        "total_tokens",
        "prefill_share",
        "decode_share",
    ]
    assert table["minute"].tolist() == [0, 1, 2, 3]
    assert table["requests"].tolist() == [3, 0, 2, 1]
    assert table["prompt_tokens"].tolist() == [600, 0, 900, 600]
    assert table["output_tokens"].tolist() == [15, 0, 5, 1]
    assert table["total_tokens"].tolist() == [615, 0, 905, 601]
    assert table["prefill_share"] == pytest.approx([600 / 615, 0, 900 / 905, 600 / 601])
    assert table["decode_share"] == pytest.approx([15 / 615, 0, 5 / 905, 1 / 601])


def test_an_arrival_on_the_minute_is_in_the_one_before():
    assert per_minute(make([1.0, 61.0]))["requests"].tolist() == [1, 1]
    assert per_minute(make([1.0, 60.99]))["requests"].tolist() == [2]


def test_a_wrong_time_fills_the_memory(monkeypatch):
    monkeypatch.setattr(summary_module, "MAX_WINDOWS", 1000)
    traffic = make([0.0, 1.0, 7e4])
    with pytest.raises(UserError, match="spans 1167 minutes, at most 1000"):
        per_minute(traffic)
    s = summarise_traffic(traffic)
    assert math.isnan(s.dispersion_60s)
    assert math.isnan(s.peak_to_mean_1s)


# ---- demand --------------------------------------------------------------------------------------------------------
def worker(tbt_ms: float) -> Scenario:
    service = ServiceSettings(setup_ms=40.0, per_token_ms=0.5, free_tokens=20)
    slo = SLOSettings(classes=(SLOClass(tbt_ms=tbt_ms),))
    return Scenario(system=SystemSettings(service=service), slo=slo)


def test_demand_is_not_work_over_capacity():
    # A batch within 100 ms has 20 + 60 / 0.5 = 140 tokens: 1,400 tokens/s
    traffic = make([0.0, 10.0, 70.0, 71.0, 120.0], prompt=[81_001] * 5, output=[3000] * 5)
    need = demand(summarise_traffic(traffic), per_minute(traffic), worker(100.0), load=0.5)
    assert need.capacity_tokens_per_s == pytest.approx(1400)
    assert need.mean == pytest.approx(84_000 * 4 / 120 / 1400)  # 2
    assert need.busiest_minute == pytest.approx(2 * 84_000 / 60 / 1400)  # 2
    assert (need.workers_mean, need.workers_busiest_minute) == (4, 4)


def test_traffic_of_half_a_minute_is_spread_over_a_whole_one():
    traffic = make([0.0, 30.0], prompt=[42_000] * 2, output=[1] * 2)
    need = demand(summarise_traffic(traffic), per_minute(traffic), worker(100.0), load=0.8)
    assert need.busiest_minute == pytest.approx(84_000 / 30 / 1400)  # 2
    assert need.workers_busiest_minute == 3


def test_traffic_at_one_instant_needs_a_number_of_workers():
    traffic = make([1.0])
    need = demand(summarise_traffic(traffic), per_minute(traffic), worker(100.0), load=0.8)
    assert (need.workers_mean, need.workers_busiest_minute) == (None, None)
