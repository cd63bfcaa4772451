"""Where the traffic of a command comes from: a trace file, or requests drawn from a scenario. One way to say each."""

from __future__ import annotations

import argparse
from dataclasses import asdict, fields
from typing import Any, NamedTuple

from llm_env.commands.arguments import integer, number
from llm_env.commands.reading import add_read_arguments, read_options
from llm_env.config import Scenario, with_changes
from llm_env.errors import UserError
from llm_env.scenarios import load_scenario
from llm_env.workload.closed_loop import is_closed
from llm_env.workload.generate import capacity_requests_per_s, draw_traffic
from llm_env.workload.traces import read_traffic
from llm_env.workload.traffic import Traffic
from llm_env.workload.vary import concrete

_DRAWING = ("minutes", "rate", "load", "seed", "change")


class Source(NamedTuple):
    """Traffic, what it is called, and how it can be had again."""

    traffic: Traffic
    name: str
    origin: dict[str, Any]  # for JSON
    remarks: tuple[str, ...] = ()  # on how it was read, a line each


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """A trace or --scenario, with the flags of both ways."""
    parser.add_argument("trace", metavar="TRACE", nargs="?", help="a trace file, or else give --scenario")
    add_read_arguments(parser)
    add_drawing_arguments(parser, required=False)


def add_drawing_arguments(parser: argparse.ArgumentParser, required: bool) -> None:
    """--scenario and how much of it is drawn."""
    add = parser.add_argument_group("drawing from a scenario")
    add.add_argument(
        "--scenario",
        metavar="NAME|TOML",
        required=required,
        help="a shipped scenario, or a file that ends with .toml",
    )
    add.add_argument(
        "--minutes",
        type=number(0, 1.6e7, above=True),
        metavar="M",
        help="how long requests arrive; by default the scenario's episode.arrivals_s",
    )
    rate = add.add_mutually_exclusive_group()
    rate.add_argument("--rate", type=number(0, 1e6, above=True), metavar="R", help="mean requests per second")
    rate.add_argument(
        "--load", type=number(0, 10, above=True), metavar="F", help="rate as a share of the scenario's capacity"
    )
    add.add_argument("--seed", type=integer(0, 2**63 - 1), metavar="N", help="of everything that is drawn; default: 0")
    add.add_argument("--change", nargs="+", metavar="KEY=VALUE", help="any setting of the scenario")


def source_from(arguments: argparse.Namespace) -> Source:
    """The traffic that the flags of `add_source_arguments` name.

    Raises:
        UserError: both ways or none, flags of the other way, wrong content, or nothing to draw from.
        InputOutputError: the file cannot be read.
    """
    if (arguments.trace is None) == (arguments.scenario is None):
        raise UserError("give a trace file or --scenario NAME, one of the two")
    options = read_options(arguments)
    changed = {f.name: getattr(options, f.name) for f in fields(options) if getattr(options, f.name) != f.default}
    if arguments.trace is None:
        if changed:
            flag = "read-seed" if "seed" in changed else next(iter(changed)).replace("_", "-")
            raise UserError(f"--{flag}: only for a trace, not for a scenario")
        return drawn(arguments)
    for name in _DRAWING:
        if getattr(arguments, name) is not None:
            raise UserError(f"--{name}: only for a --scenario, not for a trace")
    traffic, report = read_traffic(arguments.trace, options)
    origin = {"trace": arguments.trace, "options": changed, "read": asdict(report)}
    return Source(traffic, arguments.trace, origin, tuple(report.lines()[1:]))  # without how many rows there are


def drawn(arguments: argparse.Namespace) -> Source:
    """The traffic that the flags of `add_drawing_arguments` name.

    Raises:
        UserError: no such scenario or setting, arrivals that depend on the answers, or too many requests.
    """
    scenario = load_scenario(arguments.scenario, arguments.change or ())
    if is_closed(scenario):
        raise UserError(
            f"scenario {scenario.name}: workload.arrivals: users wait for answers (closed-loop), so when requests"
            " arrive depends on who serves them: run it with simulate instead"
        )
    seed = arguments.seed or 0
    scenario = _lasting(concrete(scenario, seed), arguments.minutes)
    rate_per_s = arguments.rate
    if arguments.load is not None:
        rate_per_s = arguments.load * capacity_requests_per_s(scenario)
    traffic = draw_traffic(scenario, seed, rate_per_s)
    name = f"scenario {scenario.name}, seed {seed}"
    if traffic.size == 0:
        raise UserError(
            f"{name}: no request arrives within {scenario.episode.arrivals_s:g} s: raise --minutes or --rate"
        )
    origin = {
        "scenario": scenario.name,
        "seed": seed,
        "arrivals_s": scenario.episode.arrivals_s,
        "rate_per_s": rate_per_s,
        "changes": list(arguments.change or ()),
    }
    return Source(traffic, name, origin)


def _lasting(scenario: Scenario, minutes: float | None) -> Scenario:
    if minutes is None:
        return scenario
    seconds = 60.0 * minutes
    return with_changes(
        scenario, {"episode.arrivals_s": seconds, "episode.horizon_s": seconds, "episode.warmup_s": 0.0}
    )
