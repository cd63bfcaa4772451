"""Routers learned by evolution: they begin as the rule, each row of a population is its own router, a run is exact."""

from __future__ import annotations

import json

import numpy as np
import pytest

import agents
from agents.export import MANIFEST
from agents.forms import Routing
from agents.population import Population, Weights
from agents.routing_run import run_routes, run_trained
from agents.starts import starting_router
from agents.training import main
from baselines import make_policy
from llm_env import tuned
from llm_env.adaptive import NAMES, NEUTRAL
from llm_env.config import scenario_to_toml, with_changes
from llm_env.errors import UserError
from llm_env.evaluation import main as evaluate
from llm_env.rollout import rollout
from llm_env.scenarios import load_scenario
from llm_env.systems import drawn_from
from llm_env.workload import draw_workload
from tests.test_routing_learning import SCENARIO, SHORT

BASE = dict(zip(NAMES, NEUTRAL, strict=True))
FORM = Routing((SCENARIO,), BASE)
WEIGHTS = Weights((FORM.inputs, 5, 1), np.zeros(FORM.inputs, np.float32), np.full(FORM.inputs, 0.5, np.float32))
ES = ("--algo", "es", "--action", "route", "--es.generations", "2", "--es.pairs", "2", "--es.sigma", "0.5")


def test_it_begins_as_the_rule():
    vector = WEIGHTS.start(FORM.bias, np.random.default_rng(0))
    router = FORM.agent(WEIGHTS.layers(vector), {})
    load = with_changes(SCENARIO, {"workload.load": 1.0})
    systems = run_trained(router, load, (3, 4), record=False)
    for e, seed in enumerate((3, 4)):
        alone = rollout(load, make_policy("adaptive"), draw_workload(load, seed), seed)
        n = int(alone.system["num_requests"][0])
        assert n > 20
        for field in ("worker", "first_token_s", "last_token_s"):
            assert (systems.state(e).requests[field][:n] == alone.requests[field][:n]).all()


def test_scores_are_those_of_each_router_alone():
    load = with_changes(SCENARIO, {"workload.load": 1.1})
    form = Routing((load,), BASE)
    vectors = np.random.default_rng(1).normal(size=(3, WEIGHTS.size))
    seeds = np.array([[4, 5], [6, 4], [4, 5]])
    earned = Population(form, [drawn_from(load)], 3, 2).earn(WEIGHTS.unpack(vectors), seeds)
    for k in range(3):
        router = form.agent(WEIGHTS.layers(vectors[k]), {})
        systems = run_routes(router, load, tuple(seeds[k].tolist()), BASE, record=False)
        assert earned.scores[k].tolist() == [systems.outcome(e)["weighted_attainment"] for e in range(2)]
    assert earned.scores.std() > 0


def test_a_run_leaves_a_router_that_can_be_repeated_loaded_and_compared(tmp_path, capsys):
    path = tmp_path / "fleet.toml"
    path.write_text(scenario_to_toml(with_changes(SCENARIO, {"workload.load": 0.9})))
    words = ["--scenario", str(path), "--validation-seeds", "1", "--validation-loads", "0.9", *ES]
    for name, processes in (("a", "1"), ("b", "2")):
        assert main([*words, "--processes", processes, "--out", str(tmp_path / name)]) == 0
    one, other = (agents.load(tmp_path / name / "last") for name in "ab")
    assert isinstance(one, agents.NumpyRouter)
    for mine, theirs in zip(one.layers, other.layers, strict=True):
        assert all((a == b).all() for a, b in zip(mine, theirs, strict=True))
    assert np.abs(one.layers[-1][0]).max() > 0
    assert one.about["generations"] == 2
    history = json.loads((tmp_path / "a" / "agent" / MANIFEST).read_text())["about"]
    assert history["validation_attainment"] >= history["start_attainment"]
    assert "--loads 0.9" in capsys.readouterr().out
    out = tmp_path / "results"
    words = ["--scenario", str(path), "--agents", str(tmp_path / "a"), "--baselines", "adaptive", "--seeds", "2"]
    assert evaluate([*words, "--out", str(out)]) == 0


def test_a_router_begins_with_what_was_tuned(monkeypatch):
    found = {"unequal-workers": tuned.TunedFile(policies={}, routers={})}
    monkeypatch.setattr(tuned, "_shipped", found.get)
    scenario = load_scenario("unequal-workers")
    assert starting_router("heuristic", ["budget=0.8"], [scenario]).base == BASE | {"budget": 0.8}
    with pytest.raises(UserError, match="no policy has tuned settings"):
        starting_router("tuned", [], [scenario])
    table = {"attainment": 0.5, "default_attainment": 0.4, "first_seed": 1_000_000, "seeds": 1, "trials": 1}
    table |= {"search_seed": 0, "key": "", "code": ""}
    both = tuned.TunedFile(
        policies={"adaptive": tuned.Tuned(**table, parameters={"margin": 1.5})},
        routers={"score": tuned.Tuned(**table, parameters={"slow_ms": 7.0})},
    )
    found["unequal-workers"] = both
    form = starting_router("tuned", ["budget=0.8"], [scenario])
    assert form.base == BASE | {"margin": 1.5, "budget": 0.8}
    router = form.agent(WEIGHTS.layers(WEIGHTS.start(form.bias, np.random.default_rng(0))), {})
    assert router.routing["slow_ms"] == 7.0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--scenario", "chat"], "action route: there is nothing to route with one worker"),
        (["--scenario", "unequal-workers", "--algo", "ppo"], "action: route is learned by --algo es, got ppo"),
        (["--scenario", "unequal-workers", "--init", "none"], "es needs a place to begin"),
        (["--scenario", "unequal-workers", "--validation-loads", "0"], "load"),
    ],
)
def test_bad_input_is_one_clear_error(tmp_path, capsys, words, message):
    assert main([*ES, *words, "--out", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_scenarios_that_weigh_the_rule_differently_have_no_common_start():
    one = with_changes(load_scenario("unequal-workers"), SHORT)
    other = with_changes(one, {"system.routing.slow_ms": 1.0})
    with pytest.raises(UserError, match=r"differ in system\.routing"):
        starting_router("heuristic", [], [one, other])
