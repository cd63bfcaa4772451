"""The card of an agent that comes with the package: where it is from, how it learned, what it reached, its limits."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agents.export import MANIFEST
from agents.files import read, shape_of
from agents.forms import Trained
from agents.references import TAG
from llm_env.errors import InputOutputError, UserError
from llm_env.metrics import paired_ci

CURVE_ROWS = 10
RIVALS = 8  # rows of a table of results, beside the agent's own
_SHOWN = ("numpy", "torch", "stable-baselines3")  # versions


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run.

    Attributes:
        folder: of the run.
        settings: its settings.json.
        command: how it was begun.
        provenance: its versions.json.
        agent: its best.
        curve: (n, 2) float64, steps and validation attainment.
        seconds: from the first validation to the last.
    """

    folder: Path
    settings: dict[str, Any]
    command: str
    provenance: dict[str, Any]
    agent: Trained
    curve: np.ndarray
    seconds: float

    @property
    def validation_attainment(self) -> float:
        """Of its best agent."""
        return float(self.agent.about["validation_attainment"])


def read_run(folder: Path) -> Run:
    """What a card needs of a finished run.

    Raises:
        UserError: it is none.
        InputOutputError: a file cannot be read.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # here, because it takes long

    if not (folder / "agent" / MANIFEST).exists():
        raise UserError(f"{folder}: holds no finished run (agent/{MANIFEST})")
    agent = read(folder / "agent")
    reached = agent.about.get("validation_attainment")
    if not isinstance(reached, int | float):
        raise UserError(f"{folder / 'agent' / MANIFEST}: about.validation_attainment: expected a number")
    events = EventAccumulator(str(folder / "tb"), {"scalars": 0}).Reload()
    points = events.Scalars(TAG) if TAG in events.Tags()["scalars"] else []
    if not points:
        raise UserError(f"{folder / 'tb'}: {TAG}: has no points")
    return Run(
        folder=folder,
        settings=_json(folder / "settings.json"),
        command=_text(folder / "command.txt").strip(),
        provenance=_json(folder / "versions.json"),
        agent=agent,
        curve=np.array([[point.step, point.value] for point in points], np.float64),
        seconds=points[-1].wall_time - points[0].wall_time,
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputOutputError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError:
        raise UserError(f"{path}: is no text") from None


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: expected an object, got {type(found).__name__}")
    return found


# ---- the card ------------------------------------------------------------------------------------------------------
def card(name: str, summary: str, limits: Sequence[str], best: Run, runs: Sequence[Run], results: Sequence[str]) -> str:
    """The card's text.

    Args:
        name: of the agent.
        summary: what it is for.
        limits: sentences.
        best: the run that it is of.
        runs: one a seed.
        results: tables (see `results_table`).
    """
    agent, about, settings = best.agent, best.agent.about, best.settings
    reached = [run.validation_attainment for run in runs]
    decides, widths = shape_of(agent)
    versions = best.provenance.get("versions", {})
    seeds = ", ".join(str(run.settings["seed"]) for run in runs)
    facts = [
        ("decides by", f"{decides}; {'-'.join(map(str, widths))} {agent.activation} network"),
        ("trained on", f"{', '.join(settings['scenario'])}, episodes of seeds 0 to 999,999"),
        ("algorithm", f"{settings['algo']}, {about['timesteps']:,} decisions until this agent"),
        ("training seeds", f"{seeds}; this is seed {settings['seed']}, the best on validation"),
        ("validation", f"seeds from 1,000,000 on, {settings['validation_seeds']} a load"),
        ("validation attainment", f"{best.validation_attainment:.4f}; all seeds: {_spread(reached)}"),
        ("training time", f"{best.seconds:.0f} s from the first validation to the last"),
        ("made with", ", ".join(f"{package} {versions[package]}" for package in _SHOWN if package in versions)),
        ("commit", str(best.provenance.get("git_commit"))),
    ]
    parts = [
        f"# {name}",
        summary.strip(),
        "| | |\n|---|---|\n" + "\n".join(f"| {what} | {value} |" for what, value in facts),
        "## How it was trained",
        "```sh\n" + "\n".join(run.command for run in runs) + "\n```",
        "## How it learned",
        "Attainment of the greedy policy on the validation workloads.",
        _curves(runs),
        "## What it reached",
        *(results or ["No results on reported seeds were kept with this agent."]),
        "## Limits",
        "\n".join(f"- {limit.strip()}" for limit in limits),
    ]
    return "\n\n".join(parts) + "\n"


def _spread(values: Sequence[float]) -> str:
    return f"mean {np.mean(values):.4f}, least {min(values):.4f}, most {max(values):.4f}"


def _curves(runs: Sequence[Run]) -> str:
    """At most CURVE_ROWS validations of every run, by their number; runs of other lengths are left blank."""
    longest = max(len(run.curve) for run in runs)
    chosen = np.unique(np.linspace(0, longest - 1, min(CURVE_ROWS, longest)).round().astype(int))
    table = ["| decisions | " + " | ".join(f"seed {run.settings['seed']}" for run in runs) + " |"]
    table.append("|---:|" + "---:|" * len(runs))
    for k in chosen.tolist():
        steps = max(int(run.curve[k, 0]) for run in runs if k < len(run.curve))
        values = [f"{run.curve[k, 1]:.4f}" if k < len(run.curve) else "" for run in runs]
        table.append(f"| {steps:,} | " + " | ".join(values) + " |")
    return "\n".join(table)


# ---- results -------------------------------------------------------------------------------------------------------
def results_table(path: Path, name: str) -> str:
    """Results on reported seeds as a table with a title.

    Args:
        path: results.json of evaluate.py, or a family's folder of benchmarks/results/families.
        name: of the agent, whose contender is "agent:NAME".

    Raises:
        UserError: it is neither, or the agent did not take part.
        InputOutputError: it cannot be read.
    """
    label = f"agent:{name}"
    if path.is_dir():
        found = {file: _json(file) for file in sorted(path.glob("*.json"))}
        return _family_table(path, label, list(found.values()))
    return _evaluation_table(path, label, _json(path))


def _evaluation_table(path: Path, label: str, results: dict[str, Any]) -> str:
    """The agent and the best others at each load."""
    try:
        rule = results["scenario"]["slo"]["rule"]
        key, rows = f"slo_attainment_{rule}", results["rows"]
        mine = [row for row in rows if row["policy"] == label]
        lines = [
            f"Scenario {results['scenario']['name']}, {len(results['seeds'])} {results['replications']} from "
            f"{results['seeds'][0]:,} on, rule {rule}; ± is half a 95 % interval.",
            "",
            "| load | policy | attainment |",
            "|---:|---|---:|",
        ]
        for load in dict.fromkeys(row["load"] for row in rows):
            others = [row for row in rows if row["load"] == load and row["policy"] != label]
            others.sort(key=lambda row: -row[key])
            for row in [row for row in mine if row["load"] == load] + others[:RIVALS]:
                at = "as it is" if load is None else f"{load:g}"
                lines.append(f"| {at} | {row['policy']} | {row[key]:.4f} ± {row[f'{key}_ci95'] or 0:.4f} |")
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise UserError(f"{path}: is no results.json of evaluate.py: {error!r}") from None
    if not mine:
        raise UserError(f"{path}: rows: {label} did not take part")
    return "\n".join(lines)


def _family_table(path: Path, label: str, results: list[dict[str, Any]]) -> str:
    """The agent and the best others that met the same workloads, with paired differences of the means over loads."""
    try:
        place = next(((each["first_seed"], each["seeds"]) for each in results if each["label"] == label), None)
        if place is None:
            raise UserError(f"{path}: label: {label} did not take part")
        met = [each for each in results if (each["first_seed"], each["seeds"]) == place]  # the same workloads
        scores = {each["label"]: (each["kind"], _scores(each["attainment"])) for each in met}
        (first, count), mine = place, scores.pop(label)[1]
        lines = [
            f"Family {path.name}, {count} workloads from seed {first:,} on, mean over loads; ± is half a 95 %"
            " interval.",
            "",
            "| policy | kind | attainment | this agent minus it |",
            "|---|---|---:|---:|",
            f"| {label} | agent | {mine.mean():.4f} | |",
        ]
        for other, (kind, values) in sorted(scores.items(), key=lambda item: -item[1][1].mean())[:RIVALS]:
            mean, half = paired_ci(mine, values)
            lines.append(f"| {other} | {kind} | {values.mean():.4f} | {mean:+.4f} ± {half:.4f} |")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: holds no results of the benchmark of families: {error!r}") from None
    return "\n".join(lines)


def _scores(attainment: Any) -> np.ndarray:
    """(workloads,) mean over trainings and loads. Args: attainment: [training][load][seed], None if not measured."""
    return np.nanmean(np.array(attainment, np.float64), axis=(0, 1))
