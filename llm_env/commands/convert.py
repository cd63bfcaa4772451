"""`python -m llm_env workload convert`: anyone's trace to this project's own CSV."""

from __future__ import annotations

import argparse
from typing import Any

from rich.text import Text

from llm_env.command import output_console
from llm_env.commands.arguments import check_trace_name
from llm_env.commands.reading import add_read_arguments, read_options
from llm_env.files import staged_file
from llm_env.workload import read_traffic, write_traffic


def add_convert(group: Any) -> None:
    """Adds the command to the group `workload`."""
    parser = group.add_parser(
        "convert",
        help="a trace of any known format to this project's own CSV",
        description="Reads a trace of any known format and writes it as arrival_s,prompt_tokens,output_tokens and,"
        " where the trace has them, client and session. Prints what was dropped, clipped and sorted.",
        epilog="exit codes: 0 done, 1 a bug, 2 bad input, 3 input or output failed, 130 interrupted",
        allow_abbrev=False,
    )
    parser.set_defaults(run=_convert)
    parser.add_argument("trace", metavar="TRACE", help="CSV or JSON lines, plain or gzip; see docs/traces.md")
    parser.add_argument("--out", metavar="FILE", required=True, help="to be written; ends with .csv or .csv.gz")
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it exists")
    add_read_arguments(parser)


def _convert(arguments: argparse.Namespace) -> None:
    check_trace_name(arguments.out, arguments.trace)
    options = read_options(arguments)
    with staged_file(arguments.out, arguments.overwrite) as path:
        traffic, report = read_traffic(arguments.trace, options)
        write_traffic(path, traffic)
    console = output_console()
    for line in report.lines():
        console.print(Text(line), soft_wrap=True)
    console.print(Text(f"written: {arguments.out}"), soft_wrap=True)
