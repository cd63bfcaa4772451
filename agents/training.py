"""`python train.py`: arguments, the run's folder, learning, and what is left behind."""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from rich.console import Console
from stable_baselines3.common.logger import CSVOutputFormat, Logger, TensorBoardOutputFormat

from agents.callbacks import FIRST_VALIDATION_SEED, EpisodeMetrics, ProgressLine, Validation, ValidationSet
from agents.export import MANIFEST, agent_from_policy, save_agent
from agents.network import NumpyAgent
from agents.ppo import ACTIVATION, PPOSettings, make_ppo
from agents.vec_env import ServingVecEnv
from llm_env.command import Terminated, exit_code
from llm_env.config import Scenario, scenario_to_toml, with_changes
from llm_env.errors import InputOutputError, UserError
from llm_env.provenance import git_commit, versions
from llm_env.scenarios import load_scenario
from llm_env.spaces import resolve_workload
from llm_env.systems import NUM_TRAINING_SEEDS, Workload

FILES = ("settings.json", "scenario.toml", "versions.json", "command.txt", "progress.csv")
FOLDERS = ("tb", "agent", "last")
VALIDATION_LOADS = (0.6, 0.8, 1.0)


@dataclass(frozen=True)
class Arguments:
    """Trains a scheduler with PPO, validating it on workloads of its own, and keeps the best weights.

    Writes settings, scenario, versions and command, TensorBoard events (tb/), progress.csv, the agent with the best
    validation (agent/) and the last one (last/). The same arguments give the same weights.
    """

    scenario: str = "chat-bursty"
    """A shipped scenario's name or a TOML file: system, promises, traffic, reward."""

    change: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY=VALUE ...")] = ()
    """Settings of the scenario to change, like system.workers=4 reward.token=0.1."""

    timesteps: int = 2_000_000
    """Decisions to learn from, over all environments; rounded up to whole rollouts."""

    seed: int = 0
    """Of everything: weights, exploration, and which of the training episodes (seeds 0 to 999,999) are met."""

    num_envs: int = 256
    """Systems side by side."""

    action: Literal["multidiscrete", "discrete", "box"] = "multidiscrete"
    """Form of the action: four choices, one of 18 combinations, or four numbers around a heuristic."""

    load_range: Annotated[tuple[float, float] | None, tyro.conf.arg(metavar="LOW HIGH")] = None
    """Each episode draws its load between these; 0.5 to 1.1 by default, or a trace as it is."""

    trace: str | None = None
    """Learn from windows of this trace file in place of the scenario's traffic."""

    time_scale: float = 1.0
    """Factor on the trace's arrival times: 2 halves the rate."""

    out: str | None = None
    """Folder of the run; runs/SCENARIO-ALGO-SEED by default."""

    overwrite: bool = False
    """Replace a run that left an agent, finished or interrupted."""

    validation_every: int = 130_000
    """Steps between validations."""

    validation_seeds: int = 12
    """Workloads per load (0.6, 0.8, 1.0), seeds from 1,000,000 on."""

    ppo: Annotated[PPOSettings, tyro.conf.arg(name="")] = field(default_factory=PPOSettings)

    def __post_init__(self) -> None:
        for name, low, high in (
            ("timesteps", 1, 10**12),
            ("seed", 0, 2**32 - 1),
            ("num_envs", 1, 65_536),
            ("validation_every", 1, 10**12),
            ("validation_seeds", 1, 1000),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise UserError(f"{name.replace('_', '-')}: expected {low} to {high}, got {value}")
        if not (math.isfinite(self.time_scale) and self.time_scale > 0):
            raise UserError(f"time-scale: expected above 0, got {self.time_scale:g}")
        if self.load_range is not None and not 0 < self.load_range[0] <= self.load_range[1] <= 10:
            low, high = self.load_range
            raise UserError(f"load-range: expected 0 < LOW <= HIGH <= 10, got {low:g} {high:g}")


def main(argv: list[str] | None = None) -> int:
    """Runs the command. Returns the exit code (see `llm_env.command.exit_code`)."""
    return exit_code(lambda: _run(tyro.cli(Arguments, args=argv, prog="train.py"), argv))


def _run(arguments: Arguments, argv: list[str] | None) -> int:
    scenario = load_scenario(arguments.scenario, arguments.change)
    name = f"{scenario.name}-{arguments.ppo.algo}-{arguments.seed}"
    out = Path(arguments.out or Path("runs") / name)
    load_range = arguments.load_range or (None if arguments.trace else (0.5, 1.1))
    workload = resolve_workload(scenario, load_range, arguments.trace, arguments.time_scale)
    workload(0)  # a trace or a load that cannot be used is known before anything is written
    env = ServingVecEnv(scenario, arguments.num_envs, arguments.action, workload, _stagger_steps(scenario))
    model = make_ppo(env, _fitting(arguments), arguments.seed)
    env.seed(first_episode_seed(arguments.seed, arguments.num_envs))
    try:
        _begin(out, arguments, scenario, argv)
        logger = Logger(
            str(out), [CSVOutputFormat(str(out / "progress.csv")), TensorBoardOutputFormat(str(out / "tb"))]
        )
    except OSError as error:
        raise InputOutputError(f"{error.filename or out}: cannot be written: {error.strerror}") from None
    model.set_logger(logger)

    def export() -> NumpyAgent:
        about = {"name": name, "scenario": scenario.name, "algo": arguments.ppo.algo, "seed": arguments.seed}
        about |= {"timesteps": int(model.num_timesteps)}
        masked = arguments.ppo.algo == "maskable-ppo"
        return agent_from_policy(model.policy, arguments.action, ACTIVATION, masked, about)

    validation = Validation(export, _validation_set(arguments, scenario, load_range), arguments.validation_every)
    progress = ProgressLine(validation, arguments.timesteps)
    Console(stderr=True).print("Preparing; the first run compiles the simulator, for about half a minute.")
    try:
        model.learn(arguments.timesteps, callback=[EpisodeMetrics(arguments.action), validation, progress])
    except (KeyboardInterrupt, Terminated):
        progress.stop()
        save_agent(export(), out / "last")
        sys.stdout.write(f"stopped after {model.num_timesteps:,} steps; what was learned is in {out / 'last'}\n")
        raise
    finally:
        logger.close()
    save_agent(export(), out / "last")
    assert validation.best is not None  # the last policy at least
    best = validation.best.about | {"validation_attainment": validation.best_attainment}
    save_agent(dataclasses.replace(validation.best, about=best), out / "agent")
    _tell(out, arguments, validation)
    return 0


def _tell(out: Path, arguments: Arguments, validation: Validation) -> None:
    quoted = shlex.quote(str(out))
    scenario = shlex.quote(str(out / "scenario.toml") if arguments.change else arguments.scenario)
    traffic = f"--trace {shlex.quote(arguments.trace)} --time-scale {arguments.time_scale:g}" if arguments.trace else ""
    traffic = traffic or "--loads " + " ".join(f"{load:g}" for load in VALIDATION_LOADS)
    first = validation.history[0][1]
    sys.stdout.write(
        f"best agent, of step {validation.best_timesteps:,}: {out / 'agent'}\n"
        f"validation attainment {validation.best_attainment:.4f}, before training {first:.4f}\n"
        f"curves:  tensorboard --logdir {quoted}/tb\n"
        f"compare: python evaluate.py --agents {quoted} --scenario {scenario} {traffic}\n"
    )


# ---- settings of a run ---------------------------------------------------------------------------------------------
def first_episode_seed(seed: int, num_envs: int) -> int:
    """Where the episodes of a run begin: different seeds give different ones, all below NUM_TRAINING_SEEDS."""
    return int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] % (NUM_TRAINING_SEEDS - num_envs))


def _stagger_steps(scenario: Scenario) -> int:
    """About the number of decisions while requests arrive: episodes begin spread over that."""
    decisions = scenario.episode.arrivals_s / (scenario.slo.tightest_tbt_ms / 1000.0)
    return max(1, min(int(decisions), 5000))


def _fitting(arguments: Arguments) -> PPOSettings:
    """Shorter rollouts where one would be longer than the whole training."""
    steps = -(-arguments.timesteps // arguments.num_envs)
    return dataclasses.replace(arguments.ppo, num_steps=min(arguments.ppo.num_steps, steps))


def _validation_set(arguments: Arguments, scenario: Scenario, load_range: tuple[float, float] | None) -> ValidationSet:
    seeds = tuple(range(FIRST_VALIDATION_SEED, FIRST_VALIDATION_SEED + arguments.validation_seeds))
    if load_range is None:
        whole: Workload = resolve_workload(scenario, None, arguments.trace, arguments.time_scale)
        return ValidationSet(cases=(("trace", scenario, whole),), seeds=seeds)
    cases = []
    for load in VALIDATION_LOADS:
        at_load = with_changes(scenario, {"workload.load": load})
        workload = None
        if arguments.trace:
            workload = resolve_workload(scenario, (load, load), arguments.trace, arguments.time_scale)
        cases.append((f"load_{load:g}", at_load, workload))
    return ValidationSet(cases=tuple(cases), seeds=seeds)


# ---- the folder ----------------------------------------------------------------------------------------------------
def _begin(out: Path, arguments: Arguments, scenario: Scenario, argv: list[str] | None) -> None:
    """Makes the run's folder, clears an unfinished run out of it, and writes what is known before learning.

    Raises:
        UserError: a finished run is there, or something that is no run.
        InputOutputError: it cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise InputOutputError(f"{out}: is a file, expected a folder")
    if out.is_dir():
        for kept in ("agent", "last"):
            if (out / kept / MANIFEST).exists() and not arguments.overwrite:
                raise UserError(f"{out}: holds a run with a trained agent: choose another --out, or --overwrite")
        if any(out.iterdir()) and not all((out / name).exists() for name in ("settings.json", "command.txt")):
            raise UserError(f"{out}: is not empty and holds no run: choose another --out")
        for file in FILES:
            (out / file).unlink(missing_ok=True)
        for folder in FOLDERS:
            if (out / folder).exists():
                shutil.rmtree(out / folder)
    out.mkdir(parents=True, exist_ok=True)
    settings = json.dumps(dataclasses.asdict(arguments), indent=1)
    provenance = json.dumps({"versions": versions(), "git_commit": git_commit()}, indent=1)
    words = ["python", "train.py", *(sys.argv[1:] if argv is None else argv)]
    texts = (settings, scenario_to_toml(scenario).rstrip("\n"), provenance, shlex.join(words))
    for name, text in zip(FILES, texts, strict=False):
        (out / name).write_text(text + "\n", encoding="utf-8")
