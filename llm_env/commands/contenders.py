"""Arguments that commands about studies share: a scenario, who competes on it, which seeds, how many processes."""

from __future__ import annotations

import argparse
import os

from llm_env.commands.arguments import integer
from llm_env.config import Scenario
from llm_env.errors import UserError
from llm_env.study import FIRST_REPORTED_SEED, Contender, agent_contender, baseline_contender


def add_contenders(add: argparse.ArgumentParser, seeds: int = 12) -> None:
    """Adds them. Args: seeds: by default."""
    add.add_argument("--scenario", metavar="NAME|TOML", required=True, help="a shipped scenario, or a .toml file")
    add.add_argument("--change", nargs="+", default=[], metavar="KEY=VALUE", help="settings of it to change")
    add.add_argument(
        "--policies", nargs="+", default=[], metavar="SPEC", help="as evaluate.py --baselines takes them, one by one"
    )
    add.add_argument("--agents", nargs="+", default=[], metavar="AGENT", help="names or folders of agents")
    add.add_argument(
        "--seeds", type=integer(2, 100_000), default=seeds, metavar="N", help=f"workloads (default: {seeds})"
    )
    add.add_argument("--first-seed", type=integer(0, 2**63 - 1), default=FIRST_REPORTED_SEED, metavar="S")
    add.add_argument("--processes", type=integer(1, 1024), default=os.cpu_count() or 1, metavar="N")
    add.add_argument("--json", action="store_true", help="print JSON in place of the table")


def contenders_of(arguments: argparse.Namespace, scenario: Scenario) -> list[Contender]:
    """Agents, then policies.

    Raises:
        UserError: an unknown one, or none.
    """
    found: list[Contender] = []
    for path in arguments.agents:
        found.append(agent_contender(path, {one.label for one in found}))
    found += [baseline_contender(spec, scenario.name) for spec in dict.fromkeys(arguments.policies)]
    if not found:
        raise UserError("give at least one of --policies and --agents")
    return found


def seeds_of(arguments: argparse.Namespace) -> tuple[int, ...]:
    """The seeds, one after the other from the first."""
    return tuple(range(arguments.first_seed, arguments.first_seed + arguments.seeds))
