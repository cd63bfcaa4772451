"""The folder of a run: what it may replace, and what is written before learning begins."""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from agents.arguments import Arguments
from agents.checkpoint import FOLDER as CHECKPOINTS
from agents.checkpoint import has_checkpoints
from agents.export import MANIFEST
from agents.task import Task
from llm_env.config import Scenario, scenario_to_toml
from llm_env.errors import InputOutputError, UserError
from llm_env.provenance import git_commit, versions

FILES = ("settings.json", "scenario.toml", "versions.json", "command.txt", "progress.csv")
FOLDERS = ("scenarios", "tb", "agent", "last", CHECKPOINTS)


def scenario_files(scenarios: Sequence[Scenario]) -> list[Path]:
    """Where a run keeps its scenarios: scenario.toml, or of several scenarios/NAME.toml."""
    if len(scenarios) == 1:
        return [Path("scenario.toml")]
    return [Path("scenarios") / f"{scenario.name}.toml" for scenario in scenarios]


def begin(task: Task, arguments: Arguments, argv: list[str] | None) -> None:
    """Makes the run's folder, clears an unfinished run out of it, and writes what is known before learning.

    Raises:
        UserError: a finished run is there, or something that is no run.
        InputOutputError: it cannot be written.
    """
    out = task.out
    if out.exists() and not out.is_dir():
        raise InputOutputError(f"{out}: is a file, expected a folder")
    try:
        _begin(task, arguments, argv)
    except OSError as error:
        raise InputOutputError(f"{error.filename or out}: cannot be written: {error.strerror}") from None


def _begin(task: Task, arguments: Arguments, argv: list[str] | None) -> None:
    out = task.out
    if out.is_dir():
        goes_on = has_checkpoints(out) and not (out / "agent" / MANIFEST).exists()
        if goes_on and not arguments.overwrite:
            raise UserError(
                f"{out}: holds a run that was stopped: --resume {out} goes on with it, --overwrite begins anew"
            )
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
        for file, scenario in zip(scenario_files(task.scenarios), task.scenarios, strict=True)
    }
    for name, text in texts.items():
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text(text + "\n", encoding="utf-8")
