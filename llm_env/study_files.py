"""The files of a study: results.json, cells.csv, groups.csv, requests.csv.gz, scenario.toml, repro.sh, times.json.

But for times.json they depend on the study and the code alone: a rerun gives the same bytes, with any number of
processes.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llm_env.aggregate import Bounds, Row
from llm_env.config import scenario_to_toml
from llm_env.dtypes import NEVER, STATUS_NAMES
from llm_env.files import csv_field, write_csv
from llm_env.groups import fairness, group_columns, groups_of
from llm_env.prices import COSTS, costs
from llm_env.provenance import git_commit, versions
from llm_env.study import REQUEST_COLUMNS, CellResult, Study


def results_of(
    study: Study, rows: Sequence[Row], cells: Sequence[CellResult], arguments: dict[str, Any], bounds: Bounds | None
) -> dict[str, Any]:
    """What results.json holds. Args: arguments: of the command; bounds: of `llm_env.aggregate.study_bounds`."""
    known = {} if bounds is None else {"bounds": [{"load": load, **by_rule} for load, by_rule in bounds.items()]}
    return {
        "arguments": arguments,
        "scenario": study.scenario.model_dump(mode="json", exclude_none=True),
        "seeds": list(study.seeds[:1] if study.trace else study.seeds),
        "replications": "blocks" if study.trace else "seeds",
        "rows": [row.to_dict() | _of_clients(study, row, cells) for row in rows],
        **known,
        "versions": versions(),
        "git_commit": git_commit(),
    }


def _of_clients(study: Study, row: Row, cells: Sequence[CellResult]) -> dict[str, float]:
    """How fair a contender is to its clients, where these are known."""
    mine = [cell for cell in cells if cell.load == row.load and cell.contender == row.contender]
    jain, worst = fairness(mine, study)
    return {} if math.isnan(jain) else {"client_jain_index": jain, "client_worst_attainment": worst}


def to_json(results: dict[str, Any]) -> str:
    """The text of results.json."""
    return json.dumps(results, indent=1, allow_nan=False) + "\n"


def write_study(
    folder: Path, study: Study, cells: list[CellResult], results: dict[str, Any], command: Sequence[str]
) -> None:
    """All files but times.json. Args: results: of `results_of`; command: the words that give them again."""
    (folder / "results.json").write_text(to_json(results), encoding="utf-8")
    (folder / "scenario.toml").write_text(scenario_to_toml(study.scenario), encoding="utf-8")
    commit = results["git_commit"]
    script = ["#!/bin/sh", f"# Gives these results again, with the code of commit {commit}.", shlex.join(command)]
    (folder / "repro.sh").write_text("\n".join(script) + "\n", encoding="utf-8")
    (folder / "repro.sh").chmod(0o755)
    write_csv(folder / "cells.csv", cell_columns(study, cells))
    write_csv(folder / "requests.csv.gz", request_columns(cells))
    write_csv(folder / "groups.csv", group_columns(groups_of(study, cells)))


def write_times(folder: Path, seconds: float, computed: int, processes: int) -> None:
    """times.json: how long the study took, and how many cells were computed in that time."""
    times = {"seconds": round(seconds, 3), "cells_computed": computed, "processes": processes}
    (folder / "times.json").write_text(json.dumps(times) + "\n", encoding="utf-8")


# ---- columns -------------------------------------------------------------------------------------------------------
def cell_columns(study: Study, cells: list[CellResult]) -> dict[str, Any]:
    """Columns of cells.csv: a row per contender, load and seed; with costs where the study has a price."""
    columns: dict[str, Any] = {
        "load": np.array([math.nan if c.load is None else c.load for c in cells]),
        "policy": [csv_field(c.contender) for c in cells],
        "seed": np.array([c.seed for c in cells]),
    }
    for name, value in cells[0].summary.items():
        values = [c.summary[name] for c in cells]
        columns[name] = values if isinstance(value, str) else np.array(values)
    if study.price is not None:
        paid = [costs(study.cost_per_hour(c.seed), c.summary) for c in cells]
        columns |= {name: np.array([each[name] for each in paid]) for name in COSTS}
    return columns


def request_columns(cells: list[CellResult]) -> dict[str, Any]:
    """Columns of requests.csv.gz: a row per request of every cell, times in seconds, NaN where one never came."""
    sizes = [len(c.requests["row"]) for c in cells]
    columns: dict[str, Any] = {
        "load": np.repeat([math.nan if c.load is None else c.load for c in cells], sizes),
        "policy": [csv_field(c.contender) for c, size in zip(cells, sizes, strict=True) for _ in range(size)],
        "seed": np.repeat([c.seed for c in cells], sizes),
    }
    for name in REQUEST_COLUMNS:
        values = np.concatenate([c.requests[name] for c in cells])
        if name == "status":
            columns[name] = [STATUS_NAMES[k] for k in values.tolist()]
        elif values.dtype.kind == "f":
            columns[name] = np.where(values == NEVER, math.nan, values)
        else:
            columns["request" if name == "row" else name] = values
    return columns
