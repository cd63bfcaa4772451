"""llm_env/service.py: S with its terms and forms, and what follows from it."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy import toy_requests, toy_state

from llm_env.build import load, new_states, single, system_record
from llm_env.config import (
    EpisodeSettings,
    Scenario,
    ServiceSettings,
    SystemSettings,
    read_scenario,
    scenario_from_dict,
    scenario_to_toml,
    with_changes,
)
from llm_env.core import step
from llm_env.dtypes import ACTIVE
from llm_env.errors import UserError
from llm_env.records import decision
from llm_env.service import (
    curve_budget,
    curve_seconds,
    largest_batch,
    linear_seconds,
    mean_seconds,
    prefill_seconds,
    prefill_times,
    service_curve,
)
from llm_env.workload.generate import capacity_tokens_per_s

pytestmark = [pytest.mark.kernel, pytest.mark.nojit]


@pytest.mark.parametrize(
    ("tokens", "expected_s"),
    [
        (1, 0.0455),
        (64, 0.0455),  # the last free token
        (65, 0.0455 + 0.0003),
        (412, 0.0455 + 348 * 0.0003),  # 149.9 ms
        (8192, 0.0455 + 8128 * 0.0003),  # 2.4839 s
    ],
)
def test_a_batch_takes_the_setup_and_each_token_beyond_the_free_ones(tokens, expected_s):
    assert linear_seconds(0.0455, 0.0003, 64, tokens, 1.0, 1.0) == pytest.approx(expected_s, abs=1e-15)


def test_noise_multiplies_its_own_term_only():
    # 2 x 10 ms + 3 x (12 - 2) x 1 ms = 50 ms; within the free tokens the second factor does nothing
    assert linear_seconds(0.010, 0.001, 2, 12, 2.0, 3.0) == pytest.approx(0.050)
    assert linear_seconds(0.010, 0.001, 2, 2, 2.0, 3.0) == pytest.approx(0.020)


def test_tau_star_of_the_default_model_is_412_tokens():
    # 64 + (150 - 45.5) / 0.3 = 412.33
    assert largest_batch(0.0455, 0.0003, 64, 0.150, 1 << 20) == pytest.approx(412.0 + 1 / 3)


@pytest.mark.parametrize(
    ("setup_s", "per_token_s", "limit_s", "cap", "expected"),
    [
        (0.05, 0.001, 0.04, 100, 1.0),  # even an empty batch is too slow: one token, or nobody is served
        (0.05, 0.001, 0.05, 100, 1.0),
        (0.05, 0.0, 0.06, 100, 100.0),  # tokens that cost no time: the cap
        (0.05, 0.001, 9.0, 100, 100.0),
        (0.05, 0.001, 1e9, 100, 100.0),
        (0.05, 0.001, -1e9, 100, 1.0),
    ],
)
def test_the_largest_batch_stays_between_one_and_the_cap(setup_s, per_token_s, limit_s, cap, expected):
    assert largest_batch(setup_s, per_token_s, 0, limit_s, cap) == expected


@given(
    setup=st.floats(0, 0.1),
    per_token=st.floats(1e-6, 1e-2),
    free=st.integers(0, 200),
    limit=st.floats(0.001, 1.0),
)
def test_the_largest_batch_keeps_the_limit_and_one_token_more_breaks_it(setup, per_token, free, limit):
    cap = 1 << 20
    batch = int(largest_batch(setup, per_token, free, limit, cap))
    assert 1 <= batch <= cap
    if (
        linear_seconds(setup, per_token, free, 1, 1.0, 1.0) <= limit
    ):  # else one token is too slow, and served all the same
        assert linear_seconds(setup, per_token, free, batch, 1.0, 1.0) <= limit + 1e-9
        if batch < cap:
            assert linear_seconds(setup, per_token, free, batch + 1, 1.0, 1.0) > limit - 1e-9


def test_prefill_seconds_counts_whole_chunks_of_the_slo_budget_and_a_rest():
    state = toy_state([(0.0, 1, 1)])  # S(b) = 10 ms + b ms, SLO budget 10
    system = state.system[0]
    assert int(system["slo_budget"]) == 10
    for tokens, expected_s in ((1, 0.011), (10, 0.020), (11, 0.020 + 0.011), (20, 0.040), (25, 0.040 + 0.015)):
        seconds = prefill_times(state.system, np.array([tokens]), np.zeros(1))[0]
        assert seconds == pytest.approx(expected_s), tokens
        assert _prefill_seconds(state, tokens) == seconds
    assert _mean_seconds(state, 7) == pytest.approx(0.017)


def _prefill_seconds(state, tokens):
    return prefill_seconds(state.system[0], tokens)


def _mean_seconds(state, tokens):
    return mean_seconds(state.system[0], tokens)


# ---- the terms beside the curve ------------------------------------------------------------------------------------
def _with_service(state, **fields):
    for name, value in fields.items():
        state.system[name] = value
    return state


def _batches(state, d):
    """Seconds of each batch until the end."""
    durations = []
    while state.system[0]["phase"] == ACTIVE:
        step(state, d)
    for b in state.batch_log[: state.system[0]["num_batches"]]:
        durations.append(float(b["end_s"] - b["start_s"]))
    return durations


# one prompt of 5 tokens and 3 outputs in chunks of 3 is four batches under S(b) = 10 ms + b x 1 ms: 3, 2, 1, 1 tokens
PLAIN = [0.013, 0.012, 0.011, 0.011]


@pytest.mark.parametrize(
    ("fields", "extra"),
    [
        ({}, [0, 0, 0, 0]),
        ({"decode_fixed_s": 0.5}, [0, 0, 0.5, 0.5]),  # once a batch with a decode
        ({"cached_token_s": 0.1}, [0, 0, 0.5, 0.6]),  # 5 tokens with KV before the first decode, 6 before the second
        ({"token_context_s": 0.1}, [0.9, 1.0, 0, 0]),  # 3 x (0 + 3), then 2 x (3 + 2)
        ({"decode_fixed_s": 0.5, "cached_token_s": 0.1, "token_context_s": 0.1}, [0.9, 1.0, 1.0, 1.1]),
    ],
)
def test_each_term_counts_what_it_names(fields, extra):
    state = _with_service(toy_state([(0.0, 5, 3)], record=True), **fields)
    assert _batches(state, decision(3)) == pytest.approx([p + e for p, e in zip(PLAIN, extra, strict=True)])


def test_terms_of_several_requests_in_one_batch_add_up():
    # Prompts of 2 and 4, budget 3. Batch 1: 2 x 2 + 1 x 1 = 5. Batch 2: the first decodes on 2 cached tokens, the
    # second prefills 2 more on a context of 3, 2 x 3 = 6. Batch 3: decode on 3 cached, prefill 1 x 4. Batch 4: the
    # first is done, the second decodes on 4 cached tokens.
    rows = [(0.0, 2, 3), (0.0, 4, 2)]
    state = _with_service(
        toy_state(rows, record=True), decode_fixed_s=100.0, cached_token_s=10.0, token_context_s=1.0, setup_s=0.0
    )
    state.system["per_token_s"] = 0.0
    assert _batches(state, decision(3)) == pytest.approx([5.0, 126.0, 134.0, 140.0])


def test_two_decodes_pay_the_fixed_term_once():
    state = _with_service(toy_state([(0.0, 1, 2), (0.0, 1, 2)], record=True), decode_fixed_s=1.0)
    assert _batches(state, decision(8)) == pytest.approx([0.012, 1.012])


def test_settings_become_seconds():
    service = ServiceSettings(
        decode_fixed_ms=1.5, kv_ms_per_1k_cached_tokens=0.11, prefill_attention_ms_per_1m_token_context=8.0
    )
    s = system_record(Scenario(system=SystemSettings(service=service)))[0]
    assert s["decode_fixed_s"] == pytest.approx(0.0015)
    assert s["cached_token_s"] * 1000 == pytest.approx(0.00011)
    assert s["token_context_s"] * 1e6 == pytest.approx(0.008)
    assert s["slo_budget"] == system_record(Scenario())[0]["slo_budget"], "the budget is that of the curve"


# ---- other curves --------------------------------------------------------------------------------------------------
STAIRS = ServiceSettings(form="staircase", setup_ms=45.0, step_ms=20.0, step_tokens=64)
TABLE = ServiceSettings(form="table", points=((4, 10.0), (8, 10.0), (16, 30.0), (32, 40.0)))


@pytest.mark.parametrize(("tokens", "expected_ms"), [(1, 65), (64, 65), (65, 85), (128, 85), (129, 105), (6400, 2045)])
def test_a_staircase_rises_once_a_step(tokens, expected_ms):
    assert mean_seconds(service_curve(STAIRS), tokens) == pytest.approx(expected_ms)


@pytest.mark.parametrize(
    ("tokens", "expected_ms"),
    [
        (1, 10.0),  # below the first point constant
        (4, 10.0),
        (6, 10.0),
        (8, 10.0),
        (12, 20.0),
        (16, 30.0),
        (24, 35.0),
        (32, 40.0),
        (64, 60.0),  # beyond the last point along the last segment, 10 ms every 16 tokens
    ],
)
def test_a_table_is_followed_point_by_point(tokens, expected_ms):
    assert mean_seconds(service_curve(TABLE), tokens) == pytest.approx(expected_ms)


@given(tokens=st.lists(st.integers(1, 5000), min_size=2, max_size=40, unique=True), data=st.data())
def test_a_table_is_not_monotone_between_its_points(tokens, data):
    times = st.lists(st.floats(0.1, 1e3), min_size=len(tokens), max_size=len(tokens))
    points = tuple(zip(sorted(tokens), sorted(data.draw(times)), strict=True))
    curve = service_curve(ServiceSettings(form="table", points=points))
    seconds = [mean_seconds(curve, b) for b in range(1, max(tokens) + 50, 7)]
    assert all(b >= a - 1e-9 for a, b in pairwise(seconds))


@pytest.mark.parametrize(
    ("service", "limit_ms", "expected"),
    [
        (STAIRS, 64.9, 1.0),  # not even one step
        (STAIRS, 65.0, 64.0),
        (STAIRS, 104.9, 128.0),
        (STAIRS, 105.0, 192.0),
        (TABLE, 9.0, 1.0),
        (TABLE, 10.0, 8.0),  # the last of a flat stretch
        (TABLE, 20.0, 12.0),
        (TABLE, 60.0, 64.0),
        (ServiceSettings(form="table", points=((1, 5.0), (8, 5.0))), 5.0, 1 << 20),
        (ServiceSettings(form="staircase", setup_ms=5.0, step_ms=0.0, step_tokens=8), 5.0, 1 << 20),
        (ServiceSettings(form="staircase", setup_ms=5.0, step_ms=0.0, step_tokens=8), 4.9, 1.0),
    ],
)
def test_the_budget_of_another_curve_is_its_largest_batch_in_time(service, limit_ms, expected):
    assert curve_budget(service_curve(service), limit_ms, 1 << 20) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("service", "tokens", "expected_ms"),
    [(STAIRS, 64, 45 * 2 + 20 * 3), (TABLE, 24, 10 * 2 + 25 * 3), (TABLE, 3, 10 * 2)],
)
def test_noise_of_another_curve_multiplies_its_base_and_its_rise(service, tokens, expected_ms):
    assert curve_seconds(service_curve(service), tokens, 2.0, 3.0) == pytest.approx(expected_ms)


@pytest.mark.parametrize("service", [STAIRS, TABLE])
def test_the_kernel_follows_the_curve_of_the_settings(service):
    scenario = Scenario(system=SystemSettings(service=service), episode=EpisodeSettings(horizon_s=1e6))
    requests = toy_requests([(0.0, 70, 2), (0.0, 20, 4)], scenario)
    state = single(load(new_states(scenario, 1, 2, record=True), 0, requests, 0))
    durations = _batches(state, decision(50))
    log = state.batch_log[: state.system[0]["num_batches"]]
    tokens = log["prefill_tokens"] + log["decode_tokens"]
    curve = service_curve(service, 1e3)
    assert tokens.sum() == 70 + 1 + 20 + 3
    assert durations == pytest.approx([mean_seconds(curve, int(b)) for b in tokens])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"form": "staircase"}, "form 'staircase' needs step_ms"),
        ({"form": "staircase", "step_ms": 1.0}, "form 'staircase' needs step_tokens"),
        ({"form": "staircase", "step_ms": 1.0, "step_tokens": 8, "free_tokens": 4}, "has no free_tokens, got 4"),
        ({"form": "table"}, "form 'table' needs points"),
        ({"form": "table", "points": [[1, 5.0], [2, 6.0]], "setup_ms": 1.0}, "has no setup_ms, got 1"),
        ({"form": "table", "points": [[1, 5.0]]}, "at least 2 items"),
        ({"form": "table", "points": [[1, 5.0], [1, 6.0]]}, r"expected more tokens .* \[1, 5\], \[1, 6\]"),
        ({"form": "table", "points": [[1, 5.0], [2, 4.0]]}, r"not fewer ms, got \[1, 5\], \[2, 4\]"),
        ({"form": "table", "points": [[1, 0.0], [2, 4.0]]}, "cannot take 0 ms"),
        ({"points": [[1, 5.0], [2, 6.0]]}, "form 'linear' has no points"),
        ({"step_tokens": 8}, "form 'linear' has no step_tokens"),
        ({"setup_noise": "gamma"}, "setup_noise 'gamma' needs setup_noise_cv"),
        ({"per_token_noise_cv": 0.5}, "per_token_noise 'none' has no per_token_noise_cv"),
        ({"setup_noise": "exponential", "setup_noise_cv": 0.5}, "'exponential' has no setup_noise_cv"),
        ({"setup_noise": "gamma", "setup_noise_cv": 0.0}, "above 0"),
    ],
)
def test_settings_of_two_forms_or_noise_without_its_cv_are_let_through(settings, message):
    with pytest.raises(UserError, match=message):
        scenario_from_dict({"system": {"service": settings}})


@pytest.mark.parametrize("service", [STAIRS, TABLE, ServiceSettings(setup_noise="gamma", setup_noise_cv=0.35)])
def test_a_saved_scenario_lacks_its_curve(service, tmp_path):
    scenario = Scenario(system=SystemSettings(service=service))
    path = tmp_path / "mine.toml"
    path.write_text(scenario_to_toml(scenario))
    assert read_scenario(path) == scenario
    assert with_changes(scenario, {"workload.load": 0.5}).system.service == service


@pytest.mark.parametrize("form", ["linear", "staircase", "table"])
def test_load_1_is_not_the_largest_batch_in_time(form):
    service = {"linear": ServiceSettings(), "staircase": STAIRS, "table": TABLE}[form]
    scenario = Scenario(system=SystemSettings(service=service))
    tau, seconds = {"linear": (64 + 104.5 / 0.3, 0.150), "staircase": (320, 0.145), "table": (208, 0.150)}[form]
    assert capacity_tokens_per_s(scenario) == pytest.approx(tau / seconds)
