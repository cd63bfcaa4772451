"""`python -m llm_env sweep`: one thing changed step by step on the same seeds, as a table, files and a picture."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from llm_env.command import output_console, progress_bar
from llm_env.commands.arguments import number
from llm_env.commands.contenders import add_contenders, contenders_of, seeds_of
from llm_env.config import with_changes
from llm_env.errors import UserError
from llm_env.files import csv_field, staged_folder, write_csv
from llm_env.provenance import git_commit, versions
from llm_env.scenarios import load_scenario
from llm_env.study import Study
from llm_env.sweep_plots import plot_sweep
from llm_env.sweeps import AXES, GROUPS, TBT, TTFT, SweepRow, axes_of, run_sweep, sweep_points
from llm_env.tables import difference_texts, percent_text, titled_table
from llm_env.workload import refuse_rate


def add_sweep(commands: Any) -> None:
    """Adds `sweep` to the commands."""
    axes = [f"{name}: {axis.title}; {_texts(axis.values)}" for name, axis in AXES.items()]
    groups = [f"{group}: one at a time, {', '.join(names)}" for group, names in GROUPS.items()]
    add = commands.add_parser(
        "sweep",
        help="one thing changed step by step: load, SLO targets, token budget, device, noise",
        description="Runs policies with one thing changed step by step, on the same seeds and, but for load, the same\n"
        "requests at the same rate. Prints a table; writes sweep.csv, sweep.json and sweep.png.\n\n"
        "AXIS and its values:\n" + "\n".join(f"  {line}" for line in (*axes, *groups)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="The same arguments give the same bytes with any number of processes. What was stopped goes on from\n"
        "the cells in --out. exit codes: 0 done, 1 a bug, 2 bad input, 3 input or output failed, 130 interrupted",
        allow_abbrev=False,
    )
    add.set_defaults(run=_sweep)
    add.add_argument("axis", choices=(*AXES, *GROUPS), metavar="AXIS", help="what is changed")
    add.add_argument("--values", nargs="+", type=number(0, 1e9), default=[], metavar="X", help="in place of its own")
    add.add_argument("--load", type=number(0, 10, above=True), metavar="F", help="of the study (default: its own)")
    add.add_argument(
        "--hold",
        choices=("rate", "load"),
        default="rate",
        help="what stays where capacities change: the requests and their rate, or their load (default: rate)",
    )
    add_contenders(add)
    add.add_argument("--out", type=Path, default=Path("results/sweep"), metavar="DIR", help="(default: results/sweep)")
    add.add_argument("--fresh", action="store_true", help="take no cell from --out")


def _texts(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)


def _sweep(arguments: argparse.Namespace) -> None:
    scenario = load_scenario(arguments.scenario, arguments.change)
    if arguments.load is not None:
        if arguments.axis == "load":
            raise UserError("--load: not with the axis load; its values are --values")
        refuse_rate(scenario, "--load")
        scenario = with_changes(scenario, {"workload.load": arguments.load})
    study = Study(scenario, tuple(contenders_of(arguments, scenario)), (), seeds_of(arguments))
    points = sweep_points(study, arguments.axis, arguments.values, arguments.hold)
    with staged_folder(arguments.out) as folder:
        with progress_bar("sweeping") as tell:
            rows = run_sweep(points, arguments.out, arguments.processes, arguments.fresh, tell)
        results = {
            "axis": arguments.axis,
            "hold": arguments.hold,
            "scenario": scenario.model_dump(mode="json", exclude_none=True),
            "policies": [contender.label for contender in study.contenders],
            "seeds": list(study.seeds),
            "rows": [row.to_dict() for row in rows],
            "versions": versions(),
            "git_commit": git_commit(),
        }
        text = json.dumps(results, indent=1, allow_nan=False) + "\n"
        (folder / "sweep.json").write_text(text, encoding="utf-8")
        write_csv(folder / "sweep.csv", _columns(rows))
        load = scenario.workload.load
        at = f" at load {load:g}" if load is not None and arguments.axis != "load" else ""
        held = "; the load is held" if arguments.hold == "load" else ""
        details = f"{arguments.seeds} seeds, bands: 95 % intervals{held}"
        plot_sweep(rows, folder / "sweep.png", scenario, f"{scenario.name}{at}", details)
    if arguments.json:
        sys.stdout.write(text)
        return
    console = output_console()
    for name in axes_of(arguments.axis):
        mine = [row for row in rows if row.point.axis == name]
        console.print(_table(mine, f"{scenario.name}: {AXES[name].title}, {len(study.seeds)} seeds"))
    held = "the load is the same at each value" if arguments.hold == "load" else "the requests are the same"
    same = "" if arguments.axis == "load" else f" Between values {held}."
    console.print(
        f"Attainment under rule {scenario.slo.rule}; ± is half a 95 % t-interval; differences to the best baseline at"
        f" each value are paired, p is that of their sign-flip test.{same} sweep.csv, sweep.json and sweep.png are in"
        f" {arguments.out}"
    )


def _table(rows: Sequence[SweepRow], title: str) -> Table:
    """A row for each value and contender, those of a value together. Args: rows: of one axis."""
    table = titled_table(title)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("policy", overflow="fold")
    for column in ("met\n%", "diff to\nbest, pts", "p\n", "goodput\nreq/s", "TTFT s\np99", "TBT ms\np99", "util\n%"):
        table.add_column(column, justify="right", no_wrap=True)
    shown = None
    for each in rows:
        row, m = each.row, each.row.means
        difference, p_value, _ = difference_texts(row)
        table.add_row(
            "" if each.point.value == shown else f"{each.point.value:g}",
            row.contender,
            percent_text(row.headline),
            difference,
            p_value,
            f"{m['goodput_per_s']:.3f}",
            "unstable" if row.unstable else f"{m[TTFT]:.2f}",
            f"{1e3 * m[TBT]:.0f}",
            f"{100 * m['utilisation']:.0f}",
        )
        shown = each.point.value
    return table


def _columns(rows: Sequence[SweepRow]) -> dict[str, Any]:
    """Columns of sweep.csv: the fields of the rows of sweep.json."""
    flat = [row.to_dict() for row in rows]
    columns: dict[str, Any] = {}
    for name, first in flat[0].items():
        values = [each[name] for each in flat]
        if isinstance(first, str):
            columns[name] = [csv_field(value) for value in values]
        else:
            columns[name] = np.array([np.nan if value is None else value for value in values])
    return columns
