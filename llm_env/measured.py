"""Strict reader of what a user measured: CSV files of batches, for `llm_env.calibrate` and as a service table.

Nothing is guessed, skipped or repaired. Knows the settings and the errors only.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from llm_env.config import MAX_POINTS, MAX_TOKENS, ServiceSettings, describe_problems
from llm_env.errors import InputOutputError, UserError, join_problems

MAX_ROWS = 1_000_000
MAX_BYTES = 1 << 28
MAX_MS = 1e9
COLUMNS = ("tokens", "ms")
OPTIONAL_COLUMNS = ("decodes", "cached_tokens", "prefill_context")
# Digits are spelled out: int() and float() also take other scripts' digits, underscores, spaces and "nan".
_INTEGER = re.compile("[0-9]{1,18}")
_NUMBER = re.compile(r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_EXPECTED = {
    "tokens": f"an integer from 1 to {MAX_TOKENS}",
    "ms": f"a number above 0 and at most {MAX_MS:g}",
    **dict.fromkeys(OPTIONAL_COLUMNS, "an integer of at least 0"),
}


def read_batches(path: str | Path, optional: tuple[str, ...] = OPTIONAL_COLUMNS) -> dict[str, np.ndarray]:
    """Reads measured batches, one a line: the columns of COLUMNS and any of `optional`, in any order.

    `tokens` of the batch and the `ms` it took; `decodes` among its entries; `cached_tokens`, the tokens with KV of
    these decodes before the batch; `prefill_context`, the sum over its prefill entries of chunk tokens x context, the
    context being the tokens computed before plus the chunk itself. UTF-8, commas, LF or CRLF, the last may be missing.

    Returns:
        Column -> float64[n], in the order of the file.

    Raises:
        InputOutputError: the file cannot be read.
        UserError: up to 20 problems, each ``path:line:column: field: expected ..., got ...``.
    """
    lines = _lines(path)
    names = lines[0].split(",")
    problems = _header_problems(path, names, optional)
    if problems:
        raise UserError(join_problems(problems))
    if len(lines) == 1:
        raise UserError(f"{path}:2:1: no batches after the header")
    rows: list[list[float]] = []
    for number, line in enumerate(lines[1:], start=2):
        fields = line.split(",")
        if not line.strip():
            problems.append(f"{path}:{number}:1: blank line")
        elif len(fields) != len(names):
            wrong, column = ("few" if len(fields) < len(names) else "many"), min(len(fields), len(names)) + 1
            problems.append(f"{path}:{number}:{column}: too {wrong} fields: expected {len(names)}, got {len(fields)}")
        else:
            found = _row_problems(names, fields)
            problems += [f"{path}:{number}:{column}: {problem}" for column, problem in found]
            if not problems:
                rows.append(list(map(float, fields)))
    if problems:
        raise UserError(join_problems(problems))
    return dict(zip(names, np.array(rows).T, strict=True))


def read_table(path: str | Path) -> ServiceSettings:
    """A service table from a CSV file with the columns tokens,ms: its points, in the file's order.

    Raises:
        InputOutputError: the file cannot be read.
        UserError: as `read_batches`; not more tokens in each line than in the one before, or fewer ms; fewer than 2
            points or more than MAX_POINTS.
    """
    table = read_batches(path, ())
    tokens, ms = table["tokens"], table["ms"]
    if not 2 <= len(tokens) <= MAX_POINTS:
        raise UserError(f"{path}: expected from 2 to {MAX_POINTS} points, got {len(tokens)}")
    problems = []
    for k in range(1, len(tokens)):
        place = f"{path}:{k + 2}:"
        for name, column, wrong, least in (
            ("tokens", tokens, tokens[k] <= tokens[k - 1], "more than"),
            ("ms", ms, ms[k] < ms[k - 1], "at least"),
        ):
            if wrong:
                at = list(table).index(name) + 1
                problems.append(f"{place}{at}: {name}: expected {least} {column[k - 1]:g}, got {column[k]:g}")
    if problems:
        raise UserError(join_problems(problems))
    points = tuple((int(b), float(time)) for b, time in zip(tokens, ms, strict=True))
    try:
        return ServiceSettings(form="table", points=points)
    except ValidationError as error:
        raise UserError(describe_problems(error, str(path))) from None


def _lines(path: str | Path) -> list[str]:
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputOutputError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:  # a NUL in the path
        raise InputOutputError(f"{str(path)!r}: cannot be read: {error}") from None
    if len(data) > MAX_BYTES or data.count(b"\n") > MAX_ROWS + 1:
        raise UserError(f"{path}: larger than {MAX_BYTES >> 20} MiB or {MAX_ROWS} rows")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line}: not UTF-8 text (byte 0x{data[error.start]:02x})") from None
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    if lines[-1] == "":
        lines.pop()
    if not lines:
        raise UserError(f"{path}:1:1: empty file: expected a header with the columns {','.join(COLUMNS)}")
    return lines


def _header_problems(path: str | Path, names: list[str], optional: tuple[str, ...]) -> list[str]:
    problems = []
    for column, name in enumerate(names, start=1):
        if name in names[: column - 1]:
            problems.append(f"{path}:1:{column}: {name}: a second column of this name")
        elif name not in COLUMNS + optional:
            known = ", ".join(COLUMNS + optional)
            problems.append(f"{path}:1:{column}: unknown column {_show(name)}: expected {known}")
    missing = [name for name in COLUMNS if name not in names]
    return problems + [f"{path}:1:{len(names) + 1}: {name}: column missing" for name in missing]


def _row_problems(names: list[str], fields: list[str]) -> list[tuple[int, str]]:
    """(column, problem) of a line that has the right number of fields."""
    problems, values = [], {}
    for column, (name, field) in enumerate(zip(names, fields, strict=True), start=1):
        value = _value(name, field)
        if value is None:
            problems.append((column, f"{name}: expected {_EXPECTED[name]}, got {_show(field)}"))
        else:
            values[name] = value
    if problems or "decodes" not in values:
        return problems
    if values["decodes"] > values["tokens"]:
        most = f"at most the batch's {values['tokens']:g} tokens"
        return [(names.index("decodes") + 1, f"decodes: expected {most}, got {values['decodes']:g}")]
    for name, there, which in (
        ("cached_tokens", values["decodes"] > 0, "without decodes"),
        ("prefill_context", values["decodes"] < values["tokens"], "of decodes only"),
    ):
        if values.get(name) and not there:
            problems.append((names.index(name) + 1, f"{name}: expected 0 in a batch {which}, got {values[name]:g}"))
    return problems


def _value(name: str, field: str) -> float | None:
    """The number in a field, None if it is none or out of range."""
    if name == "ms":
        value = float(field) if _NUMBER.fullmatch(field) else math.nan
        return value if 0 < value <= MAX_MS else None
    if not _INTEGER.fullmatch(field) or (name == "tokens" and not 1 <= int(field) <= MAX_TOKENS):
        return None
    return float(field)


def _show(field: str) -> str:
    return json.dumps(field if len(field) <= 40 else field[:40] + "...")
