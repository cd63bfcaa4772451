"""`python train.py --seeds 0 1 2`: a run for each seed, side by side in processes of their own, and a summary."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np

from agents.arguments import Arguments
from agents.export import MANIFEST
from agents.task import Task
from llm_env.command import check_stopped, exit_code
from llm_env.errors import InputOutputError, UserError
from llm_env.files import staged_file

Run = Callable[[Arguments], int]
POLL_S = 0.2


def run_seeds(run: Run, task: Task, arguments: Arguments) -> int:
    """Runs all seeds, as many at once as there are processes, and writes NAME-seeds.json beside their folders.

    Args:
        run: what one process does, picklable.
        task: of the first seed; the others differ in their folders alone.
        arguments: with `seeds`.

    Raises:
        UserError: a run failed; it has said why.
    """
    folders = {seed: seed_folder(task, arguments, seed) for seed in arguments.seeds}
    waiting = [
        dataclasses.replace(arguments, seed=seed, seeds=(), processes=1, out=str(folder))
        for seed, folder in folders.items()
    ]
    context = multiprocessing.get_context("spawn")
    running: list[tuple[int, BaseProcess]] = []
    failed: list[int] = []
    try:
        while waiting or running:
            while waiting and len(running) < arguments.processes:
                mine = waiting.pop(0)
                process = context.Process(target=_one, args=(run, mine))
                process.start()
                running.append((mine.seed, process))
            time.sleep(POLL_S)
            check_stopped()
            failed += [seed for seed, process in running if process.exitcode not in (None, 0)]
            running = [(seed, process) for seed, process in running if process.exitcode is None]
    finally:
        for _, process in running:
            process.terminate()
        for _, process in running:
            process.join()
    if failed:
        raise UserError(f"seeds: {', '.join(map(str, failed))} failed")
    _summarise(folders, task, arguments)
    return 0


def seed_folder(task: Task, arguments: Arguments, seed: int) -> Path:
    """The folder of one seed: below --out, or runs/SCENARIO-ALGO-SEED."""
    if arguments.out is not None:
        return Path(arguments.out) / f"seed-{seed}"
    return Path("runs") / f"{task.together}-{arguments.algo}-{seed}"


def _one(run: Run, arguments: Arguments) -> None:
    sys.exit(exit_code(lambda: run(arguments)))


def _summarise(folders: dict[int, Path], task: Task, arguments: Arguments) -> None:
    abouts = {}
    for seed, folder in folders.items():
        abouts[seed] = json.loads((folder / "agent" / MANIFEST).read_text(encoding="utf-8"))["about"]
    reached = np.array([about["validation_attainment"] for about in abouts.values()])
    for seed, about in abouts.items():
        sys.stdout.write(
            f"seed {seed}: validation attainment {about['validation_attainment']:.4f}, "
            f"before training {_shown(about['start_attainment'])}: {folders[seed]}\n"
        )
    spread = f", standard deviation {reached.std(ddof=1):.4f}" if len(reached) > 1 else ""
    sys.stdout.write(f"all: mean {reached.mean():.4f}, least {reached.min():.4f}{spread}\n")
    parent = Path(arguments.out) if arguments.out is not None else Path("runs")
    file = parent / ("seeds.json" if arguments.out is not None else f"{task.together}-{arguments.algo}-seeds.json")
    summary = [{"seed": seed, "folder": str(folders[seed]), "about": about} for seed, about in abouts.items()]
    try:
        with staged_file(file, overwrite=True) as staged:
            staged.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputOutputError(f"{file}: cannot be written: {error.strerror}") from None


def _shown(attainment: float | None) -> str:
    """Four decimals; of a validation without a measured request a word."""
    return "unknown" if attainment is None else f"{attainment:.4f}"
