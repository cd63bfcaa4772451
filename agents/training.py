"""`python train.py`: arguments, the run's folder, learning, and what is left behind."""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
import shutil
import sys
from collections.abc import Sequence
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
from llm_env.scenarios import check_changes_of_trace, load_scenario
from llm_env.spaces import resolve_scenarios, traffic_of, workload_of
from llm_env.systems import NUM_TRAINING_SEEDS, Workload, checked_load_range
from llm_env.workload import WHOLE, Traffic, Windows, checked_part, is_closed, part_of, refuse_rate

FILES = ("settings.json", "scenario.toml", "versions.json", "command.txt", "progress.csv")
FOLDERS = ("scenarios", "tb", "agent", "last")
VALIDATION_LOADS = (0.6, 0.8, 1.0)
VALIDATION_SHARE = 0.2  # of the time of a trace or its part, at its end


@dataclass(frozen=True)
class Arguments:
    """Trains a scheduler with PPO, validating it on workloads of its own, and keeps the best weights.

    Writes settings, scenario, versions and command, TensorBoard events (tb/), progress.csv, the agent with the best
    validation (agent/) and the last one (last/). The same arguments give the same weights.
    """

    scenario: tuple[str, ...] = ("chat-bursty",)
    """A shipped scenario's name or a TOML file: system, promises, traffic, reward. Of several, each episode draws
    one."""

    change: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY=VALUE ...")] = ()
    """Settings of every scenario to change, like system.workers=4 reward.token=0.1."""

    timesteps: int = 2_000_000
    """Decisions to learn from, over all environments; rounded up to whole rollouts."""

    seed: int = 0
    """Of everything: weights, exploration, and which of the training episodes (seeds 0 to 999,999) are met."""

    num_envs: int = 256
    """Systems side by side."""

    action: Literal["multidiscrete", "discrete", "box"] = "multidiscrete"
    """Form of the action: four choices, one of 18 combinations, or four numbers around a heuristic."""

    load_range: Annotated[tuple[float, float] | None, tyro.conf.arg(metavar="LOW HIGH")] = None
    """Each episode draws its load between these; 0.5 to 1.1 by default, or a trace or a closed loop as it is. A trace
    is squeezed or stretched in time to the load."""

    trace: str | None = None
    """Learn from windows of this trace file in place of the scenario's traffic: of the first 80 % of its time; what is
    left is for validation."""

    time_scale: float = 1.0
    """Factor on the trace's arrival times: 2 halves the rate."""

    trace_part: Annotated[tuple[float, float], tyro.conf.arg(metavar="FROM TO")] = WHOLE
    """Use the trace between these shares of its time alone: 0 0.7 leaves 0.7 1 to evaluate.py."""

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
        if self.load_range is not None:
            checked_load_range(self.load_range)
        checked_part(self.trace_part)


def main(argv: list[str] | None = None) -> int:
    """Runs the command. Returns the exit code (see `llm_env.command.exit_code`)."""
    return exit_code(lambda: _run(tyro.cli(Arguments, args=argv, prog="train.py"), argv))


def _run(arguments: Arguments, argv: list[str] | None) -> int:
    if arguments.trace is not None:
        check_changes_of_trace(arguments.change)
    scenarios = resolve_scenarios([load_scenario(each, arguments.change) for each in arguments.scenario], None)
    together = "+".join(scenario.name for scenario in scenarios)
    name = f"{together}-{arguments.ppo.algo}-{arguments.seed}"
    out = Path(arguments.out or Path("runs") / name)
    learned, validated = _traffic(arguments)
    load_ranges = [_load_range(arguments, scenario) for scenario in scenarios]
    workloads = [
        workload_of(scenario, load_range, learned) for scenario, load_range in zip(scenarios, load_ranges, strict=True)
    ]
    for workload in workloads:
        workload(0)  # a trace or a load that cannot be used is known before anything is written
    for remark in _same_every_seed(arguments, scenarios, load_ranges, (learned, validated)):
        sys.stderr.write(f"{remark}\n")
    against = _validation_set(arguments, scenarios, load_ranges, validated)
    env = ServingVecEnv(scenarios, arguments.num_envs, arguments.action, workloads, _stagger_steps(scenarios))
    model = make_ppo(env, _fitting(arguments), arguments.seed)
    env.seed(first_episode_seed(arguments.seed, arguments.num_envs))
    try:
        _begin(out, arguments, scenarios, argv)
        logger = Logger(
            str(out), [CSVOutputFormat(str(out / "progress.csv")), TensorBoardOutputFormat(str(out / "tb"))]
        )
    except OSError as error:
        raise InputOutputError(f"{error.filename or out}: cannot be written: {error.strerror}") from None
    model.set_logger(logger)

    def export() -> NumpyAgent:
        about = {"name": name, "scenario": together, "algo": arguments.ppo.algo, "seed": arguments.seed}
        about |= {"timesteps": int(model.num_timesteps)}
        masked = arguments.ppo.algo == "maskable-ppo"
        return agent_from_policy(model.policy, arguments.action, ACTIVATION, masked, about)

    validation = Validation(export, against, arguments.validation_every)
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
    _tell(out, arguments, scenarios, validation)
    return 0


def _tell(out: Path, arguments: Arguments, scenarios: Sequence[Scenario], validation: Validation) -> None:
    quoted = shlex.quote(str(out))
    first = validation.history[0][1]
    sys.stdout.write(
        f"best agent, of step {validation.best_timesteps:,}: {out / 'agent'}\n"
        f"validation attainment {validation.best_attainment:.4f}, before training {first:.4f}\n"
        f"curves:  tensorboard --logdir {quoted}/tb\n"
    )
    files = _scenario_files(scenarios)
    for given, scenario, file in zip(arguments.scenario, scenarios, files, strict=True):
        named = shlex.quote(str(out / file) if arguments.change else given)
        words = f"python evaluate.py --agents {quoted} --scenario {named} {_traffic_words(arguments, scenario)}"
        sys.stdout.write(f"compare: {words.rstrip()}\n")


def _traffic_words(arguments: Arguments, scenario: Scenario) -> str:
    """The options of evaluate.py for traffic like that of the run; of a trace, what nothing was learned from."""
    if arguments.trace is None:
        return "" if is_closed(scenario) else "--loads " + " ".join(f"{load:g}" for load in VALIDATION_LOADS)
    start, end = arguments.trace_part
    unseen = (end, 1.0) if end < 1 else (_validation_begins(start, end), end)
    scale = f"--time-scale {arguments.time_scale:g}"
    return f"--trace {shlex.quote(arguments.trace)} {scale} --trace-part {unseen[0]:g} {unseen[1]:g}"


# ---- settings of a run ---------------------------------------------------------------------------------------------
def first_episode_seed(seed: int, num_envs: int) -> int:
    """Where the episodes of a run begin: different seeds give different ones, all below NUM_TRAINING_SEEDS."""
    return int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] % (NUM_TRAINING_SEEDS - num_envs))


def _stagger_steps(scenarios: Sequence[Scenario]) -> int:
    """About the number of decisions while requests arrive: episodes begin spread over that."""
    decisions = max(s.episode.arrivals_s / (s.slo.tightest_tbt_ms / 1000.0) for s in scenarios)
    return max(1, min(int(decisions), 5000))


def _fitting(arguments: Arguments) -> PPOSettings:
    """Shorter rollouts where one would be longer than the whole training."""
    steps = -(-arguments.timesteps // arguments.num_envs)
    return dataclasses.replace(arguments.ppo, num_steps=min(arguments.ppo.num_steps, steps))


def _load_range(arguments: Arguments, scenario: Scenario) -> tuple[float, float] | None:
    if arguments.load_range is not None and arguments.trace is None:
        refuse_rate(scenario, "load-range")
    if arguments.load_range is not None or arguments.trace is not None or is_closed(scenario):
        return arguments.load_range
    return 0.5, 1.1


def _traffic(arguments: Arguments) -> tuple[Traffic | None, Traffic | None]:
    """What is learned from and what is validated on: parts of the trace that follow each other; None without one."""
    start, end = arguments.trace_part
    part = WHOLE if arguments.trace else arguments.trace_part
    whole = traffic_of(arguments.trace, arguments.time_scale, part, lambda line: sys.stderr.write(f"{line}\n"))
    if whole is None:
        return None, None
    middle = _validation_begins(start, end)
    learned, validated = (part_of(whole.arrival_s, part) for part in ((start, middle), (middle, end)))
    return whole.take(learned), whole.take(validated)


def _same_every_seed(
    arguments: Arguments,
    scenarios: Sequence[Scenario],
    load_ranges: Sequence[tuple[float, float] | None],
    parts: tuple[Traffic | None, Traffic | None],
) -> list[str]:
    """A remark on each part of the trace, learned or validated, that is no longer than an episode.

    Args:
        parts: of `_traffic`.
    """
    start, end = arguments.trace_part
    middle = _validation_begins(start, end)
    remarks = []
    for scenario, load_range in zip(scenarios, load_ranges, strict=True):
        highest = (None, None) if load_range is None else (load_range[1], max(VALIDATION_LOADS))
        bounds = (("learning", start, middle), ("validation", middle, end))
        for (use, low, high), traffic, load in zip(bounds, parts, highest, strict=True):
            if traffic is None:
                continue
            lasts_s = Windows(traffic, scenario, scalable=load is not None).span_s(load)
            if lasts_s > scenario.episode.arrivals_s:
                continue
            at = "" if load is None else f" at load {load:g}"
            remarks.append(
                f"trace: {use} meets the same arrivals with every seed: the part {low:g} to {high:g} of the trace lasts"
                f" {lasts_s:.4g} s{at}, and an episode of {scenario.name} has episode.arrivals_s = "
                f"{scenario.episode.arrivals_s:g}: shorten it (--change episode.arrivals_s=...) or use a longer trace"
            )
    return remarks


def _validation_begins(start: float, end: float) -> float:
    return end - VALIDATION_SHARE * (end - start)


def _validation_set(
    arguments: Arguments,
    scenarios: Sequence[Scenario],
    load_ranges: Sequence[tuple[float, float] | None],
    traffic: Traffic | None,
) -> ValidationSet:
    """Each scenario at VALIDATION_LOADS, or as it is where learning draws no loads."""
    seeds = tuple(range(FIRST_VALIDATION_SEED, FIRST_VALIDATION_SEED + arguments.validation_seeds))
    cases: list[tuple[str, Scenario, Workload | None]] = []
    for scenario, load_range in zip(scenarios, load_ranges, strict=True):
        name = f"{scenario.name}_" if len(scenarios) > 1 else ""
        if load_range is None:
            word = "closed_loop" if traffic is None else "trace"
            cases.append((name + word, scenario, workload_of(scenario, None, traffic)))
            continue
        for load in VALIDATION_LOADS:
            workload = workload_of(scenario, (load, load), traffic) if traffic is not None else None
            at_load = scenario if traffic is not None else with_changes(scenario, {"workload.load": load})
            cases.append((f"{name}load_{load:g}", at_load, workload))
    return ValidationSet(cases=tuple(cases), seeds=seeds)


# ---- the folder ----------------------------------------------------------------------------------------------------
def _scenario_files(scenarios: Sequence[Scenario]) -> list[Path]:
    """Where a run keeps its scenarios: scenario.toml, or of several scenarios/NAME.toml."""
    if len(scenarios) == 1:
        return [Path("scenario.toml")]
    return [Path("scenarios") / f"{scenario.name}.toml" for scenario in scenarios]


def _begin(out: Path, arguments: Arguments, scenarios: Sequence[Scenario], argv: list[str] | None) -> None:
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
    texts = {"settings.json": settings, "versions.json": provenance, "command.txt": shlex.join(words)}
    texts |= {
        str(file): scenario_to_toml(scenario).rstrip("\n")
        for file, scenario in zip(_scenario_files(scenarios), scenarios, strict=True)
    }
    for name, text in texts.items():
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text(text + "\n", encoding="utf-8")
