"""The options of `simulate` that record the run decision by decision and write it as a timeline."""

from __future__ import annotations

import argparse
import math
from typing import Any

import numpy as np

from llm_env.commands.arguments import number
from llm_env.config import Scenario
from llm_env.errors import UserError
from llm_env.files import staged_file
from llm_env.recorder import record_run
from llm_env.rollout import Decide
from llm_env.timeline import check_name, fill_timeline


def add_timeline(group: Any) -> None:
    """Adds the options to a group of arguments."""
    group.add_argument(
        "--timeline",
        metavar="FILE",
        help="write a timeline of batches and requests that ui.perfetto.dev opens, .json or .json.gz"
        " (docs/timeline.md). The run is made once more for it",
    )
    group.add_argument(
        "--timeline-until-s", type=number(0, 1e9, above=True), metavar="S", help="record so many seconds (default: all)"
    )


def check_timeline(arguments: argparse.Namespace) -> None:
    """Raises: UserError: the name does not end as timelines do, or there is none and yet an end."""
    if arguments.timeline is not None:
        check_name(arguments.timeline)
    elif arguments.timeline_until_s is not None:
        raise UserError("--timeline-until-s: only with --timeline FILE")


def write_timeline_of(
    arguments: argparse.Namespace, scenario: Scenario, decide: Decide, requests: np.ndarray, run: dict[str, Any]
) -> str:
    """Runs and writes what `--timeline` asks for, if it does. A file of that name is replaced.

    Args:
        requests: (n,) REQUEST, not changed.
        run: what is run, for the file.

    Returns:
        A remark on what was written, empty if nothing was.
    """
    if arguments.timeline is None:
        return ""
    until_s = math.inf if arguments.timeline_until_s is None else arguments.timeline_until_s
    with staged_file(arguments.timeline, overwrite=True) as path:  # before the run: is there a place to write to?
        shown = fill_timeline(path, record_run(scenario, decide, requests, arguments.seed, until_s), run)
    left_out = "" if shown.every == 1 else f", {shown.sampling}"
    return f"timeline: {arguments.timeline} shows {shown.num_requests} requests until {shown.until_s:.6g} s{left_out}"
