"""`train.py`: what a run leaves behind, how it ends, that it can be repeated, and that something is learned."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import agents
from agents.arguments import Arguments
from agents.export import WEIGHTS
from agents.ppo import PPOSettings, make_ppo
from agents.ppo_training import first_episode_seed
from agents.task import traffic_parts
from agents.training import main
from agents.vec_env import ServingVecEnv
from llm_env.config import read_scenario, scenario_from_dict, scenario_to_toml
from llm_env.evaluation import main as evaluate
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
    assert agent.about["timesteps"] > 64  # of the first rollout: never the untrained one
    assert 0 <= agent.about["validation_attainment"] <= 1


def test_the_same_arguments_give_the_same_weights_and_another_seed_others(tmp_path, scenario):
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert train(scenario, tmp_path / name, "--seed", seed) == 0
    for kind in ("agent", "last"):
        a, b, c = ((tmp_path / name / kind / WEIGHTS).read_bytes() for name in "abc")
        assert a == b
        assert a != c


@pytest.mark.parametrize(
    "more",
    [
        ("--algo", "maskable-ppo"),
        ("--action", "discrete"),
        ("--action", "box"),
        ("--action", "adaptive"),
        ("--action", "ranked"),
        ("--init", "none"),
    ],
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


def test_windows_of_a_trace_are_learned_and_validated_in_different_parts(tmp_path):
    rows = [f"{k * 0.5},{k + 1},5" for k in range(400)]  # prompts tell requests apart
    trace = tmp_path / "day.csv"
    trace.write_text("\n".join(["arrival_s,prompt_tokens,output_tokens", *rows]) + "\n")
    for part, cut, end in (((0.0, 1.0), 320, 400), ((0.0, 0.5), 160, 200)):
        learned, validated = traffic_parts(Arguments(trace=str(trace), trace_part=part))
        assert learned is not None
        assert validated is not None
        assert learned.prompt_tokens.tolist() == list(range(1, cut + 1))
        assert validated.prompt_tokens.tolist() == list(range(cut + 1, end + 1))


@pytest.mark.parametrize(
    ("seconds", "more", "said"),
    [
        (12.0, (), [("validation", "0.8 to 1", 2.4, "s, ")]),
        (4.5, (), [("learning", "0 to 0.8", 3.6, "s, "), ("validation", "0.8 to 1", 0.9, "s, ")]),
        (25.0, (), []),
        (25.0, ("--trace-part", "0", "0.5"), [("validation", "0.4 to 0.5", 2.5, "s, ")]),
        (12.0, ("--load-range", "0.1", "1"), [("validation", "0.8 to 1", None, "s at load 1, ")]),
        (
            12.0,
            ("--load-range", "5", "9"),
            [("learning", "0 to 0.8", None, "9, "), ("validation", "0.8 to 1", None, "1, ")],
        ),
    ],
)
def test_a_part_that_is_no_longer_than_an_episode_is_not_remarked(tmp_path, scenario, capsys, seconds, more, said):
    """A request each hundredth of the trace, so a part is up to two gaps shorter than its share of the time."""
    rows = [f"{k * seconds / 100},500,20" for k in range(101)]
    trace = tmp_path / "day.csv"
    trace.write_text("\n".join(["arrival_s,prompt_tokens,output_tokens", *rows]) + "\n")
    assert train(scenario, tmp_path / "run", "--trace", str(trace), *more) == 0
    remarks = [line for line in capsys.readouterr().err.splitlines() if "same arrivals" in line]
    assert len(remarks) == len(said)
    for remark, (use, part, lasts_s, after) in zip(remarks, said, strict=True):
        for words in (
            use,
            f"the part {part} of",
            after,
            "tiny has episode.arrivals_s = 4:",
            "--change episode.arrivals_s=",
        ):
            assert words in remark
        if lasts_s is not None:
            found_s = float(remark.split(" lasts ")[1].split()[0])
            assert lasts_s - seconds / 50 < found_s <= lasts_s + 1e-9


def test_silences_of_a_trace_stop_the_learning_or_count_in_its_means(tmp_path, scenario):
    """Bursts of 2 s every 20 s under episodes of 4 s: most have no request, those of validation among them."""
    rows = [f"{20 * burst + k / 10},300,{5 + k}" for burst in range(40) for k in range(20)]
    trace = tmp_path / "day.csv"
    trace.write_text("\n".join(["arrival_s,prompt_tokens,output_tokens", *rows]) + "\n")
    run = tmp_path / "run"
    assert train(scenario, run, "--trace", str(trace), "--validation-seeds", "8") == 0
    scalars = EventAccumulator(str(run / "tb")).Reload()
    empty = [event.value for event in scalars.Scalars("serve/num_requests")]
    assert 0 < min(empty) < 10
    for name in ("serve/slo_attainment", "validation/slo_attainment", "serve/ttft_p99_s", "validation/ttft_p99_s"):
        values = [event.value for event in scalars.Scalars(name)]
        assert values
        assert np.isfinite(values).all()
    assert np.mean([event.value for event in scalars.Scalars("validation/slo_attainment")]) > 0.3


OTHER = {
    "name": "other",
    "system": {"workers": 2, "max_running": 16},
    "episode": {"arrivals_s": 3.0, "warmup_s": 0.5, "horizon_s": 5.0},
    "reward": {"first_token": 0.5, "token": 0.1},
}


def test_a_run_on_several_scenarios_keeps_all_of_them(tmp_path, scenario, capsys):
    other = tmp_path / "other.toml"
    other.write_text(scenario_to_toml(scenario_from_dict(OTHER)))
    run = tmp_path / "run"
    longer = ("--timesteps", "2048", "--num-steps", "64")  # or no episode ends
    assert train(scenario, run, "--scenario", scenario, str(other), "--load-range", "0.4", "1.2", *longer) == 0
    assert not (run / "scenario.toml").exists()
    for settings in (TINY, OTHER):
        assert read_scenario(run / "scenarios" / f"{settings['name']}.toml") == scenario_from_dict(settings)
    scalars = set(EventAccumulator(str(run / "tb")).Reload().Tags()["scalars"])
    for name in ("tiny", "other"):
        assert {f"validation/slo_attainment_{name}_load_{load}" for load in ("0.6", "0.8", "1")} <= scalars
        assert f"serve/slo_attainment_{name}" in scalars
    assert agents.load(run).about["scenario"] == "tiny+other"
    compare = [line for line in capsys.readouterr().out.splitlines() if line.startswith("compare: ")]
    assert len(compare) == 2
    command = shlex.split(compare[1].removeprefix("compare: python evaluate.py "))
    quick = ("--seeds", "2", "--baselines", "fcfs", "--processes", "1", "--out", str(tmp_path / "results"))
    assert evaluate([*command, *quick]) == 0
    rows = json.loads((tmp_path / "results" / "results.json").read_text())["rows"]
    assert [row["is_agent"] for row in rows] == [True, False] * 3
    assert train(scenario, run, "--overwrite") == 0
    assert not (run / "scenarios").exists()


def test_it_learns_from_users_who_wait_for_their_answers(tmp_path, scenario, capsys):
    closed = ("--change", "workload.arrivals.kind=closed-loop", "workload.arrivals.think_s=1.0")
    assert train(scenario, tmp_path / "run", *closed) == 0
    assert "--loads" not in capsys.readouterr().out
    assert agents.load(tmp_path / "run").about["timesteps"] > 0
    assert train(scenario, tmp_path / "no", *closed, "--load-range", "0.5", "0.9") == 2
    assert "workload.arrivals.kind is closed-loop" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "no").exists()


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
        (("--load-range", "0.9", "0.5"), 2, "load_range: expected"),
        (("--time-scale", "-1"), 2, "time-scale"),
        (("--trace-part", "0.7", "0.5"), 2, "trace_part: expected"),
        (("--trace-part", "0", "0.5"), 2, "trace_part: only for a trace"),
        (("--scenario", "chat", "chat"), 2, 'two of them are called "chat"'),
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
    settings = PPOSettings(num_steps=32, minibatch=512, learning_rate=3e-3, horizon_s=2.0)
    model = make_ppo(env, settings, seed=0, undecided=True)
    env.seed(0)
    paid = []
    for _ in range(2):
        model.learn(1024 if not paid else 30_000, reset_num_timesteps=not paid)
        buffer = model.rollout_buffer
        paid.append(float(buffer.rewards.mean()))
    assert paid[1] > paid[0]
