"""The search: every range can be made into a policy, the default comes first, and nothing but the arguments decides."""

from __future__ import annotations

import sys

import numpy as np
import pytest

import baselines
from baselines.search import ROUTERS, SEARCH, Choices
from llm_env import jit
from llm_env.cli import main
from llm_env.config import with_changes
from llm_env.errors import UserError
from llm_env.metrics import summarise
from llm_env.records import Decision, View, decision, policy
from llm_env.rollout import rollout
from llm_env.scenarios import load_scenario
from llm_env.tuned import FIRST_TUNING_SEED, LAST_TUNING_SEED, read_tuned
from llm_env.tuning import BATCH, Evaluation, Problem, evaluator, search_key, tune
from llm_env.workload import draw_workload

SHORT = ["episode.arrivals_s=20.0", "episode.warmup_s=2.0", "episode.horizon_s=60.0"]


@pytest.fixture(scope="module")
def short() -> Problem:
    return Problem(load_scenario("chat-bursty", SHORT), (0.6, 1.0), FIRST_TUNING_SEED, 2)


def fake(policy: str, settings: list[dict]) -> list[float]:
    """Best at a token budget of 300, and at "slo" not much worse."""
    budgets = [s.get("token_budget", 512) for s in settings]
    return [0.6 if b == "slo" else max(0.0, 1 - abs(np.log2(b / 300)) / 8) for b in budgets]


def test_every_policy_says_what_may_be_tuned():
    assert set(SEARCH) >= set(baselines.POLICIES)


@pytest.mark.parametrize("name", [name for name in baselines.POLICIES if SEARCH[name]])
def test_the_ends_of_the_ranges_are_values_that_the_policy_takes(name):
    kinds = {p.name: p.kind for p in baselines.policy_info(name).parameters}
    assert set(SEARCH[name]) <= set(kinds)
    corners: list[dict] = [{}, {}, {}]
    for parameter, space in SEARCH[name].items():
        if isinstance(space, Choices):
            ends = [space.values[0], space.values[-1], space.values[0]]
        else:
            assert space.low < space.high
            assert not space.log or space.low > 0
            ends = [space.low, space.high, space.high if space.special is None else space.special]
        for corner, value in zip(corners, ends, strict=True):
            corner[parameter] = value
    for corner in corners:
        with jit.short_lived():
            baselines.make_policy(name, **corner)


def test_the_default_is_the_first_trial_and_the_best_is_found(short):
    seen: list[dict] = []

    def watched(policy, settings):
        seen.extend(settings)
        return fake(policy, settings)

    found = tune(short, "sarathi", 40, 0, watched)
    assert seen[0] == {}
    assert found.default_attainment == pytest.approx(fake("", [{}])[0], abs=1e-6)
    assert found.attainment > 0.97
    assert 200 < found.parameters["token_budget"] < 450
    assert len(seen) <= 40
    assert any(s.get("token_budget") == "slo" for s in seen)


def test_the_same_seed_finds_the_same_and_another_one_something_else(short):
    first, again, other = (tune(short, "sarathi", 20, seed, fake) for seed in (3, 3, 4))
    assert first == again
    assert first.parameters != other.parameters


def test_of_equal_settings_the_default_is_kept(short):
    found = tune(short, "moore-hodgson", 12, 0, lambda policy, settings: [0.5] * len(settings))
    assert found.parameters == {}
    assert found.attainment == found.default_attainment == 0.5


def test_a_policy_without_parameters_is_run_once(short):
    calls = []
    found = tune(short, "fcfs", 60, 0, lambda policy, settings: calls.append(settings) or [0.25])
    assert (calls, found.trials, found.attainment) == ([[{}]], 1, 0.25)


def test_a_setting_is_worth_the_mean_attainment_over_loads_and_seeds(short):
    decide = baselines.make_policy("sarathi", token_budget=300)
    values = []
    for load in short.loads:
        scenario = load_scenario("chat-bursty", [*SHORT, f"workload.load={load}"])
        for seed in range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + 2):
            state = rollout(scenario, decide, draw_workload(scenario, seed), seed, record=True)
            values.append(summarise(state, scenario).weighted_attainment)
    assert Evaluation(short).attainment("sarathi", {"token_budget": 300}) == pytest.approx(np.mean(values), abs=1e-12)


def test_one_process_and_two_find_the_same(short):
    found = []
    for processes in (1, 2):
        with evaluator(short, processes) as evaluate:
            found.append(tune(short, "sarathi", BATCH + 2, 0, evaluate))
    assert found[0] == found[1]


def test_what_is_tried_stays_out_of_the_disk_cache_and_decides_the_same(tmp_path, monkeypatch):
    if jit.IN_PLAIN_PYTHON:
        pytest.skip("nothing is compiled")
    monkeypatch.setattr(jit, "cache_folder", lambda: str(tmp_path))

    def make():
        @policy
        def decide(view: View) -> Decision:
            return decision(317)

        return decide

    with jit.short_lived():
        brief = make()
    assert list(tmp_path.rglob("*.nb*")) == []
    kept = make()
    assert list(tmp_path.rglob("*.nb*")) != []
    scenario = load_scenario("chat-bursty", SHORT)
    requests = draw_workload(scenario, 0)
    ends = [rollout(scenario, decide, requests, 0).requests.tobytes() for decide in (brief, kept)]
    assert ends[0] == ends[1]


def test_weights_of_a_routing_rule_are_tuned_while_a_policy_serves():
    changes = [*SHORT, "system.workers=2", "system.speeds=[1.0, 0.4]"]
    scenario = load_scenario("chat-bursty", changes)
    problem = Problem(scenario, (), FIRST_TUNING_SEED, 2, server=("sarathi", (("token_budget", "slo"),)))
    here = Evaluation(problem)
    one = load_scenario("chat-bursty", [*changes, "system.router=score", "system.routing.slow_ms=1000.0"])
    decide = baselines.make_policy("sarathi", token_budget="slo")
    expected = []
    for seed in (FIRST_TUNING_SEED, FIRST_TUNING_SEED + 1):
        state = rollout(one, decide, draw_workload(one, seed), seed, record=True)
        expected.append(summarise(state, one).weighted_attainment)
    assert here.attainment("score", {"slow_ms": 1000.0}) == pytest.approx(np.mean(expected), abs=1e-12)
    found = tune(problem, "score", 3, 0, lambda rule, settings: [0.5 + s.get("slow_ms", 0) / 1e5 for s in settings])
    assert found.policy == "sarathi:token_budget=slo"
    assert set(found.parameters) <= set(ROUTERS["score"])
    with pytest.raises(UserError, match="score"):
        tune(problem, "round-robin", 3, 0, fake)


def test_the_ends_of_a_rules_ranges_are_weights_that_it_takes():
    for name, spaces in ROUTERS.items():
        for pick in (lambda s: s.low, lambda s: s.high, lambda s: s.low if s.special is None else s.special):
            weights = {weight: pick(space) for weight, space in spaces.items()}
            with_changes(load_scenario("chat-bursty"), {"system.router": name, "system.routing": weights})


@pytest.mark.parametrize(
    ("first", "seeds"), [(0, 4), (FIRST_TUNING_SEED - 1, 4), (LAST_TUNING_SEED, 2), (2_000_000, 1)]
)
def test_seeds_of_training_and_of_reported_results_are_refused(short, first, seeds):
    with pytest.raises(UserError, match="1000000 to 1999999"):
        Problem(short.scenario, (), first, seeds)


def test_the_key_tells_searches_apart(short):
    keys = {
        search_key(short, "sarathi", 60, 0),
        search_key(short, "sarathi", 61, 0),
        search_key(short, "sarathi", 60, 1),
        search_key(short, "sarathi-spf", 60, 0),
        search_key(Problem(short.scenario, (0.6,), FIRST_TUNING_SEED, 2), "sarathi", 60, 0),
    }
    assert len(keys) == 5


def test_the_command_writes_what_it_prints_and_does_not_search_twice(tmp_path, capsys):
    out = tmp_path / "tuned.toml"
    arguments = ["tune", "sarathi", "fcfs", "--scenario", "chat-bursty", "--change", *SHORT, "--seeds", "1"]
    arguments += ["--trials", "3", "--processes", "1", "--out", str(out)]
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert set(read_tuned(out).policies) == {"sarathi", "fcfs"}
    assert out.read_text(encoding="utf-8").endswith(printed.out)
    before = out.stat().st_mtime_ns
    assert main(arguments) == 0
    assert capsys.readouterr().out == printed.out
    assert out.stat().st_mtime_ns == before
    assert read_tuned(out).policies["fcfs"].trials == 1


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["nobody", "--scenario", "chat"], "unknown policy"),
        (["sarathi", "--scenario", "nowhere"], "nowhere"),
        (["sarathi", "--scenario", "chat", "--first-seed", "5"], "1000000 to 1999999"),
        (["sarathi", "--scenario", "chat", "--loads", "0.5", "0.5"], "twice"),
        (["sarathi", "--scenario", "chat", "--out", "x.json"], ".toml"),
        (["sarathi"], "--scenario"),
        (["sarathi", "orca", "--scenario", "chat", "--router", "score"], "one POLICY"),
        (["sarathi", "--scenario", "chat", "--router", "shared"], "score"),
    ],
)
def test_a_mistake_is_one_clear_error(arguments, what, capsys):
    assert main(["tune", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert what in error
    assert "Traceback" not in error


def test_without_optuna_the_error_says_what_to_install(short, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"llm-env\[tune\]"):
        tune(short, "sarathi", 4, 0, fake)
