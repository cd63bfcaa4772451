"""Agents with memory (`--algo recurrent-ppo`): numpy equals torch, memory is learned, kept and restored."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gymnasium import spaces
from safetensors.numpy import load, save
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.buffers import RecurrentRolloutBuffer
from stable_baselines3.common.vec_env import VecEnv

import agents
from agents.discount import TimedRecurrentRolloutBuffer
from agents.export import MANIFEST, WEIGHTS, agent_from_policy, load_agent
from agents.files import save as save_agent
from agents.files import shape_of
from agents.ppo import ACTIVATION, PPOSettings, make_ppo
from agents.run import run_agent
from agents.run_state import Writer
from agents.training import main
from agents.validation import FIRST_VALIDATION_SEED, ValidationSet, validate
from agents.vec_env import ServingVecEnv
from llm_env.actions import ACTION_KINDS
from llm_env.adaptive import NEUTRAL, from_unit, to_unit
from llm_env.config import scenario_from_dict, scenario_to_toml, with_changes
from llm_env.env import ServingEnv
from llm_env.errors import UserError
from llm_env.evaluation import main as evaluate
from llm_env.features import NUM_FEATURES
from llm_env.metrics import summarise

SHORT = scenario_from_dict(
    {"name": "tiny", "episode": {"arrivals_s": 4.0, "warmup_s": 0.5, "horizon_s": 20.0}, "workload": {"load": 0.9}}
)
WORDS = (
    *("--algo", "recurrent-ppo", "--lstm-hidden", "8", "--hidden", "16", "--num-envs", "4", "--num-steps", "16"),
    *("--minibatch", "32", "--epochs", "2", "--timesteps", "384", "--learning-rate", "0.01", "--validation-seeds", "1"),
    *("--validation-every", "192", "--checkpoint-every", "64"),
)


def learner(action="multidiscrete", **more):
    settings = PPOSettings(num_steps=32, minibatch=64, learning_rate=0.01, hidden=(16,), lstm_hidden=8)
    return make_ppo(ServingVecEnv(SHORT, 2, action), settings, 3, recurrent=True, **more)


def trained(action="multidiscrete"):
    """A policy after two updates, so that no weight is at its start, and its agent."""
    model = learner(action)
    model.learn(128)
    return model, agent_from_policy(model.policy, action, ACTIVATION, False, {"scenario": SHORT.name})


@pytest.fixture(scope="module")
def pair():
    return trained()


@pytest.fixture(scope="module")
def agent(pair):
    return pair[1]


@pytest.fixture
def tiny(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(scenario_to_toml(SHORT))
    return str(path)


def some_observations(n=6, seed=0):
    return np.random.default_rng(seed).normal(size=(n, NUM_FEATURES)).astype(np.float32)


# ---- numpy equals torch --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("action", ["multidiscrete", "discrete", "box", "adaptive", "roles"])
def test_numpy_and_torch_decide_alike_over_episodes_that_end_at_different_times(action):
    model, agent = trained(action)
    states, starts, memory = None, np.ones(6, np.bool_), agent.memory(6)
    rng = np.random.default_rng(1)
    for t in range(40):
        observations = some_observations(seed=t)
        memory[starts] = 0.0
        before = memory.copy()
        chosen, states = model.predict(observations, states, starts, deterministic=True)
        assert np.allclose(agent.act(observations, memory=memory), chosen, atol=1e-5), t
        assert np.abs(memory - np.concatenate([states[0][0], states[1][0]], axis=1)).max() < 1e-5
        assert (memory != before).any()
        starts = rng.random(6) < 0.2


def test_logits_are_those_of_torch(pair):
    model, agent = pair
    memory = (0.5 * np.random.default_rng(2).normal(size=(6, 16))).astype(np.float32)
    h, c = (torch.as_tensor(part.copy())[None] for part in np.split(memory, 2, axis=1))
    with torch.no_grad():
        theirs = model.policy.get_distribution(torch.as_tensor(some_observations()), (h, c), torch.zeros(6))[0]
    mine = agent.logits(some_observations(), memory)
    ends = np.cumsum([part.logits.shape[1] for part in theirs.distribution])[:-1]
    for part, logits in zip(theirs.distribution, np.split(mine, ends, axis=1), strict=True):
        assert np.abs(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)) - part.logits.numpy()).max() < 1e-5


def test_an_agent_with_memory_decides_without_it(agent):
    with pytest.raises(ValueError, match=r"memory: this agent has one: begin with agent\.memory"):
        agent.act(some_observations())
    for wrong in (np.zeros((5, 16), np.float32), np.zeros((6, 8), np.float32), np.zeros((6, 16))):
        with pytest.raises(ValueError, match=r"memory: expected \(6, 16\) float32, got"):
            agent.act(some_observations(), memory=wrong)
    plain = agents.load("generalist")
    assert plain.memory(3) is None
    with pytest.raises(ValueError, match="memory: this agent has none"):
        plain.act(some_observations(), memory=agent.memory(6))


def test_it_begins_as_another_setting_of_the_rule():
    model = learner("adaptive", start=to_unit(NEUTRAL))
    agent = agent_from_policy(model.policy, "adaptive", ACTIVATION, False, {})
    memory = agent.memory(6)
    for t in range(3):
        actions = agent.act(some_observations(seed=t), memory=memory)
        assert all(tuple(from_unit(action)) == NEUTRAL for action in actions)


# ---- files ---------------------------------------------------------------------------------------------------------
def test_a_round_trip_changes_nothing(tmp_path, agent):
    save_agent(agent, tmp_path / "a")
    again = load_agent(tmp_path / "a")
    mine, theirs = agent.memory(6), again.memory(6)
    for t in range(5):
        observations = some_observations(seed=t)
        assert (agent.logits(observations, mine) == again.logits(observations, theirs)).all()
    assert (mine == theirs).all()
    assert shape_of(again) == (
        "multidiscrete actions, with a memory (LSTM of 8)",
        [NUM_FEATURES, 8, 16, shape_of(agent)[1][-1]],
    )
    with pytest.raises(ValueError, match="without its value layers"):
        again.value(some_observations())


def tensor(name, change):
    return lambda tensors: tensors.update({name: np.ascontiguousarray(change(tensors[name]))})


BROKEN = {
    "few gates": (tensor("lstm.weight_hh", lambda a: a[1:]), {}, "lstm.weight_hh: expected shape (4 n, n)"),
    "a vector": (tensor("lstm.weight_hh", lambda a: a[0]), {}, "lstm.weight_hh: expected shape (4 n, n)"),
    "other features": (tensor("lstm.weight_ih", lambda a: a[:, 1:]), {}, "lstm.weight_ih: expected shape (32, "),
    "short bias": (tensor("lstm.bias", lambda a: a[:-1]), {}, "lstm.bias: expected shape (32,)"),
    "NaN": (tensor("lstm.bias", lambda a: a * np.nan), {}, "lstm.bias: holds NaN"),
    "float64": (tensor("lstm.bias", lambda a: a.astype(np.float64)), {}, "lstm.bias: expected float32"),
    "wide layer": (tensor("policy.0.weight", lambda a: a[:, 1:]), {}, "policy.0.weight: expected shape (n, 8)"),
    "missing": (lambda tensors: tensors.pop("lstm.bias"), {}, "lstm.bias"),
    "unsaid": (lambda tensors: None, {"lstm": False}, "lstm.bias"),
    "a text": (lambda tensors: None, {"lstm": "yes"}, "lstm: expected true or false"),
    "masks": (lambda tensors: None, {"masked": True}, "lstm: expected false for an agent with masks"),
    "a value": (lambda tensors: None, {"value_layers": ["policy.0"]}, "lstm: expected false for an agent with"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_memory_is_one_clear_error(tmp_path, agent, name):
    change, fields, message = BROKEN[name]
    save_agent(agent, tmp_path / "a")
    tensors = load((tmp_path / "a" / WEIGHTS).read_bytes())
    change(tensors)
    data = save(tensors)
    (tmp_path / "a" / WEIGHTS).write_bytes(data)
    manifest = json.loads((tmp_path / "a" / MANIFEST).read_text())
    manifest |= {"sha256": hashlib.sha256(data).hexdigest()} | fields
    (tmp_path / "a" / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(UserError) as caught:
        load_agent(tmp_path / "a")
    assert message in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_trusted_zip_decides_as_the_model_did(tmp_path):
    for layers, said in ((1, None), (2, "or an MlpLstmPolicy of one layer")):
        size = {"lstm_hidden_size": 8, "n_lstm_layers": layers}
        env = ServingEnv(SHORT, "discrete")
        model = RecurrentPPO("MlpLstmPolicy", env, n_steps=16, batch_size=16, seed=0, policy_kwargs=size)
        model.save(tmp_path / "model.zip")
        if said is not None:
            with pytest.raises(UserError, match=said):
                agents.load(tmp_path / "model.zip", trust_pickle=True)
            continue
        agent, states = agents.load(tmp_path / "model.zip", trust_pickle=True), None
        memory = agent.memory(6)
        for t in range(4):
            chosen, states = model.predict(some_observations(seed=t), states, deterministic=True)
            assert (agent.act(some_observations(seed=t), memory=memory) == chosen).all()


# ---- learning ------------------------------------------------------------------------------------------------------
class Recall(VecEnv):
    """Pays 1 for naming the symbol that was shown `DELAY` steps before; nothing that is seen now tells it."""

    DELAY, SYMBOLS, STEPS = 2, 3, 12
    scenarios = (SHORT,)
    action_kind = ACTION_KINDS.index("discrete")

    def __init__(self, num_envs):
        super().__init__(num_envs, spaces.Box(0, 1, (self.SYMBOLS,), np.float32), spaces.Discrete(self.SYMBOLS))
        self.dt_s, self.scenario_index = np.full(num_envs, 5.0), np.zeros(num_envs, np.int64)
        self._rng = np.random.default_rng(0)

    def reset(self):
        self._shown = self._rng.integers(self.SYMBOLS, size=(self.num_envs, self.STEPS + 1))
        self._step = self._rng.integers(self.STEPS, size=self.num_envs)
        return self._observe()

    def _observe(self):
        return np.eye(self.SYMBOLS, dtype=np.float32)[self._shown[np.arange(self.num_envs), self._step]]

    def step_async(self, actions):
        self._actions = actions

    def step_wait(self):
        systems, past = np.arange(self.num_envs), self._step - self.DELAY
        right = (past >= 0) & (self._shown[systems, past] == self._actions)
        self.rewards = right.astype(np.float32)
        self._step += 1
        ended = self._step == self.STEPS
        self._shown[ended] = self._rng.integers(self.SYMBOLS, size=(ended.sum(), self.STEPS + 1))
        self._step[ended] = 0
        return self._observe(), self.rewards.copy(), ended, [{} for _ in systems]

    def close(self): ...
    def get_attr(self, attr_name, indices=None):
        return [None] * self.num_envs

    def set_attr(self, *args, **kwargs): ...
    def env_method(self, *args, **kwargs): ...
    def env_is_wrapped(self, wrapper_class, indices=None):
        return [False] * self.num_envs


@pytest.mark.parametrize(("recurrent", "low", "high"), [(True, 0.75, 1.0), (False, 0.0, 0.4)])
def test_what_must_be_remembered_is_learned_with_memory_and_without_it_is_not(recurrent, low, high):
    settings = PPOSettings(num_steps=24, minibatch=256, epochs=4, learning_rate=0.01, hidden=(16,), lstm_hidden=16)
    model = make_ppo(Recall(32), settings, seed=0, recurrent=recurrent)
    model.learn(18_000)
    right = model.rollout_buffer.rewards.mean() / model.rollout_buffer.rewards.max()
    of_all = 1 - Recall.DELAY / Recall.STEPS  # at the first steps nothing can be right
    assert low < right / of_all <= high


# ---- the buffer ----------------------------------------------------------------------------------------------------
def fill(buffer, model, env=None):
    """Plays 12 steps of 3 systems, the same for every buffer; episodes end here and there."""
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    zeros = torch.zeros(1, 3, 8)
    states, starts = SimpleNamespace(pi=(zeros, zeros), vf=(zeros, zeros)), np.ones(3)
    for _ in range(12):
        observations = rng.normal(size=(3, NUM_FEATURES)).astype(np.float32)
        reward = rng.normal(size=3).astype(np.float32)
        if env is not None:
            env.dt_s, env.rewards, env.scenario_index = np.full(3, 0.25), reward.copy(), np.zeros(3, np.int64)
        with torch.no_grad():
            actions, values, logs, after = model.policy(
                torch.as_tensor(observations), states, torch.as_tensor(starts, dtype=torch.float32)
            )
        buffer.add(observations, actions.numpy(), reward, starts, values, logs, lstm_states=states)
        states, starts = after, (rng.random(3) < 0.2).astype(np.float64)
    buffer.compute_returns_and_advantage(torch.as_tensor(rng.normal(size=3).astype(np.float32)), starts)


def test_the_buffer_gives_other_sequences_or_advantages_than_that_of_sb3(pair):
    """With steps that are equally long; resets in the middle of what is stored are where the two differ in form."""
    model, env = pair[0], SimpleNamespace()
    shape, gamma = (12, 1, 3, 8), float(np.exp(-0.25 / 10.0))
    of_each = {"env": env, "horizons_s": [10.0], "reward_scales": [1.0]}
    spaces_ = (model.observation_space, model.action_space)
    theirs = RecurrentRolloutBuffer(12, *spaces_, shape, "cpu", gae_lambda=0.9, gamma=gamma, n_envs=3)
    ours = TimedRecurrentRolloutBuffer(12, *spaces_, shape, "cpu", gae_lambda=0.9, gamma=1.0, n_envs=3, **of_each)
    fill(theirs, model)
    fill(ours, model, env)
    assert theirs.episode_starts[1:].sum() > 2
    found = []
    for buffer in (theirs, ours):
        np.random.seed(1)  # noqa: NPY002 (that of SB3's minibatches)
        parts = []
        for samples in buffer.get(9):
            with torch.no_grad():
                values, logs, _ = model.policy.evaluate_actions(
                    samples.observations, samples.actions, samples.lstm_states, samples.episode_starts
                )
            mask = samples.mask > 0.5
            parts.append([values.flatten()[mask], logs[mask], samples.advantages[mask], samples.old_log_prob[mask]])
        found.append([torch.cat(part) for part in zip(*parts, strict=True)])
    for mine, other in zip(found[1], found[0], strict=True):
        assert torch.allclose(mine, other, atol=1e-5)
    assert len(found[1][0]) == 36
    assert torch.allclose(found[1][1], found[1][3], atol=1e-5), "the weights are those that collected: ratios are 1"


# ---- runs ----------------------------------------------------------------------------------------------------------
def test_the_memory_of_one_system_reaches_another(agent):
    """Nothing is shared but the network: alone, or beside others, or once more, a system goes the same way."""
    together, again, alone = run_agent(agent, SHORT, (5, 6, 7)), run_agent(agent, SHORT, (5, 6, 7)), None
    alone = run_agent(agent, SHORT, (6,))
    n = int(alone.state(0).system["num_requests"][0])
    assert together.state(1).requests[:n].tobytes() == alone.state(0).requests[:n].tobytes()
    for e in range(3):
        assert together.state(e).requests.tobytes() == again.state(e).requests.tobytes()


def test_a_single_environment_is_another_world_than_the_batched_run(agent):
    """Decisions that hang on memory: of an agent whose memory weighs ten times as much."""
    weight, bias = agent.policy[0]
    agent = dataclasses.replace(agent, policy=((10 * weight, bias), *agent.policy[1:]))
    env = ServingEnv(SHORT, "multidiscrete")

    def play(remembers):
        observation, _ = env.reset(seed=FIRST_VALIDATION_SEED)
        memory, actions, ended = agent.memory(1), [], False
        while not ended:
            actions.append(agent.act(observation[None], memory=memory)[0])
            observation, _, terminated, truncated, info = env.step(actions[-1])
            ended = terminated or truncated
            memory *= remembers
        return np.array(actions), info

    taken = []

    def deciding(systems, *arguments):
        act = agent.deciding(systems, *arguments)
        return lambda observations: taken.append(act(observations)) or taken[-1]

    spy = SimpleNamespace(action=agent.action, deciding=deciding)
    summary = summarise(run_agent(spy, SHORT, (FIRST_VALIDATION_SEED,)).state(0), SHORT)
    actions, info = play(remembers=1)
    assert (np.concatenate(taken) == actions).all()
    assert info["slo_attainment"] == pytest.approx(summary.slo_attainment)
    forgetful, _ = play(remembers=0)
    assert len(forgetful) != len(actions) or (forgetful != actions).any(), "nothing hangs on memory"


def last_row(path):
    with path.open() as file:
        return [row for row in csv.DictReader(file) if row["validation/attainment"]][-1]


def digest(path):
    return hashlib.sha256((path / WEIGHTS).read_bytes()).hexdigest()


def test_a_stopped_run_forgets_and_evaluation_differs_from_validation(tmp_path, tiny, monkeypatch, capsys):
    """A whole run, one that was stopped and goes on: the same bits. What was validated is what evaluation finds."""
    words = ("--scenario", tiny, *WORDS, "--action", "discrete")
    assert main([*words, "--out", str(tmp_path / "whole")]) == 0
    real, written = Writer.write, []

    def write(self, step, parts, logger):
        real(self, step, parts, logger)
        written.append(parts["learner"].saved()["lstm.0"])
        if len(written) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Writer, "write", write)
        assert main([*words, "--out", str(tmp_path / "stopped")]) == 130
    assert np.abs(written[1]).sum() > 0, "there was nothing to forget"
    assert main(["--resume", str(tmp_path / "stopped")]) == 0
    for name in ("agent", "last"):
        assert digest(tmp_path / "whole" / name) == digest(tmp_path / "stopped" / name)
    whole, stopped = (last_row(tmp_path / name / "progress.csv") for name in ("whole", "stopped"))
    assert {k: v for k, v in whole.items() if "time/" not in k} == {
        k: v for k, v in stopped.items() if "time/" not in k
    }
    agent, out = agents.load(tmp_path / "whole" / "last"), tmp_path / "results"
    seeds = tuple(range(2_000_000, 2_000_002))
    crowded = with_changes(SHORT, {"workload.load": 2.0})
    found = validate(agent, ValidationSet(cases=(("crowded", crowded, None),), seeds=seeds))["slo_attainment"]
    quick = ("--seeds", "2", "--baselines", "fcfs", "--processes", "1", "--out", str(out))
    assert evaluate(["--agents", str(tmp_path / "whole" / "last"), "--scenario", tiny, "--loads", "2.0", *quick]) == 0
    row = next(row for row in json.loads((out / "results.json").read_text())["rows"] if row["is_agent"])
    assert row[f"slo_attainment_{SHORT.slo.rule}"] == pytest.approx(found, abs=1e-12)
    assert 0 < found < 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--action", "ranked"), "algo: recurrent-ppo needs --action multidiscrete, discrete, box, adaptive or roles"),
        (("--action", "route"), "action: route is learned by --algo es"),
        (("--lstm-hidden", "0"), "lstm-hidden: expected 1 to 4096, got 0"),
    ],
)
def test_bad_input_is_one_clear_error(tmp_path, tiny, capsys, more, message):
    assert main(["--scenario", tiny, "--out", str(tmp_path / "run"), *WORDS, *more]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert message in said[0]
    assert not (tmp_path / "run").exists()
