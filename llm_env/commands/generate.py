"""`python -m llm_env workload generate`: requests drawn from a scenario, written as a trace."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from llm_env.command import output_console
from llm_env.commands.arguments import check_trace_name
from llm_env.commands.source import add_drawing_arguments, drawn
from llm_env.files import staged_file
from llm_env.workload.trace_write import write_traffic


def add_generate(group: Any) -> None:
    """Adds the command to the group `workload`."""
    add = group.add_parser(
        "generate",
        help="draw requests from a scenario and write them as a trace",
        description="Draws the requests of a scenario and writes them as a trace: arrival_s,prompt_tokens,output_tokens"
        " and, where the scenario has them, client and session. The same seed gives the same bytes.",
        epilog="exit codes: 0 done, 1 a bug, 2 bad input, 3 input or output failed, 130 interrupted",
        allow_abbrev=False,
    )
    add.set_defaults(run=_generate)
    add_drawing_arguments(add, required=True)
    give = add.add_argument_group("output")
    give.add_argument(
        "--out", metavar="FILE", type=Path, required=True, help="the trace; gzip if its name ends with .gz"
    )
    give.add_argument("--overwrite", action="store_true", help="replace the file if it exists")


def _generate(arguments: argparse.Namespace) -> None:
    check_trace_name(str(arguments.out))
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (
        staged_file(arguments.out, arguments.overwrite) as path,
        Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as progress,
    ):
        task = progress.add_task("drawing", total=None)
        traffic = drawn(arguments).traffic
        progress.update(task, description="writing", total=traffic.size)
        write_traffic(path, traffic, lambda rows: progress.update(task, completed=rows))
    prompt, output = (int(tokens.sum(dtype=np.int64)) for tokens in (traffic.prompt_tokens, traffic.output_tokens))
    rate = f", {(traffic.size - 1) / traffic.span_s:,.6g} a second" if traffic.span_s > 0 else ""
    requests = f"{traffic.size:,} request{'s' if traffic.size > 1 else ''} over {traffic.span_s:,.1f} s{rate}"
    tokens = f"{prompt:,} prompt and {output:,} output tokens"
    output_console().print(Text(f"{arguments.out}: {requests}, {tokens}"), soft_wrap=True)
