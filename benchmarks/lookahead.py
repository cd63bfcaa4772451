"""What look-ahead gains over its base, and its clairvoyant form as a bound: per seed, paired, written as JSON.

    python benchmarks/lookahead.py --scenario chat-bursty --base adaptive --seeds 8 --out lookahead.json

Each cell is a load and a seed: the base, the planner and its clairvoyant form meet the same requests and noise.
The file is written after each cell, and a run goes on where one with the same settings stopped.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

import baselines
from baselines.lookahead import Lookahead, run_lookahead
from llm_env.command import exit_code
from llm_env.errors import UserError
from llm_env.metrics import mean_ci, weighted_attainment
from llm_env.provenance import provenance
from llm_env.rollout import rollout
from llm_env.scenarios import load_scenario
from llm_env.study import baseline_contender
from llm_env.workload import draw_workload

FORMS = ("lookahead", "clairvoyant")


@dataclass(frozen=True)
class Arguments:
    """Look-ahead and its clairvoyant form against their base."""

    scenario: str = "chat-bursty"
    """A shipped scenario's name or a TOML file."""

    base: str = "adaptive"
    """The base policy with its parameters, as evaluate.py takes them."""

    loads: tuple[float, ...] = (0.6, 0.8, 1.0)
    """Loads to compare at."""

    seeds: int = 8
    """How many workload seeds."""

    first_seed: int = 1_000_000
    """The first of them: from 1,000,000 on for tuning, from 2,000,000 on for reported results."""

    forms: tuple[str, ...] = FORMS
    """Which forms to run: lookahead, clairvoyant."""

    out: Path = Path("lookahead.json")
    """The file to write."""


def main(arguments: Arguments) -> int:
    contender = baseline_contender(arguments.base)
    decide = baselines.make_policy(contender.policy, **dict(contender.parameters))
    if wrong := [form for form in arguments.forms if form not in FORMS]:
        raise UserError(f"forms: expected {' or '.join(FORMS)}, got {wrong[0]!r}")
    header = {"scenario": arguments.scenario, "base": arguments.base, "forms": list(arguments.forms)}
    cells = _earlier(arguments.out, header)
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        for load in arguments.loads:
            if any(cell["seed"] == seed and cell["load"] == load for cell in cells):
                continue
            cells.append(_cell(arguments, decide, load, seed))
            text = json.dumps({**header, "cells": cells, **provenance()}, indent=1, allow_nan=False)
            arguments.out.write_text(text + "\n", encoding="utf-8")
            print(cells[-1], flush=True)
    _show(arguments, cells)
    return 0


def _earlier(path: Path, header: dict[str, Any]) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    earlier = json.loads(path.read_text(encoding="utf-8"))
    if any(earlier.get(name) != value for name, value in header.items()):
        raise UserError(f"{path}: has results of other settings: give another --out")
    return earlier["cells"]


def _cell(arguments: Arguments, decide: Any, load: float, seed: int) -> dict[str, Any]:
    scenario = load_scenario(arguments.scenario, [f"workload.load={load}"])
    requests = draw_workload(scenario, seed)
    base = rollout(scenario, decide, requests, seed, record=True)
    cell: dict[str, Any] = {"load": load, "seed": seed, "base": weighted_attainment(base, scenario)}
    for form in arguments.forms:
        settings = Lookahead.bound() if form == "clairvoyant" else Lookahead()
        run_lookahead(scenario, decide, requests[:20], seed, settings)  # so that compiling is not counted
        began_s = time.process_time()
        state, effort = run_lookahead(scenario, decide, requests, seed, settings, record=True)
        cpu_s = time.process_time() - began_s
        cell[form] = weighted_attainment(state, scenario)
        cell[f"{form}_plans"] = effort.plans
        cell[f"{form}_cpu_ms_per_plan"] = round(1e3 * cpu_s / max(1, effort.plans), 2)
        cell[f"{form}_simulated_per_plan"] = round(effort.simulated / max(1, effort.plans))
        cell[f"{form}_changed"] = round(1.0 - effort.changes[0] / max(1, effort.plans), 3)
    return cell


def _show(arguments: Arguments, cells: list[dict[str, Any]]) -> None:
    """Means over seeds of each seed's mean over loads, and paired differences to the base."""

    def by_seed(name: str, load: float | None = None) -> np.ndarray:
        seeds = sorted({cell["seed"] for cell in cells})
        return np.array(
            [np.mean([c[name] for c in cells if c["seed"] == s and load in (None, c["load"])]) for s in seeds]
        )

    print(f"{arguments.scenario}, base {arguments.base}: {100 * by_seed('base').mean():.2f} %")
    for form in arguments.forms:
        for load in (None, *arguments.loads):
            gain = mean_ci(by_seed(form, load) - by_seed("base", load))
            where = "all loads" if load is None else f"load {load:g}"
            print(f"  {form}, {where}: {100 * gain.mean:+.2f} ± {100 * gain.half_width:.2f} points")


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(tyro.cli(Arguments, description=__doc__))))
