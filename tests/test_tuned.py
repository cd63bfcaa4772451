"""Tuned settings as files: what is written is read back, what is wrong is one clear error, and contenders use them."""

from __future__ import annotations

from pathlib import Path

import pytest

import baselines
from baselines.search import SEARCH
from llm_env import tuned as tuned_module
from llm_env.errors import UserError
from llm_env.evaluation import Arguments, make_study
from llm_env.study import baseline_contender
from llm_env.tuned import (
    FIRST_TUNING_SEED,
    Tuned,
    TunedFile,
    merge_tuned,
    read_tuned,
    tables_toml,
    tuned_folder,
    tuned_parameters,
    tuned_policies,
    tuned_router,
)

FOUND = Tuned(
    attainment=0.75,
    default_attainment=0.5,
    loads=(0.6, 1.0),
    first_seed=FIRST_TUNING_SEED,
    seeds=4,
    trials=8,
    search_seed=0,
    change=("system.workers=2",),
    key="0123456789abcdef",
    code="0.1.0",
    parameters={"token_budget": "slo", "max_running": 64},
)


@pytest.fixture
def shipped(tmp_path, monkeypatch) -> Path:
    """A folder in place of the shipped one, with settings for chat-bursty."""
    monkeypatch.setattr(tuned_module, "tuned_folder", lambda: tmp_path)
    tuned_module._shipped.cache_clear()
    merge_tuned(tmp_path / "chat-bursty.toml", "sarathi", FOUND)
    yield tmp_path
    tuned_module._shipped.cache_clear()


def test_what_is_written_is_read_back_and_other_tables_stay(tmp_path):
    path = tmp_path / "x.toml"
    other = FOUND.model_copy(update={"parameters": {"margin": 1.25, "padded": True}, "loads": ()})
    merge_tuned(path, "sarathi", FOUND)
    merge_tuned(path, "moore-hodgson", other)
    merge_tuned(path, "score", FOUND, router=True)
    merge_tuned(path, "sarathi", other)
    assert read_tuned(path) == TunedFile(policies={"sarathi": other, "moore-hodgson": other}, routers={"score": FOUND})
    assert list(tmp_path.iterdir()) == [path]


def test_tables_are_the_same_bytes_in_any_order():
    a, b = {"sarathi": FOUND, "orca": FOUND}, {"orca": FOUND, "sarathi": FOUND}
    assert tables_toml(TunedFile(policies=a, routers={})) == tables_toml(TunedFile(policies=b, routers={}))


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("seeds = 4", 'seeds = "4"', "sarathi.seeds"),
        ("seeds = 4", "seeds = 4\nsneaky = 1", "sneaky"),
        ("first_seed = 1000000", "first_seed = 2000000", "first_seed"),
        ("attainment = 0.75", "attainment = 1.75", "attainment"),
        ("max_running = 64", "max_running = [64]", "max_running"),
        ("[sarathi]", "[sarathi", "no TOML"),
        ("[sarathi]", '["../x"]', "../x"),
    ],
)
def test_a_wrong_file_is_one_clear_error(tmp_path, old, new, what):
    path = tmp_path / "x.toml"
    merge_tuned(path, "sarathi", FOUND)
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(UserError) as error:
        read_tuned(path)
    assert what in str(error.value)
    assert str(path) in str(error.value)


def test_a_contender_takes_the_tuned_parameters_and_those_given_beside_them(shipped):
    assert dict(baseline_contender("sarathi@tuned", "chat-bursty").parameters) == FOUND.parameters
    mixed = baseline_contender("sarathi:max_running=32@tuned", "chat-bursty")
    assert dict(mixed.parameters) == FOUND.parameters | {"max_running": 32}
    assert mixed.label == "sarathi:max_running=32@tuned"


@pytest.mark.parametrize(
    ("spec", "scenario", "what"),
    [
        ("sarathi@tuned", "chat", "scenarios with some: chat-bursty"),
        ("orca@tuned", "chat-bursty", "there are: sarathi"),
        ("sarathi@best", "chat-bursty", "'best'"),
        ("nobody@tuned", "chat-bursty", "unknown policy"),
    ],
)
def test_without_tuned_settings_the_error_says_what_there_is(shipped, spec, scenario, what):
    with pytest.raises(UserError) as error:
        baseline_contender(spec, scenario)
    assert what in str(error.value)


def test_a_tuned_parameter_that_a_policy_does_not_have_is_an_error(shipped):
    wrong = FOUND.model_copy(update={"parameters": {"warp": 9}})
    merge_tuned(shipped / "chat-bursty.toml", "orca", wrong)
    tuned_module._shipped.cache_clear()
    with pytest.raises(UserError, match="warp"):
        baseline_contender("orca@tuned", "chat-bursty")


def test_baselines_tuned_means_all_of_the_scenario(shipped):
    merge_tuned(shipped / "chat-bursty.toml", "orca", FOUND.model_copy(update={"parameters": {}}))
    tuned_module._shipped.cache_clear()
    study = make_study(Arguments(baselines=("tuned", "fcfs")))
    assert [c.label for c in study.contenders] == ["orca@tuned", "sarathi@tuned", "fcfs"]
    with pytest.raises(UserError, match="chat"):
        make_study(Arguments(scenario="chat", baselines=("tuned",)))


def test_routers_have_tables_of_their_own(shipped):
    merge_tuned(shipped / "chat-bursty.toml", "score", FOUND, router=True)
    tuned_module._shipped.cache_clear()
    assert tuned_router("chat-bursty", "score") == FOUND.parameters
    assert tuned_policies("chat-bursty") == ("sarathi",)
    contender = baseline_contender("sarathi@tuned/score@tuned", "chat-bursty")
    assert (contender.router, dict(contender.weights or ())) == ("score", FOUND.parameters)
    assert dict(contender.parameters) == FOUND.parameters
    assert baseline_contender("sarathi/score", "chat-bursty").weights is None
    with pytest.raises(UserError):
        tuned_parameters("chat-bursty", "score")


def test_the_folder_is_that_of_the_policies():
    assert tuned_folder() == Path(baselines.__file__).parent / "tuned"


@pytest.mark.parametrize("path", sorted(tuned_folder().glob("*.toml")), ids=lambda path: path.stem)
def test_shipped_settings_are_within_what_may_be_tuned_and_can_be_made(path):
    for name, found in read_tuned(path).policies.items():
        assert set(found.parameters) <= set(SEARCH[name])
        assert found.attainment >= found.default_attainment
        baselines.make_policy(name, **found.parameters)
