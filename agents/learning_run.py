"""What every algorithm is given of a run, and what it does when it is stopped."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from stable_baselines3.common.logger import Logger

from agents.arguments import Arguments
from agents.checkpoint import Checkpoint
from agents.files import save
from agents.forms import Form, Trained
from agents.imitation import Teacher
from agents.resume import run_identity
from agents.run_files import scenario_files
from agents.run_state import Writer, make_logger
from agents.task import Task
from agents.validation import Keeper


@dataclass(frozen=True)
class LearningRun:
    """A run that is about to learn.

    Attributes:
        task: what is learned.
        arguments: how.
        start: (actions,) the action that a policy of floats begins with; None: left to chance, no floats, or evolution.
        form: what evolution learns, and with what it begins; else None.
        keeper: measures agents and keeps the best.
        checkpoint: where it goes on, None from the beginning.
        teacher: who is imitated; None: nobody.
    """

    task: Task
    arguments: Arguments
    start: np.ndarray | None
    form: Form | None
    keeper: Keeper
    checkpoint: Checkpoint | None
    teacher: Teacher | None = None

    @cached_property
    def logger(self) -> Logger:
        """Of progress.csv and tb/, which are opened where it is first asked for."""
        return make_logger(self.task.out, self.checkpoint)

    def close(self) -> None:
        """Closes the logs, if they were opened."""
        if "logger" in vars(self):
            self.logger.close()

    def about(self) -> dict[str, Any]:
        """Kept with its agents."""
        arguments, task = self.arguments, self.task
        return {"name": task.name, "scenario": task.together, "algo": arguments.algo, "seed": arguments.seed}

    def writer(self) -> Writer:
        """Of its checkpoints."""
        task, keeper = self.task, self.keeper
        files = [str(file) for file in scenario_files(task.scenarios)]
        identity = run_identity(self.arguments, task.scenarios)
        return Writer(task.out, self.arguments.checkpoint_every, identity, files, lambda: keeper.best)

    def keep_stopped(self, agent: Trained, steps: int) -> None:
        """Saves what was learned until a signal came."""
        out = self.task.out
        save(agent, out / "last")
        sys.stdout.write(
            f"stopped after {steps:,} steps; what was learned is in {out / 'last'}\n"
            f"go on:  python train.py --resume {shlex.quote(str(out))}\n"
        )
