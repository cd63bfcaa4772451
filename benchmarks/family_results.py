"""Saved results of the benchmark of scenario families: one small JSON file for each family and contender.

Per-workload values are rounded to five decimals, enough to pair and to rank them; the page is made from these files
alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from llm_env.errors import InputOutputError, UserError
from llm_env.files import staged_file

RESULTS = Path(__file__).resolve().parent / "results" / "families"
FORMAT = 1
DIGITS = 5
NUM_LENGTHS = 4  # quarters of the prompts by length

Kind = Literal["literature", "reference", "agent", "bound", "clairvoyant"]


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one contender got in one family.

    Attributes:
        family: name of the scenario.
        label: of the contender; several trainings of one agent are one contender.
        kind: "bound" is what no policy can pass, "clairvoyant" what a planner reaches that sees the future.
        settings: the contender as `evaluate.py --baselines` takes it, with its parameters; of an agent its folders.
        loads: of the scenario; (None,) for its own.
        first_seed, seeds: the workloads.
        attainment: [training][load][seed], by SLO weight; None where a workload has no measured request. A contender
            that is not trained has one training.
        ttft_p99_s: [load] mean over workloads and trainings of the 99th percentile of TTFT; None if there is none.
        by_length: [quarter] share of the requests that met their SLO, by prompt length, shortest first; quarters of
            each workload, mean over workloads, loads and trainings.
        training_s: [training] seconds of training, None where they are not known; empty if it was not trained.
        key: hash of all that decides the result but the code. code: version and commit that made it.
    """

    family: str
    label: str
    kind: Kind
    settings: str
    loads: tuple[float | None, ...]
    first_seed: int
    seeds: int
    attainment: list[list[list[float | None]]]
    ttft_p99_s: list[float | None]
    by_length: list[float | None]
    training_s: list[float | None]
    key: str
    code: str

    def scores(self) -> np.ndarray:
        """(trainings, workloads) float64: the mean over loads; a load without a measured request is left out."""
        values = np.array([[[np.nan if v is None else v for v in s] for s in row] for row in self.attainment])
        return np.nanmean(values, axis=1)

    @property
    def mean(self) -> float:
        """Attainment over trainings, workloads and loads."""
        return float(self.scores().mean())


def rounded(values: np.ndarray | Sequence[float]) -> list[Any]:
    """Nested lists of floats with DIGITS decimals, None for NaN."""
    array = np.asarray(values, np.float64)
    if array.ndim > 1:
        return [rounded(row) for row in array]
    return [None if math.isnan(v) else round(v, DIGITS) for v in array.tolist()]


def path_of(folder: Path, family: str, label: str) -> Path:
    """The file of a family and a contender; what a label has beside letters, digits and "._@-" becomes "_"."""
    name = "".join(c if c.isalnum() or c in "._@-" else "_" for c in label)
    return folder / family / f"{name}.json"


def save(folder: Path, result: Result) -> None:
    """Writes a result in place of an older one, as a whole: a line for each field, and for each load's workloads."""
    lines = [f'"format": {FORMAT}']
    for name, value in asdict(result).items():
        text = json.dumps(value, allow_nan=False)
        lines.append(f'"{name}": ' + (text.replace("], [", "],\n  [") if name == "attainment" else text))
    with staged_file(path_of(folder, result.family, result.label), overwrite=True) as staged:
        staged.write_text("{\n " + ",\n ".join(lines) + "\n}\n", encoding="utf-8")


def load(path: Path) -> Result:
    """A saved result, checked.

    Raises:
        InputOutputError: it cannot be read.
        UserError: it is no result, or not of this format.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputOutputError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is no JSON: {error}") from None
    fields = set(Result.__dataclass_fields__)
    if not isinstance(data, dict) or data.pop("format", None) != FORMAT or set(data) != fields:
        raise UserError(f"{path}: expected a result of format {FORMAT} with {', '.join(sorted(fields))}")
    data["loads"] = tuple(data["loads"])
    result = Result(**data)
    shape = (len(result.attainment), len(result.loads), result.seeds)
    try:
        found = np.array(result.attainment, object).shape
    except ValueError:
        found = None
    if result.kind not in get_args(Kind) or found != shape:
        raise UserError(f"{path}: kind or the shape of attainment is wrong: expected {shape}, got {found}")
    return result


def load_all(folder: Path, families: Sequence[str]) -> Iterator[Result]:
    """The results of some families, in the order of their files' names."""
    for family in families:
        for path in sorted((folder / family).glob("*.json")):
            yield load(path)
