"""Strict reader of request traces: CSV, plain or gzip, in this project's columns or Azure's of 2023.

Nothing is guessed, skipped or repaired: a row that is not exactly as expected is an error with its line and column.
The format is told by the header and compression by the first bytes, never by the file's name. Every line is matched
against one pattern; only lines that fail it are taken apart to say what is wrong, so a good file is read fast.
"""

from __future__ import annotations

import gzip
import io
import json
import math
import re
import zlib
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

import numpy as np

from llm_env.config import MAX_TOKENS, SLOSettings, WorkloadSettings
from llm_env.errors import InputOutputError, UserError, join_problems
from llm_env.workload.generate import assign_classes, blank_requests, declare_outputs, predict_outputs
from llm_env.workload.seeds import streams
from llm_env.workload.sessions import link_turns

MAX_BYTES = 1 << 30  # of the text: more would need over 10 GB of memory as requests
MAX_ROWS = 10_000_000
GZIP_MAGIC = b"\x1f\x8b"
SHOWN_CHARACTERS = 40  # of a wrong field

OWN_COLUMNS = ("arrival_s", "prompt_tokens", "output_tokens")
IDENTITY_COLUMNS = ("client", "session")  # read if they hold integers
IGNORED_COLUMNS = ("turn", "prefix_hit_tokens", "hash_ids")
AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
HEADERS = f"{','.join(OWN_COLUMNS)} or {','.join(AZURE_COLUMNS)}"

# Digits are spelled out: \d, int() and float() also take other scripts' digits, underscores, spaces and "nan".
_COUNT = "[0-9]{1,18}"
_SECONDS = r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
_TIMESTAMP = r"(?:19|20)[0-9]{2}-[0-9]{2}-[0-9]{2}[ T][0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,9})?"
_IDENTITY = re.compile(r"-1|[0-9]{1,18}|")
_PATTERNS = {
    **dict.fromkeys(("prompt_tokens", "output_tokens", "ContextTokens", "GeneratedTokens"), _COUNT),
    "arrival_s": _SECONDS,
    "TIMESTAMP": _TIMESTAMP,
    **dict.fromkeys(IDENTITY_COLUMNS + IGNORED_COLUMNS, "[^,]*"),
}
_EXPECTED = {
    **dict.fromkeys(
        ("prompt_tokens", "output_tokens", "ContextTokens", "GeneratedTokens"), f"an integer from 1 to {MAX_TOKENS}"
    ),
    "arrival_s": "a finite number of seconds of at least 0",
    "TIMESTAMP": "a time like 2023-11-16 18:15:46.6805900",
}


@dataclass(frozen=True)
class _Table:
    """The text of a trace: its columns by name, and its rows as they stand."""

    path: str
    columns: list[str]
    lines: list[str]  # without the header and the line ends

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns of arrival, prompt and output."""
        return AZURE_COLUMNS if AZURE_COLUMNS[0] in self.columns else OWN_COLUMNS


def read_trace(
    path: str | Path,
    time_scale: float = 1.0,
    slo: SLOSettings | None = None,
    seed: int = 0,
    workload: WorkloadSettings | None = None,
) -> np.ndarray:
    """Reads a trace file.

    Columns ``arrival_s,prompt_tokens,output_tokens`` in any order, and optionally ``client``, ``session`` (both read
    if every field of the column is an integer or empty, else left at -1), ``turn``, ``prefix_hit_tokens`` and
    ``hash_ids`` (all three ignored); arrival times are kept as they are. Or Azure's
    ``TIMESTAMP,ContextTokens,GeneratedTokens``, whose times become seconds since the earliest one. Lines end with LF
    or CRLF, the last one may lack it. Rows need not be in order of arrival.

    Args:
        path: the file, plain or gzip.
        time_scale: multiplies arrival times: 2 halves the rate.
        slo: classes are drawn from its shares, one class with the default targets if None.
        seed: of that draw and of the predicted lengths.
        workload: its `prediction_sigma` and `declared_tokens` are used, nothing else of it. A trace does not say what
            its clients allowed: without `declared_tokens` it is the largest output of the trace, for all.

    Returns:
        REQUEST[n], sorted stably by arrival (seconds), `row` the place in the file counted from 0. With a `session`
        column, `previous` and `shared_tokens` are those of `llm_env.workload.sessions.link_turns`.

    Raises:
        InputOutputError: the file cannot be read or decompressed.
        UserError: its content is wrong; up to 20 problems, each ``path:line:column: field: expected ..., got ...``.

    Source: Patel et al., "Splitwise", ISCA 2024 (the Azure format, github.com/Azure/AzurePublicDataset).
    """
    if not (math.isfinite(time_scale) and time_scale > 0):
        raise UserError(f"time_scale: expected a finite number above 0, got {time_scale!r}")
    rngs = streams(seed)
    table = _split(_decode(_read_bytes(path), str(path)), str(path))
    fields = _fields(table)
    requests = blank_requests(len(table.lines))
    arrival, prompt, output = table.names
    with np.errstate(over="ignore"):
        times = fields[arrival] * time_scale
    if not np.isfinite(times).all():
        raise UserError(f"{path}: arrival times overflow when multiplied by time_scale {time_scale:g}")
    requests["arrival_s"], requests["prompt_tokens"], requests["output_tokens"] = times, fields[prompt], fields[output]
    for name in IDENTITY_COLUMNS:
        if name in fields:
            requests[name] = fields[name]
    requests = requests[np.argsort(times, kind="stable")]
    link_turns(requests)
    assign_classes(requests, slo or SLOSettings(), rngs.classes)
    workload = workload or WorkloadSettings()
    declare_outputs(requests, workload, int(requests["output_tokens"].max()))
    predict_outputs(requests, workload.prediction_sigma, rngs.prediction)
    return requests


# ---- bytes to lines ------------------------------------------------------------------------------------------------
def _read_bytes(path: str | Path) -> bytes:
    try:
        with open(path, "rb") as file:
            data = _read_limited(file, path)
        if data.startswith(GZIP_MAGIC):
            with gzip.open(io.BytesIO(data)) as file:
                data = _read_limited(file, path)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputOutputError(f"{path}: damaged or cut-off gzip data: {error}") from None
    except OSError as error:
        raise InputOutputError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:  # a NUL in the path
        raise InputOutputError(f"{str(path)!r}: cannot be read: {error}") from None
    return data


def _read_limited(file: BinaryIO | gzip.GzipFile, path: str | Path) -> bytes:
    data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise UserError(f"{path}: larger than {MAX_BYTES >> 20} MiB of text")
    return data


def _decode(data: bytes, path: str) -> str:
    nul = data.find(b"\0")
    if nul >= 0:
        raise UserError(f"{path}:{_place(data, nul)}: a NUL byte: this is not a text file")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = data[error.start]
        raise UserError(f"{path}:{_place(data, error.start)}: not UTF-8 text (byte 0x{byte:02x})") from None


def _place(data: bytes, position: int) -> str:
    """line:column of a byte, the column being that of its field, both from 1."""
    start = data.rfind(b"\n", 0, position) + 1
    line = data.count(b"\n", 0, position) + 1
    return f"{line}:{data.count(b',', start, position) + 1}"


def _split(text: str, path: str) -> _Table:
    if not text:
        raise UserError(f"{path}:1:1: empty file: expected the header {HEADERS}")
    if text.count("\n") > MAX_ROWS + 1:
        raise UserError(f"{path}: more than {MAX_ROWS} rows")
    # Not str.splitlines, which also breaks at form feeds and Unicode separators.
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    if lines[-1] == "" and len(lines) > 1:  # a lone carriage return is a header without a name
        lines.pop()
    table = _Table(path, lines[0].split(","), lines[1:])
    problems = _header_problems(table)
    if problems:
        raise UserError(join_problems(problems))
    if not table.lines:
        raise UserError(f"{path}:2:1: no requests after the header")
    return table


def _header_problems(table: _Table) -> list[str]:
    known = table.names if table.names is AZURE_COLUMNS else OWN_COLUMNS + IDENTITY_COLUMNS + IGNORED_COLUMNS
    if not set(known) & set(table.columns):
        return [f"{table.path}:1:1: header: expected {HEADERS}, got {_show(','.join(table.columns))}"]
    problems = []
    for i, name in enumerate(table.columns):
        if name in table.columns[:i]:
            problems.append(f"{table.path}:1:{i + 1}: {name}: a second column of this name")
        elif name not in known:
            problems.append(f"{table.path}:1:{i + 1}: unknown column {_show(name)}: expected {', '.join(known)}")
    missing = [name for name in table.names if name not in table.columns]
    return problems + [f"{table.path}:1:{len(table.columns) + 1}: {name}: column missing" for name in missing]


# ---- lines to numbers ----------------------------------------------------------------------------------------------
def _fields(table: _Table) -> dict[str, np.ndarray]:
    """The columns as arrays: seconds float64, tokens and identities int64; without what is not read."""
    fits = re.compile(",".join(_PATTERNS[name] for name in table.columns)).fullmatch
    fields = _convert(table) if all(map(fits, table.lines)) else None
    if fields is None:
        raise UserError(join_problems(_problems(table)))
    return fields


def _convert(table: _Table) -> dict[str, np.ndarray] | None:
    """The columns of a table whose lines all have the right form; None if a value is out of range."""
    arrival, *counts = table.names
    flat = ",".join(table.lines).split(",")
    text = {name: flat[i :: len(table.columns)] for i, name in enumerate(table.columns)}
    if arrival == "TIMESTAMP":
        seconds = _seconds_since_first(text[arrival])
        if seconds is None:
            return None
    else:
        seconds = np.array(list(map(float, text[arrival]))) + 0.0  # + 0.0 makes -0.0 positive
        if not (np.isfinite(seconds) & (seconds >= 0)).all():
            return None
    fields = {arrival: seconds}
    for name in counts:
        fields[name] = np.array(list(map(int, text[name])), np.int64)
        if not ((fields[name] >= 1) & (fields[name] <= MAX_TOKENS)).all():
            return None
    for name in IDENTITY_COLUMNS:
        identities = _identities(text[name]) if name in text else None
        if identities is not None:
            fields[name] = identities
    return fields


def _seconds_since_first(stamps: list[str]) -> np.ndarray | None:
    """Seconds since the earliest of the times, None if one is no date (February 30)."""
    try:
        times = np.array(stamps).astype("datetime64[ns]")
    except ValueError:
        return None
    return (times - times.min()).astype(np.int64) / 1e9


def _identities(texts: list[str]) -> np.ndarray | None:
    """int64 with -1 for empty fields, None if a field is no integer."""
    if not all(map(_IDENTITY.fullmatch, texts)):
        return None
    return np.array([int(text or -1) for text in texts], np.int64)


# ---- what is wrong -------------------------------------------------------------------------------------------------
def _problems(table: _Table) -> list[str]:
    """Every problem of a table that has at least one, in order of line and column."""
    problems = []
    for number, line in enumerate(table.lines, start=2):
        place = f"{table.path}:{number}"
        fields = line.split(",")
        if not line.strip():
            problems.append(f"{place}:1: blank line")
        elif len(fields) != len(table.columns):
            few, column = len(fields) < len(table.columns), min(len(fields), len(table.columns)) + 1
            wrong = "too few fields" if few else "too many fields"
            problems.append(f"{place}:{column}: {wrong}: expected {len(table.columns)}, got {len(fields)}")
        else:
            for column, (name, field) in enumerate(zip(table.columns, fields, strict=True), start=1):
                if not _is_valid(name, field):
                    problems.append(f"{place}:{column}: {name}: expected {_EXPECTED[name]}, got {_show(field)}")
    return problems


def _is_valid(name: str, field: str) -> bool:
    if not re.fullmatch(_PATTERNS[name], field):
        return False
    if _PATTERNS[name] == _COUNT:
        return 1 <= int(field) <= MAX_TOKENS
    if name == "arrival_s":
        return math.isfinite(float(field)) and float(field) >= 0
    if name == "TIMESTAMP":
        try:
            datetime.fromisoformat(field[:19])
        except ValueError:
            return False
    return True


def _show(field: str) -> str:
    """The field in double quotes, shortened, everything but ASCII escaped so that look-alikes can be told apart."""
    return json.dumps(field if len(field) <= SHOWN_CHARACTERS else field[:SHOWN_CHARACTERS] + "...")
