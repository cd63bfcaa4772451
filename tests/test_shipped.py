"""Agents that come with the package: made of runs, found by name, read with numpy. Nothing that is read runs."""

from __future__ import annotations

import base64
import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from stable_baselines3 import PPO

import agents
from agents import ship as ship_module
from agents import shipped
from agents.card import results_table
from agents.export import MANIFEST, WEIGHTS
from agents.ship import MAX_BYTES, main
from agents.training import main as train
from llm_env.config import scenario_from_dict, scenario_to_toml
from llm_env.env import ServingEnv
from llm_env.errors import UserError
from llm_env.evaluation import main as evaluate
from llm_env.features import NUM_FEATURES
from tests.conftest import ROOT

TINY = {
    "name": "tiny",
    "episode": {"arrivals_s": 4.0, "warmup_s": 0.5, "horizon_s": 6.0},
    "workload": {"load": 0.8},
}
QUICK = ("--num-envs", "4", "--num-steps", "16", "--minibatch", "32", "--validation-seeds", "1", "--epochs", "2")
WORDS = ("--summary", "Decides in tests.", "--limits", "It has hardly learned.", "It saw one scenario.")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two seeds of a training of 256 steps, and their scenario."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "tiny.toml").write_text(scenario_to_toml(scenario_from_dict(TINY)))
    words = ["--scenario", str(folder / "tiny.toml"), "--timesteps", "256", "--validation-every", "64", *QUICK]
    for seed in "12":
        assert train([*words, "--seed", seed, "--out", str(folder / seed)]) == 0
    return folder


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty folder in place of agents/pretrained."""
    folder = tmp_path / "pretrained"
    folder.mkdir()
    monkeypatch.setattr(shipped, "_home", lambda: folder)
    return folder


def ship(home, *more, words=WORDS):
    return main([*more, *words, "--home", str(home)])


# ---- making one ----------------------------------------------------------------------------------------------------
def test_the_seed_that_is_best_on_validation_is_shipped_with_its_card(runs, home, capsys):
    assert ship(home, "mine", str(runs / "1"), str(runs / "2")) == 0
    folder = home / "mine"
    assert {path.name for path in folder.iterdir()} == {MANIFEST, WEIGHTS, "card.md"}
    assert sum(path.stat().st_size for path in folder.iterdir()) < MAX_BYTES
    reached = [agents.load(runs / seed).about["validation_attainment"] for seed in "12"]
    best = runs / "12"[int(np.argmax(reached))]
    assert (folder / WEIGHTS).read_bytes() == (best / "agent" / WEIGHTS).read_bytes()
    text = (folder / "card.md").read_text()
    assert text.startswith("# mine\n\nDecides in tests.\n")
    for line in (
        f"| validation attainment | {max(reached):.4f}; all seeds: mean {np.mean(reached):.4f}",
        f"| training seeds | 1, 2; this is seed {best.name}",
        "| decisions | seed 1 | seed 2 |",
        "| 256 | ",
        "python train.py --scenario",
        "- It has hardly learned.\n- It saw one scenario.",
        f"{NUM_FEATURES}-64-64-",
    ):
        assert line in text, line
    rows = [line for line in text.splitlines() if line.startswith(("| 0 |", "| 64 |", "| 128 |", "| 192 |", "| 256 |"))]
    assert len(rows) == 5
    assert ship(home, "mine", str(runs / "1")) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert ship(home, "mine", str(runs / "1"), "--overwrite") == 0


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("mine", "{runs}/1", "{runs}/1"), "a seed is there twice"),
        (("mine", "{runs}"), "holds no finished run"),
        (("a/b", "{runs}/1"), "name: expected letters"),
        (("mine", "{runs}/1", "--results", "{runs}/1/settings.json"), "is no results.json"),
        (("mine", "{runs}/1", "--results", "{runs}/no.json"), "cannot be read"),
    ],
)
def test_what_cannot_be_shipped_leaves_nothing(runs, home, capsys, more, said):
    assert ship(home, *(word.replace("{runs}", str(runs)) for word in more)) in (2, 3)
    assert said in capsys.readouterr().err
    assert [*home.iterdir()] == []


def test_an_agent_that_is_too_large_is_not_shipped(runs, home, capsys, monkeypatch):
    monkeypatch.setattr(ship_module, "MAX_BYTES", 1000)
    assert ship(home, "mine", str(runs / "1")) == 2
    assert "expected at most 1,000" in capsys.readouterr().err
    assert [*home.iterdir()] == []


def test_a_card_holds_saved_results(runs, home, tmp_path, monkeypatch):
    assert ship(home, "mine", str(runs / "1")) == 0
    out = tmp_path / "results"
    words = ("--agents", "mine", "--baselines", "fcfs", "--scenario", str(runs / "tiny.toml"))
    assert evaluate([*words, "--seeds", "2", "--processes", "1", "--out", str(out)]) == 0
    table = results_table(out / "results.json", "mine")
    rows = json.loads((out / "results.json").read_text())["rows"]
    mine = next(row for row in rows if row["policy"] == "agent:mine")
    assert f"| as it is | agent:mine | {mine[RULE]:.4f} ±" in table
    assert table.count("| as it is |") == 2
    with pytest.raises(UserError, match="agent:other did not take part"):
        results_table(out / "results.json", "other")
    assert ship(home, "mine", str(runs / "1"), "--results", str(out / "results.json"), "--overwrite") == 0
    assert table in (home / "mine" / "card.md").read_text()


RULE = f"slo_attainment_{scenario_from_dict(TINY).slo.rule}"


def test_a_card_pairs_results_of_a_family_by_workload(tmp_path):
    def result(label, kind, attainment, seeds=3):
        return {"label": label, "kind": kind, "attainment": attainment, "first_seed": 2_000_000, "seeds": seeds}

    folder = tmp_path / "roles"
    folder.mkdir()
    for k, each in enumerate(
        (
            result("agent:mine", "agent", [[[0.5, 0.6, 0.7], [0.7, 0.8, None]]]),
            result("a planner", "clairvoyant", [[[0.9, 0.9], [0.9, 0.9]]], 2),  # on fewer of them
            result("sarathi", "literature", [[[0.4, 0.5, 0.6], [0.6, 0.7, 0.6]]]),
        )
    ):
        (folder / f"{k}.json").write_text(json.dumps(each))
    table = results_table(folder, "mine")
    assert "| agent:mine | agent | 0.6667 | |" in table
    assert "| sarathi | literature | 0.5667 | +0.1000 ± 0.0000 |" in table
    assert "planner" not in table
    assert table.startswith("Family roles, 3 workloads from seed 2,000,000 on")


# ---- finding one ---------------------------------------------------------------------------------------------------
def test_a_name_is_the_agent_of_the_package_and_a_path_the_folder(runs, home, tmp_path, monkeypatch, capsys):
    assert ship(home, "mine", str(runs / "1")) == 0
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    (tmp_path / "work" / "mine").symlink_to(runs / "2")
    seeds = [agents.load(x).about["seed"] for x in ("mine", "./mine", tmp_path / "work" / "mine")]
    assert seeds == [1, 2, 2]
    assert agents.shipped_names() == ("mine",)
    capsys.readouterr()
    assert evaluate(["--list-agents"]) == 0
    assert capsys.readouterr().out == "mine: Decides in tests.\n"


def test_an_unknown_name_is_told_the_known_ones(runs, home, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="none come with this package"):
        agents.load("generalist")
    for name in ("mine", "yours"):
        assert ship(home, name, str(runs / "1")) == 0
    with pytest.raises(UserError, match=r'did you mean "mine"\? \(those that come with the package are mine, yours\)'):
        agents.load("mien")
    assert evaluate(["--agents", "mien"]) == 2
    assert 'did you mean "mine"' in capsys.readouterr().err


def test_an_agent_of_another_kind_is_refused(runs, home):
    assert ship(home, "mine", str(runs / "1")) == 0
    manifest = json.loads((home / "mine" / MANIFEST).read_text())
    assert manifest["kind"] == "policy"
    (home / "mine" / MANIFEST).write_text(json.dumps(manifest | {"kind": "oracle"}))
    with pytest.raises(UserError, match=r"kind: expected one of .*policy.*, got 'oracle'"):
        agents.load("mine")
    (home / "mine" / MANIFEST).write_text(json.dumps({k: v for k, v in manifest.items() if k != "kind"}))
    assert agents.load("mine").about["seed"] == 1


def test_reading_an_agent_needs_torch(runs):
    code = f"""
import sys
for name in ("torch", "stable_baselines3", "sb3_contrib", "tensorboard", "pandas"):
    sys.modules[name] = None
import numpy as np, agents
agent = agents.load({str(runs / "1")!r})
print(agent.act(np.zeros((2, {NUM_FEATURES}), np.float32)).shape[0], agents.shipped_names() is not None)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "2 True\n"), done.stderr


def test_an_agent_of_the_package_does_not_load_is_large_or_has_no_card():
    for name in agents.shipped_names():
        assert agents.load(name).about, name
        folder = ROOT / "agents" / "pretrained" / name
        assert sum(path.stat().st_size for path in folder.iterdir()) < MAX_BYTES, name
        text = (folder / "card.md").read_text()
        for heading in ("## How it was trained", "## How it learned", "## What it reached", "## Limits"):
            assert heading in text, name


# ---- nothing that is read runs -------------------------------------------------------------------------------------
class Evil:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self._path = path

    def __reduce__(self):
        return (os.mkdir, (str(self._path),))


def evil_zip(path, mark):
    """A model.zip whose settings make a folder when they are read."""
    payload = base64.b64encode(pickle.dumps(Evil(mark))).decode()
    data = {"policy_class": {":type:": "x", ":serialized:": payload, "__module__": "stable_baselines3"}}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data", json.dumps(data))
        archive.writestr("policy.pth", pickle.dumps(Evil(mark)))


def test_the_crafted_zip_would_run_if_it_were_trusted(tmp_path):
    """Or the tests below would prove nothing."""
    evil_zip(tmp_path / "model.zip", tmp_path / "mark")
    with pytest.raises(UserError, match="cannot be read"):
        agents.load(tmp_path / "model.zip", trust_pickle=True)
    assert (tmp_path / "mark").exists()


@pytest.mark.parametrize("name", ["model.zip", "agent.json", "agent.safetensors", "model.pkl"])
def test_nothing_in_a_crafted_file_runs(tmp_path, runs, name, capsys):
    mark, folder = tmp_path / "mark", tmp_path / "agent"
    shutil.copytree(runs / "1" / "agent", folder)
    path = tmp_path / name if name.startswith("model") else folder / name
    if name == "model.zip":
        evil_zip(path, mark)
    else:
        path.write_bytes(pickle.dumps(Evil(mark)))
    given = path if name.startswith("model") else folder
    with pytest.raises(UserError):
        agents.load(given)
    with pytest.raises(UserError):
        agents.load(str(given))
    assert evaluate(["--agents", str(given), "--out", str(tmp_path / "out")]) == 2
    assert train(["--resume", str(given)]) in (2, 3)
    assert not mark.exists()
    if name == "model.zip":
        assert "--trust-pickle" in capsys.readouterr().err


# ---- what Stable-Baselines3 saved ----------------------------------------------------------------------------------
def test_a_trusted_zip_decides_as_the_model_did(tmp_path, runs):
    env = ServingEnv(scenario_from_dict(TINY), "discrete")
    model = PPO("MlpPolicy", env, n_steps=32, batch_size=32, seed=0, device="cpu")
    model.learn(32)
    model.save(tmp_path / "model.zip")
    with pytest.raises(UserError, match="--trust-pickle"):
        agents.load(tmp_path / "model.zip")
    agent = agents.load(tmp_path / "model.zip", trust_pickle=True)
    observations = np.random.default_rng(0).normal(size=(64, NUM_FEATURES)).astype(np.float32)
    assert (agent.act(observations) == model.predict(observations, deterministic=True)[0]).all()
    words = ("--agents", str(tmp_path / "model.zip"), "--baselines", "fcfs", "--scenario", str(runs / "tiny.toml"))
    words = (*words, "--seeds", "1", "--processes", "1", "--out", str(tmp_path / "out"))
    assert evaluate([*words]) == 2
    assert evaluate([*words, "--trust-pickle"]) == 0
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert [row["policy"] for row in rows] == ["agent:model.zip", "fcfs"]


@pytest.mark.parametrize(("content", "said"), [(b"", "is no zip"), (b"PK\x05\x06" + bytes(18), "is no zip")])
def test_a_zip_that_is_none_is_one_clear_error(tmp_path, content, said):
    (tmp_path / "model.zip").write_bytes(content)
    with pytest.raises(UserError, match=said):
        agents.load(tmp_path / "model.zip", trust_pickle=True)
    with pytest.raises(UserError, match="does not exist"):
        agents.load(tmp_path / "other.zip", trust_pickle=True)


def test_a_model_of_another_environment_is_refused(tmp_path):
    model = PPO("MlpPolicy", "CartPole-v1", n_steps=32, batch_size=32, device="cpu")
    model.save(tmp_path / "model.zip")
    with pytest.raises(UserError, match="observation_space: expected shape"):
        agents.load(tmp_path / "model.zip", trust_pickle=True)
