"""Runs of other engines, batch by batch: Vidur's schedulers and vLLM's own V1 scheduler on a virtual clock.

The files lie outside the package (docs/validation.md says what is in them); where they are not, the rows say so.
"""

from __future__ import annotations

import csv
import gzip
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from llm_env.config import KVSettings
from llm_env.errors import InputOutputError, UserError
from llm_env.simulate import batch_columns, request_columns, simulate
from llm_env.validation_rows import FAILED, OK, Case, Row, skipped_row, system, workload

BESIDE = Path(__file__).resolve().parents[2] / "shared" / "reference"  # where they are looked for: beside the project
TOLERANCE_S = 1e-6


class Reference(NamedTuple):
    """A run of another engine, and what it is here."""

    engine: str
    name: str  # of the file, without its ending
    policy: str
    parameters: dict[str, Any]
    kv_blocks: int


_VLLM_V0 = {"max_batched_tokens": 4096, "max_running": 128, "padded": True}
REFERENCES = (
    Reference("Vidur, Sarathi", "vidur/A_sarathi", "sarathi", {"token_budget": 512, "max_running": 128}, 1_000_000),
    Reference("Vidur, vLLM v0", "vidur/A_vllm", "vllm-v0", _VLLM_V0, 1_000_000),
    Reference("Vidur, vLLM v0, 2,000 blocks", "vidur/A_vllm_mem2000", "vllm-v0", _VLLM_V0, 2000),
    Reference("Vidur, Orca", "vidur/A_orca", "orca", {"max_running": 128, "reserve_tokens": 4096}, 1_000_000),
    Reference(
        "vLLM V1",
        "vllm/v1_budget512_seqs128_kv100000",
        "vllm-v1",
        {"token_budget": 512, "max_running": 128},
        99_999,  # one of the 100,000 blocks is vLLM's null block
    ),
)


def request_file(folder: Path, reference: Reference) -> Path:
    """The file with the requests of a run."""
    return folder / f"{reference.name}{'_requests' if reference.name.startswith('vidur') else ''}.csv.gz"


def read_columns(path: Path) -> dict[str, np.ndarray]:
    """Column name -> float64, NaN where a field is empty.

    Raises:
        InputOutputError: the file cannot be read.
        UserError: it holds something else.
    """
    try:
        with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file)
        columns = zip(*rows, strict=True)
        return {n: np.array([float(t) if t else np.nan for t in c]) for n, c in zip(header, columns, strict=True)}
    except (OSError, EOFError) as error:
        raise InputOutputError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except ValueError as error:
        raise UserError(f"{path}: not a reference run: {error}") from None


def reference_row(folder: Path, reference: Reference) -> Row:
    """The same requests through the same policy: every time within TOLERANCE_S, every batch of the same content."""
    case = f"run of {reference.engine}"
    path = request_file(folder, reference)
    if not path.exists():
        return skipped_row(case, "the file is absent")
    wanted = read_columns(path)
    requests = workload(wanted["arrival_s"], wanted["prompt_tokens"], wanted["output_tokens"])
    scenario = system(max_running=4096)
    settings = scenario.system.model_copy(update={"kv": KVSettings(blocks=reference.kv_blocks)})
    state = simulate(scenario.model_copy(update={"system": settings}), requests, reference.policy, reference.parameters)
    wanted["evictions"] = wanted.get("restarts", np.zeros(len(requests)))
    counts = ("prompt_tokens", "output_tokens", "evictions")
    times = ("arrival_s", "first_token_s", "finish_s", "max_tbt_s")
    tables: list[tuple[Any, Any, tuple[str, ...], tuple[str, ...]]] = [(request_columns(state), wanted, counts, times)]
    expected = f"{len(requests):,} requests"
    batches = path.with_name(path.name.replace("_requests", "_batches"))
    if batches != path:
        rows = read_columns(batches)
        expected = f"{len(rows['start_s']):,} batches"
        counts = ("worker", "num_requests", "prefill_tokens", "decode_tokens")
        tables.append((batch_columns(state), rows, counts, ("start_s", "end_s")))
    different, errors_s = [], []
    for ours, theirs, counts, times in tables:
        if len(ours[times[0]]) != len(theirs[times[0]]):
            different.append("number")
            continue
        different += [name for name in counts if (ours[name] != theirs[name]).any()]
        errors_s += [np.abs(ours[name] - theirs[name]).max() for name in times]
    error_s = float(np.max(errors_s, initial=0.0))  # NaN if a time never came, which fails
    fine = not different and error_s <= TOLERANCE_S
    got = "the same" if fine else f"not the same {', '.join(different) or 'times'}"
    return Row(case, expected, got, f"{error_s:.0e} s", OK if fine else FAILED, error_s / TOLERANCE_S)


def reference_cases(folder: Path | None) -> list[Case]:
    """The runs in a folder, that beside the project if None.

    Raises:
        InputOutputError: the folder was named and holds none of them.
    """
    where = BESIDE if folder is None else folder
    if folder is not None and not any(request_file(where, reference).exists() for reference in REFERENCES):
        raise InputOutputError(f"{folder}: holds no reference run such as {REFERENCES[0].name}_requests.csv.gz")
    if not where.is_dir():
        names = "5 runs of Vidur and vLLM"
        return [Case("references", "references", True, lambda: [skipped_row(names, "give --references DIR")])]
    return [
        Case(reference.name, "references", True, lambda reference=reference: [reference_row(where, reference)])
        for reference in REFERENCES
    ]
