"""Several trainings of one agent in a study: what the next one may be expected to be worth. Runs nothing.

Two agents are trainings of one if their runs' scenarios agree, and settings.json in all but the seed, which differs,
and where the run lies.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llm_env.aggregate import Row, best_baseline, headline_samples, number_or_none
from llm_env.statistics import Estimate, improvement_interval, iqm_interval
from llm_env.study import CellResult, Contender, Study

SETTINGS, SCENARIOS = "settings.json", ("scenario.toml", "scenarios/*.toml")  # of a run of train.py
NO_SETTINGS = ("seed", "seeds", "out", "overwrite", "resume", "processes")  # what trainings of one agent may differ in


@dataclass(frozen=True)
class Trainings:
    """All trainings of one agent at one load.

    Attributes:
        agents: their labels.
        iqm: interquartile mean of the headline over trainings and workloads.
        reference: the best baseline at this load, None if there is none.
        improvement: how probably a training is better than it on a workload; None without one.
    """

    load: float | None
    agents: tuple[str, ...]
    iqm: Estimate
    reference: str | None
    improvement: Estimate | None

    def to_dict(self) -> dict[str, Any]:
        """For results.json."""
        flat: dict[str, Any] = {"load": self.load, "agents": list(self.agents), "reference": self.reference}
        for name, found in (("iqm", self.iqm), ("probability_of_improvement", self.improvement)):
            value, low, high = found or (np.nan, np.nan, np.nan)
            flat[name], flat[f"{name}_ci95"] = number_or_none(value), [number_or_none(low), number_or_none(high)]
        return flat

    def text(self) -> str:
        """A line for the terminal."""
        value, low, high = (100 * number for number in self.iqm)
        said = f"{len(self.agents)} trainings, {', '.join(self.agents)}: IQM {value:.1f} % [{low:.1f}, {high:.1f}]"
        if self.improvement is not None:
            chance = "{:.2f} [{:.2f}, {:.2f}]".format(*self.improvement)
            said += f"; better than {self.reference} on a workload with probability {chance}"
        return said + ("." if self.load is None else f" at load {self.load:g}.")


def trainings(study: Study, rows: Sequence[Row], cells: Sequence[CellResult]) -> list[Trainings]:
    """Every agent of a study that was trained more than once, load by load; intervals are 95 % bootstrap intervals."""
    groups: dict[str, dict[Any, str]] = {}
    for contender in study.contenders:
        if known := _settings(contender):
            key, seed = known
            groups.setdefault(key, {}).setdefault(seed, contender.label)  # the same training again tells nothing new
    several = [list(labels.values()) for labels in groups.values() if len(labels) > 1]
    samples = headline_samples(study, list(cells)) if several else {}
    found = []
    for load in study.load_labels():
        reference = best_baseline(list(rows), load)
        for labels in several:
            workloads = sorted(samples[load, labels[0]])  # the same for all: empty ones are left out for everybody
            scores = np.array([[samples[load, label][k] for k in workloads] for label in labels])
            other = None if reference is None else np.array([samples[load, reference][k] for k in workloads])
            better = None if other is None else improvement_interval(scores, other)
            found.append(Trainings(load, tuple(labels), iqm_interval(scores), reference, better))
    return found


def _settings(contender: Contender) -> tuple[str, str] | None:
    """What trainings of one agent have in common, and the seed of this one; None if that is not known."""
    if not contender.agent:
        return None
    run = Path(contender.agent)
    try:
        settings = json.loads((run / SETTINGS).read_text(encoding="utf-8"))
        files = [file for pattern in SCENARIOS for file in sorted(run.glob(pattern))]
        scenarios = [file.read_text(encoding="utf-8") for file in files]
    except (OSError, ValueError):
        return None
    if not isinstance(settings, dict):
        return None
    same = {k: v for k, v in settings.items() if k not in NO_SETTINGS}
    return json.dumps([same, scenarios], sort_keys=True), json.dumps(settings.get("seed"))
