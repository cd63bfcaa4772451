"""`train.py`: what a run leaves behind, how it ends, that it can be repeated, and that something is learned."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import agents
from agents.export import WEIGHTS
from agents.ppo import PPOSettings, make_ppo
from agents.training import first_episode_seed, main
from agents.vec_env import ServingVecEnv
from llm_env.config import read_scenario, scenario_from_dict, scenario_to_toml
from llm_env.systems import NUM_TRAINING_SEEDS
from tests.conftest import ROOT

TINY = {
    "name": "tiny",
    "episode": {"arrivals_s": 4.0, "warmup_s": 0.5, "horizon_s": 6.0},
    "workload": {"load": 0.8},
}
QUICK = ["--num-envs", "4", "--num-steps", "16", "--minibatch", "32", "--validation-seeds", "1", "--epochs", "2"]


@pytest.fixture
def scenario(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(scenario_to_toml(scenario_from_dict(TINY)))
    return str(path)


def train(scenario, out, *more):
    return main(
        ["--scenario", scenario, "--out", str(out), "--timesteps", "512", "--validation-every", "128", *QUICK, *more]
    )


# ---- what is left behind -------------------------------------------------------------------------------------------
def test_a_run_leaves_everything_that_explains_it(tmp_path, scenario, capsys):
    assert train(scenario, tmp_path / "run", "--seed", "5") == 0
    run = tmp_path / "run"
    names = {path.name for path in run.iterdir()}
    assert names == {
        *("settings.json", "scenario.toml", "versions.json", "command.txt", "progress.csv", "tb", "agent", "last")
    }
    settings = json.loads((run / "settings.json").read_text())
    assert (settings["seed"], settings["ppo"]["minibatch"]) == (5, 32)
    assert read_scenario(run / "scenario.toml") == scenario_from_dict(TINY)
    assert "numpy" in json.loads((run / "versions.json").read_text())["versions"]
    assert (run / "command.txt").read_text().startswith("python train.py --scenario ")
    events = EventAccumulator(str(run / "tb"), {"scalars": 0, "histograms": 0}).Reload()
    scalars = set(events.Tags()["scalars"])
    assert {"validation/slo_attainment", "validation/tbt_p99_s", "validation_sampled/slo_attainment"} <= scalars
    assert {"serve/slo_attainment", "step/reward_first_token", "rollout/entropy", "time/steps_per_s"} <= scalars
    assert {"actions/budget_1x", "actions/order_moore-hodgson"} <= scalars
    assert "actions/budget" in events.Tags()["histograms"]
    steps = [event.step for event in events.Scalars("validation/slo_attainment")]
    assert steps == [0, 128, 256, 384, 512]
    said = capsys.readouterr().out
    assert f"evaluate.py --agents {run}" in said
    agent = agents.load(run)
    assert agent.about["scenario"] == "tiny"
    assert agent.about["timesteps"] > 128  # never the untrained one
    assert 0 <= agent.about["validation_attainment"] <= 1


def test_the_same_arguments_give_the_same_weights_and_another_seed_others(tmp_path, scenario):
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert train(scenario, tmp_path / name, "--seed", seed) == 0
    for kind in ("agent", "last"):
        a, b, c = ((tmp_path / name / kind / WEIGHTS).read_bytes() for name in "abc")
        assert a == b
        assert a != c


@pytest.mark.parametrize(
    "more", [("--algo", "maskable-ppo"), ("--action", "discrete"), ("--action", "box"), ("--init", "none")]
)
def test_every_form_and_algorithm_trains(tmp_path, scenario, more):
    assert train(scenario, tmp_path / "run", *more) == 0
    assert agents.load(tmp_path / "run").masked == ("maskable-ppo" in more)


def test_it_learns_from_a_trace(tmp_path, scenario):
    rng = np.random.default_rng(0)
    times = np.cumsum(rng.exponential(0.4, 200))
    rows = [
        f"{t:.3f},{p},{o}" for t, p, o in zip(times, rng.integers(50, 900, 200), rng.integers(5, 90, 200), strict=True)
    ]
    trace = tmp_path / "day.csv"
    trace.write_text("\n".join(["arrival_s,prompt_tokens,output_tokens", *rows]) + "\n")
    assert train(scenario, tmp_path / "as-it-is", "--trace", str(trace), "--time-scale", "0.5") == 0
    assert train(scenario, tmp_path / "at-loads", "--trace", str(trace), "--load-range", "0.5", "0.9") == 0


# ---- how it ends ---------------------------------------------------------------------------------------------------
def test_a_finished_run_is_not_overwritten_unless_asked(tmp_path, scenario, capsys):
    assert train(scenario, tmp_path / "run") == 0
    before = (tmp_path / "run" / "agent" / WEIGHTS).read_bytes()
    assert train(scenario, tmp_path / "run", "--seed", "3") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (tmp_path / "run" / "agent" / WEIGHTS).read_bytes() == before
    assert train(scenario, tmp_path / "run", "--seed", "3", "--overwrite") == 0
    assert (tmp_path / "run" / "agent" / WEIGHTS).read_bytes() != before


def test_a_folder_with_something_else_is_left_alone(tmp_path, scenario, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    assert train(scenario, tmp_path / "mine", "--overwrite") == 2
    assert "holds no run" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (("--scenario", "chatt"), 2, "chatt"),
        (("--trace", "/nowhere/day.csv"), 3, "day.csv"),
        (("--timesteps", "0"), 2, "timesteps: expected 1 to"),
        (("--load-range", "0.9", "0.5"), 2, "load-range"),
        (("--time-scale", "-1"), 2, "time-scale"),
        (("--learning-rate", "7"), 2, "learning-rate: expected 0 to 1, got 7"),
        (("--hidden", "0"), 2, "hidden"),
        (("--horizon-s", "0"), 2, "horizon-s"),
        (("--algo", "maskable-ppo", "--action", "box"), 2, "maskable-ppo needs"),
        (("--out", "/dev/null"), 3, "is a file"),
        (("--out", "/proc/nowhere/run"), 3, "cannot be written"),
    ],
)
def test_bad_input_is_one_clear_error(tmp_path, scenario, capsys, more, code, message):
    assert train(scenario, tmp_path / "run", *more) == code
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert said[0].startswith("error: ")
    assert message in said[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("word", [("--timesteps", "many"), ("--algo", "sac"), ("--nonsense", "1")])
def test_wrong_usage_ends_with_2(tmp_path, scenario, word):
    assert train(scenario, tmp_path / "run", *word) == 2


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_keeps_what_was_learned(tmp_path, scenario, number, code):
    out = tmp_path / "run"
    command = [
        sys.executable,
        "train.py",
        "--scenario",
        scenario,
        "--out",
        str(out),
        "--timesteps",
        "100000000",
        *QUICK,
    ]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    until, progress = time.monotonic() + 100, out / "progress.csv"
    # the first row is of step 0, before anything is learned
    while time.monotonic() < until and not (progress.exists() and progress.read_text().count("\n") >= 4):
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(number)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == code
    assert "last" in said
    assert agents.load(out / "last").about["timesteps"] > 0
    assert not (out / "agent").exists()


# ---- episodes and learning -----------------------------------------------------------------------------------------
def test_every_seed_trains_on_episodes_of_its_own_below_those_of_validation():
    firsts = [first_episode_seed(seed, 256) for seed in range(300)]
    assert len(set(firsts)) > 290
    assert all(0 <= first <= NUM_TRAINING_SEEDS - 256 for first in firsts)


def test_it_learns_to_serve_the_prompts_first():
    """Only a late first token costs here, so a policy that begins undecided must come to prefer prefilling."""
    short = {"kind": "fixed", "tokens": 300}
    scenario = scenario_from_dict(
        {
            "slo": {"classes": [{"ttft_ms": 600.0, "tbt_ms": 150.0}]},
            "workload": {"prompt": short, "output": {"kind": "fixed", "tokens": 20}, "rate_per_s": 2.0},
            "episode": {"arrivals_s": 10.0, "warmup_s": 1.0, "horizon_s": 20.0},
        }
    )
    env = ServingVecEnv(scenario, 32, stagger_steps=60)
    settings = PPOSettings(num_steps=32, minibatch=512, learning_rate=3e-3, init="none", horizon_s=2.0)
    model = make_ppo(env, settings, seed=0)
    env.seed(0)
    paid = []
    for _ in range(2):
        model.learn(1024 if not paid else 30_000, reset_num_timesteps=not paid)
        buffer = model.rollout_buffer
        paid.append(float(buffer.rewards.mean()))
    assert paid[1] > paid[0]
