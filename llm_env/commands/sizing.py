"""`python -m llm_env capacity` and `fleet`: what a system carries at a promise, and how many workers traffic needs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from llm_env.command import output_console
from llm_env.commands.arguments import integer, number
from llm_env.commands.contenders import add_contenders, contenders_of, seeds_of
from llm_env.config import with_changes
from llm_env.errors import UserError
from llm_env.prices import MOST_GPUS, MOST_PRICE, Price
from llm_env.processes import shared_out
from llm_env.scenarios import check_changes_of_trace, load_scenario
from llm_env.sizing import LEAST_LOAD, MOST_LOAD, STEP, Capacity, Fleet, capacities, fleet
from llm_env.study import Study
from llm_env.tables import money_text, titled_table
from llm_env.workload import refuse_rate, request_rate

EPILOG = (
    "The same arguments give the same with any number of processes. exit codes: 0 done, 1 a bug, 2 bad input, 3 input"
    " or output failed, 130 interrupted"
)


def add_sizing(commands: Any) -> None:
    """Adds `capacity` and `fleet` to the commands."""
    add = commands.add_parser(
        "capacity",
        help="the highest rate at which a policy keeps its promises",
        description="Finds by bisection the highest load, and its requests per second, at which each policy's mean SLO"
        " attainment over seeds is at least --attainment: on the same seeds for all. The range in brackets is where the"
        " ends of the mean's 95 % interval cross it.",
        epilog=EPILOG,
        allow_abbrev=False,
    )
    add.set_defaults(run=_capacity)
    _common(add)
    add = commands.add_parser(
        "fleet",
        help="how many workers some traffic needs, and what they cost",
        description="Finds the fewest equal workers with which each policy's mean SLO attainment is at least"
        " --attainment, while the traffic stays as it is: a scenario at --rate, or a trace.",
        epilog=EPILOG,
        allow_abbrev=False,
    )
    add.set_defaults(run=_fleet)
    _common(add)
    add.add_argument(
        "--rate", type=number(0, 1e6, above=True), metavar="R", help="requests per second (default: its own)"
    )
    add.add_argument("--trace", metavar="FILE", help="a trace file in place of the scenario's traffic")
    add.add_argument("--time-scale", type=number(0, 1e6, above=True), default=1.0, metavar="F", help="stretch its time")
    add.add_argument("--gpus-per-worker", type=integer(1, MOST_GPUS), default=1, metavar="N", help="(default: 1)")
    price = number(0, MOST_PRICE)
    add.add_argument("--price", type=price, default=2.0, metavar="P", help="of a GPU for an hour (default: 2)")


def _common(add: argparse.ArgumentParser) -> None:
    add_contenders(add)
    add.add_argument(
        "--attainment",
        nargs="+",
        type=number(0, 1, above=True),
        default=[0.9, 0.95, 0.99],
        metavar="SHARE",
        help="of the promises that must be kept (default: 0.9 0.95 0.99)",
    )


def _each(run: Any, jobs: Sequence[tuple[Any, ...]], processes: int) -> list[Any]:
    """run(*job) of every job, in their order."""
    return [result for _, result in sorted(shared_out(run, jobs, processes), key=lambda pair: pair[0])]


# ---- capacity ------------------------------------------------------------------------------------------------------
def _capacity(arguments: argparse.Namespace) -> None:
    scenario = load_scenario(arguments.scenario, arguments.change)
    refuse_rate(scenario, "capacity")
    if scenario.vary:
        raise UserError("capacity: the scenario varies, and so does what load means: take one that does not")
    targets, seeds = tuple(sorted(set(arguments.attainment))), seeds_of(arguments)
    jobs = [(scenario, contender, targets, seeds) for contender in contenders_of(arguments, scenario)]
    found: list[list[Capacity]] = _each(capacities, jobs, arguments.processes)
    if arguments.json:
        rows = [each.to_dict() for one in found for each in one]
        sys.stdout.write(json.dumps({"capacity": rows, "seeds": list(seeds)}, indent=1, allow_nan=False) + "\n")
        return
    console = output_console()
    console.print(_capacity_table(found, targets, f"{scenario.name}: requests per second, {len(seeds)} seeds"))
    console.print(
        f"The highest rate at which the mean attainment under rule {scenario.slo.rule} reaches the share; in brackets"
        f" where the ends of its 95 % interval do. Loads are looked at in steps of {STEP:g} from {LEAST_LOAD:g} to"
        f" {MOST_LOAD:g}."
    )


def _capacity_table(found: list[list[Capacity]], targets: tuple[float, ...], title: str) -> Table:
    table = titled_table(title)
    table.add_column("policy", overflow="fold")
    for target in targets:
        table.add_column(f"{100 * target:g} %", justify="right", no_wrap=True)
    for one in found:
        cells = []
        for each in one:
            mark = "≥ " if each.at_least else ""
            cells.append(
                f"{mark}{each.rate_per_s:.2f} [{each.low_rate_per_s:.2f}, {each.high_rate_per_s:.2f}]"
                if each.high_rate_per_s > 0
                else "never"
            )
        table.add_row(one[0].policy, *cells)
    return table


# ---- fleet ---------------------------------------------------------------------------------------------------------
def _fleet(arguments: argparse.Namespace) -> None:
    if arguments.trace is not None:
        check_changes_of_trace(arguments.change)
        if arguments.rate is not None:
            raise UserError("--rate: not with --trace; --time-scale stretches it")
    elif arguments.time_scale != 1.0:
        raise UserError("--time-scale: only with --trace; the rate of a scenario is --rate")
    scenario = load_scenario(arguments.scenario, arguments.change)
    if arguments.trace is None:
        refuse_rate(scenario, "fleet")
        rate = arguments.rate if arguments.rate is not None else request_rate(scenario)
        scenario = with_changes(scenario, {"workload.rate_per_s": rate})
    jobs = []
    for contender in contenders_of(arguments, scenario):
        study = Study(scenario, (contender,), (), seeds_of(arguments), arguments.trace, arguments.time_scale)
        price = Price(arguments.price, arguments.gpus_per_worker)
        jobs += [(study, target, price) for target in sorted(set(arguments.attainment))]
    found: list[Fleet] = _each(fleet, jobs, arguments.processes)
    if arguments.json:
        rows = [each.to_dict() for each in found]
        sys.stdout.write(json.dumps({"fleet": rows}, indent=1, allow_nan=False) + "\n")
        return
    at = arguments.trace or f"{scenario.name} at {scenario.workload.rate_per_s:.4g} requests/s"
    output_console().print(_fleet_table(found, f"{at}: the fewest workers"))


def _fleet_table(found: list[Fleet], title: str) -> Table:
    table = titled_table(title)
    table.add_column("policy", overflow="fold")
    for column in (
        "share\n%",
        "workers\n",
        "GPUs\n",
        "met\n%",
        "util\n%",
        "cost\n/hour",
        "/million\noutput",
        "/million\ntokens",
        "/1,000\ngood",
    ):
        table.add_column(column, justify="right", no_wrap=True)
    for each in found:
        share = f"{100 * each.target:g}"
        met = f"{100 * each.attainment:.1f} ±{100 * each.half_width:.1f}"
        if each.workers is None:
            table.add_row(each.policy, share, "too few", f"> {each.gpus}", met, *[""] * 5)
            continue
        table.add_row(
            each.policy,
            share,
            str(each.workers),
            str(each.gpus),
            met,
            f"{100 * each.utilisation:.0f}",
            money_text(each.cost_per_hour),
            money_text(each.cost_per_million_output_tokens),
            money_text(each.cost_per_million_tokens),
            money_text(each.cost_per_thousand_good),
        )
    return table
