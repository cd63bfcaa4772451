"""`python -m llm_env workload ...`: the commands that read, fit, draw, summarise and write traffic, one file each."""

from __future__ import annotations

from typing import Any

from llm_env.commands.convert import add_convert
from llm_env.commands.fit import add_fit
from llm_env.commands.generate import add_generate
from llm_env.commands.plot import add_plot
from llm_env.commands.summarise import add_summarise


def add_workload(commands: Any) -> None:
    """Adds the group `workload` to the command line's commands."""
    parser = commands.add_parser(
        "workload",
        help="read, fit, generate, summarise and plot traffic",
        description="Traffic: from anyone's trace to figures, pictures and scenarios, and back.",
        allow_abbrev=False,
    )
    group = parser.add_subparsers(required=True, metavar="WHAT")
    add_convert(group)
    add_summarise(group)
    add_plot(group)
    add_fit(group)
    add_generate(group)
