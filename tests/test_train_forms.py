"""`train.py`: evolution strategies, starts, several seeds at once, rivals beside the curve."""

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
from agents.export import MANIFEST, WEIGHTS
from agents.training import main
from llm_env.adaptive import BUDGET, from_unit
from llm_env.config import scenario_from_dict, scenario_to_toml
from llm_env.rivals import rival_attainment
from tests.conftest import ROOT

TINY = {
    "name": "tiny",
    "episode": {"arrivals_s": 4.0, "warmup_s": 0.5, "horizon_s": 6.0},
    "workload": {"load": 0.8},
    "slo": {"classes": [{"ttft_ms": 500.0, "tbt_ms": 150.0}]},
}
ES = ("--algo", "es", "--es.generations", "4", "--es.pairs", "3", "--es.validate-every", "2", "--processes", "1")
PPO = ("--timesteps", "128", "--num-envs", "4", "--num-steps", "16", "--minibatch", "32", "--epochs", "1")


@pytest.fixture
def scenario(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(scenario_to_toml(scenario_from_dict(TINY)))
    return str(path)


def train(scenario, out, *more, rivals=None):
    return main(["--scenario", scenario, "--out", str(out), "--validation-seeds", "1", *more], rivals)


def rivals(against):
    return rival_attainment(("sarathi-spf:slo", "adaptive@tuned"), against)


def test_evolution_leaves_a_run_that_can_be_repeated_and_loaded(tmp_path, scenario, capsys):
    run = tmp_path / "a"
    assert train(scenario, run, *ES, "--start", "budget=0.9", rivals=rivals) == 0
    said = capsys.readouterr().out
    names = {path.name for path in run.iterdir()}
    assert names == {
        *("settings.json", "scenario.toml", "versions.json", "command.txt", "progress.csv", "tb", "agent", "last")
    }
    scalars = EventAccumulator(str(run / "tb")).Reload()
    steps = [event.step for event in scalars.Scalars("validation/attainment")]
    assert len(steps) == 3
    assert steps[0] == 0
    assert len(scalars.Scalars("es/attainment")) == 4
    (line,) = (run / "tb").glob("reference-*")  # nothing was tuned for this scenario
    assert line.name == "reference-sarathi-spf-slo"
    heights = EventAccumulator(str(line)).Reload().Scalars("validation/attainment")
    assert [event.step for event in heights] == steps
    agent = agents.load(run)
    assert agent.action == "adaptive"
    assert {event.value for event in heights} == {np.float32(agent.about["references"]["sarathi-spf:slo"])}
    assert f"sarathi-spf:slo: {heights[0].value:.4f}" in said
    assert agent.about["validation_attainment"] >= agent.about["start_attainment"]
    first = agent.logits(np.zeros((1, agent.policy[0][0].shape[1]), np.float32))
    assert 0.5 < from_unit(first[0])[BUDGET] < 1.5
    assert train(scenario, tmp_path / "b", *ES, "--start", "budget=0.9", "--processes", "2") == 0
    assert train(scenario, tmp_path / "c", *ES, "--start", "budget=0.9", "--seed", "1") == 0
    a, b, c = ((tmp_path / name / "last" / WEIGHTS).read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_ppo_learns_the_adaptive_rule_and_may_return_its_start(tmp_path, scenario):
    run = tmp_path / "run"
    still = ("--learning-rate", "0", "--entropy", "0", "--paired")
    assert train(scenario, run, *PPO, "--action", "adaptive", *still) == 0
    about = agents.load(run).about
    assert about["timesteps"] == 0  # nothing could be better than the start
    assert about["validation_attainment"] == about["start_attainment"]


def test_it_stops_where_validation_gets_no_better(tmp_path, scenario):
    """A learning rate of 0: the first policy stays the best."""
    still = ("--es.learning-rate", "0", "--es.generations", "50", "--patience", "2")
    assert train(scenario, tmp_path / "es", *ES, *still) == 0
    assert agents.load(tmp_path / "es" / "last").about["generations"] == 4
    still = ("--action", "adaptive", "--learning-rate", "0", "--entropy", "0", "--timesteps", "100000")
    assert train(scenario, tmp_path / "ppo", *PPO, *still, "--validation-every", "64", "--patience", "2") == 0
    assert 128 <= agents.load(tmp_path / "ppo" / "last").about["timesteps"] <= 256


def test_several_seeds_are_runs_of_their_own_and_a_summary(tmp_path, scenario, capfd):
    out = tmp_path / "all"
    assert train(scenario, out, *ES[:-2], "--es.generations", "1", "--seeds", "3", "4", "--processes", "2") == 0
    summary = json.loads((out / "seeds.json").read_text())
    assert [row["seed"] for row in summary] == [3, 4]
    for row in summary:
        about = json.loads((out / f"seed-{row['seed']}" / "agent" / MANIFEST).read_text())["about"]
        assert row["about"] == about
        assert about["seed"] == row["seed"]
    assert train(scenario, tmp_path / "alone", *ES, "--es.generations", "1", "--seed", "4") == 0
    alone, beside = ((p / "last" / WEIGHTS).read_bytes() for p in (tmp_path / "alone", out / "seed-4"))
    assert alone == beside
    said = capfd.readouterr().out
    assert "seed 3: validation attainment" in said
    assert "all: mean" in said
    assert train(scenario, out, *ES[:-2], "--es.generations", "1", "--seeds", "3", "5", "--processes", "2") == 2
    assert "seeds: 3 failed" in capfd.readouterr().err  # it holds a run


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ("--algo", "es", "--action", "discrete"),
            "es needs --action box, adaptive, roles or route, got discrete",
        ),
        (("--algo", "es", "--init", "none"), "algo: es needs a place to begin"),
        (("--algo", "es", "--es.pairs", "0"), "es.pairs: expected 1 to"),
        (("--algo", "es", "--start", "budget=100"), "start: budget: expected 0.2 to 4, got 100"),
        (("--init", "tuned"), "init tuned: only for --action adaptive, ranked or roles, got"),
        (("--algo", "es", "--init", "tuned"), "scenario tiny: no policy has tuned settings"),
        (("--algo", "es", "--paired"), "paired: only for ppo"),
        (("--paired", "--action", "box", "--init", "none"), "paired: needs a rule to begin at"),
        (("--seeds", "1", "1"), "seeds: expected different numbers"),
        (("--processes", "0"), "processes: expected 1 to"),
    ],
)
def test_bad_input_is_one_clear_error(tmp_path, scenario, capsys, more, message):
    assert train(scenario, tmp_path / "run", *more) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert said[0].startswith("error: ")
    assert message in said[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_processes_of_evolution_and_keeps_what_was_learned(tmp_path, scenario, number, code):
    out = tmp_path / "run"
    words = (
        "--scenario",
        scenario,
        "--out",
        str(out),
        "--validation-seeds",
        "1",
        *ES[:-2],
        "--es.generations",
        "100000",
    )
    process = subprocess.Popen(
        [sys.executable, "train.py", *words, "--processes", "2"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    until, progress = time.monotonic() + 100, out / "progress.csv"
    while time.monotonic() < until and not (progress.exists() and progress.read_text().count("\n") >= 4):
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)  # as Ctrl-C does
    said, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in errors
    assert "last" in said
    assert agents.load(out / "last").about["generations"] > 0
    assert not (out / "agent").exists()
