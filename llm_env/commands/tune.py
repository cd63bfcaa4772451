"""`python -m llm_env tune`: a search for the best parameters of policies on a scenario, on tuning seeds alone."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from baselines import POLICIES
from baselines.search import TIMES
from llm_env.commands.arguments import integer, number
from llm_env.errors import UserError
from llm_env.scenarios import load_scenario
from llm_env.study import baseline_contender
from llm_env.tables import titled_table
from llm_env.tuned import (
    FIRST_TUNING_SEED,
    LAST_TUNING_SEED,
    Tuned,
    TunedFile,
    merge_tuned,
    read_tuned,
    tables_toml,
)
from llm_env.tuning import Problem, Server, evaluator, search_key, search_space, tune
from llm_env.workload import refuse_rate


def add_tune(commands: Any) -> None:
    """Adds `tune` to the commands."""
    add = commands.add_parser(
        "tune",
        help="search the best parameters of a policy on a scenario",
        description="Searches the best parameters of policies on a scenario with Optuna's TPE sampler. A setting is"
        " worth the mean attainment over loads and tuning seeds; the first trial is always the default. Ranges are in"
        " baselines/search.py; a policy without parameters is run once. Prints TOML; with --out each policy's table is"
        " put into a file as soon as it is found, and one that is there from the same search is not searched again.",
        epilog="The same arguments find the same with any number of processes. exit codes: 0 done, 1 a bug, 2 bad"
        " input, 3 input or output failed, 130 interrupted",
        allow_abbrev=False,
    )
    add.set_defaults(run=_tune)
    add.add_argument("policies", metavar="POLICY", nargs="+", help='names, or "all" (simulate --list-policies)')
    what = add.add_argument_group("scenario")
    what.add_argument("--scenario", metavar="NAME|TOML", required=True, help="a shipped scenario, or a .toml file")
    what.add_argument("--change", nargs="+", default=[], metavar="KEY=VALUE", help="settings of it to change")
    what.add_argument(
        "--loads",
        nargs="+",
        type=number(0, 10, above=True),
        default=[],
        metavar="F",
        help="loads to average over, one setting for all (default: the scenario's own)",
    )
    what.add_argument("--seeds", type=integer(1, 100_000), default=16, metavar="N", help="workloads (default: 16)")
    what.add_argument(
        "--first-seed",
        type=integer(0, 2**63 - 1),
        default=FIRST_TUNING_SEED,
        metavar="S",
        help=f"the first of them; tuning seeds are {FIRST_TUNING_SEED} to {LAST_TUNING_SEED} (default: the first)",
    )
    how = add.add_argument_group("search")
    how.add_argument(
        "--trials",
        type=integer(1, 100_000),
        default=60,
        metavar="N",
        help="settings that are tried of each policy, the same number for a fair comparison; adaptive and"
        " role-switch, with their many numbers, get three times as many (default: 60)",
    )
    how.add_argument(
        "--router",
        metavar="RULE",
        help="search the weights of this routing rule (score) in place of the policy's parameters: one POLICY serves,"
        " as evaluate.py --baselines takes it, like adaptive@tuned",
    )
    how.add_argument("--seed", type=integer(0, 2**31 - 1), default=0, help="of the search (default: 0)")
    how.add_argument(
        "--processes", type=integer(1, 1024), default=os.cpu_count() or 1, metavar="N", help="(default: the cores)"
    )
    give = add.add_argument_group("output")
    give.add_argument(
        "--out", type=Path, metavar="FILE", help="a .toml file of tuned settings; tables of other policies stay"
    )
    give.add_argument("--again", action="store_true", help="search anew what the file already has")


def _tune(arguments: argparse.Namespace) -> None:
    scenario = load_scenario(arguments.scenario, arguments.change)
    loads = tuple(sorted(arguments.loads))
    if len(set(loads)) != len(loads):
        raise UserError(f"--loads: one is given twice: {' '.join(f'{x:g}' for x in loads)}")
    if loads:
        refuse_rate(scenario, "--loads")
    names, server = _names(arguments, scenario.name)
    problem = Problem(scenario, loads, arguments.first_seed, arguments.seeds, tuple(arguments.change), server)
    router = server is not None
    found = {} if arguments.again else _found_before(arguments, problem, names)
    todo = [name for name in names if name not in found]
    console = Console(stderr=True)
    if todo:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with (
            evaluator(problem, arguments.processes) as evaluate,
            Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress,
        ):
            for name in todo:
                task = progress.add_task(name, total=_trials(arguments, name) if search_space(name, router)[0] else 1)

                def told(done: int, best: float, task: Any = task, name: str = name) -> None:
                    progress.update(task, completed=done, description=f"{name} {100 * best:.1f} %")

                found[name] = tune(problem, name, _trials(arguments, name), arguments.seed, evaluate, told)
                if arguments.out is not None:
                    merge_tuned(arguments.out, name, found[name], router)
    console.print(_table(found, scenario.name))
    tables = {name: found[name] for name in names}
    file = TunedFile(policies={}, routers=tables) if router else TunedFile(policies=tables, routers={})
    sys.stdout.write(tables_toml(file))


def _names(arguments: argparse.Namespace, scenario: str) -> tuple[list[str], Server | None]:
    """What is tuned, and who serves if that is a routing rule."""
    if arguments.router is not None:
        search_space(arguments.router, router=True)
        if len(arguments.policies) != 1 or "/" in arguments.policies[0]:
            raise UserError("--router: expected one POLICY, without a routing rule of its own")
        contender = baseline_contender(arguments.policies[0], scenario)
        return [arguments.router], (contender.policy, contender.parameters)
    given = [name for text in arguments.policies for name in (POLICIES if text == "all" else (text,))]
    names = list(dict.fromkeys(given))
    for name in names:
        search_space(name)
    return names, None


def _trials(arguments: argparse.Namespace, name: str) -> int:
    return arguments.trials * TIMES.get(name, 1)


def _found_before(arguments: argparse.Namespace, problem: Problem, names: list[str]) -> dict[str, Tuned]:
    """The tables in the output file that this same search has found."""
    out = arguments.out
    if out is None:
        return {}
    if out.suffix != ".toml":
        raise UserError(f"--out: expected a name that ends with .toml, got {str(out)!r}")
    file = read_tuned(out) if out.exists() else TunedFile(policies={}, routers={})
    there = file.policies if problem.server is None else file.routers
    keys = {name: search_key(problem, name, _trials(arguments, name), arguments.seed) for name in names}
    return {name: there[name] for name in names if name in there and there[name].key == keys[name]}


def _table(found: dict[str, Tuned], where: str) -> Table:
    table = titled_table(f"{where}: mean attainment on tuning seeds")
    table.add_column("policy", no_wrap=True)
    for title in ("default\n%", "tuned\n%", "trials"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("parameters")
    for name, one in sorted(found.items(), key=lambda item: -item[1].attainment):
        given = ", ".join(f"{key}={str(value).lower()}" for key, value in one.parameters.items()) or "the defaults"
        table.add_row(
            name, f"{100 * one.default_attainment:.1f}", f"{100 * one.attainment:.1f}", str(one.trials), given
        )
    return table
