"""Finished cells of a study as files, one for each, so that a study goes on where it stopped and adds what is missing.

A file's name is a hash of all that decides its content: scenario, workload, contender, load, seed and code. A file
appears whole or not at all; one that is damaged is computed anew. Nothing in it is unpickled.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from llm_env.config import Scenario
from llm_env.dtypes import BATCH
from llm_env.errors import InputOutputError
from llm_env.files import file_sha256
from llm_env.provenance import code_hash
from llm_env.study import CellResult, Contender, Study, at_this_load, traffic_at

FORMAT = 2  # 2: requests have clients
FOLDER, SUFFIX = "cells", ".npz"
_REQUESTS, _BLOCKS = "requests.", "blocks."


class CellStore:
    """The cells of one study in a folder.

    Args:
        folder: made where the first cell is kept.
        study: whose cells are meant; others in the folder are left alone.
    """

    def __init__(self, folder: Path, study: Study) -> None:
        self._folder, self._study = folder, study
        self._code = code_hash()
        self._trace = None if study.trace is None else file_sha256(Path(study.trace))
        self._scenarios: dict[float | None, Any] = {}
        self._agents: dict[str, str] = {}

    def path(self, contender: Contender, load: float | None, seed: int) -> Path:
        """The file of a cell."""
        study = self._study
        if load not in self._scenarios:
            traffic = None if study.traffic is None else _settings(traffic_at(study, load))
            self._scenarios[load] = [_settings(at_this_load(study, load)[0]), traffic]
        what = {
            "format": FORMAT,
            "code": self._code,
            "scenario": self._scenarios[load],
            "trace": [self._trace, study.time_scale, study.trace_part],
            "weighted": study.weighted,
            "contender": [*contender[1:3], self._agent(contender), *contender[4:]],
            "load": load,
            "seed": seed,
            "keeps_batches": seed == study.seeds[0],
        }
        name = hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:32]
        return self._folder / f"{name}{SUFFIX}"

    def _agent(self, contender: Contender) -> str:
        """A hash of an agent's files."""
        if contender.agent and contender.agent not in self._agents:
            import agents
            from agents.files import files_of

            files = files_of(agents.load(contender.agent, contender.trusted))
            digest = hashlib.sha256(b"".join(f"{name} {len(data)}\n".encode() + data for name, data in files.items()))
            self._agents[contender.agent] = digest.hexdigest()
        return self._agents.get(contender.agent, "")

    def found(self) -> list[CellResult]:
        """The cells of the study that are kept already. Says on standard error which are damaged."""
        cells = []
        seeds = self._study.seeds[:1] if self._study.trace else self._study.seeds
        for load in self._study.load_labels():
            for contender in self._study.contenders:
                for seed in seeds:
                    path = self.path(contender, load, seed)
                    if path.exists() and (cell := _read(path)) is not None:
                        cell.contender = contender.label
                        cells.append(cell)
        return cells

    def keep(self, cells: Iterable[CellResult]) -> None:
        """Writes cells.

        Raises:
            InputOutputError: they cannot be written.
        """
        contenders = {contender.label: contender for contender in self._study.contenders}
        for cell in cells:
            _write(self.path(contenders[cell.contender], cell.load, cell.seed), cell)


def _settings(scenario: Scenario) -> dict[str, Any]:
    return scenario.model_dump(mode="json", exclude_defaults=True)


# ---- files ---------------------------------------------------------------------------------------------------------
def _write(path: Path, cell: CellResult) -> None:
    head = {"load": cell.load, "contender": cell.contender, "seed": cell.seed, "summary": cell.summary}
    arrays = {
        "head": np.frombuffer(json.dumps(head).encode(), np.uint8),
        "gaps": cell.gaps,
        "batches": cell.batches,
        **{_REQUESTS + name: column for name, column in cell.requests.items()},
        **{_BLOCKS + name: values for name, values in cell.blocks.items()},
    }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(buffer.getvalue())
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise InputOutputError(f"{path}: cannot be written: {error.strerror or error}") from None


def _read(path: Path) -> CellResult | None:
    """The cell in a file; None if it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
        head = json.loads(found.pop("head").tobytes())
        gaps, batches = found.pop("gaps"), found.pop("batches")
        if batches.dtype != BATCH or gaps.ndim != 2:
            raise ValueError("arrays of another kind")
        requests = {name.removeprefix(_REQUESTS): found[name] for name in found if name.startswith(_REQUESTS)}
        blocks = {name.removeprefix(_BLOCKS): found[name] for name in found if name.startswith(_BLOCKS)}
        return CellResult(
            head["load"], head["contender"], head["seed"], head["summary"], requests, gaps, batches, blocks
        )
    except OSError as error:
        raise InputOutputError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        sys.stderr.write(f"{path}: is damaged and computed anew: {error}\n")
        return None
