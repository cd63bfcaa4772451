"""Who gets what: attainment and TTFT of classes, prompts by length and clients, and how fair that is. Runs nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from llm_env.config import Scenario
from llm_env.dtypes import NEVER
from llm_env.files import csv_field
from llm_env.metrics import mean_ci
from llm_env.study import CellResult, Study
from llm_env.workload import concrete

QUARTERS = 4  # of the prompts by length
FEWEST = 5  # requests of a client in a run: of fewer a share says little


class Group(NamedTuple):
    """What one group of requests got from one contender at one load.

    Attributes:
        kind: "class", "prompt" (quarters by length) or "client".
        name: of the group.
        requests: measured ones, over all seeds.
        attainment, half_width: mean over the seeds that have some, with half its 95 % t-interval.
        ttft_p50_s, ttft_p99_s: of those with a first token, over all seeds; NaN without one.
    """

    load: float | None
    policy: str
    kind: str
    name: str
    requests: int
    attainment: float
    half_width: float
    ttft_p50_s: float
    ttft_p99_s: float


def measured(cell: CellResult, scenario: Scenario) -> np.ndarray:
    """(n,) bool: the requests of a cell that arrived in the measured window; all of a trace.

    Args:
        scenario: of the cell's seed (`llm_env.workload.concrete`).
    """
    arrival = cell.requests["arrival_s"]
    if cell.blocks:
        return np.ones(arrival.size, np.bool_)
    return (arrival >= scenario.episode.warmup_s) & (arrival < scenario.episode.arrivals_s)


def quarters(prompt_tokens: np.ndarray) -> np.ndarray:
    """(n,) int64: 0 for the shortest quarter of the prompts to 3 for the longest; equal prompts are together."""
    if prompt_tokens.size == 0:
        return np.zeros(0, np.int64)
    edges = np.quantile(prompt_tokens, np.arange(1, QUARTERS) / QUARTERS)
    return np.searchsorted(edges, prompt_tokens, side="left")


def groups_of(study: Study, cells: Sequence[CellResult]) -> list[Group]:
    """All groups of all contenders at all loads. Clients are there if at most 32 are known."""
    found = []
    for load in study.load_labels():
        for contender in study.contenders:
            mine = [c for c in cells if c.load == load and c.contender == contender.label]
            parts = [_marked(cell, concrete(study.scenario, cell.seed)) for cell in mine]
            for kind, names in _kinds(study.scenario, parts).items():
                found += [_group(load, contender.label, kind, key, name, parts) for key, name in names.items()]
    return found


def fairness(cells: Sequence[CellResult], study: Study) -> tuple[float, float]:
    """Jain's index of the clients' attainment, 1 if all have the same, and that of the worst client: means over seeds.

    Both NaN where fewer than two clients of a run have at least FEWEST requests.

    Source: Jain, Chiu and Hawe, "A quantitative measure of fairness and discrimination for resource allocation in
    shared computer systems" (DEC-TR-301, 1984), section 3.
    """
    indices, worst = [], []
    for cell in cells:
        marks = _marked(cell, concrete(study.scenario, cell.seed))
        known, which, count = np.unique(marks["client"], return_inverse=True, return_counts=True)
        share = np.bincount(which, marks["met"], minlength=known.size) / np.maximum(count, 1)
        share = share[(known >= 0) & (count >= FEWEST)]
        if share.size >= 2:
            squares = float((share**2).sum())
            indices.append(float(share.sum()) ** 2 / (share.size * squares) if squares > 0 else 1.0)
            worst.append(float(share.min()))
    return (float(np.mean(indices)), float(np.mean(worst))) if indices else (math.nan, math.nan)


def group_columns(groups: Sequence[Group]) -> dict[str, Any]:
    """Columns of groups.csv."""
    columns: dict[str, Any] = {"load": np.array([math.nan if g.load is None else g.load for g in groups])}
    for name in Group._fields[1:]:
        values = [getattr(group, name) for group in groups]
        text = isinstance(values[0], str) if values else False
        columns[name] = [csv_field(value) for value in values] if text else np.array(values)
    return columns


# ---- parts ---------------------------------------------------------------------------------------------------------
_MOST_CLIENTS = 32


def _marked(cell: CellResult, scenario: Scenario) -> dict[str, np.ndarray]:
    """Columns of the measured requests of a cell."""
    which = measured(cell, scenario)
    q = {name: column[which] for name, column in cell.requests.items()}
    ttft_s = np.where(q["first_token_s"] == NEVER, math.nan, q["first_token_s"] - q["arrival_s"])
    prompt = quarters(q["prompt_tokens"])
    return {"class": q["slo_class"], "prompt": prompt, "client": q["client"], "met": q["slo_met"], "ttft_s": ttft_s}


def _kinds(scenario: Scenario, parts: Sequence[dict[str, np.ndarray]]) -> dict[str, dict[int, str]]:
    """Groups by kind: number and name."""
    quarter_names = ("shortest quarter", "second quarter", "third quarter", "longest quarter")
    kinds = {
        "class": {k: c.name for k, c in enumerate(scenario.slo.classes)},
        "prompt": dict(enumerate(quarter_names)),
    }
    clients = sorted({int(k) for part in parts for k in np.unique(part["client"])} - {-1})
    if 2 <= len(clients) <= _MOST_CLIENTS:
        kinds["client"] = {k: str(k) for k in clients}
    return kinds


def _group(
    load: float | None, policy: str, kind: str, key: int, name: str, parts: Sequence[dict[str, np.ndarray]]
) -> Group:
    chosen = [part[kind] == key for part in parts]
    met = [part["met"][which] for part, which in zip(parts, chosen, strict=True)]
    ttft_s = np.concatenate([part["ttft_s"][which] for part, which in zip(parts, chosen, strict=True)])
    ttft_s = ttft_s[np.isfinite(ttft_s)]
    p50, p99 = np.quantile(ttft_s, (0.5, 0.99)).tolist() if ttft_s.size else (math.nan, math.nan)
    interval = mean_ci([float(marks.mean()) for marks in met if marks.size])
    return Group(load, policy, kind, name, sum(m.size for m in met), interval.mean, interval.half_width, p50, p99)
