"""`train.py --resume`: a run that was stopped ends with the bits of one that was not, or says why it cannot go on."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.logger import Logger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agents import checkpoint as checkpoint_module
from agents.checkpoint import newest_checkpoint, read_checkpoint, write_checkpoint
from agents.resume import locked
from agents.run_state import Learner, RandomNumbers, Writer
from agents.training import main
from agents.vec_env import ServingVecEnv
from llm_env.config import scenario_from_dict, scenario_to_toml
from tests.conftest import ROOT
from tests.killed_runs import digests
from tests.test_shipped import Evil

TINY = {
    "name": "tiny",
    "episode": {"arrivals_s": 4.0, "warmup_s": 0.5, "horizon_s": 6.0},
    "workload": {"load": 0.8},
    "system": {"service": {"setup_noise": "gamma", "setup_noise_cv": 0.3}},
}
OTHER = {
    "name": "other",
    "system": {"workers": 2, "max_running": 16},
    "episode": {"arrivals_s": 3.0, "warmup_s": 0.5, "horizon_s": 5.0},
}
QUICK = ("--num-envs", "4", "--num-steps", "16", "--minibatch", "32", "--validation-seeds", "1", "--epochs", "2")
SHORT = (*QUICK, "--timesteps", "512", "--validation-every", "256", "--checkpoint-every", "100")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenarios")
    for settings in (TINY, OTHER):
        (folder / f"{settings['name']}.toml").write_text(scenario_to_toml(scenario_from_dict(settings)))
    return folder


def stop_after(monkeypatch, number):
    """The run ends as by SIGINT, as soon as it has written so many checkpoints."""
    real, written = Writer.write, []

    def write(self, *arguments):
        real(self, *arguments)
        written.append(self.last_step)
        if len(written) == number:
            raise KeyboardInterrupt

    monkeypatch.setattr(Writer, "write", write)


@pytest.fixture(scope="module")
def stopped_run(files, tmp_path_factory):
    """A run of 512 steps that was stopped behind its second checkpoint, of step 256. Never changed: copy it."""
    out = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 2)
        assert main(["--scenario", str(files / "tiny.toml"), "--out", str(out), *SHORT]) == 130
    return out


@pytest.fixture
def run(stopped_run, tmp_path):
    shutil.copytree(stopped_run, tmp_path / "run")
    return tmp_path / "run"


def latest(run):
    return run / "checkpoints" / json.loads((run / "checkpoints" / "latest.json").read_text())["checkpoint"]


def resume(run, capsys, code, *more):
    capsys.readouterr()
    assert main(["--resume", str(run), *more]) == code
    return capsys.readouterr().err


# ---- the same bits -------------------------------------------------------------------------------------------------
def rows_of(run):
    with (run / "progress.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def points_of(run):
    events = EventAccumulator(str(run / "tb"), {"scalars": 0}).Reload()
    names = set(events.Tags()["scalars"]) - TIMES
    return {name: [(e.step, repr(e.value)) for e in events.Scalars(name)] for name in names}


TIMES = {"time/fps", "time/steps_per_s", "time/time_elapsed"}


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("--algo", "maskable-ppo"),
        ("--action", "box", "--paired"),
        ("--action", "discrete", "--change", "workload.arrivals.kind=closed-loop", "workload.arrivals.think_s=1.0"),
        ("--scenario", "tiny.toml", "other.toml", "--change", "workload.load=0.9"),
        ("--algo", "es", "--es.generations", "4", "--es.pairs", "2", "--es.validate-every", "2", "--processes", "1"),
    ],
    ids=["ppo", "maskable", "box", "closed-loop", "several", "es"],
)
def test_a_stopped_run_ends_with_the_weights_and_curves_of_one_that_was_not(files, tmp_path, monkeypatch, capsys, more):
    monkeypatch.chdir(files)
    words = ["--scenario", "tiny.toml", *SHORT, *more]
    assert main([*words, "--out", str(tmp_path / "whole")]) == 0
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 2)
        assert main([*words, "--out", str(tmp_path / "stopped")]) == 130
    monkeypatch.chdir(tmp_path)  # a run has all that it needs in its folder
    assert f"--resume {tmp_path / 'stopped'}" in capsys.readouterr().out
    np.random.default_rng(0)
    assert resume(tmp_path / "stopped", capsys, 0).splitlines()[0].startswith("Preparing")
    assert digests(tmp_path / "whole") == digests(tmp_path / "stopped")
    assert rows_of(tmp_path / "whole") == rows_of(tmp_path / "stopped")
    assert points_of(tmp_path / "whole") == points_of(tmp_path / "stopped")
    names = {path.name for path in (tmp_path / "stopped").iterdir()}
    assert names == {path.name for path in (tmp_path / "whole").iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed", "kills", "more"),
    [("3", "4", ()), ("6", "1", ("--algo", "recurrent-ppo", "--action", "box"))],
    ids=["ppo", "recurrent"],
)
def test_killed_at_random_moments_a_run_ends_with_the_same_weights(files, tmp_path, seed, kills, more):
    command = [sys.executable, "-m", "tests.killed_runs", str(tmp_path), seed, kills]
    words = ["--scenario", str(files / "tiny.toml"), *SHORT, "--timesteps", "1024", *more]
    done = subprocess.run(
        [*command, *words], cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["stopped"] == found["whole"], found
    assert found["codes"][0] == found["codes"][-1] == 0
    assert any(code < 0 for code in found["codes"]), "nothing was killed"
    assert any(found["came_from"]), "nothing went on from a checkpoint"


def test_a_damaged_checkpoint_costs_time_and_nothing_else(run, tmp_path, files, capsys):
    place = latest(run) / "state.safetensors"
    place.write_bytes(place.read_bytes()[:-1])
    said = resume(run, capsys, 0)
    assert f"{place}: bytes: expected" in said
    assert "going on from the sound checkpoint of step 128" in said
    assert main(["--scenario", str(files / "tiny.toml"), "--out", str(tmp_path / "whole"), *SHORT]) == 0
    assert digests(run) == digests(tmp_path / "whole")


def test_a_run_killed_before_its_first_checkpoint_begins_again(run, capsys):
    shutil.rmtree(run / "checkpoints")
    (run / "last" / "agent.json").unlink()
    said = resume(run, capsys, 0)
    assert "holds no checkpoint so far: it begins at step 0" in said
    assert (run / "agent" / "agent.json").exists()


# ---- what is refused -----------------------------------------------------------------------------------------------
def one_error(said, *words):
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, said
    for word in words:
        assert word in errors[0]


@pytest.mark.parametrize(
    "more", [("--seed", "0"), ("--timesteps", "2048"), ("--checkpoint-every", "7"), ("--overwrite",)]
)
def test_resume_goes_alone(run, capsys, more):
    one_error(resume(run, capsys, 2, *more), "resume: goes alone", more[0])


def test_a_finished_run_says_so(run, capsys):
    shutil.copytree(run / "last", run / "agent")
    one_error(resume(run, capsys, 2), "is finished", str(run / "agent"))


def test_a_run_that_is_being_trained_is_left_alone(run, files, capsys):
    with locked(run):
        one_error(resume(run, capsys, 2), "another process is training there")
        words = ["--scenario", str(files / "tiny.toml"), "--out", str(run), *SHORT, "--overwrite"]
        assert main(words) == 2
    assert latest(run).is_dir()


def test_a_stopped_run_is_not_begun_anew_unless_asked(run, files, capsys):
    words = ["--scenario", str(files / "tiny.toml"), "--out", str(run), *SHORT]
    assert main(words) == 2
    one_error(capsys.readouterr().err, f"--resume {run}", "--overwrite")
    assert latest(run).is_dir()


@pytest.mark.parametrize("folder", ["nowhere", "empty"])
def test_no_run_is_one_clear_error(tmp_path, capsys, folder):
    (tmp_path / "empty").mkdir()
    assert main(["--resume", str(tmp_path / folder)]) in (2, 3)
    one_error(capsys.readouterr().err, str(tmp_path / folder))


def change_settings(run, **changes):
    settings = json.loads((run / "settings.json").read_text())
    (run / "settings.json").write_text(json.dumps(settings | changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 1}, ("manifest.json: identity.settings",)),
        ({"timesteps": 1024}, ("identity.settings",)),
        ({"action": "box"}, ("identity.environment",)),
        ({"seed": "zero"}, ("settings.json: seed: ",)),
        ({"seed": -1}, ("settings.json: seed: expected 0 to",)),
        ({"colour": "red"}, ("settings.json: colour: is not a setting",)),
        ({"ppo": {}}, ("settings.json: ppo.",)),
        ({"ppo": 3}, ("settings.json: ppo: ",)),
    ],
)
def test_other_settings_than_those_of_the_run_are_refused(run, capsys, changes, words):
    change_settings(run, **changes)
    one_error(resume(run, capsys, 2), *words)


def test_another_environment_is_refused(run, capsys):
    text = (run / "scenario.toml").read_text()
    (run / "scenario.toml").write_text(text.replace("load = 0.8", "load = 0.7"))
    one_error(resume(run, capsys, 2), "identity.environment: the checkpoint was made with another environment")


def test_other_versions_are_remarked(run, capsys, monkeypatch):
    monkeypatch.setattr("agents.resume.made_here", lambda: {**checkpoint_module.made_here(), "simulator": "other"})
    assert "made with simulator" in resume(run, capsys, 0)


def rewrite(run, change):
    """Writes the newest checkpoint once more, changed, with everything signed as it should be."""
    folder = latest(run)
    found = read_checkpoint(folder)
    state = {
        name: value.copy() if isinstance(value, np.ndarray) else value for name, value in found.state.values.items()
    }
    change(state)
    shutil.rmtree(run / "checkpoints")
    write_checkpoint(run, found.step, found.identity, state, found.files)


def put(name, value, state, at=...):
    if isinstance(state[name], np.ndarray) and at is not ...:
        state[name][at] = value
    else:
        state[name] = value


def longer(name, state):
    state[name] = np.concatenate((state[name], state[name]))


WRONG = {
    "NaN weights": (partial(put, "learner.policy.action_net.weight", np.nan, at=(0, 0)), "holds NaN"),
    "infinite weights": (partial(put, "learner.policy.action_net.bias", np.inf, at=0), "holds NaN or infinite"),
    "a wrong shape": (partial(longer, "learner.policy.action_net.weight"), "expected shape"),
    "weights too many": (lambda s: s.update({"learner.policy.more": np.zeros(1, np.float32)}), "no such weights"),
    "weights too few": (lambda s: s.pop("learner.policy.value_net.bias"), "is missing"),
    "NaN moments": (partial(put, "learner.adam.0.exp_avg", np.nan, at=(0, 0)), "holds NaN"),
    "a moment below 0": (partial(put, "learner.adam.0.exp_avg_sq", -1.0, at=(0, 0)), "below 0"),
    "moments missing": (lambda s: s.pop("learner.adam.3.exp_avg"), "learner.adam.3.exp_avg: is missing"),
    "other doubles": (lambda s: s.update({"learner.observations": s["learner.observations"].astype(float)}), "float32"),
    "a counter": (partial(put, "learner.num_timesteps", -5), "learner.num_timesteps: expected a whole number"),
    "another step": (partial(put, "learner.num_timesteps", 64), "learner.num_timesteps: expected 256"),
    "logs": (partial(put, "learner.logged", {"train/loss": ["eval", "1", 1, None]}), "learner.logged.train/loss"),
    "torch": (partial(put, "random.torch", np.zeros(3, np.uint8)), "random.torch: expected shape"),
    "numpy": (partial(put, "random.numpy_place", [900, 0, "0x0p+0"]), "random.numpy_place: expected the state"),
    "python": (partial(put, "random.python", [3, [1, 2], None]), "random.python: expected the state"),
    "streams": (partial(put, "environment.streams", [[1, 2, 3, 4]] * 4), "environment.streams: is no state"),
    "too few streams": (partial(put, "environment.streams", []), "environment.streams: expected 4"),
    "a row": (partial(put, "environment.rows", 9, at=0), "environment.rows: "),
    "a scenario": (partial(put, "environment.scenario_index", 1, at=0), "environment.rows: "),
    "requests": (lambda s: s.pop("environment.part0.requests"), "environment.part0.requests: expected"),
    "fewer systems": (lambda s: s.update({"environment.part0.workers": s["environment.part0.workers"][:2]}), "shape"),
    "other records": (
        lambda s: s.update({"environment.part0.workers": s["environment.part0.queues"]}),
        "environment.part0.workers: expected an array of records",
    ),
    "trees": (partial(put, "environment.part0.levels", 5, at=(0, 0)), "environment.part0.levels: "),
    "history": (partial(put, "validation.history", np.zeros((2, 2))), "validation.history: expected shape"),
    "columns": (partial(put, "progress.columns", 3), "progress.columns: expected a list"),
    "no scenarios": (partial(put, "run.scenarios", [3]), "run.scenarios: expected names"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_one_error_that_names_it(run, capsys, name):
    change, said = WRONG[name]
    rewrite(run, change)
    one_error(resume(run, capsys, 2), str(latest(run)), said)


def test_weights_that_became_nan_are_not_saved(files, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("agents.run_state._array", lambda tensor: np.full(tuple(tensor.shape), np.nan, np.float32))
    words = ["--scenario", str(files / "tiny.toml"), "--out", str(tmp_path / "run"), *SHORT]
    assert main(words) == 2
    one_error(capsys.readouterr().err, "training has diverged: after 128 steps policy.")


# ---- a full disk ---------------------------------------------------------------------------------------------------
def test_a_full_disk_ends_the_run_with_one_error_and_room_lets_it_go_on(run, capsys, monkeypatch):
    def full(path, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_module, "_write", full)
        said = resume(run, capsys, 3)
    words = ("the disk is full", "step 384 was not written", "the one of step 256 is kept", f"--resume {run}")
    one_error(said, *words)
    assert newest_checkpoint(run, pytest.fail).step == 256
    resume(run, capsys, 0)


# ---- a learner with memory -----------------------------------------------------------------------------------------
def test_the_memory_of_a_recurrent_learner_is_lost(tmp_path):
    def make(seed):
        env = ServingVecEnv(scenario_from_dict(TINY), 3)
        model = RecurrentPPO(
            "MlpLstmPolicy", env, n_steps=8, batch_size=24, n_epochs=1, seed=seed, policy_kwargs={"lstm_hidden_size": 8}
        )
        model.set_logger(Logger(None, []))
        env.seed(seed)
        return model, {"environment": env, "learner": Learner(model), "random": RandomNumbers()}

    model, parts = make(1)
    model.learn(72)
    state = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.saved().items()}
    write_checkpoint(tmp_path, 72, {}, state, {})
    model.learn(72, reset_num_timesteps=False)
    other, others = make(2)
    other.learn(24)
    found = newest_checkpoint(tmp_path, pytest.fail)
    for name, part in others.items():
        part.restore(found.state.below(name))
    others["random"].apply()
    other.learn(72, reset_num_timesteps=False)
    for name, tensor in model.policy.state_dict().items():
        assert torch.equal(tensor, other.policy.state_dict()[name]), name
    for mine, theirs in zip(model._last_lstm_states.pi, other._last_lstm_states.pi, strict=True):
        assert torch.equal(mine, theirs)
        assert mine.abs().sum() > 0


# ---- nothing that is read runs -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "name",
    [
        *("state.safetensors", "state.json", "progress.csv", "best/agent.json", "best/agent.safetensors"),
        *("manifest.json", "../latest.json", "../../settings.json", "../../scenario.toml"),
    ],
)
def test_nothing_in_a_crafted_checkpoint_runs(run, tmp_path, capsys, name):
    """A pickle that makes a folder, in place of each file, with a manifest that says it is right."""
    mark, payload = tmp_path / "mark", pickle.dumps(Evil(tmp_path / "mark"))
    folder = latest(run)
    for other in (run / "checkpoints").iterdir():
        if other.is_dir() and other != folder:
            shutil.rmtree(other)
    (folder / name).write_bytes(payload)
    manifest = json.loads((folder / "manifest.json").read_bytes()) if name != "manifest.json" else {"files": {}}
    if name in manifest["files"]:
        manifest.pop("sha256")
        manifest["files"][name] = {"bytes": len(payload), "sha256": hashlib.sha256(payload).hexdigest()}
        manifest["sha256"] = hashlib.sha256(checkpoint_module._to_json(manifest)).hexdigest()
        (folder / "manifest.json").write_bytes(checkpoint_module._to_json(manifest))
    if name == "../latest.json":
        assert "not valid JSON" in resume(run, capsys, 0)
    else:
        one_error(resume(run, capsys, 2), str((folder / name).resolve()))
    assert not mark.exists()
    pickle.loads(payload)  # noqa: S301 (to see that it would have)
    assert mark.exists()
