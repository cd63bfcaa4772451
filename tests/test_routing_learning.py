"""Learned routers: the network, its files, the look-ahead that labels arrivals, the regression, a whole run."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest

import agents
from agents.files import save
from agents.routing_export import load_router
from agents.routing_fit import FitSettings, fit_advantages, mean_network, numpy_layers, shared_network
from agents.routing_labels import Labels, LabelSettings, gain_over_rule, gather_labels
from agents.routing_network import CHOICE, INPUTS, SCORE, NumpyRouter, network_inputs, split_observations
from agents.routing_run import ScoreRule, run_routes, run_trained
from agents.routing_training import RoutingArguments, train_router
from llm_env.config import with_changes
from llm_env.errors import UserError
from llm_env.evaluation import main
from llm_env.routing_features import NUM_GLOBAL_FEATURES, NUM_WORKER_FEATURES, num_routing_features
from llm_env.routing_lookahead import LookAhead
from llm_env.routing_systems import RoutingSystems, base_parameters
from llm_env.scenarios import load_scenario
from llm_env.slo import judged

SHORT = {"episode.arrivals_s": 8.0, "episode.warmup_s": 1.0, "episode.horizon_s": 30.0, "system.kv.blocks": 700}
SCENARIO = with_changes(load_scenario("unequal-workers"), SHORT)


def some_router(seed=0, **fields):
    rng = np.random.default_rng(seed)
    sizes = (INPUTS, 6, 5, 1)
    layers = tuple(
        (rng.normal(size=(b, a)).astype(np.float32) / 4, rng.normal(size=b).astype(np.float32))
        for a, b in pairwise(sizes)
    )
    return NumpyRouter(**{"activation": "tanh", "layers": layers, "rule_weight": 2.0, "choice_weight": 0.5, **fields})


def some_observations(n=7, num_workers=4, seed=1):
    return np.random.default_rng(seed).random((n, num_routing_features(num_workers)), np.float32)


# ---- the network ---------------------------------------------------------------------------------------------------
def test_renumbering_the_workers_renumbers_the_logits():
    observations, order = some_observations(), [2, 0, 3, 1]
    workers, pool = split_observations(observations)
    renumbered = np.concatenate([workers[:, order].reshape(7, -1), pool], axis=1)
    router = some_router()
    np.testing.assert_allclose(router.logits(renumbered), router.logits(observations)[:, order], rtol=1e-5, atol=1e-5)


def test_any_number_of_workers_is_scored():
    assert some_router().act(some_observations(num_workers=9)).max() > 3
    assert some_router().logits(some_observations(num_workers=1)).shape == (7, 1)


def test_the_inputs_are_the_worker_the_mean_and_the_pool():
    observations = some_observations(2, 3)
    x = network_inputs(observations)
    workers, pool = split_observations(observations)
    assert x.shape == (2, 3, INPUTS)
    assert (x[:, :, :NUM_WORKER_FEATURES] == workers).all()
    np.testing.assert_allclose(x[:, 1, NUM_WORKER_FEATURES : 2 * NUM_WORKER_FEATURES], workers.mean(1), rtol=1e-6)
    assert (x[:, 2, -NUM_GLOBAL_FEATURES:] == pool).all()


def test_an_untrained_network_is_the_rule():
    layers = numpy_layers(shared_network(8, zero=True))
    router = NumpyRouter(activation="tanh", layers=layers, rule_weight=1.0, choice_weight=0.0)
    systems = RoutingSystems([SCENARIO], 3)
    for e in range(3):
        systems.reset(e, e)
    everyone = np.ones(3, np.bool_)
    observations = systems.observe(everyone)
    for _ in range(30):
        actions = ScoreRule().act(observations)
        assert (router.act(observations) == actions).all()
        systems.set_actions(actions)
        observations = systems.step(everyone).observations


def test_the_mean_of_networks_is_one_network():
    networks = [some_router(seed).layers for seed in range(3)]
    whole = some_router(layers=mean_network(networks)).logits(some_observations())
    parts = [some_router(layers=layers).logits(some_observations()) for layers in networks]
    np.testing.assert_allclose(whole, np.mean(parts, axis=0), rtol=1e-4, atol=1e-5)


def test_a_draw_needs_a_generator_and_follows_the_logits():
    router, observations = some_router(), some_observations(1).repeat(4000, axis=0)
    with pytest.raises(ValueError, match="rng"):
        router.act(observations, deterministic=False)
    drawn = router.act(observations, False, np.random.default_rng(0))
    logits = router.logits(observations[:1])[0].astype(np.float64)
    expected = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(np.bincount(drawn, minlength=4) / 4000, expected, atol=0.03)


# ---- files ---------------------------------------------------------------------------------------------------------
def test_a_router_comes_back_from_its_files(tmp_path):
    router = some_router(routing={"slow_ms": 3.0}, base={"margin": 1.5}, about={"scenario": "x"})
    save(router, tmp_path / "agent")
    found = agents.load(tmp_path)
    assert isinstance(found, NumpyRouter)
    assert (found.routing, found.base, found.about) == (router.routing, router.base, router.about)
    assert found.logits(some_observations()).tobytes() == router.logits(some_observations()).tobytes()


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("rule_weight", "much", "rule_weight: expected a number, got 'much'"),
        ("features", ["live"], "features: expected those of llm_env/Routing-v0"),
        ("routing", {"speed": 1.0}, r"routing: expected settings of \[system.routing\]"),
        ("base", {"margin": 99.0}, "base: margin: expected a number from 0.5 to 2, got 99.0"),
        ("layers", 2, "its tensors are not those"),
        ("sha256", "0", "sha256 differs"),
        ("format", 9, "format: expected 1, got 9"),
    ],
)
def test_a_damaged_file_is_one_clear_error(tmp_path, field, value, text):
    save(some_router(), tmp_path)
    manifest = json.loads((tmp_path / "agent.json").read_text())
    (tmp_path / "agent.json").write_text(json.dumps({**manifest, field: value}))
    with pytest.raises(UserError, match=text):
        load_router(tmp_path)


def test_weights_that_are_no_numbers_are_refused(tmp_path):
    layers = some_router().layers
    layers[1][0][0, 0] = np.nan
    save(some_router(layers=layers), tmp_path)
    with pytest.raises(UserError, match=r"layer.1.weight: holds NaN"):
        load_router(tmp_path)


# ---- labels --------------------------------------------------------------------------------------------------------
def asked(steps):
    """Systems of one seed, some arrivals on."""
    systems = RoutingSystems([SCENARIO], 1)
    systems.reset(0, 3)
    for _ in range(steps):
        systems.set_actions(ScoreRule().act(systems.observe(np.ones(1, np.bool_))))
        systems.step(np.ones(1, np.bool_))
    return systems


def test_nothing_is_looked_ahead_to_when_nobody_arrives():
    systems = asked(1000)
    with pytest.raises(ValueError, match="no arrival waits"):
        LookAhead(4, base_parameters(None), 1e6, 0.0).costs(systems.state(0), 3)


def test_a_look_ahead_is_what_then_happens():
    systems = asked(16)
    before = [array.copy() for array in systems.state(0)]
    costs = LookAhead(4, base_parameters(None), 1e6, 0.0).costs(systems.state(0), 3)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(before, systems.state(0), strict=True))
    for w in range(4):
        again, first = asked(16), True
        while again.active().any():
            choice = ScoreRule().act(again.observe(np.ones(1, np.bool_)))
            again.set_actions(np.array([w]) if first else choice)
            again.step(np.ones(1, np.bool_))
            first = False
        state = again.state(0)
        n = int(state.system["num_requests"][0])
        assert costs[w] == (~judged(state.requests[:n])[:, 2]).sum()
    assert len(set(costs.tolist())) > 1


def test_labels_are_the_same_for_the_same_seed():
    settings = LabelSettings(num_envs=3, share=0.5, ahead_s=2.0)
    first, second = (gather_labels(SCENARIO, ScoreRule(), 20, 5, {}, settings) for _ in range(2))
    assert first.observations.tobytes() == second.observations.tobytes()
    assert first.costs.tobytes() == second.costs.tobytes()
    assert first.costs.shape == (20, 4)
    assert gain_over_rule(first, ScoreRule().act(first.observations)) == 0
    assert gain_over_rule(first, first.costs.argmin(axis=1)) >= 0


def test_the_regression_finds_whom_to_choose():
    """Costs that follow from the features: the worker with the least of its first feature, twice as dear if slow."""
    observations = some_observations(3000)
    workers, pool = split_observations(observations)
    costs = workers[:, :, 0] * (1.0 + (workers[:, :, 12] > 0.5)) + pool[:, :1]
    noisy = costs + 0.3 * np.random.default_rng(0).normal(size=costs.shape)
    settings = FitSettings(networks=2, width=16, epochs=25)
    fit = fit_advantages(Labels(observations, noisy), settings, 0)
    router = some_router(layers=fit.layers, rule_weight=0.0, choice_weight=0.0)
    fresh = some_observations(500, seed=9)
    workers = split_observations(fresh)[0]
    true = workers[:, :, 0] * (1.0 + (workers[:, :, 12] > 0.5))
    regret = true[np.arange(500), router.act(fresh)] - true.min(axis=1)
    assert regret.mean() < 0.1 * (true.mean(axis=1) - true.min(axis=1)).mean()
    assert 0.3 < fit.explained < 0.9


# ---- from end to end -----------------------------------------------------------------------------------------------
def test_a_router_is_trained_kept_and_compared(tmp_path):
    arguments = RoutingArguments(
        rounds=1,
        labels=100,
        loads=(0.7,),
        validation_seeds=2,
        margins=(0.0, 1.0),
        gather=LabelSettings(num_envs=4, share=0.5, ahead_s=2.0),
        fit=FitSettings(networks=1, width=8, epochs=2),
    )
    scenario = with_changes(SCENARIO, {"name": "tiny"})
    routers = [train_router(scenario, tmp_path / name, 1, {"margin": 1.2}, arguments) for name in ("a", "b")]
    assert (tmp_path / "a/agent/agent.safetensors").read_bytes() == (
        tmp_path / "b/agent/agent.safetensors"
    ).read_bytes()
    history = json.loads((tmp_path / "a/history.json").read_text())
    assert [note["margin"] for note in history] == [0.0, 1.0]
    assert routers[0].about["validation"] == max(note["attainment"] for note in history)
    out = tmp_path / "out"
    specs = ["--baselines", "moore-hodgson/score", "--seeds", "2", "--processes", "1", "--out", str(out)]
    file = str(tmp_path / "a/scenario.toml")
    assert main(["--scenario", file, "--agents", str(tmp_path / "a"), *specs]) == 0
    rows = json.loads((out / "results.json").read_text())["rows"]
    assert [row["policy"] for row in rows] == ["agent:a", "moore-hodgson/score"]
    assert rows[0]["slo_attainment_p99"] > 0.3


def test_a_router_takes_its_own_rule_and_batches_along():
    router = some_router(routing={"slow_ms": 500.0, "running_ms": 0.0}, base={"margin": 1.5})
    systems = run_trained(router, SCENARIO, (1,))
    changed = with_changes(SCENARIO, {"system.routing.slow_ms": 500.0, "system.routing.running_ms": 0.0})
    again = run_routes(router, changed, (1,), {"margin": 1.5})
    assert systems.state(0).requests.tobytes() == again.state(0).requests.tobytes()
    assert systems.scenario(0).system.routing.slow_ms == 500.0


def test_one_worker_cannot_be_learned_on(tmp_path):
    with pytest.raises(UserError, match="nothing to route with one worker"):
        train_router(load_scenario("chat"), tmp_path / "x")


def test_the_places_of_the_rule_in_the_features():
    workers, _ = split_observations(asked(5).observe(np.ones(1, np.bool_)))
    chosen = workers[0, :, CHOICE].argmax()
    assert workers[0, chosen, SCORE] == 0
    assert workers[0, :, CHOICE].sum() == 1
