"""Makes an agent that comes with the package from runs of `train.py`: `python -m agents.ship --help`."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from agents.card import Run, card, read_run, results_table
from agents.export import MANIFEST, WEIGHTS
from agents.files import read
from agents.shipped import CARD
from llm_env.command import exit_code
from llm_env.errors import UserError
from llm_env.files import staged_folder

HOME = Path(__file__).parent / "pretrained"
MAX_BYTES = 500_000  # of all files of an agent


@dataclass(frozen=True)
class Arguments:
    """Makes agents/pretrained/NAME from finished runs: the best of them on validation, and a card.

    The runs are those of one agent with different seeds. The card says how it was trained, how each seed learned, what
    it reached on reported seeds, and its limits.
    """

    name: Annotated[str, tyro.conf.Positional]
    """Of the agent."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders of train.py, one a seed."""

    summary: str
    """What it is for, in a sentence or two."""

    limits: tuple[str, ...]
    """What it is not good for, a sentence each."""

    results: tuple[Path, ...] = ()
    """Results on reported seeds: results.json of evaluate.py, or folders of the benchmark of families."""

    home: Path = HOME
    """Folder in which its folder is made."""

    overwrite: bool = False
    """Replace an agent of this name."""


def main(argv: list[str] | None = None) -> int:
    """Runs the command. Returns the exit code (see `llm_env.command.exit_code`)."""
    return exit_code(lambda: _run(tyro.cli(Arguments, args=argv, prog="python -m agents.ship")))


def _run(arguments: Arguments) -> int:
    folder = ship(arguments)
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    sys.stdout.write("".join(f"{folder / name}  {size:,} bytes\n" for name, size in sizes.items()))
    return 0


def ship(arguments: Arguments) -> Path:
    """Writes the agent's folder, whole or not at all.

    Raises:
        UserError: a run is not finished, the runs are not seeds of one agent, a file of results is none, or the agent
            is larger than MAX_BYTES.
        InputOutputError: a file cannot be read or written.
    """
    name, target = arguments.name, arguments.home / arguments.name
    if not name or not all(c.isascii() and (c.isalnum() or c in "-_") for c in name):
        raise UserError(f"name: expected letters, digits, - and _, got {name!r}")
    if not arguments.summary.strip() or not arguments.limits:
        raise UserError("summary, limits: an agent is not shipped without them")
    if target.exists() and not arguments.overwrite:
        raise UserError(f"{target}: exists already; --overwrite replaces it")
    runs = [read_run(run) for run in arguments.runs]
    best = _best(runs)
    tables = [results_table(path, name) for path in arguments.results]
    with staged_folder(arguments.home) as staged:
        made = staged / name
        made.mkdir()
        for file in (WEIGHTS, MANIFEST):
            shutil.copyfile(best.folder / "agent" / file, made / file)
        text = card(name, arguments.summary, arguments.limits, best, runs, tables)
        (made / CARD).write_text(text, encoding="utf-8")
        read(made)
        size = sum(path.stat().st_size for path in made.iterdir())
        if size > MAX_BYTES:
            raise UserError(f"{name}: has {size:,} bytes, expected at most {MAX_BYTES:,}")
        for path in made.iterdir():
            path.chmod(0o644)
        made.chmod(0o755)
    return target


def _best(runs: list[Run]) -> Run:
    """The run whose agent is best on validation, the first of equals."""
    first = runs[0]
    for run in runs[1:]:
        for field in run.settings.keys() | first.settings.keys():
            if field not in _OF_A_SEED and run.settings.get(field) != first.settings.get(field):
                raise UserError(f"{run.folder}: {field}: is not that of {first.folder}: not two seeds of one agent")
    seeds = [run.settings["seed"] for run in runs]
    if len(set(seeds)) < len(seeds):
        raise UserError(f"runs: a seed is there twice: {', '.join(map(str, seeds))}")
    return max(runs, key=lambda run: run.validation_attainment)


_OF_A_SEED = {"seed", "seeds", "out", "overwrite", "processes", "checkpoint_every", "resume"}  # may differ


if __name__ == "__main__":
    sys.exit(main())
