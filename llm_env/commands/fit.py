"""`python -m llm_env workload fit`: a trace to a scenario whose traffic is like it, and tables that say how like."""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.table import Table
from rich.text import Text

from llm_env.command import output_console
from llm_env.commands.arguments import number
from llm_env.commands.reading import add_read_arguments, read_options
from llm_env.commands.showing import without_nan
from llm_env.config import Scenario, scenario_from_dict, scenario_to_toml
from llm_env.errors import UserError
from llm_env.files import staged_file
from llm_env.scenarios import load_scenario
from llm_env.tables import titled_table
from llm_env.workload.closed_loop import is_closed
from llm_env.workload.fit_compare import GENERATED, Compared
from llm_env.workload.fit_lengths import LengthModel
from llm_env.workload.fit_split import Holdout
from llm_env.workload.fit_trace import DRAWN, Figures, TraceFit, beside, fit_trace
from llm_env.workload.generate import capacity_requests_per_s, request_rate
from llm_env.workload.trace_report import ReadReport
from llm_env.workload.traces import read_traffic
from llm_env.workload.traffic import Traffic

_NOT_IN_NAMES = re.compile(r"[^a-z0-9._-]+")


def add_fit(group: Any) -> None:
    """Adds `fit` to the group `workload`."""
    add = group.add_parser(
        "fit",
        help="a scenario whose traffic is like a trace",
        description="Fits arrivals and lengths to one part of a trace, generates traffic from every fitted model, and"
        " measures it against the part that was held back. Prints the comparison; with --out writes a scenario.",
        epilog="exit codes: 0 done, 1 a bug, 2 bad input, 3 input or output failed, 130 interrupted",
        allow_abbrev=False,
    )
    add.set_defaults(run=_fit)
    add.add_argument("trace", metavar="TRACE", help="a trace of any format that is read")
    how = add.add_argument_group("fitting")
    how.add_argument(
        "--holdout",
        choices=get_args(Holdout),
        default="alternate",
        help="what is held back: every second block of time, or the last 30 %% of it (default: alternate)",
    )
    how.add_argument(
        "--block-s", type=number(1, 1e6), default=60.0, metavar="S", help="length of a block (default: 60)"
    )
    how.add_argument(
        "--lengths",
        choices=get_args(LengthModel),
        default="auto",
        help="model of prompts and outputs; auto: the simplest with a KS distance of at most 0.05 (default)",
    )
    how.add_argument("--sessions", action="store_true", help="fit sessions of several turns (needs a column session)")
    give = add.add_argument_group("output")
    give.add_argument(
        "--base", metavar="SCENARIO", default="chat", help="has the system, SLO, episode and reward (default: chat)"
    )
    give.add_argument("--name", metavar="NAME", help="of the scenario (default: the trace's)")
    give.add_argument("--out", metavar="FILE", type=Path, help="write the scenario here; a name that ends with .toml")
    give.add_argument("--overwrite", action="store_true", help="replace the file if it exists")
    give.add_argument("--json", action="store_true", help="print JSON instead of tables")
    add_read_arguments(add)


def _fit(arguments: argparse.Namespace) -> None:
    base = load_scenario(arguments.base)
    if is_closed(base):
        raise UserError(f"--base: {base.name} has users who wait for answers, expected a scenario with a rate")
    if arguments.out is not None and arguments.out.suffix != ".toml":
        raise UserError(f"--out: expected a name that ends with .toml, got {str(arguments.out)!r}")
    with nullcontext() if arguments.out is None else staged_file(arguments.out, arguments.overwrite) as path:
        traffic, report = read_traffic(arguments.trace, read_options(arguments))
        fit = fit_trace(traffic, arguments.holdout, arguments.block_s, arguments.lengths, arguments.sessions)
        scenario = fitted_scenario(base, fit, traffic, Path(arguments.trace).name, arguments)
        figures = beside(traffic, fit, scenario)
        if path is not None:
            path.write_text(scenario_to_toml(scenario), encoding="utf-8")
    if arguments.json:
        sys.stdout.write(json.dumps(_as_json(fit, figures, scenario), indent=1, allow_nan=False) + "\n")
    else:
        _print(output_console(), arguments, report, fit, figures, scenario)


def fitted_scenario(
    base: Scenario, fit: TraceFit, traffic: Traffic, file: str, arguments: argparse.Namespace
) -> Scenario:
    """`base` with the fitted workload at the trace's rate, a name, and where its numbers come from.

    Raises:
        UserError: the name is none.
    """
    stem = _NOT_IN_NAMES.sub("-", file.lower().split(".")[0]).strip("-._")
    split = {
        "alternate": f"every second block of {arguments.block_s:g} s",
        "last": "the last 30 % of the time",
    }[arguments.holdout]
    errors = ", ".join(f"{scale:g} s" for scale in fit.measured.scales_s)
    lengths = ", ".join(f"{name} {part.chosen.held_ks:.3f}" for name, part in fit.lengths.items())
    changes = {
        "name": arguments.name or (stem or "fitted")[:64],
        "description": f"Traffic like {file}: {fit.chosen.model.name} arrivals at the trace's rate; system, targets and"
        f" episode of {base.name}.",
        "source": f"Fitted to {file}, {traffic.size:,} requests in {traffic.span_s:,.0f} s; held back: {split}.\n"
        f"Index of dispersion at {errors}: held back {_list(fit.measured.held)}, generated"
        f" {_list(fit.chosen.dispersion)} (worst error {fit.chosen.worst_error:.0%}).\n"
        f"KS distance of lengths from the held-back part: {lengths}.\n",
        "workload": fit.workload.model_copy(update={"prediction_sigma": base.workload.prediction_sigma}).model_dump(
            exclude_none=True
        ),
    }
    return scenario_from_dict({**base.model_dump(exclude_none=True), **changes})


# ---- what is printed -----------------------------------------------------------------------------------------------
def _print(
    console: Console,
    arguments: argparse.Namespace,
    report: ReadReport,
    fit: TraceFit,
    figures: list[Figures],
    scenario: Scenario,
) -> None:
    for line in report.lines():
        console.print(Text(line), soft_wrap=True)
    if arguments.holdout == "last":
        console.print(Text("Traffic drifts: the last 30 % may differ from the rest in any model."), soft_wrap=True)
    what = "starts of sessions" if arguments.sessions else "requests"
    console.print(_arrival_table(fit, what))
    console.print(_length_table(fit))
    console.print(_figure_table(figures))
    load = request_rate(scenario) / capacity_requests_per_s(scenario)
    console.print(Text(f"The trace's rate is load {load:.2f} on the system of {arguments.base}."), soft_wrap=True)
    if fit.turns_cut is not None:
        console.print(
            Text(
                f"{fit.turns_cut:.0%} of the later turns do not continue the prompt and output before them and are"
                " left out of the new tokens."
            ),
            soft_wrap=True,
        )
    if arguments.out is not None:
        console.print(Text(f"\nThe scenario is in {arguments.out}"), soft_wrap=True)


def _arrival_table(fit: TraceFit, what: str) -> Table:
    table = titled_table(
        f"Arrivals of {what}: index of dispersion, mean of {GENERATED} generated traces ± spread of one"
    )
    table.add_column("model")
    table.add_column("parameters")
    for scale in fit.measured.scales_s:
        table.add_column(f"{scale:g} s", justify="right", no_wrap=True)
    table.add_column("worst\nerror", justify="right")
    table.add_column("KS of\ngaps", justify="right")
    for name, values in (("held back", fit.measured.held), ("fitted to", fit.measured.fitted)):
        table.add_row(Text(name, "bold"), "", *(_three(value) for value in values), "", "")
    for row in sorted(fit.arrivals, key=lambda row: row.worst_log_ratio):
        chosen = row is fit.chosen
        table.add_row(
            Text(f"{row.model.name}{' *' if chosen else ''}", "bold" if chosen else ""),
            _parameters(row),
            *(f"{_three(m)} ± {s:.2g}" for m, s in zip(row.dispersion, row.spread, strict=True)),
            f"{row.worst_error:.0%}",
            f"{row.gap_ks:.3f}",
        )
    return table


def _parameters(row: Compared) -> str:
    values = row.model.arrivals.model_dump(exclude={"kind", "following"}, exclude_none=True)
    return ", ".join(
        f"{name} {' '.join(f'{v:g}' for v in value) if isinstance(value, tuple) else f'{value:g}'}"
        for name, value in values.items()
    )


def _length_table(fit: TraceFit) -> Table:
    table = titled_table("Lengths: KS distance")
    for column in ("length", "model"):
        table.add_column(column)
    for column in ("numbers", "fitted to", "held back"):
        table.add_column(column, justify="right")
    for name, part in fit.lengths.items():
        for row in part.rows:
            chosen = row is part.chosen
            numbers = sum(len(v) if isinstance(v, tuple) else 1 for _, v in row.length if not isinstance(v, str))
            table.add_row(
                name,
                Text(f"{row.name}{' *' if chosen else ''}", "bold" if chosen else ""),
                str(numbers),
                f"{row.fit_ks:.3f}",
                f"{row.held_ks:.3f}",
            )
    return table


def _figure_table(figures: list[Figures]) -> Table:
    table = titled_table(f"The held-back part beside the scenario: mean of {DRAWN} drawn workloads ± spread of one")
    table.add_column("")
    table.add_column("held back", justify="right")
    table.add_column("scenario", justify="right")
    for row in figures:
        table.add_row(row.name, _three(row.real), f"{_three(row.drawn)} ± {row.spread:.2g}")
    return table


def _three(value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _list(values: tuple[float, ...]) -> str:
    return ", ".join(map(_three, values))


def _as_json(fit: TraceFit, figures: list[Figures], scenario: Scenario) -> dict[str, Any]:
    """Everything that is printed, in full; NaN is null."""
    data = {
        "measured": fit.measured._asdict(),
        "arrivals": [
            {
                **{name: value for name, value in row._asdict().items() if name != "model"},
                "name": row.model.name,
                "settings": row.model.arrivals.model_dump(exclude_none=True),
                "chosen": row is fit.chosen,
            }
            for row in fit.arrivals
        ],
        "lengths": {
            name: [
                {"name": row.name, "fit_ks": row.fit_ks, "held_ks": row.held_ks, "chosen": row is part.chosen}
                for row in part.rows
            ]
            for name, part in fit.lengths.items()
        },
        "figures": {row.name: [row.real, row.drawn, row.spread] for row in figures},
        "scenario": scenario.model_dump(mode="json", exclude_none=True),
    }
    return without_nan(data)
