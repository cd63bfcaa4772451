"""Shipped scenarios and presets: all valid, feasible as their description says, and found by name or path."""

from __future__ import annotations

import csv
import re
import tomllib
from importlib.resources import files

import numpy as np
import pytest

from llm_env.config import Scenario, scenario_to_toml
from llm_env.errors import InputOutputError, UserError
from llm_env.scenarios import load_scenario, parse_changes, preset_names, scenario_names, service_from_text
from llm_env.workload import capacity_requests_per_s, draw_workload, mean_length
from llm_env.workload.lengths import largest_length

NAMES = ("chat", "chat-bursty", "code", "long-context")
FITTED = (  # more of them in test_fitted_scenarios.py
    "agentic",
    "chat-azure",
    "chat-short",
    "code-azure",
    "diurnal",
    "flash-crowd",
    "long-context-sessions",
    "multi-tenant",
    "reasoning",
    "summarisation",
)
FAMILIES = (  # more of them in test_families.py and test_kinds.py
    "classes-three",
    "classes-two",
    "generalist",
    "noisy-kv",
    "prefix-sessions",
    "roles",
    "unequal-workers",
)
each = pytest.mark.parametrize("name", NAMES)
every = pytest.mark.parametrize("name", NAMES + FITTED + FAMILIES)


def test_a_shipped_scenario_is_missing():
    assert scenario_names() == tuple(sorted(NAMES + FITTED + FAMILIES))


@every
def test_a_scenario_has_another_name_or_no_source(name):
    scenario = load_scenario(name)
    assert scenario.name == name
    assert len(scenario.description) > 80
    assert any(licence in scenario.source for licence in ("CC-BY-4.0", "Apache-2.0", "MIT"))


@every
def test_the_longest_request_never_fits_in_memory(name):
    scenario = load_scenario(name)
    workload = scenario.workload
    longest = largest_length(workload.prompt) + largest_length(workload.output)
    if workload.sessions is not None and workload.sessions.first_prompt is not None:
        first = largest_length(workload.sessions.first_prompt) + largest_length(workload.output)
        longest = max(first, workload.sessions.max_context_tokens)
    assert longest <= scenario.system.kv.blocks * scenario.system.kv.block_tokens


@each
def test_an_episode_is_nearly_empty_or_endless(name):
    sizes = [draw_workload(load_scenario(name), seed).size for seed in range(20)]
    assert min(sizes) > 40
    assert max(sizes) < 1000


@pytest.mark.parametrize(
    ("name", "trace", "tolerance"),
    [
        ("chat", "azure2023_conv", 0.03),
        ("code", "azure2023_code", 0.06),
        ("chat-azure", "azure2023_conv", 0.02),
        ("code-azure", "azure2023_code", 0.05),
    ],
)
def test_mean_lengths_are_far_from_the_trace_they_come_from(shared, name, trace, tolerance):
    path = shared / "traces" / "public" / f"{trace}.csv.gz"
    if not path.is_file():
        pytest.skip(f"{path.name} is absent")
    requests = np.genfromtxt(path, delimiter=",", names=True)
    workload = load_scenario(name).workload
    assert mean_length(workload.prompt) == pytest.approx(requests["prompt_tokens"].mean(), rel=tolerance)
    assert mean_length(workload.output) == pytest.approx(requests["output_tokens"].mean(), rel=tolerance)


def test_chat_and_chat_bursty_differ_in_more_than_their_arrivals():
    chat, bursty = load_scenario("chat"), load_scenario("chat-bursty")
    assert chat.system == bursty.system
    assert chat.slo == bursty.slo
    assert chat.episode == bursty.episode
    assert chat.workload.prompt == bursty.workload.prompt
    assert capacity_requests_per_s(chat) == capacity_requests_per_s(bursty)


@pytest.mark.parametrize("name", ["code", "long-context"])
def test_a_request_alone_cannot_meet_its_targets_though_the_description_says_so(name):
    """The longest prompt, in batches within the TBT target, is done before the TTFT target."""
    scenario = load_scenario(name)
    service, promised = scenario.system.service, scenario.slo.classes[0]
    per_batch = service.free_tokens + int((promised.tbt_ms - service.setup_ms) / service.per_token_ms)
    batches = -(-scenario.workload.prompt.max_tokens // per_batch)
    assert batches * promised.tbt_ms < promised.ttft_ms


def test_share_of_chat_prompts_that_cannot_be_on_time_is_not_as_described():
    prompts = np.concatenate([draw_workload(load_scenario("chat"), seed)["prompt_tokens"] for seed in range(100)])
    assert 0.005 < (prompts > 6579).mean() < 0.015
    assert 0.012 < (prompts > 5360).mean() < 0.025


@pytest.mark.parametrize(
    ("wrong", "hint"), [("chatt", "chat"), ("Chat-Bursty", "chat-bursty"), ("longcontext", "long-context")]
)
def test_an_unknown_name_gets_no_hint(wrong, hint):
    with pytest.raises(UserError) as caught:
        load_scenario(wrong)
    assert f'did you mean "{hint}"?' in str(caught.value)
    assert ", ".join(scenario_names()) in str(caught.value)


@pytest.mark.parametrize("name", ["", "..", "zzz", "chat\0", "."])
def test_a_strange_name_is_no_clear_error(name):
    with pytest.raises(UserError, match="unknown name"):
        load_scenario(name)


def test_a_file_of_ones_own_is_taken_for_a_name(tmp_path, monkeypatch):
    path = tmp_path / "mine.toml"
    path.write_text(scenario_to_toml(Scenario(name="mine")))
    monkeypatch.chdir(tmp_path)
    for given in (path, str(path), "mine.toml", "./mine.toml"):
        assert load_scenario(given) == Scenario(name="mine")
    for absent in ("absent.toml", "./chat", tmp_path / "chat"):
        with pytest.raises(InputOutputError, match="cannot be read"):
            load_scenario(absent)


def test_a_service_text_is_read_wrongly():
    service = service_from_text("45.5,0.30,64")
    assert (service.setup_ms, service.per_token_ms, service.free_tokens) == (45.5, 0.30, 64)
    assert service_from_text(" 10, .1 ,0 ").per_token_ms == 0.1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("45.5,0.3", "expected setup_ms,per_token_ms,free_tokens"),
        ("45.5,0.3,64,1", "expected setup_ms,per_token_ms,free_tokens"),
        ("45.5,0.3,64.0", 'free_tokens: expected an integer, got "64.0"'),
        ("45.5,0.3,-1", "free_tokens: .*at least 0, got -1"),
        ("-1,0.3,64", "setup_ms: .*at least 0, got -1"),
        ("nan,0.3,64", 'setup_ms: expected a number, got "nan"'),
        ("1e999,0.3,64", "setup_ms: "),
        ("1_0,0.3,64", 'setup_ms: expected a number, got "1_0"'),
        ("0,0,64", "cannot both be 0"),
        (",,", 'setup_ms: expected a number, got ""'),
        ("llama3-70b-a100x2:full", 'unknown name "llama3-70b-a100x2:full"'),
        ("llama3-70b:linear", 'unknown name "llama3-70b"'),
        ("llama3-70b", 'unknown name "llama3-70b"'),
        ("llama3-70b-a100", 'did you mean "llama3-70b-a100x'),
        ("", 'unknown name ""'),
    ],
)
def test_a_bad_service_text_is_no_clear_error(text, message):
    with pytest.raises(UserError, match=message):
        service_from_text(text)


TERMS = (
    *("setup_ms", "per_token_ms", "free_tokens"),
    *("decode_fixed_ms", "kv_ms_per_1k_cached_tokens", "prefill_attention_ms_per_1m_token_context"),
)


def test_a_preset_gives_another_curve():
    service = service_from_text("llama3-70b-a100x4:linear")
    assert (service.setup_ms, service.per_token_ms, service.free_tokens) == (38.329, 0.179503, 32)
    assert service == load_scenario("long-context").system.service
    full = service_from_text("llama3-70b-a100x4")
    assert [getattr(full, name) for name in TERMS] == [36.8766, 0.179618, 52, 1.672, 0.0550264, 3.9824]
    assert len(preset_names()) == 10
    for name in preset_names():
        assert service_from_text(name).setup_ms > 0


def test_presets_differ_from_the_measurements_they_come_from(shared):
    path = shared / "reference" / "service_presets.csv"
    if not path.is_file():
        pytest.skip(f"{path.name} is absent")
    with path.open() as file:
        rows = list(csv.DictReader(file))
    for suffix, columns in (("", TERMS), (":linear", [f"linear_{name}" for name in TERMS[:3]])):
        measured = sorted(tuple(float(row[column]) for column in columns) for row in rows)
        services = [service_from_text(name + suffix) for name in preset_names()]
        assert sorted(tuple(float(getattr(s, n)) for n in TERMS[: len(columns)]) for s in services) == measured


def test_the_preset_file_differs_from_the_measurements(shared):
    path = shared / "reference" / "service_presets.csv"
    if not path.is_file():
        pytest.skip(f"{path.name} is absent")
    with path.open() as file:
        rows = list(csv.DictReader(file))
    text = (files("llm_env") / "data" / "presets.toml").read_text(encoding="utf-8")
    shipped = [{name: str(value) for name, value in preset.items()} for preset in tomllib.loads(text).values()]

    def plain(row):
        return {n: float(v) if v.replace(".", "", 1).isdigit() else v for n, v in row.items()}

    assert sorted(map(str, map(plain, shipped))) == sorted(map(str, map(plain, rows)))


# ---- changes on the command line -----------------------------------------------------------------------------------
def test_a_change_is_not_read_as_toml():
    texts = ["a.b=4", "c = 0.5", "d=true", "e=[1, 2.5]", "f=least-tokens", 'g="x = y"', "h=1e3"]
    assert parse_changes(texts) == {
        "a.b": 4,
        "c": 0.5,
        "d": True,
        "e": [1, 2.5],
        "f": "least-tokens",
        "g": "x = y",
        "h": 1000.0,
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["system.workers"], 'expected SETTING=VALUE like system.workers=4, got "system.workers"'),
        (["=4"], "expected SETTING=VALUE"),
        (["system.workers="], "expected SETTING=VALUE"),
        (["system.workers=4", "system.workers=5"], "system.workers is given twice"),
        (["system.wrkers=4"], "system.wrkers: unknown setting"),
        (["system.workers=four"], "system.workers: expected a valid integer, got 'four'"),
        (["system.workers=4\nname = 'x'"], "system.workers"),
        (["name.x=4"], "name is not a group of settings"),
        (["system.layout=disaggregated"], "needs prefill_workers"),
    ],
)
def test_a_wrong_change_is_no_clear_error(changes, message):
    with pytest.raises(UserError, match=re.escape(message)):
        load_scenario("chat", changes)


def test_changes_are_made_one_by_one():
    # each alone would be refused
    scenario = load_scenario("chat", ["system.layout=disaggregated", "system.prefill_workers=1", "system.workers=2"])
    assert (scenario.system.workers, scenario.system.prefill_workers) == (2, 1)
    assert load_scenario("chat", ["workload.rate_per_s=3"]).workload.load is None
