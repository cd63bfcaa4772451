"""`python train.py`: learning, and what is left behind."""

from __future__ import annotations

import dataclasses
import math
import shlex
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import tyro
from rich.console import Console

from agents.arguments import Arguments
from agents.board import Board
from agents.checkpoint import Checkpoint, remove_checkpoints
from agents.curves import CURVE, curve_of
from agents.es_training import learn_by_es
from agents.files import save
from agents.forms import Trained
from agents.imitation import Teacher, Teachers
from agents.learning_run import LearningRun
from agents.ppo_training import learn_by_ppo
from agents.references import Rivals
from agents.resume import check_alone, locked, open_run
from agents.run_files import begin, scenario_files
from agents.seeds import run_seeds
from agents.starts import starting_action, starting_form
from agents.task import Task, make_task, validation_begins
from agents.validation import Keeper
from llm_env.command import exit_code
from llm_env.config import Scenario
from llm_env.errors import UserError
from llm_env.workload import is_closed


def main(argv: list[str] | None = None, rivals: Rivals | None = None, teachers: Teachers | None = None) -> int:
    """Runs the command.

    Args:
        argv: its words; those of the process if None.
        rivals: who is shown beside the agent.
        teachers: makes who is imitated, of `--imitate.teacher`.

    Returns:
        The exit code (see `llm_env.command.exit_code`).
    """
    return exit_code(lambda: _run(tyro.cli(Arguments, args=argv, prog="train.py"), argv, rivals, teachers))


def _run(arguments: Arguments, argv: list[str] | None, rivals: Rivals | None, teachers: Teachers | None = None) -> int:
    if arguments.resume is not None:
        check_alone(argv)
        folder = Path(arguments.resume)
        with locked(folder, make=False):
            return _learn(*open_run(folder), None, rivals, teachers)
    task = make_task(arguments)
    if arguments.seeds:
        return run_seeds(partial(_run, argv=argv, rivals=rivals, teachers=teachers), task, arguments)
    with locked(task.out):
        return _learn(task, arguments, None, argv, rivals, teachers)


def _learn(
    task: Task,
    arguments: Arguments,
    checkpoint: Checkpoint | None,
    argv: list[str] | None,
    rivals: Rivals | None,
    teachers: Teachers | None,
) -> int:
    begins = (arguments.form, arguments.init, arguments.start, task.scenarios)
    form = starting_form(*begins, arguments.es.learn) if arguments.algo == "es" else None
    start = None if form is not None else starting_action(*begins)
    teacher = _teacher(task, arguments, teachers) if checkpoint is None else None
    if checkpoint is None:
        begin(task, arguments, argv)
    Console(stderr=True).print("Preparing; the first run compiles the simulator, for about half a minute.")
    reached = dict(rivals(task.against)) if rivals is not None else {}
    keeper = Keeper(task.against)
    run = LearningRun(task, arguments, start, form, keeper, checkpoint, teacher)
    board = Board(run, reached)
    keeper.mark = board.mark
    try:
        last = (learn_by_es if arguments.algo == "es" else learn_by_ppo)(run)
    finally:
        run.close()
        board.close()
    _finish(run, last, reached)
    return 0


def _teacher(task: Task, arguments: Arguments, teachers: Teachers | None) -> Teacher | None:
    """Who is imitated before the learning begins. Raises: UserError: there is no such teacher."""
    if not arguments.imitate.teacher:
        return None
    if teachers is None:
        raise UserError("imitate.teacher: there are no teachers here: use train.py")
    return teachers(arguments.imitate, task.scenarios)


# ---- the end -------------------------------------------------------------------------------------------------------
def _finish(run: LearningRun, last: Trained, reached: Mapping[str, float]) -> None:
    """Saves the last and the best agent, and says where they are."""
    task, keeper = run.task, run.keeper
    save(last, task.out / "last")
    assert keeper.best is not None  # the last policy at least
    best = keeper.best.about | {"validation_attainment": keeper.best_attainment}
    start = keeper.history[0][1]
    best |= {"start_attainment": None if math.isnan(start) else start, "references": dict(reached)}
    best[CURVE] = curve_of(keeper.history)
    save(dataclasses.replace(keeper.best, about=best), task.out / "agent")
    remove_checkpoints(task.out)
    _tell(task, run.arguments, keeper, reached)


def _tell(task: Task, arguments: Arguments, keeper: Keeper, reached: Mapping[str, float]) -> None:
    out, scenarios = task.out, task.scenarios
    quoted = shlex.quote(str(out))
    first = keeper.history[0][1]
    sys.stdout.write(
        f"best agent, of step {keeper.best_timesteps:,}: {out / 'agent'}\n"
        f"validation attainment {keeper.best_attainment:.4f}, before training {first:.4f}\n"
        + "".join(f"{name}: {value:.4f}\n" for name, value in reached.items())
        + f"curves:  tensorboard --logdir {quoted}/tb\n"
    )
    files = scenario_files(scenarios)
    for given, scenario, file in zip(arguments.scenario, scenarios, files, strict=True):
        named = shlex.quote(str(out / file) if arguments.change else given)
        words = f"python evaluate.py --agents {quoted} --scenario {named} {_traffic_words(arguments, scenario)}"
        sys.stdout.write(f"compare: {words.rstrip()}\n")


def _traffic_words(arguments: Arguments, scenario: Scenario) -> str:
    """The options of evaluate.py for traffic like that of the run; of a trace, what nothing was learned from."""
    if arguments.trace is None:
        return "" if is_closed(scenario) else "--loads " + " ".join(f"{load:g}" for load in arguments.validation_loads)
    start, end = arguments.trace_part
    unseen = (end, 1.0) if end < 1 else (validation_begins(start, end), end)
    scale = f"--time-scale {arguments.time_scale:g}"
    return f"--trace {shlex.quote(arguments.trace)} {scale} --trace-part {unseen[0]:g} {unseen[1]:g}"
