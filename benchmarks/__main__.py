"""Runs the groups of benchmarks, prints one table, writes bench.json, and compares with a baseline if asked to."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from benchmarks import (
    backlog,
    bounds,
    decision,
    guard,
    kernel,
    learning,
    million,
    report,
    resets,
    single,
    startup,
    study,
    vector,
)
from benchmarks.measure import FULL, QUICK, Effort, Figure
from llm_env.command import exit_code
from llm_env.files import staged_folder

GROUPS: dict[str, Callable[[Effort], list[Figure]]] = {
    "kernel": kernel.figures,
    "env": single.figures,
    "vector": vector.figures,
    "backlog": backlog.figures,
    "trace": million.figures,
    "ppo": learning.figures,
    "study": study.figures,
    "startup": startup.figures,
    "decision": decision.figures,
    "reset": resets.figures,
    "bound": bounds.figures,
}
WIDTH = 190  # columns of the table


def main(argv: Sequence[str] | None = None, effort: Effort | None = None) -> int:
    """Runs the command.

    Args:
        effort: in place of what the arguments ask for.

    Returns:
        The exit code (see `llm_env.command.exit_code`): 4 if a figure stays more than twice as bad as the baseline's.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--only", nargs="+", choices=GROUPS, default=list(GROUPS), metavar="GROUP", help=", ".join(GROUPS)
    )
    parser.add_argument("--quick", action="store_true", help="small sizes: a few seconds a group")
    parser.add_argument("--out", type=Path, default=Path("results/bench"), help="folder of bench.json and bench.md")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="a baseline of a run of the same effort")
    parser.add_argument("--save-baseline", type=Path, metavar="FILE", nargs="?", const=guard.BASELINE)
    arguments = parser.parse_args(argv)
    return exit_code(lambda: _run(arguments, effort or (QUICK if arguments.quick else FULL)))


def _run(arguments: argparse.Namespace, effort: Effort) -> int:
    baseline = guard.read_baseline(arguments.compare, effort.name) if arguments.compare else None
    where, figures = report.about(), []
    with staged_folder(arguments.out) as folder:
        for name in arguments.only:
            figures += _measure(name, effort)
        if baseline is not None:
            figures = guard.settled(figures, baseline, {name: partial(_measure, name, effort) for name in GROUPS})
        report.write_json(folder / "bench.json", effort.name, figures, where)
        (folder / "bench.md").write_text(report.markdown(figures), encoding="utf-8")
    Console(width=WIDTH, highlight=False).print(report.table(figures, where))
    if arguments.save_baseline:
        guard.write_baseline(arguments.save_baseline, effort.name, figures, where)
    if baseline is None:
        return 0
    changes = guard.compare(figures, baseline)
    sys.stdout.write("\n".join(guard.lines(changes)) + "\n")
    return 4 if guard.failed(changes) else 0


def _measure(group: str, effort: Effort) -> list[Figure]:
    sys.stderr.write(f"{group}\n")
    return GROUPS[group](effort)


if __name__ == "__main__":
    sys.exit(main())
