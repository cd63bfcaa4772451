"""Trained agents as files and as numpy: equal to torch, whole after a round trip, and refused when anything is off."""

from __future__ import annotations

import hashlib
import json
import pickle
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save

import agents
from agents.export import MANIFEST, WEIGHTS, agent_from_policy, load_agent
from agents.files import save as save_agent
from agents.network import NumpyAgent
from agents.ppo import ACTIVATION, PPOSettings, begin_at, make_ppo
from agents.run import run_agent
from agents.validation import FIRST_VALIDATION_SEED, ValidationSet, validate
from agents.vec_env import ServingVecEnv
from llm_env.actions import DISCRETE_TABLE, NVEC
from llm_env.adaptive import NAMES, NEUTRAL, from_unit, to_unit
from llm_env.config import scenario_from_dict
from llm_env.errors import InputOutputError, UserError
from llm_env.features import NUM_FEATURES
from llm_env.systems import NUM_TRAINING_SEEDS
from tests.conftest import ROOT

SHORT = scenario_from_dict(
    {"episode": {"arrivals_s": 4.0, "warmup_s": 0.5, "horizon_s": 20.0}, "workload": {"load": 0.9}}
)


def trained(action="multidiscrete", algo="ppo", steps=128):
    """A policy after two updates, so that no weight is at its start, and its agent."""
    env = ServingVecEnv(SHORT, 2, action)
    model = make_ppo(env, PPOSettings(num_steps=32, minibatch=64, learning_rate=0.01), 3, algo == "maskable-ppo")
    model.learn(steps)
    masked = algo == "maskable-ppo"
    return model, agent_from_policy(model.policy, action, ACTIVATION, masked, {"scenario": SHORT.name})


@pytest.fixture(scope="module")
def agent() -> NumpyAgent:
    return trained()[1]


def some_observations(n=64):
    return np.random.default_rng(0).normal(size=(n, NUM_FEATURES)).astype(np.float32)


# ---- numpy equals torch --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("action", ["multidiscrete", "discrete", "box", "adaptive"])
def test_numpy_and_torch_decide_alike(action):
    model, agent = trained(action)
    observations = some_observations()
    with torch.no_grad():
        distribution = model.policy.get_distribution(torch.as_tensor(observations)).distribution
        values = model.policy.predict_values(torch.as_tensor(observations)).numpy()[:, 0]
    if action == "multidiscrete":
        theirs = [part.logits.numpy() for part in distribution]
        mine = np.split(agent.logits(observations), np.cumsum(NVEC)[:-1], axis=1)
        mine = [part - np.log(np.exp(part).sum(axis=1, keepdims=True)) for part in mine]
    elif action == "discrete":
        logits = agent.logits(observations)
        theirs, mine = [distribution.logits.numpy()], [logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))]
    else:
        theirs, mine = [distribution.mean.numpy()], [agent.logits(observations)]
        assert np.exp(agent.log_std) == pytest.approx(distribution.stddev.numpy()[0], abs=1e-5)
    for a, b in zip(mine, theirs, strict=True):
        assert np.abs(a - b).max() < 1e-5
    assert np.abs(agent.value(observations) - values).max() < 1e-5
    chosen, _ = model.predict(observations, deterministic=True)
    assert np.allclose(agent.act(observations), chosen, atol=1e-5)


def test_actions_have_the_forms_that_the_systems_take():
    observations, rng = some_observations(5), np.random.default_rng(0)
    for action, shape, dtype in (
        ("multidiscrete", (5, 4), np.int64),
        ("discrete", (5,), np.int64),
        ("box", (5, 4), np.float64),
        ("adaptive", (5, len(NAMES)), np.float64),
    ):
        agent = trained(action, steps=64)[1]
        for deterministic in (True, False):
            actions = agent.act(observations, deterministic, rng)
            assert actions.shape == shape
            assert actions.dtype == dtype
            if dtype == np.float64:
                assert (np.abs(actions) <= 1).all()
            elif action == "discrete":
                assert ((actions >= 0) & (actions < len(DISCRETE_TABLE))).all()
            else:
                assert ((actions >= 0) & (actions < np.array(NVEC))).all()


def test_drawn_actions_have_the_probabilities_of_the_policy(agent):
    n = 20_000
    observations = np.repeat(some_observations(1), n, axis=0)
    drawn = agent.act(observations, False, np.random.default_rng(0))
    budgets = agent.logits(observations[:1])[0, : NVEC[0]].astype(float)
    expected = np.exp(budgets) / np.exp(budgets).sum()
    assert np.abs(np.bincount(drawn[:, 0], minlength=NVEC[0]) / n - expected).max() < 0.015


def test_masked_levels_are_never_chosen(agent):
    masks = np.zeros((64, sum(NVEC)), np.bool_)
    masks[:, [3, NVEC[0] + 1, NVEC[0] + NVEC[1], NVEC[0] + NVEC[1] + NVEC[2] + 2]] = True
    for deterministic in (True, False):
        actions = agent.act(some_observations(), deterministic, np.random.default_rng(0), masks)
        assert (actions == (3, 1, 0, 2)).all()


def test_a_random_action_needs_a_generator(agent):
    with pytest.raises(ValueError, match="rng"):
        agent.act(some_observations(1), deterministic=False)


def test_one_decision_is_quick(agent):
    observation = some_observations(1)
    times = []
    for _ in range(300):
        since = time.perf_counter()
        agent.act(observation)
        times.append(time.perf_counter() - since)
    assert sorted(times)[30] < 50e-6


def test_an_adaptive_policy_can_begin_as_any_setting_of_the_rule():
    wanted = tuple(
        0.5 if name in ("fill", "reserve") else neutral for name, neutral in zip(NAMES, NEUTRAL, strict=True)
    )
    model = make_ppo(ServingVecEnv(SHORT, 2, "adaptive"), PPOSettings(num_steps=32, minibatch=64))
    for numbers in (NEUTRAL, wanted):
        begin_at(model.policy.action_net, to_unit(numbers))
        agent = agent_from_policy(model.policy, "adaptive", ACTIVATION, False, {})
        assert all(tuple(from_unit(action)) == numbers for action in agent.act(some_observations()))


# ---- files ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("action", "algo"), [("multidiscrete", "maskable-ppo"), ("discrete", "ppo"), ("adaptive", "ppo")]
)
def test_a_round_trip_changes_nothing(tmp_path, action, algo):
    agent = trained(action, algo, steps=64)[1]
    save_agent(agent, tmp_path / "a")
    again = load_agent(tmp_path / "a")
    observations = some_observations()
    assert (again.logits(observations) == agent.logits(observations)).all()
    assert (again.value(observations) == agent.value(observations)).all()
    assert (again.action, again.masked, again.about) == (action, algo == "maskable-ppo", {"scenario": SHORT.name})
    if action == "adaptive":
        assert (again.log_std == agent.log_std).all()
    assert {path.name for path in tmp_path.rglob("*")} == {"a", MANIFEST, WEIGHTS}


def test_saving_again_replaces_the_folder_whole(tmp_path, agent):
    save_agent(agent, tmp_path / "a")
    (tmp_path / "a" / "old.txt").write_text("x")
    save_agent(agent, tmp_path / "a")
    assert {path.name for path in (tmp_path / "a").iterdir()} == {MANIFEST, WEIGHTS}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_an_agent_without_values_acts_but_does_not_value(tmp_path, agent):
    save_agent(NumpyAgent(action=agent.action, activation="tanh", policy=agent.policy), tmp_path / "a")
    again = load_agent(tmp_path / "a")
    assert (again.act(some_observations()) == agent.act(some_observations())).all()
    with pytest.raises(ValueError, match="value layers"):
        again.value(some_observations())


def change_json(folder, **changes):
    manifest = json.loads((folder / MANIFEST).read_text()) | changes
    (folder / MANIFEST).write_text(json.dumps(manifest))


def change_weights(folder, change):
    """Changes the tensors and mends the checksum, so that what is wrong inside must be found."""
    tensors = load((folder / WEIGHTS).read_bytes())
    change(tensors)
    data = save(tensors)
    (folder / WEIGHTS).write_bytes(data)
    change_json(folder, sha256=hashlib.sha256(data).hexdigest())


def set_nan(tensors):
    tensors["policy.0.weight"] = tensors["policy.0.weight"].copy()
    tensors["policy.0.weight"][0, 0] = np.nan


BROKEN = {
    "truncated weights": (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-9]), "sha256"),
    "one flipped byte": (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-1] + b"\x7f"), "sha256"),
    "no safetensors": (
        lambda f: ((f / WEIGHTS).write_bytes(b"xx"), change_json(f, sha256=hashlib.sha256(b"xx").hexdigest())),
        "not a safetensors file",
    ),
    "NaN": (lambda f: change_weights(f, set_nan), "policy.0.weight: holds NaN"),
    "float64": (
        lambda f: change_weights(f, lambda t: t.update({"policy.0.bias": t["policy.0.bias"].astype(np.float64)})),
        "policy.0.bias: expected float32",
    ),
    "narrow input": (
        lambda f: change_weights(f, lambda t: t.update({"policy.0.weight": t["policy.0.weight"][:, 1:].copy()})),
        "policy.0.weight: expected shape",
    ),
    "short bias": (
        lambda f: change_weights(f, lambda t: t.update({"policy.1.bias": t["policy.1.bias"][1:].copy()})),
        "policy.1.bias: expected shape",
    ),
    "few logits": (
        lambda f: change_weights(
            f,
            lambda t: t.update({k: t[k][1:].copy() for k in ("policy.2.weight", "policy.2.bias")}),
        ),
        "policy.2.weight: expected 20 rows",
    ),
    "missing tensor": (lambda f: change_weights(f, lambda t: t.pop("value.0.bias")), "value.0.bias"),
    "tensor too many": (lambda f: change_weights(f, lambda t: t.update({"extra": np.zeros(1, np.float32)})), "extra"),
    "other features": (lambda f: change_json(f, features=["waiting", "speed"]), "features: expected 'waiting_tokens'"),
    "fewer features": (lambda f: change_json(f, features=["waiting"]), "features: expected"),
    "no features": (lambda f: change_json(f, features=None), "features: expected a list"),
    "unknown form": (lambda f: change_json(f, action="joystick"), "action: expected one of"),
    "form of a list": (lambda f: change_json(f, action=[]), "action: expected one of"),
    "another form": (lambda f: change_json(f, action="discrete"), "policy.2.weight: expected 18 rows"),
    "unknown activation": (lambda f: change_json(f, activation="os.system"), "activation: expected one of"),
    "another format": (lambda f: change_json(f, format=2), "format: expected 1"),
    "no layers": (lambda f: change_json(f, policy_layers=[]), "policy_layers: expected"),
    "layer of a list": (lambda f: change_json(f, policy_layers=[["policy.0"]]), "policy_layers: expected"),
    "masked text": (lambda f: change_json(f, masked="yes"), "masked: expected true or false"),
    "no object": (lambda f: (f / MANIFEST).write_text("[1]"), "expected an object"),
    "half a JSON": (lambda f: (f / MANIFEST).write_text('{"format": 1'), "not valid JSON"),
    "no UTF-8": (lambda f: (f / MANIFEST).write_bytes(b"\xff\xfe"), "not valid JSON"),
    "deep JSON": (lambda f: (f / MANIFEST).write_text("[" * 200_000), "not valid JSON"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_agent_is_one_clear_error(tmp_path, agent, name):
    save_agent(agent, tmp_path / "a")
    damage, message = BROKEN[name]
    damage(tmp_path / "a")
    with pytest.raises(UserError) as caught:
        load_agent(tmp_path / "a")
    assert message in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_an_input_error(tmp_path, agent):
    save_agent(agent, tmp_path / "a")
    (tmp_path / "a" / WEIGHTS).unlink()
    with pytest.raises(InputOutputError, match=WEIGHTS):
        load_agent(tmp_path / "a")


class Bomb:
    def __reduce__(self):
        return (open, ("exploded.txt", "w"))


def test_no_pickle_in_the_folder_is_ever_executed(tmp_path, agent, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_agent(agent, tmp_path / "a")
    bomb = pickle.dumps(Bomb())
    for name in ("policy.pth", "agent.pkl", "data.pkl", "agent.zip"):
        (tmp_path / "a" / name).write_bytes(bomb)
    load_agent(tmp_path / "a")
    (tmp_path / "a" / WEIGHTS).write_bytes(bomb)
    change_json(tmp_path / "a", sha256=hashlib.sha256(bomb).hexdigest())
    with pytest.raises(UserError, match="not a safetensors file"):
        load_agent(tmp_path / "a")
    (tmp_path / "a" / MANIFEST).write_bytes(bomb)
    with pytest.raises(UserError, match="not valid JSON"):
        load_agent(tmp_path / "a")
    assert not (tmp_path / "exploded.txt").exists()


def test_an_agent_is_found_from_its_run_or_its_folder(tmp_path, agent):
    save_agent(agent, tmp_path / "run" / "agent")
    for path in (tmp_path / "run", str(tmp_path / "run" / "agent")):
        assert (agents.load(path).logits(some_observations()) == agent.logits(some_observations())).all()


def test_what_is_no_agent_is_a_users_error(tmp_path, agent):
    (tmp_path / "file").write_text("")
    save_agent(agent, tmp_path / "stopped" / "last")
    for name, message in (
        ("nowhere", "does not exist"),
        ("file", "got a file"),
        (".", "holds no agent"),
        ("stopped", "the run was stopped"),
    ):
        with pytest.raises(UserError, match=message):
            agents.load(tmp_path / name)


def test_loading_an_agent_needs_no_torch(tmp_path, agent):
    save_agent(agent, tmp_path / "a")
    heavy = "{'torch', 'stable_baselines3', 'matplotlib'} & set(sys.modules)"
    code = f"import sys, agents, agents.run; agents.load({str(tmp_path / 'a')!r}); print(*{heavy})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


# ---- running -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("deterministic", [True, False])
def test_the_same_seeds_give_the_same_bytes(agent, deterministic):
    first, second = (run_agent(agent, SHORT, (5, 6, 7), deterministic=deterministic) for _ in range(2))
    assert not first.active().any()
    for e in range(3):
        for a, b in zip(first.state(e), second.state(e), strict=True):
            assert a.tobytes() == b.tobytes()


def test_a_system_that_is_done_stays_as_it_is(agent):
    together = run_agent(agent, SHORT, (5, 6, 7, 8))
    alone = run_agent(agent, SHORT, (6,))
    n = int(alone.state(0).system["num_requests"][0])
    assert together.state(1).requests[:n].tobytes() == alone.state(0).requests[:n].tobytes()


def test_a_masked_agent_is_given_its_masks(agent):
    seen = []

    class Spy(NumpyAgent):
        def act(self, observations, deterministic=True, rng=None, masks=None, memory=None):
            seen.append(masks)
            return np.tile([4, 2, 2, 1], (len(observations), 1))

    spy = Spy(action="multidiscrete", activation="tanh", policy=agent.policy, masked=True)
    run_agent(spy, SHORT, (1, 2))
    assert all(masks.shape == (2, sum(NVEC)) for masks in seen)


def test_validation_measures_every_case_on_seeds_of_its_own(agent):
    against = ValidationSet(cases=(("a", SHORT, None), ("b", SHORT, None)), seeds=(FIRST_VALIDATION_SEED,))
    found = validate(agent, against)
    assert found["slo_attainment_a"] == found["slo_attainment_b"] == found["slo_attainment"]
    assert 0 <= found["slo_attainment"] <= 1
    assert found["ttft_p99_s"] >= found["ttft_p50_s"] > 0
    assert FIRST_VALIDATION_SEED >= NUM_TRAINING_SEEDS
