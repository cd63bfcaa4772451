"""Families x contenders on reported seeds: runs what is not saved yet, and writes docs/benchmark.md from what is.

`python -m benchmarks.families --help`. Baselines run at the setting that was tuned for the family; agents may have been
trained several times. The page is made from the saved results alone (`benchmarks.family_page`).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import baselines
from agents.shipped import is_name, shipped_folder, shipped_names
from benchmarks.family_page import PAGE, page
from benchmarks.family_results import NUM_LENGTHS, RESULTS, Kind, Result, load, load_all, path_of, rounded, save
from llm_env.bounds import reason_without_bound, slo_bound
from llm_env.command import exit_code
from llm_env.commands.arguments import integer
from llm_env.config import Scenario
from llm_env.errors import UserError
from llm_env.files import file_sha256, staged_file
from llm_env.groups import measured, quarters
from llm_env.scenarios import load_scenario
from llm_env.study import (
    CLAIRVOYANT,
    FIRST_REPORTED_SEED,
    LOOKAHEAD,
    RULES,
    CellResult,
    Contender,
    Study,
    agent_contender,
    at_this_load,
    baseline_contender,
    looking_ahead,
    run_study,
    sort_cells,
)
from llm_env.tuned import tuned_policies, tuned_routers
from llm_env.tuning import code_version
from llm_env.workload import concrete, draw_workload

SEEDS = 48
PLANNER_SEEDS = 24  # a planner takes thousands of trials for each decision
LOADS = (0.6, 0.8, 1.0)
FAMILIES: dict[str, tuple[float, ...]] = {  # name of the scenario -> loads; none: drawn with the rest of an episode
    "chat-bursty": LOADS,
    "classes-two": LOADS,
    "classes-three": LOADS,
    "noisy-kv": LOADS,
    "prefix-sessions": LOADS,
    "unequal-workers": (0.5, 0.7, 0.9),
    "roles": LOADS,
    "generalist": (),
}
# Strong rules made by hand with this project's View; all other policies are engines' and papers'
REFERENCES = ("sarathi-spf", "slack-fill", "moore-hodgson", "adaptive", "kv-aware", "role-switch")
NO_RIVALS = ("random",)  # for the scale only
BOUND = "any policy"  # label of the bound
SCORE_RULE, ROUTED = "score", "adaptive@tuned"  # this project's routing rule; what serves behind each rule


class Rival(NamedTuple):
    """One contender of a family: several `Contender`s if it was trained several times."""

    label: str
    kind: Kind
    settings: str
    trained: tuple[Contender, ...]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command. Returns the exit code (see `llm_env.command.exit_code`)."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.families", description=__doc__)
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES), metavar="NAME")
    parser.add_argument(
        "--policies",
        nargs="*",
        metavar="SPEC",
        help="as evaluate.py --baselines takes them; by default all that were tuned for the family, and the others at"
        " their defaults",
    )
    parser.add_argument(
        "--agent",
        nargs="+",
        action="append",
        default=[],
        metavar=("LABEL", "FOLDER"),
        help="an agent: a label and the folders (or shipped names) of its trainings, as agent:{family}"
        " runs/{family}/seed-*, where {family} is the family's name; families without such a folder are left out. May"
        " be given several times",
    )
    parser.add_argument(
        "--lookahead",
        nargs="*",
        default=[],
        metavar="SPEC",
        help="policies to plan ahead from (docs/lookahead.md): slow",
    )
    parser.add_argument("--clairvoyant", nargs="*", default=[], metavar="SPEC", help="the same with the true future")
    parser.add_argument(
        "--planner-seeds",
        type=integer(2, 10_000),
        default=PLANNER_SEEDS,
        metavar="N",
        help=f"workloads of both, the first of the others' (default: {PLANNER_SEEDS})",
    )
    parser.add_argument("--seeds", type=integer(2, 10_000), default=SEEDS, metavar="N", help=f"(default: {SEEDS})")
    parser.add_argument("--processes", type=integer(1, 1024), default=os.cpu_count() or 1, metavar="N")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR")
    parser.add_argument("--page", type=Path, default=PAGE, metavar="FILE", help="(default: docs/benchmark.md)")
    parser.add_argument("--page-only", action="store_true", help="run nothing")
    arguments = parser.parse_args(argv)
    return exit_code(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    for family in [] if arguments.page_only else arguments.families:
        run_family(family, arguments)
    text = page(list(load_all(arguments.results, list(FAMILIES))))
    with staged_file(arguments.page, overwrite=True) as staged:
        staged.write_text(text, encoding="utf-8")


def run_family(family: str, arguments: argparse.Namespace) -> None:
    """Runs what is not saved yet, or was saved from other settings."""
    scenario = load_scenario(family)
    base = Study(scenario, (), FAMILIES[family], _seeds(arguments.seeds))
    _save_bound(base, arguments.results)
    planners = [*_planners(scenario, LOOKAHEAD, arguments.lookahead)]
    planners += _planners(scenario, CLAIRVOYANT, arguments.clairvoyant)
    fewer = replace(base, seeds=_seeds(min(arguments.planner_seeds, arguments.seeds)))
    quick = [*_policies(family, arguments.policies), *_agents(family, arguments.agent)]
    for study, rival in [*((base, rival) for rival in quick), *((fewer, rival) for rival in planners)]:
        key = result_key(study, rival)
        path = path_of(arguments.results, family, rival.label)
        if path.exists() and load(path).key == key:
            continue
        sys.stderr.write(f"{family}: {rival.label}\n")
        save(arguments.results, run_rival(study, rival, key, arguments.processes))


def _seeds(number: int) -> tuple[int, ...]:
    return tuple(range(FIRST_REPORTED_SEED, FIRST_REPORTED_SEED + number))


# ---- contenders ----------------------------------------------------------------------------------------------------
def _policies(family: str, specs: list[str] | None) -> list[Rival]:
    if specs is None:
        known = tuned_policies(family)
        names = [name for name in baselines.POLICIES if name not in NO_RIVALS]
        specs = [f"{name}@tuned" if name in known else name for name in names] + _routers(family)
    rivals = []
    for spec in specs:
        contender = baseline_contender(spec, family)
        ours = contender.policy in REFERENCES and contender.router in ("", SCORE_RULE)
        kind: Kind = "reference" if ours else "literature"
        rivals.append(Rival(spec, kind, settings_of(contender), (contender,)))
    return rivals


def _routers(family: str) -> list[str]:
    """Each routing rule with the strongest batches, where the scenario's own rule chooses among workers."""
    if load_scenario(family).system.router != SCORE_RULE:
        return []
    tuned = tuned_routers(family)
    rules = [f"{rule}@tuned" if rule in tuned else rule for rule in RULES if rule not in NO_RIVALS]
    return [f"{ROUTED}/{rule}" for rule in rules if rule != SCORE_RULE]


def _planners(scenario: Scenario, ahead: str, specs: list[str]) -> list[Rival]:
    rivals = []
    for spec in specs:
        contender = looking_ahead(baseline_contender(spec, scenario.name), ahead, scenario)
        kind: Kind = "clairvoyant" if contender.is_bound else "reference"
        rivals.append(Rival(contender.label, kind, f"{ahead} {settings_of(contender)}", (contender,)))
    return rivals


def settings_of(contender: Contender) -> str:
    """A baseline as `evaluate.py --baselines` takes it, with all its parameters spelt out."""

    def texts(items: Sequence[tuple[str, Any]]) -> str:
        return ",".join(f"{name}={str(value).lower()}" for name, value in items)

    text = f"{contender.policy}:{texts(contender.parameters)}".removesuffix(":")
    text += f"/{contender.router}" if contender.router else ""
    return text + (f" ({texts(contender.weights)})" if contender.weights else "")


def _agents(family: str, given: list[list[str]]) -> list[Rival]:
    rivals = []
    for pattern, *folders in given:
        label = pattern.format(family=family)
        if not folders:
            raise UserError(f"--agent {label}: expected a label and at least one folder")
        paths = []
        for folder in folders:
            path = folder.format(family=family)
            if "*" in path:
                paths += sorted(str(found) for found in Path().glob(path))
            elif "{family}" not in folder or Path(path).exists():
                paths.append(path)
        trained: list[Contender] = []
        for path in paths:
            trained.append(agent_contender(path, {one.label for one in trained}))
        if trained:
            rivals.append(Rival(label, "agent", " ".join(paths), tuple(trained)))
    return rivals


def result_key(base: Study, rival: Rival) -> str:
    """A hash of all that decides a result but the code: scenario, workloads, parameters, and the agents' files."""
    files = [digest for one in rival.trained if one.agent for digest in _file_hashes(one.agent)]
    what = [base.scenario.model_dump(mode="json", exclude_defaults=True), base.loads, base.seeds, rival.settings, files]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


def _file_hashes(agent: str) -> list[str]:
    """Of an agent's files. Args: agent: a name of the package's, or a folder."""
    shipped = is_name(agent) and agent in shipped_names()
    with shipped_folder(agent) if shipped else nullcontext(Path(agent)) as folder:
        return [file_sha256(path) for path in sorted(folder.glob("**/agent.*"))]


# ---- runs ----------------------------------------------------------------------------------------------------------
def run_rival(base: Study, rival: Rival, key: str, processes: int) -> Result:
    """All cells of a contender, summed up."""
    study = Study(base.scenario, rival.trained, base.loads, base.seeds)
    cells = sort_cells(study, [cell for _, _, new in run_study(study, processes) for cell in new])
    shape = (len(study.load_labels()), len(rival.trained), len(study.seeds))
    attained = np.array([cell.summary["weighted_attainment"] for cell in cells]).reshape(shape).transpose(1, 0, 2)
    ttft_p99_s = np.array([cell.summary["ttft_p99_s"] for cell in cells]).reshape(shape[0], -1)
    lengths = np.array([by_length(cell, concrete(study.scenario, cell.seed)) for cell in cells])
    return Result(
        family=study.scenario.name,
        label=rival.label,
        kind=rival.kind,
        settings=rival.settings,
        loads=study.load_labels(),
        first_seed=study.seeds[0],
        seeds=len(study.seeds),
        attainment=rounded(attained),
        ttft_p99_s=rounded(_nanmean(ttft_p99_s, 1)),
        by_length=rounded(_nanmean(lengths, 0)),
        training_s=[_training_s(one) for one in rival.trained if one.agent],
        key=key,
        code=code_version(),
    )


def by_length(cell: CellResult, scenario: Scenario) -> np.ndarray:
    """(NUM_LENGTHS,) share of a cell's measured requests that met their SLO, in quarters by prompt length."""
    which = measured(cell, scenario)
    met, quarter = cell.requests["slo_met"][which], quarters(cell.requests["prompt_tokens"][which])
    return np.array([met[quarter == k].mean() if (quarter == k).any() else np.nan for k in range(NUM_LENGTHS)])


def _nanmean(values: np.ndarray, axis: int) -> np.ndarray:
    there = np.isfinite(values)
    number = there.sum(axis=axis)
    return np.where(number > 0, np.where(there, values, 0.0).sum(axis=axis) / np.maximum(number, 1), np.nan)


def _training_s(contender: Contender) -> float | None:
    """Seconds from the first validation to the last, of the folder of a run; of an agent without its run None."""
    from agents.card import read_run

    folder = Path(contender.agent)
    return round(read_run(folder).seconds, 1) if (folder / "tb").is_dir() else None


def _save_bound(base: Study, folder: Path) -> None:
    """What no policy can pass, by SLO weight: with several weights the sum of the classes alone."""
    rival = Rival(BOUND, "bound", "bound", ())
    key, path = result_key(base, rival), path_of(folder, base.scenario.name, BOUND)
    noisy = any(reason_without_bound(concrete(base.scenario, seed)) for seed in base.seeds)
    if noisy or (path.exists() and load(path).key == key):
        return
    rows = []
    for at in base.load_labels():
        scenario = at_this_load(base, at)[0]
        rows.append([weighted_bound(draw_workload(scenario, s), concrete(scenario, s)) for s in base.seeds])
    nothing: list[float | None] = [None]
    save(
        folder,
        Result(
            family=base.scenario.name,
            label=BOUND,
            kind="bound",
            settings="llm_env.bounds",
            loads=base.load_labels(),
            first_seed=base.seeds[0],
            seeds=len(base.seeds),
            attainment=rounded(np.array([rows])),
            ttft_p99_s=nothing * len(rows),
            by_length=nothing * NUM_LENGTHS,
            training_s=[],
            key=key,
            code=code_version(),
        ),
    )


def weighted_bound(requests: np.ndarray, scenario: Scenario) -> float:
    """The most attainment by SLO weight; NaN without a measured request. Classes of equal weight share the machine."""
    met = total = 0.0
    for weight in np.unique(requests["weight"]):
        bound = slo_bound(requests[requests["weight"] == weight], scenario)
        met, total = met + weight * bound.num_met, total + weight * bound.num_requests
    return met / total if total > 0 else float("nan")


if __name__ == "__main__":
    sys.exit(main())
