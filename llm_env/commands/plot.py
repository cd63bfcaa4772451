"""`python -m llm_env workload plot`: pictures of a trace, or of what a scenario draws."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.text import Text

from llm_env.command import output_console
from llm_env.commands.source import add_source_arguments, source_from
from llm_env.files import staged_folder


def add_plot(group: Any) -> None:
    """Adds the command to the group `workload`."""
    add = group.add_parser(
        "plot",
        help="pictures of traffic",
        description="Writes pictures of a trace, or of what a scenario draws, as PNG and SVG: requests and tokens per"
        " minute, lengths, gaps, dispersion, prompt against output, the busiest minute, and a heat map over time.",
        epilog="exit codes: 0 done, 1 a bug, 2 bad input, 3 input or output failed, 130 interrupted",
        allow_abbrev=False,
    )
    add.set_defaults(run=_plot)
    add_source_arguments(add)
    give = add.add_argument_group("output")
    give.add_argument(
        "--out", metavar="DIR", type=Path, default=Path("plots"), help="folder of the pictures (default: plots)"
    )


def _plot(arguments: argparse.Namespace) -> None:
    from llm_env.traffic_plots import PICTURES, SUFFIXES, plot_traffic  # here: matplotlib's fonts take long to load

    console = output_console()
    with staged_folder(arguments.out) as folder:
        source = source_from(arguments)
        left_out = plot_traffic(source.traffic, folder)
    for name, suffix in ((name, suffix) for name in left_out for suffix in SUFFIXES):
        (arguments.out / f"{name}{suffix}").unlink(missing_ok=True)  # of other traffic, from an earlier run
    for remark in source.remarks:
        console.print(Text(remark), soft_wrap=True)
    for name, why in left_out.items():
        console.print(Text(f"{name}: left out: {why}"), soft_wrap=True)
    names = [name for name in PICTURES if name not in left_out]
    console.print(
        Text(f"{', '.join(names)} of {source.name} are in {arguments.out}, as {' and '.join(SUFFIXES)}"), soft_wrap=True
    )
