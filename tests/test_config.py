"""llm_env/config.py: every wrong setting is refused by name, with what is allowed; the rest survives TOML."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from llm_env.config import (
    MAX_TOKENS,
    ClosedLoopArrivals,
    Scenario,
    WorkloadSettings,
    read_scenario,
    scenario_from_dict,
    scenario_to_toml,
    with_changes,
)
from llm_env.errors import InputOutputError, UserError

# ---- scenarios of all kinds ----------------------------------------------------------------------------------------
tokens = st.integers(1, MAX_TOKENS)
positive = st.floats(1e-6, 1e6)
shares = st.integers(1, 8).map(lambda n: [1 / n] * n)
clips = st.tuples(tokens, tokens).map(lambda pair: {"min_tokens": min(pair), "max_tokens": max(pair)})


def table(kind: str, **fields: st.SearchStrategy) -> st.SearchStrategy:
    return st.fixed_dictionaries({"kind": st.just(kind), **fields})


stationary = st.one_of(
    table("poisson"),
    table("gamma", cv=st.floats(0.01, 20)),
    table("weibull", cv=st.floats(0.01, 20)),
    table("mmpp2", rate_ratio=st.floats(1, 1000), busy_share=st.floats(0.01, 0.99), cycle_s=positive),
    table("mmpp", rates=st.lists(positive, min_size=3, max_size=3), dwell_s=st.lists(positive, min_size=3, max_size=3)),
    table("on-off", burst_requests=st.floats(2, 1e5), off_share=st.floats(0.01, 0.99), gap_cv=st.floats(0.01, 20)),
    table("cox", sigma=st.floats(0, 3), tau_s=positive, cv=st.floats(0.01, 20)),
)
one_process = st.one_of(
    stationary,
    table("profile", multipliers=st.lists(positive, min_size=1, max_size=24), period_s=positive, base=stationary),
    table("flash-crowd", multipliers=st.lists(st.floats(1, 1e4), min_size=1, max_size=4), base=stationary),
)
arrivals = st.one_of(
    one_process,
    shares.flatmap(
        lambda w: table(
            "superposition",
            parts=st.lists(one_process, min_size=len(w), max_size=len(w)).map(
                lambda kinds: [{"share": share, "arrivals": kind} for share, kind in zip(w, kinds, strict=True)]
            ),
        )
    ),
)
lengths = st.one_of(
    table("fixed", tokens=tokens),
    st.builds(dict.__or__, table("lognormal", mu=st.floats(-10, 15), sigma=st.floats(0, 5)), clips),
    st.builds(dict.__or__, table("uniform"), clips),
    st.builds(dict.__or__, table("zipf", exponent=st.floats(0, 10)), clips),
    table("quantiles", tokens=st.lists(tokens, min_size=2, max_size=9).map(sorted)),
    table("geometric", p=st.floats(1e-6, 1), max_tokens=tokens),
    shares.flatmap(
        lambda p: table("choice", tokens=st.lists(tokens, min_size=len(p), max_size=len(p)), probabilities=st.just(p))
    ),
    shares.flatmap(
        lambda w: table(
            "lognormal-mixture",
            w=st.just(w),
            mu=st.lists(st.floats(-10, 15), min_size=len(w), max_size=len(w)),
            sigma=st.lists(st.floats(0, 5), min_size=len(w), max_size=len(w)),
        )
    ),
)
rates = st.one_of(
    st.fixed_dictionaries({"load": st.floats(0.01, 10)}),
    st.fixed_dictionaries({"rate_per_s": st.floats(0.01, 1e6)}),
    st.just({}),
)
known = st.fixed_dictionaries(
    {},
    optional={
        "prediction_sigma": st.floats(0, 5),
        "declared_tokens": tokens,
        "sessions": st.fixed_dictionaries(
            {},
            optional={
                "mean_turns": st.floats(1, 1000),
                "think_s": positive,
                "think_sigma": st.floats(0, 2),
                "max_context_tokens": tokens,
            },
        ),
        "clients": st.fixed_dictionaries({"count": st.integers(1, 10_000)}, optional={"skew": st.floats(0, 10)}),
    },
)
slo_classes = shares.map(
    lambda p: [{"name": f"class {k}", "ttft_ms": 100.0 * (k + 1), "share": share} for k, share in enumerate(p)]
)
scenarios = st.fixed_dictionaries(
    {
        "name": st.from_regex(r"[a-z0-9][a-z0-9._-]{0,63}", fullmatch=True),
        "description": st.text(max_size=40),
        "system": st.fixed_dictionaries(
            {
                "workers": st.integers(1, 64),
                "service": st.fixed_dictionaries({"setup_ms": positive, "setup_noise": st.just("exponential")}),
                "kv": st.one_of(st.just({}), st.fixed_dictionaries({"blocks": st.integers(1, 10**8)})),
            }
        ),
        "slo": st.fixed_dictionaries({"rule": st.sampled_from(["max", "p99", "deadline"]), "classes": slo_classes}),
        "workload": st.builds(
            lambda *parts: {name: value for part in parts for name, value in part.items()},
            st.fixed_dictionaries({"arrivals": arrivals, "prompt": lengths, "output": lengths}),
            rates,
            known,
        ),
    }
)


@settings(max_examples=100, deadline=None)
@given(data=scenarios)
def test_toml_brings_back_an_equal_scenario(tmp_path_factory, data):
    scenario = scenario_from_dict(data)
    path = tmp_path_factory.getbasetemp() / "scenario.toml"
    path.write_bytes(scenario_to_toml(scenario).encode())
    assert read_scenario(path) == scenario
    assert scenario_to_toml(read_scenario(path)) == scenario_to_toml(scenario)


def test_all_defaults_are_allowed_and_stated():
    scenario = scenario_from_dict({})
    assert scenario == Scenario()
    assert scenario.workload.load == 0.8
    assert scenario.workload.rate_per_s is None
    assert (scenario.system.service.setup_ms, scenario.system.service.per_token_ms) == (45.5, 0.30)


def test_the_tightest_class_is_found():
    classes = [{"name": "a", "tbt_ms": 90.0, "share": 0.5}, {"name": "b", "tbt_ms": 70.0, "share": 0.5}]
    assert scenario_from_dict({"slo": {"classes": classes}}).slo.tightest_tbt_ms == 70.0


# ---- what is refused -----------------------------------------------------------------------------------------------
def nested(path: str, value: object) -> dict:
    """{"a": {"b": value}} of "a.b"."""
    for key in reversed(path.split(".")):
        value = {key: value}
    return value  # type: ignore[return-value]


def complaint(data: dict) -> str:
    with pytest.raises(UserError) as caught:
        scenario_from_dict(data, "my.toml")
    assert caught.value.exit_code == 2
    assert caught.value.__suppress_context__  # no traceback of the checker
    return str(caught.value)


def test_another_kind_comes_without_the_settings_of_the_old_one():
    bursty = Scenario(workload={"arrivals": {"kind": "mmpp2", "cycle_s": 5.0}})
    changed = with_changes(bursty, {"workload.arrivals.users": 9, "workload.arrivals.kind": "closed-loop"})
    assert changed.workload.arrivals == ClosedLoopArrivals(users=9)
    assert changed.workload.load is None
    same = with_changes(bursty, {"workload.arrivals.kind": "mmpp2"})
    assert same == bursty


ARRIVALS = (
    "'poisson', 'gamma', 'weibull', 'mmpp2', 'mmpp', 'on-off', 'cox', 'profile', 'flash-crowd', 'clients',"
    " 'superposition', 'closed-loop'"
)
WRONG = [
    # setting, value, what the one line says after "my.toml: "
    ("system.workers", 0, "system.workers: expected at least 1, got 0"),
    ("system.workers", 65, "system.workers: expected at most 64, got 65"),
    ("system.workers", 2.0, "system.workers: expected a valid integer, got 2.0"),
    ("system.workers", True, "system.workers: expected a valid integer, got True"),
    ("system.workers", "2", "system.workers: expected a valid integer, got '2'"),
    ("system.max_hold_ms", 0, "system.max_hold_ms: expected above 0, got 0"),
    ("system.kv.watermark", 1.0, "system.kv.watermark: expected below 1, got 1.0"),
    ("system.kv.blocks", -5, "system.kv.blocks: expected at least 1, got -5"),
    ("system.service", 45.5, "system.service: expected a table of settings, got 45.5"),
    (
        "system.service.setup_noise",
        "normal",
        "system.service.setup_noise: expected 'none', 'exponential', 'gamma' or 'lognormal', got 'normal'",
    ),
    ("system.gpus", 2, "system.gpus: unknown setting"),
    ("workload.load", math.nan, "workload.load: expected a finite number, got nan"),
    ("workload.load", math.inf, "workload.load: expected a finite number, got inf"),
    ("workload.load", "0.8", "workload.load: expected a valid number, got '0.8'"),
    ("workload.load", True, "workload.load: expected a valid number, got True"),
    ("workload.load", 0, "workload.load: expected above 0, got 0"),
    ("workload.load", 11, "workload.load: expected at most 10, got 11"),
    ("workload.arrivals", "poisson", "workload.arrivals: expected a table of settings, got 'poisson'"),
    ("workload.arrivals", {"cv": 2.0}, f"workload.arrivals.kind: expected one of {ARRIVALS}, got none"),
    (
        "workload.arrivals.kind",
        "bursty",
        f"workload.arrivals.kind: expected one of {ARRIVALS}, got 'bursty'",
    ),
    ("workload.arrivals", {"kind": "gamma", "cv": 21.0}, "workload.arrivals.cv: expected at most 20, got 21.0"),
    ("workload.prompt", {"kind": "fixed", "tokens": 0}, "workload.prompt.tokens: expected at least 1, got 0"),
    ("workload.prompt", {"kind": "fixed", "mean": 3}, "workload.prompt.mean: unknown setting"),
    ("workload.prompt", {"kind": "lognormal", "mu": 5.0}, "workload.prompt.sigma: missing, it has no default"),
    (
        "workload.output",
        {"kind": "lognormal", "mu": 5.0, "sigma": 1.0, "min_tokens": 9, "max_tokens": 8},
        "workload.output: min_tokens 9 is above max_tokens 8",
    ),
    (
        "workload.prompt",
        {"kind": "choice", "tokens": [64, 256], "probabilities": [0.5, 0.4]},
        "workload.prompt: the probabilities must sum to 1, got 0.9",
    ),
    (
        "workload.prompt",
        {"kind": "choice", "tokens": [64], "probabilities": [0.5, 0.5]},
        "workload.prompt: 1 tokens but 2 probabilities",
    ),
    (
        "workload.prompt",
        {"kind": "choice", "tokens": [64, "256"], "probabilities": [0.5, 0.5]},
        "workload.prompt.tokens.1: expected a valid integer, got '256'",
    ),
    (
        "workload.prompt",
        {"kind": "lognormal-mixture", "w": [0.5, 0.5], "mu": [1.0, 1e308], "sigma": [1.0, 1.0]},
        "workload.prompt.mu.1: expected at most 15, got 1e+308",
    ),
    (
        "workload.prompt",
        {"kind": "lognormal-mixture", "w": [1.0], "mu": [1.0, 2.0], "sigma": [1.0]},
        "workload.prompt: w, mu and sigma differ in length: 1, 2, 1",
    ),
    ("workload.prediction_sigma", -0.1, "workload.prediction_sigma: expected at least 0, got -0.1"),
    ("workload.prediction_sigma", 6.0, "workload.prediction_sigma: expected at most 5, got 6.0"),
    ("workload.prediction_sigma", math.nan, "workload.prediction_sigma: expected a finite number, got nan"),
    ("workload.declared_tokens", 0, "workload.declared_tokens: expected at least 1, got 0"),
    ("workload.declared_tokens", 1.5, "workload.declared_tokens: expected a valid integer, got 1.5"),
    ("workload.sessions", 4.0, "workload.sessions: expected a table of settings, got 4.0"),
    ("workload.sessions.turns", 4.0, "workload.sessions.turns: unknown setting"),
    ("workload.sessions.mean_turns", 0.5, "workload.sessions.mean_turns: expected at least 1, got 0.5"),
    ("workload.sessions.mean_turns", 1001.0, "workload.sessions.mean_turns: expected at most 1000, got 1001.0"),
    ("workload.sessions.think_s", 0.0, "workload.sessions.think_s: expected above 0, got 0.0"),
    ("workload.sessions.think_sigma", 2.5, "workload.sessions.think_sigma: expected at most 2, got 2.5"),
    (
        "workload.sessions.max_context_tokens",
        0,
        "workload.sessions.max_context_tokens: expected at least 1, got 0",
    ),
    ("workload.clients", {}, "workload.clients.count: missing, it has no default"),
    ("workload.clients.count", 0, "workload.clients.count: expected at least 1, got 0"),
    ("workload.clients", {"count": 2, "skew": -1.0}, "workload.clients.skew: expected at least 0, got -1.0"),
    ("slo.rule", "p95", "slo.rule: expected 'max', 'p99' or 'deadline', got 'p95'"),
    ("slo.classes", [], "slo.classes: expected at least 1 items, got 0"),
    ("slo.classes", [{}] * 17, "slo.classes: expected at most 16 items, got 17"),
    ("slo.classes", {"name": "a"}, "slo.classes: expected a list, got {'name': 'a'}"),
    ("slo.classes", ["chat"], "slo.classes.0: expected a table of settings, got 'chat'"),
    ("slo.classes", [{"ttft_ms": "2"}], "slo.classes.0.ttft_ms: expected a valid number, got '2'"),
    ("slo.classes", [{"share": 0.5}], "slo: the shares of the classes must sum to 1, got 0.5"),
    ("slo.classes", [{"share": 0.5}] * 2, "slo: two classes share one name: ['default', 'default']"),
    ("episode.warmup_s", 120.0, "episode: need warmup_s < arrivals_s <= horizon_s, got 120, 120, 240"),
    (
        "workload.arrivals",
        {"kind": "profile", "multipliers": [1.0], "base": {"kind": "gamma", "cv": 0.0}},
        "workload.arrivals.base.cv: expected above 0, got 0.0",
    ),
    (
        "workload.arrivals",
        {"kind": "superposition", "parts": [{"share": 1.0, "arrivals": {"kind": "mmpp2", "cycle_s": 0.0}}]},
        "workload.arrivals.parts.0.arrivals.cycle_s: expected above 0, got 0.0",
    ),
    ("reward.discount_horizon_s", 0.0, "reward.discount_horizon_s: expected above 0, got 0.0"),
    ("name", "My Scenario", "name: string should match pattern '^[a-z0-9][a-z0-9._-]{0,63}$', got 'My Scenario'"),
    ("description", 3, "description: expected a valid string, got 3"),
]


@pytest.mark.parametrize(("path", "value", "said"), WRONG, ids=[f"{p}={str(v)[:24]}" for p, v, _ in WRONG])
def test_a_wrong_setting_is_named_with_its_value_and_what_is_allowed(path, value, said):
    assert complaint(nested(path, value)) == f"my.toml: {said}"


def test_no_time_at_all_for_a_batch_is_refused():
    data = nested("system.service", {"setup_ms": 0, "per_token_ms": 0})
    assert "setup_ms and per_token_ms cannot both be 0" in complaint(data)


def test_every_problem_has_its_line_and_twenty_are_enough():
    data = {"nam": "x", "system": {"workers": 0, "max_running": 0}, "workload": {"load": -1}}
    assert len(complaint(data).splitlines()) == 4
    lines = complaint({f"unknown_{k:02}": 1 for k in range(30)}).splitlines()
    assert len(lines) == 21
    assert lines[-1] == "and 10 more problems"


def test_a_long_value_is_cut():
    assert len(complaint({"name": "x y" * 10_000})) < 200


@pytest.mark.parametrize("path", [p for p, v, _ in WRONG if p.startswith("system")])
def test_infinity_is_no_number_anywhere(path):
    if path not in ("system.service", "system.gpus"):
        assert "inf" in complaint(nested(path, math.inf))


def test_load_and_rate_exclude_each_other():
    said = complaint({"workload": {"load": 0.5, "rate_per_s": 2.0}})
    assert said == "my.toml: workload: give load or rate_per_s, not both, got 0.5 and 2"
    assert WorkloadSettings(rate_per_s=2.0).load is None
    assert WorkloadSettings(load=0.5).rate_per_s is None


def test_settings_are_frozen():
    scenario = Scenario()
    with pytest.raises(ValidationError, match="frozen"):
        scenario.name = "other"
    with pytest.raises(ValidationError, match="frozen"):
        scenario.system.workers = 2
    assert isinstance(scenario.slo.classes, tuple)
    assert hash(scenario) == hash(Scenario())


def test_what_is_made_in_python_is_checked_too():
    with pytest.raises(ValidationError):
        WorkloadSettings(load=0.5, rate_per_s=1.0)


# ---- files ---------------------------------------------------------------------------------------------------------
def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path):
    path = tmp_path / "windows.toml"
    path.write_bytes(b'\xef\xbb\xbfname = "windows"\r\n[system]\r\nworkers = 2\r\n')
    assert read_scenario(path).system.workers == 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"name = ", "not valid TOML"),
        (b'name = "a"\nname = "b"', "not valid TOML"),
        (b"\xff\xfe", "not UTF-8 text"),
        (b"a = " + b"[" * 5000, "not valid TOML"),
        (b"a = " + b"1" * 5000, "not valid TOML"),
        (b"[system]\nworkers = 0", "system.workers: expected at least 1, got 0"),
        (b"[workload]\nload = nan", "workload.load: expected a finite number, got nan"),
    ],
    ids=["cut", "twice", "utf-16", "deep", "digits", "value", "nan"],
)
def test_a_bad_file_is_named(tmp_path, content, said):
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_scenario(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert said in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_file_that_cannot_be_read_is_an_input_output_error(tmp_path):
    for path in (tmp_path / "absent.toml", tmp_path):
        with pytest.raises(InputOutputError, match="cannot be read") as caught:
            read_scenario(path)
        assert caught.value.exit_code == 3


# ---- changes -------------------------------------------------------------------------------------------------------
def test_changes_leave_the_original_and_all_else_alone():
    before = Scenario()
    after = with_changes(before, {"workload.load": 0.5, "system.kv.blocks": 100, "name": "small"})
    assert before == Scenario()
    assert (after.workload.load, after.system.kv.blocks, after.name) == (0.5, 100, "small")
    assert with_changes(after, {"workload.load": 0.8, "name": "custom"}).model_dump(exclude={"system"}) == (
        before.model_dump(exclude={"system"})
    )


def test_setting_the_rate_clears_the_load_and_the_other_way_round():
    by_rate = with_changes(Scenario(), {"workload.rate_per_s": 3.0})
    assert (by_rate.workload.load, by_rate.workload.rate_per_s) == (None, 3.0)
    by_load = with_changes(by_rate, {"workload.load": 0.9})
    assert (by_load.workload.load, by_load.workload.rate_per_s) == (0.9, None)


def test_sessions_cannot_be_switched_on_or_off():
    with_sessions = with_changes(Scenario(), {"workload.sessions.mean_turns": 2.0})
    assert with_sessions.workload.sessions is not None
    assert with_sessions.workload.sessions.mean_turns == 2.0
    assert with_changes(with_sessions, {"workload.sessions": None}) == Scenario()


def test_a_whole_group_can_be_replaced():
    after = with_changes(Scenario(), {"workload.arrivals": {"kind": "gamma", "cv": 3.0}})
    assert after.workload.arrivals.model_dump() == {"kind": "gamma", "cv": 3.0}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"workload.lod": 0.5}, "workload.lod: unknown setting"),
        ({"work.load": 0.5}, "work: unknown setting"),
        ({"workload.load": -1}, "workload.load: expected above 0, got -1"),
        ({"name.first": "x"}, "name.first: name is not a group of settings"),
        ({"slo.classes.1.ttft_ms": 1.0}, "slo.classes.1.ttft_ms: expected a number from 0 to 0 in place of '1'"),
        ({"slo.classes.first.ttft_ms": 1.0}, "expected a number from 0 to 0 in place of 'first'"),
        ({"slo.classes.0.ttft_ms": -1.0}, "slo.classes.0.ttft_ms: expected above 0, got -1"),
        ({"": 1}, "unknown setting"),
    ],
)
def test_a_wrong_change_is_refused(changes, said):
    with pytest.raises(UserError) as caught:
        with_changes(Scenario(), changes)
    assert said in str(caught.value)
