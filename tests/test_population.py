"""Many policies at once: each acts as its own NumpyAgent would, on the episodes that it was given."""

from __future__ import annotations

import numpy as np
import pytest

from agents.forms import Deciding
from agents.network import NumpyAgent
from agents.population import LEAST_SCALE, Population, Weights, feature_statistics, forward
from agents.run import run_agent
from llm_env.adaptive import NEUTRAL, to_unit
from llm_env.config import scenario_from_dict
from llm_env.features import FEATURE_NAMES, NUM_FEATURES
from llm_env.systems import drawn_from

SHORT = scenario_from_dict(
    {
        "name": "short",
        "episode": {"arrivals_s": 6.0, "warmup_s": 0.5, "horizon_s": 12.0},
        "workload": {"load": 1.1},
        "slo": {"classes": [{"ttft_ms": 400.0, "tbt_ms": 150.0}]},
    }
)
START = to_unit(NEUTRAL)
DECIDING = Deciding((SHORT,), "adaptive", START)


def statistics():
    rng = np.random.default_rng(3)
    mean = rng.normal(size=NUM_FEATURES).astype(np.float32)
    return mean, rng.uniform(0.1, 2.0, NUM_FEATURES).astype(np.float32)


def some_weights(hidden=(5,)):
    return Weights((NUM_FEATURES, *hidden, len(START)), *statistics())


def agent_of(weights, vector):
    return NumpyAgent(action="adaptive", activation="tanh", policy=weights.layers(vector))


@pytest.mark.parametrize("hidden", [(), (5,), (6, 4)])
def test_a_row_of_the_batch_is_the_network_that_is_exported(hidden):
    weights = some_weights(hidden)
    vectors = np.random.default_rng(0).normal(size=(3, weights.size))
    observations = np.random.default_rng(1).uniform(0, 2, (3, 4, NUM_FEATURES)).astype(np.float32)
    together = forward(weights.unpack(vectors), observations)
    for k in range(3):
        alone = agent_of(weights, vectors[k]).logits(observations[k])
        np.testing.assert_allclose(together[k], alone, rtol=1e-4, atol=1e-5)


def test_a_linear_policy_by_hand():
    weights = Weights((2, 1), np.array([1.0, 0.0], np.float32), np.array([2.0, 1.0], np.float32))
    assert weights.size == 3
    layers = weights.unpack(np.array([[np.sqrt(2.0) * 3.0, 0.0, 0.25]]))  # 3 x (f0 - 1) / 2 + 0.25
    assert forward(layers, np.array([[[2.0, 9.0]]], np.float32)).item() == pytest.approx(1.75)


@pytest.mark.parametrize("hidden", [(), (5,)])
def test_it_starts_at_one_action_whatever_it_sees(hidden):
    weights = some_weights(hidden)
    vector = weights.start(START, np.random.default_rng(0))
    seen = np.random.default_rng(1).normal(size=(20, NUM_FEATURES)).astype(np.float32)
    assert (agent_of(weights, vector).logits(seen) == START.astype(np.float32)).all()
    if hidden:
        assert np.abs(vector[: 5 * NUM_FEATURES]).min() > 0  # hidden layers that could not be moved would stay 0


@pytest.mark.parametrize("learned", [(), (2, 4)])
def test_scores_are_those_of_each_policy_alone(learned):
    form = Deciding((SHORT,), "adaptive", START, learned)
    weights = Weights((NUM_FEATURES, 5, form.outputs), *statistics())
    vectors = weights.start(form.bias, np.random.default_rng(0)) + 0.3 * np.random.default_rng(1).normal(
        size=(3, weights.size)
    )
    seeds = np.array([[4, 5], [6, 4], [4, 5]])
    population = Population(form, [drawn_from(SHORT)], 3, 2)
    earned = population.earn(weights.unpack(vectors), seeds)
    assert earned.scores.shape == (3, 2)
    for k in range(3):
        systems = run_agent(form.agent(weights.layers(vectors[k]), {}), SHORT, tuple(seeds[k].tolist()), record=False)
        assert earned.scores[k].tolist() == [systems.outcome(e)["slo_attainment"] for e in range(2)]
    assert earned.scores.std() > 0
    again = population.earn(weights.unpack(vectors), seeds)
    assert (again.scores == earned.scores).all()
    assert again.decisions == earned.decisions > 100


def test_features_are_measured_under_the_starting_action():
    mean, scale = feature_statistics(DECIDING, [drawn_from(SHORT)], 0)
    assert mean.shape == scale.shape == (NUM_FEATURES,)
    place = FEATURE_NAMES.index("ttft_target")
    assert mean[place] == pytest.approx(np.log10(0.4), abs=1e-5)  # it never changes
    assert scale[place] == np.float32(LEAST_SCALE)
    assert scale.max() > 2 * LEAST_SCALE
    assert np.isfinite(mean).all()
