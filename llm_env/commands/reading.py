"""Arguments of every command that reads a trace: one flag for each field of `ReadOptions`."""

from __future__ import annotations

import argparse
from dataclasses import fields

from llm_env.commands.arguments import integer, number
from llm_env.config import MAX_TOKENS
from llm_env.workload.trace_options import OVER_LENGTH, UNITS, ZERO_OUTPUT, ReadOptions


def add_read_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `ReadOptions` to a parser, as a group; the file itself is the command's own argument."""
    add = parser.add_argument_group("reading the trace", "done in this order; by default the trace is left as it is")
    add.add_argument(
        "--timestamp-unit",
        choices=UNITS,
        help="of timestamp in JSON lines; default: ms for Mooncake's keys, s for Bailian's. vLLM's timed traces are"
        " like Mooncake's, often in s",
    )
    add.add_argument("--zero-output", choices=ZERO_OUTPUT, help="requests without output: default: drop")
    tokens, total = integer(1, MAX_TOKENS), integer(2, 2 * MAX_TOKENS)
    add.add_argument("--max-prompt-tokens", type=tokens, metavar="N", help="longest prompt")
    add.add_argument("--max-output-tokens", type=tokens, metavar="N", help="longest output")
    add.add_argument("--max-total-tokens", type=total, metavar="N", help="longest prompt and output together")
    add.add_argument("--over-length", choices=OVER_LENGTH, help="what is longer than these; default: error")
    add.add_argument(
        "--tick-s",
        type=number(0, 1e9, above=True),
        metavar="S",
        help="spread the arrivals of each tick of S seconds uniformly over it",
    )
    add.add_argument("--start-s", type=number(0, 1e12), metavar="S", help="first second kept; it becomes 0")
    add.add_argument("--end-s", type=number(0, 1e12, above=True), metavar="S", help="end of what is kept, without it")
    share = number(0, 1, above=True)
    add.add_argument("--keep", type=share, metavar="F", help="keep each request with probability F: smooths bursts")
    add.add_argument("--keep-clients", type=share, metavar="F", help="keep a share F of the clients, whole")
    add.add_argument("--keep-sessions", type=share, metavar="F", help="keep a share F of the sessions, whole")
    add.add_argument(
        "--time-scale",
        type=number(0, 1e9, above=True),
        metavar="F",
        help="multiply arrival times (2: half the rate)",
    )
    add.add_argument(
        "--read-seed", type=integer(0, 2**63 - 1), metavar="N", help="of spreading and keeping; default: 0"
    )


def read_options(arguments: argparse.Namespace) -> ReadOptions:
    """The options that the flags of `add_read_arguments` say.

    Raises:
        UserError: two of them contradict each other.
    """
    flags = {field.name: "read_seed" if field.name == "seed" else field.name for field in fields(ReadOptions)}
    given = {name: getattr(arguments, flag) for name, flag in flags.items() if getattr(arguments, flag) is not None}
    return ReadOptions(**given)
