"""agents/ranking.py: scores follow the requests, numpy decides as torch, and what is kept is whole."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from agents.export import MANIFEST, agent_from_policy, load_agent
from agents.files import save
from agents.ppo import ACTIVATION, PPOSettings, make_ppo
from agents.run import run_agent
from agents.starts import starting_action
from agents.vec_env import ServingVecEnv
from baselines import make_policy
from llm_env.adaptive import NAMES
from llm_env.config import scenario_from_dict
from llm_env.errors import UserError
from llm_env.features import NUM_FEATURES
from llm_env.ranking import NUM_REQUEST_FEATURES
from llm_env.records import MOST_RANKED
from llm_env.rollout import rollout
from llm_env.workload import draw_workload

SHORT = scenario_from_dict(
    {"episode": {"arrivals_s": 4.0, "warmup_s": 0.5, "horizon_s": 20.0}, "workload": {"load": 1.5}}
)
START = starting_action("ranked", "heuristic", ["fill=0.5"], [SHORT])


def learner(start=None):
    env = ServingVecEnv(SHORT, 2, "ranked")
    return make_ppo(env, PPOSettings(num_steps=32, minibatch=64, hidden=(16, 16), learning_rate=0.02), 3, start=start)


def agent_of(model):
    return agent_from_policy(model.policy, "ranked", ACTIVATION, False, {"scenario": SHORT.name})


@pytest.fixture(scope="module")
def trained():
    """A policy after two updates, so that no weight is at its start."""
    model = learner()
    model.learn(128)
    return model, agent_of(model)


def some_observations(n=8, present=11):
    observations = np.random.default_rng(0).normal(size=(n, NUM_FEATURES + MOST_RANKED * NUM_REQUEST_FEATURES))
    requests = observations[:, NUM_FEATURES:].reshape(n, MOST_RANKED, NUM_REQUEST_FEATURES)
    requests[:, :, 0] = 1.0
    requests[:, present:] = 0.0
    return observations.astype(np.float32)


def test_numpy_and_torch_decide_alike(trained):
    model, agent = trained
    observations = some_observations()
    with torch.no_grad():
        means = model.policy.get_distribution(torch.as_tensor(observations)).distribution.mean.numpy()
        values = model.policy.predict_values(torch.as_tensor(observations)).numpy()[:, 0]
    assert np.abs(agent.logits(observations) - means).max() < 1e-5
    assert np.abs(agent.value(observations) - values).max() < 1e-5
    assert np.allclose(agent.act(observations), model.predict(observations, deterministic=True)[0], atol=1e-5)


def test_scores_are_permuted_as_the_requests_are(trained):
    agent, observations = trained[1], some_observations()
    shuffled = observations.copy()
    order = np.random.default_rng(1).permutation(MOST_RANKED)
    requests = observations[:, NUM_FEATURES:].reshape(-1, MOST_RANKED, NUM_REQUEST_FEATURES)
    shuffled[:, NUM_FEATURES:] = requests[:, order].reshape(len(observations), -1)
    mine, theirs = agent.logits(observations), agent.logits(shuffled)
    assert np.abs(mine[:, :MOST_RANKED][:, order] - theirs[:, :MOST_RANKED]).max() < 1e-6
    assert (mine[:, MOST_RANKED:] == theirs[:, MOST_RANKED:]).all()
    assert (mine[:, 11:MOST_RANKED] == 0.0).all(), "who is not there has a score"
    assert np.ptp(mine[:, :11], axis=1).min() > 0.0


def test_it_begins_as_the_adaptive_rule_bit_for_bit():
    agent = agent_of(learner(START))
    systems = run_agent(agent, SHORT, [7, 8])
    for e, seed in enumerate((7, 8)):
        requests = draw_workload(SHORT, seed)
        expected = rollout(SHORT, make_policy("adaptive", fill=0.5), requests, seed)
        assert systems.state(e).requests[: len(requests)].tobytes() == expected.requests.tobytes()


def test_a_round_trip_changes_nothing(tmp_path, trained):
    agent, observations = trained[1], some_observations()
    save(agent, tmp_path / "a")
    again = load_agent(tmp_path / "a")
    assert (again.act(observations) == agent.act(observations)).all()
    assert (again.value(observations) == agent.value(observations)).all()
    assert again.act(observations).shape == (8, MOST_RANKED + len(NAMES))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scorer_layers": None}, "scorer_layers: expected 1 to 16 names"),
        ({"request_features": ["present"]}, "request_features: expected 14 names, got 1"),
        ({"action": "adaptive", "scorer_layers": None}, "its tensors are not those"),
        ({"action": "adaptive"}, "scorer_layers: expected null"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(tmp_path, trained, changes, words):
    save(trained[1], tmp_path / "a")
    manifest = json.loads((tmp_path / "a" / MANIFEST).read_text()) | changes
    (tmp_path / "a" / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=words):
        load_agent(tmp_path / "a")
