"""view.py and features.py: what policies and agents see equals a look at every request, and shows no true length."""

from __future__ import annotations

from math import exp, log, log1p, log2, log10

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import resumed_of, running_of, toy_state

from llm_env.build import load, new_states, single
from llm_env.config import with_changes
from llm_env.core import step
from llm_env.dtypes import ACTIVE, FAR, ROLE_BOTH, SLO_RULES, WAITING
from llm_env.features import DECODE_EDGES, FEATURE_NAMES, FEATURES, NUM_FEATURES, observe
from llm_env.queue import RATE_FAST_S, RATE_SLOW_S
from llm_env.records import SLACK_EDGES, View, decision, snapshot
from llm_env.scenarios import load_scenario
from llm_env.view import make_view
from llm_env.workload import draw_workload

pytestmark = pytest.mark.kernel
nojit = pytest.mark.nojit

LOWS = np.array([low for _, low, _, _ in FEATURES], np.float32)
HIGHS = np.array([high for _, _, high, _ in FEATURES], np.float32)


def features_of(state):
    out = np.full(NUM_FEATURES + 3, np.nan, np.float32)
    observe(state, out)
    assert np.isnan(out[NUM_FEATURES:]).all(), "more is written than there are features"
    return out[:NUM_FEATURES]


def random_state(seed, steps, workers=1, blocks=None, rule="max", n=14):
    """A state somewhere in a run of random decisions, or at its end."""
    rng = np.random.default_rng(seed)
    rows = list(zip(np.sort(rng.uniform(0, 0.4, n)), rng.integers(1, 60, n), rng.integers(1, 15, n), strict=True))
    ttft_s = rng.uniform(0.05, 0.8, n).tolist()
    fields = {"weight": rng.integers(1, 5, n) / 4, "tbt_target_s": rng.choice((0.02, 0.05), n)}
    state = toy_state(
        rows,
        ttft_s,
        seed,
        fields=fields,
        workers=workers,
        blocks=blocks,
        rule=rule,
        noise="exponential",
        kv_ms_per_1k_cached_tokens=20.0,
    )
    for _ in range(steps):
        if state.system[0]["phase"] == ACTIVE:
            packing, order = int(rng.integers(4)), int(rng.integers(5))
            step(state, decision(int(rng.integers(1, 40)), packing=packing, order=order))
    return state


situations = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 10_000),
        "steps": st.integers(0, 60),
        "workers": st.integers(1, 3),
        "blocks": st.sampled_from([None, 16, 40]),
        "rule": st.sampled_from(SLO_RULES),
    }
)


# ---- brute force ---------------------------------------------------------------------------------------------------
def keeps_tbt(r, rule):
    if rule == "deadline":
        return r["late_tokens"] == 0
    return r["late_gaps"] <= ((r["emitted_tokens"] - 1) // 100 if rule == "p99" else 0)


def parts(state):
    """(waiting requests without the evicted, running, partial, decoding) of the worker at hand, as index lists."""
    s, q = state.system[0], state.requests
    front = set(resumed_of(state))
    waiting = [i for i in range(s["num_requests"]) if q[i]["status"] == WAITING and i not in front]
    running = running_of(state, int(s["worker"]))
    partial = [i for i in running if q[i]["computed_tokens"] < q[i]["prefill_tokens"]]
    return waiting, running, partial, [i for i in running if i not in partial]


def expected_view(state, rule):
    """The View, each number from its definition."""
    s, q = state.system[0], state.requests
    now, worker = float(s["now_s"]), state.workers[int(s["worker"])]
    waiting, running, partial, decoding = parts(state)
    everybody = waiting + resumed_of(state)
    slack = {i: float(q[i]["latest_start_s"] - now) for i in waiting}
    due = {i: float(q[i]["arrival_s"] + q[i]["ttft_target_s"]) for i in waiting}
    urgent = sorted((i for i in waiting if slack[i] >= 0), key=lambda i: (due[i], i))
    hopeless = [i for i in waiting if slack[i] < 0]
    head = resumed_of(state)[0] if resumed_of(state) else min(waiting, default=None)
    arrived_s = q["arrival_s"][: s["next_arrival"]]
    left = {i: int(q[i]["prefill_tokens"] - q[i]["computed_tokens"]) for i in running}
    decode_slack = [float(q[i]["last_token_s"] + q[i]["tbt_target_s"] - now) for i in decoding]
    return {
        "now_s": now,
        "epoch": s["epoch"],
        "worker": s["worker"],
        "num_workers": len(state.workers),
        "setup_s": 0.010,
        "per_token_s": 0.001,
        "free_tokens": 0,
        "ttft_target_s": 0.1,
        "tbt_target_s": 0.02,
        "slo_budget": 10.0,
        "max_running": 8,
        "num_waiting": len(everybody),
        "waiting_tokens": sum(int(q[i]["prefill_tokens"]) for i in everybody),
        "num_resumed": len(resumed_of(state)),
        "num_hopeless": len(hopeless),
        "hopeless_tokens": sum(int(q[i]["prefill_tokens"]) for i in hopeless),
        "head_tokens": 0 if head is None else q[head]["prefill_tokens"],
        "head_age_s": 0.0 if head is None else now - q[head]["arrival_s"],
        "urgent_slack_s": slack[urgent[0]] if urgent else FAR,
        "urgent_tokens": q[urgent[0]]["prefill_tokens"] if urgent else 0,
        "second_slack_s": slack[urgent[1]] if len(urgent) > 1 else FAR,
        "second_tokens": q[urgent[1]]["prefill_tokens"] if len(urgent) > 1 else 0,
        "rate_fast_per_s": sum(exp(-(now - t) / RATE_FAST_S) for t in arrived_s) / RATE_FAST_S,
        "rate_slow_per_s": sum(exp(-(now - t) / RATE_SLOW_S) for t in arrived_s) / RATE_SLOW_S,
        "num_running": len(running),
        "num_decodes": len(decoding),
        "num_partial": len(partial),
        "partial_tokens": sum(left[i] for i in partial),
        "context_tokens": sum(int(q[i]["computed_tokens"]) for i in running),
        "min_decode_slack_s": min(decode_slack, default=FAR),
        "num_clean_decodes": sum(bool(keeps_tbt(q[i], rule)) for i in decoding),
        "kv_blocks": s["kv_blocks"],
        "free_blocks": s["kv_blocks"] - sum(int(q[i]["blocks"]) for i in running),
        "block_tokens": 4,
        "kv_used": sum(int(q[i]["blocks"]) for i in running) / s["kv_blocks"] if s["kv_limited"] else 0.0,
        "last_batch_s": worker["end_s"] - worker["start_s"],
        "last_batch_tokens": worker["last_batch_tokens"],
        "role": ROLE_BOTH,
        "speed": 1.0,
        "num_moving": 0,
        "num_swapped": 0,
        "last_prefill_tokens": worker["last_batch_prefill"],
        "last_evicted": worker["batch_evicted"],
        "emitted_tokens": sum(int(q[i]["emitted_tokens"]) for i in running),
        "declared_tokens": sum(int(q[i]["declared_tokens"]) for i in running),
        "help_tokens": 0,
        "memory": 0.0,
        "decode_extra_s": sum(int(q[i]["computed_tokens"]) for i in running) * 20e-6,
        **dict.fromkeys(View._fields[View._fields.index("next_role") :], 0),
    }


def expected_features(state, rule):
    """The features by name, from the expected view and the requests."""
    v, s, q = expected_view(state, rule), state.system[0], state.requests
    now = v["now_s"]
    waiting, _, partial, decoding = parts(state)
    f = {
        "waiting": log1p(v["num_waiting"]) / 6,
        "waiting_tokens": log1p(v["waiting_tokens"]) / 12,
        "resumed": log1p(v["num_resumed"]) / 3,
        "head_age": v["head_age_s"] / 0.1,
        "urgent_slack": v["urgent_slack_s"] / 0.1,
        "urgent_tokens": log1p(v["urgent_tokens"]) / 12,
        "second_slack": v["second_slack_s"] / 0.1,
        "second_tokens": log1p(v["second_tokens"]) / 12,
        "feasible_seconds": (v["waiting_tokens"] - v["hopeless_tokens"]) * 0.020 / 10 / 0.1,
        "running": v["num_running"] / 8,
        "decodes": log1p(v["num_decodes"]) / 6,
        "decode_share": v["num_decodes"] / 10,
        "partials": log1p(v["num_partial"]) / 3,
        "partial_tokens": log1p(v["partial_tokens"]) / 12,
        "decode_slack": v["min_decode_slack_s"] / 0.02,
        "clean_decodes": v["num_clean_decodes"] / v["num_decodes"] if decoding else 1.0,
        "kv_used": v["kv_used"],
        "kv_free_tokens": log1p(v["free_blocks"] * 4) / 12 if s["kv_limited"] else 2.0,
        "context_tokens": log1p(v["context_tokens"]) / 12,
        "free_slots": log1p(8 - v["num_running"]) / 6,
        "rate_fast": log1p(v["rate_fast_per_s"]),
        "rate_slow": log1p(v["rate_slow_per_s"]),
        "rate_trend": log((v["rate_fast_per_s"] + 1e-3) / (v["rate_slow_per_s"] + 1e-3)),
        "last_batch_s": v["last_batch_s"] / 0.02,
        "last_batch_tokens": log1p(v["last_batch_tokens"]) / 12,
        "busy_workers": state.workers["busy"].mean(),
        "ttft_target": log10(0.1),
        "tbt_target": log10(0.02 / 0.1),
        "setup": 0.5,
        "per_token": 10.0,
        "slo_budget": log1p(10) / 12,
        "free_tokens": 0.0,
        "workers": log2(len(state.workers)),
        **dict.fromkeys(FEATURE_NAMES[FEATURE_NAMES.index("role") : FEATURE_NAMES.index("tight_waiting")], 0.0),
        "classes": 0.0,  # one in the settings, whatever the requests say
        "loosest_ttft": 0.0,
        "loosest_tbt": 0.0,
        "least_weight": 1.0,
        "evicted": log1p(v["last_evicted"]) / 3,
        "attention": v["decode_extra_s"] / 0.02,
    }
    on_time = [i for i in waiting if q[i]["latest_start_s"] - now >= 0]
    tight = [i for i in on_time if q[i]["ttft_target_s"] <= 0.1]
    first = min(on_time, key=lambda i: (q[i]["arrival_s"] + q[i]["ttft_target_s"], i), default=None)
    f["tight_waiting"] = log1p(len(tight)) / 6
    f["tight_seconds"] = sum(int(q[i]["prefill_tokens"]) for i in tight) * 0.020 / 10 / 0.1
    f["waiting_weight"] = float(np.mean(q["weight"][on_time])) if on_time else 0.0
    f["urgent_own_slack"] = 2.0 if first is None else (q[first]["latest_start_s"] - now) / q[first]["ttft_target_s"]
    f["urgent_weight"] = 0.0 if first is None else q[first]["weight"]
    f["tight_decodes"] = float(np.mean(q["tbt_target_s"][decoding] <= 0.02)) if decoding else 0.0
    kv_tokens = 4 * s["kv_blocks"] if s["kv_limited"] else np.inf
    f["kv_waiting"] = sum(int(q[i]["prefill_tokens"]) for i in on_time) / kv_tokens
    f["kv_declared"] = max(0, v["declared_tokens"] - v["emitted_tokens"]) / kv_tokens
    edges = [-np.inf, *(edge * 0.1 for edge in SLACK_EDGES), np.inf]
    for k, name in enumerate(("hopeless", "slack_12", "slack_25", "slack_50", "slack_75", "slack_100")):
        inside = [i for i in waiting if edges[k] <= q[i]["latest_start_s"] - now < edges[k + 1]]
        f[f"waiting_{name}"] = log1p(len(inside)) / 6
        f[f"waiting_tokens_{name}"] = log1p(sum(int(q[i]["prefill_tokens"]) for i in inside)) / 12
    edges = [-np.inf, *DECODE_EDGES, np.inf]
    slack = [float(q[i]["last_token_s"] + q[i]["tbt_target_s"] - now) / q[i]["tbt_target_s"] for i in decoding]
    for k, name in enumerate(("late", "slack_33", "slack_66", "slack_99", "slack_more")):
        f[f"decodes_{name}"] = log1p(sum(edges[k] <= x < edges[k + 1] for x in slack)) / 6
    first = [float(q[i]["arrival_s"] + q[i]["ttft_target_s"] - now) for i in partial if q[i]["emitted_tokens"] == 0]
    f["partial_slack"] = min(first, default=np.inf) / 0.1
    spare = [q[i]["late_gaps"] < (q[i]["emitted_tokens"] - 1) // 100 for i in decoding]
    f["late_allowance"] = sum(spare) / len(decoding) if decoding and rule == "p99" else 0.0
    return f


@settings(max_examples=60, deadline=None)
@given(situation=situations)
def test_view_and_features_equal_a_look_at_every_request(situation):
    state = random_state(**situation)
    if state.system[0]["phase"] != ACTIVE:
        return
    rule = situation["rule"]
    view = make_view(state)
    expected = expected_view(state, rule)
    assert set(view._fields) == set(expected)
    for name, value in expected.items():
        assert getattr(view, name) == pytest.approx(value, rel=1e-9, abs=1e-9), name
    features, wanted = features_of(state), expected_features(state, rule)
    assert set(wanted) == set(FEATURE_NAMES)
    for k, (name, low, high, _) in enumerate(FEATURES):
        assert features[k] == pytest.approx(min(max(wanted[name], low), high), abs=1e-5), name


@nojit
def test_the_view_of_a_state_by_hand():
    # t = 0: 4 tokens of request 0, 10 of 30 of request 1; S(14) = 24 ms. Request 2 waits from 5 ms on.
    state = toy_state([(0.0, 4, 9), (0.0, 30, 9), (0.005, 8, 1)], blocks=30)
    step(state, decision(14))
    view = make_view(state)
    assert view.now_s == pytest.approx(0.024)
    assert (view.num_running, view.num_decodes, view.num_partial, view.partial_tokens) == (2, 1, 1, 20)
    assert (view.num_waiting, view.waiting_tokens, view.num_hopeless) == (1, 8, 0)
    assert view.head_age_s == pytest.approx(0.019)
    assert view.urgent_slack_s == pytest.approx(0.105 - 0.018 - 0.024)  # S(8) = 18 ms
    assert view.min_decode_slack_s == pytest.approx(0.020)
    assert view.context_tokens == 14
    assert view.free_blocks == 30 - 1 - 3
    assert view.kv_used == pytest.approx(4 / 30)
    assert (view.last_batch_s, view.last_batch_tokens) == (pytest.approx(0.024), 14)


def test_classes_are_described_by_their_spread():
    classes = (
        {"name": "fast", "ttft_ms": 1000.0, "tbt_ms": 100.0, "weight": 4.0, "share": 0.3},
        {"name": "slow", "ttft_ms": 8000.0, "tbt_ms": 500.0, "share": 0.7},
    )
    scenario = with_changes(load_scenario("chat-bursty"), {"slo.classes": classes})
    features = features_of(single(load(new_states(scenario, 1, 9), 0, draw_workload(scenario, 3), 3)))
    named = dict(zip(FEATURE_NAMES, features.tolist(), strict=True))
    found = [named[name] for name in ("classes", "loosest_ttft", "loosest_tbt", "least_weight")]
    assert found == pytest.approx([1.0, log10(8), log10(5), 0.25])


# ---- bounds and names ----------------------------------------------------------------------------------------------
@nojit
def test_there_are_as_many_features_as_names_and_no_name_twice():
    assert NUM_FEATURES == len(FEATURES) == len(FEATURE_NAMES) == len(set(FEATURE_NAMES))
    assert (LOWS < HIGHS).all()
    assert np.isfinite(features_of(toy_state([(0.0, 5, 5)]))).all()


@settings(max_examples=40, deadline=None)
@given(situation=situations)
def test_features_are_finite_and_within_their_bounds_to_the_very_end(situation):
    state = random_state(**situation)
    for _ in range(40):
        features = features_of(state)
        assert np.isfinite(features).all()
        assert (features >= LOWS).all(), np.array(FEATURE_NAMES)[features < LOWS]
        assert (features <= HIGHS).all(), np.array(FEATURE_NAMES)[features > HIGHS]
        if state.system[0]["phase"] != ACTIVE:
            break
        step(state, decision(7, order=4))


@nojit
@pytest.mark.parametrize(
    "hardware",
    [
        {"ttft_ms": 1e9, "tbt_ms": 1e9},
        {"ttft_ms": 1e-6, "tbt_ms": 1e-6},
        {"setup_ms": 0.0, "per_token_ms": 1e-6},
        {"per_token_ms": 0.0},
        {"setup_ms": 1e6, "per_token_ms": 1e6},
        {"workers": 64},
        {"blocks": 1, "block_tokens": 4096},
    ],
)
def test_features_stay_within_bounds_on_extreme_hardware(hardware):
    state = toy_state([(0.0, 5, 3)] * 9, **hardware)
    for _ in range(6):
        features = features_of(state)
        assert np.isfinite(features).all()
        assert ((features >= LOWS) & (features <= HIGHS)).all()
        if state.system[0]["phase"] == ACTIVE:
            step(state, decision(100))


# ---- the hidden truth ----------------------------------------------------------------------------------------------
@settings(max_examples=40, deadline=None)
@given(situation=situations, other=st.integers(1, 5000))
def test_nothing_that_is_seen_depends_on_the_true_length_of_an_unfinished_request(situation, other):
    state = random_state(**situation)
    lied = snapshot(state)
    unfinished = lied.requests["emitted_tokens"] < lied.requests["output_tokens"]
    lied.requests["output_tokens"][unfinished] = lied.requests["emitted_tokens"][unfinished] + other
    assert make_view(state) == make_view(lied)
    assert features_of(state).tobytes() == features_of(lied).tobytes()


@nojit
def test_looking_changes_nothing():
    state = random_state(3, 10)
    before = snapshot(state)
    make_view(state)
    features_of(state)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(before, state, strict=True))


@nojit
def test_small_numbers_have_other_logarithms():
    """They are looked up in a table, which must hold what compiled code would compute."""
    for waiting in (0, 1, 2, 255, 256, 300):
        state = toy_state([(0.0, 1, 1)] * max(waiting, 1), max_running=1)
        state.queues["num_waiting"] = waiting
        assert features_of(state)[0] == np.float32(log1p(waiting) / 6.0)
