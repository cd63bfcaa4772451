"""Writes traffic as a trace in this project's own columns, a block of rows at a time. Equal traffic, equal bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from llm_env.files import write_csv
from llm_env.workload.traffic import Traffic


def write_traffic(path: str | Path, traffic: Traffic, progress: Callable[[int], None] | None = None) -> None:
    """Writes ``arrival_s,prompt_tokens,output_tokens`` and, where the traffic has them, ``client`` and ``session``.

    Line ends are LF on every platform, a time is the shortest text that reads back to the same float, -1 is no client
    or session. `llm_env.workload.read_traffic` reads back what was written, bit by bit. The file is written as it
    grows: for one that appears whole or not at all use it within `llm_env.files.staged_file`.

    Args:
        path: of the file; gzip if its name ends with ``.gz``.
        traffic: in order of arrival.
        progress: is called with the number of rows that are written so far.

    Raises:
        OSError: the file cannot be written.
    """
    columns = {name: column for name, column in zip(Traffic._fields, traffic, strict=True) if column is not None}
    write_csv(Path(path), columns, progress)
