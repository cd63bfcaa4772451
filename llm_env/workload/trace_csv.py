"""Blocks of CSV to columns of numbers: a good block in bulk, a bad one field by field to say what is wrong with it."""

from __future__ import annotations

import math
import re

import numpy as np

from llm_env.errors import UserError, join_problems
from llm_env.settings import MAX_TOKENS
from llm_env.workload.trace_dates import read_dates
from llm_env.workload.trace_formats import (
    ARRIVALS,
    CLIENT,
    DATE,
    HEADERS,
    IGNORED,
    NAME,
    OUTPUT,
    PATTERNS,
    PROMPT,
    SECONDS,
    SESSION,
    Column,
    Format,
    expected,
    find_csv_format,
    show,
)
from llm_env.workload.trace_text import Block

_IDENTITIES = (CLIENT, SESSION)
_FULL = {kind: re.compile(pattern) for kind, pattern in PATTERNS.items()}


class CsvReader:
    """Reads the blocks of one file, one after the other, and collects what is wrong with them."""

    def __init__(self, path: str, form: Format, names: list[str], zero_output: str) -> None:
        known = {column.name: column for column in form.columns}
        self.problems: list[str] = []
        self.notes: list[str] = []
        self._path = path
        self._columns = [known[name] for name in names]
        self._zero_output = zero_output
        self._fits = _row_pattern(self._columns)
        self._numbers: dict[bytes, int] = {}  # of sessions that have a name
        self._has_zone: bool | None = None

    def read(self, block: Block) -> dict[str, np.ndarray] | None:
        """The columns that are not ignored, by their kind; None if something is wrong, which is then in `problems`.

        Arrivals are float64 seconds, or int64 nanoseconds of dates; all others are int64, -1 for no client or session.
        """
        if self._fits.fullmatch(block.text) or self._without_names(block):
            columns = self._convert(block)
            if columns is not None:
                return columns
        before = len(self.problems)
        self._name_problems(block)
        assert len(self.problems) > before, "the bulk conversion found a problem that the slow one did not"
        return None

    def _without_names(self, block: Block) -> bool:
        """Stops reading columns of clients and sessions that hold other things than integers, if that is all."""
        loose = [_ignore(column) if column.kind in _IDENTITIES else column for column in self._columns]
        if loose == self._columns or not _row_pattern(loose).fullmatch(block.text):
            return False
        for i, texts in enumerate(_split(block, len(loose))):
            column = self._columns[i]
            if column.kind in _IDENTITIES and not all(map(_FULL[column.kind].fullmatch, texts)):
                self._columns[i] = _ignore(column)
                self.notes.append(f"column {column.name}: not all fields are integers, so it is not read")
        self._fits = _row_pattern(self._columns)
        return True

    def _convert(self, block: Block) -> dict[str, np.ndarray] | None:
        """The columns of a block whose lines all have the right form; None if a value is out of range."""
        columns: dict[str, np.ndarray] = {}
        for column, texts in zip(self._columns, _split(block, len(self._columns)), strict=True):
            kind = column.kind
            if kind == SECONDS:
                columns[kind] = np.array(list(map(float, texts))) + 0.0  # + 0.0 makes -0.0 positive
            elif kind == DATE:
                dates = read_dates(texts)
                if self._has_zone is None:
                    self._has_zone = bool(dates.has_zone[0])
                if not dates.is_date.all() or (dates.has_zone != self._has_zone).any():
                    return None
                columns[kind] = dates.ns
            elif kind in (PROMPT, OUTPUT):
                columns[kind] = np.array(list(map(int, texts)), np.int64)
            elif kind in _IDENTITIES:
                columns[kind] = np.array([int(text or -1) for text in texts], np.int64)
            elif kind == NAME:
                columns[kind] = self._number_names(texts)
        return columns if are_in_range(columns, self._zero_output) else None

    def _number_names(self, texts: list[bytes]) -> np.ndarray:
        """Numbers in order of the first appearance, -1 for empty fields."""
        numbers = self._numbers
        return np.array([numbers.setdefault(text, len(numbers)) if text else -1 for text in texts], np.int64)

    def _name_problems(self, block: Block) -> None:
        """Every problem of a block that has at least one, in order of line and column."""
        for number, line in enumerate(block.text[:-1].split(b"\n"), start=block.first_line):
            place, fields = f"{self._path}:{number}", line.split(b",")
            if not line.strip():
                self.problems.append(f"{place}:1: blank line")
            elif len(fields) != len(self._columns):
                few, column = len(fields) < len(self._columns), min(len(fields), len(self._columns)) + 1
                wrong = "too few fields" if few else "too many fields"
                self.problems.append(f"{place}:{column}: {wrong}: expected {len(self._columns)}, got {len(fields)}")
            else:
                self._name_problems_of_row(place, fields)

    def _name_problems_of_row(self, place: str, fields: list[bytes]) -> None:
        lost = self._zero_output == "drop" and any(
            column.kind == OUTPUT and _FULL[OUTPUT].fullmatch(field) and int(field) == 0
            for column, field in zip(self._columns, fields, strict=True)
        )
        for i, (column, field) in enumerate(zip(self._columns, fields, strict=True), start=1):
            wanted = self._expected(column.kind, field, lost)
            if wanted:
                self.problems.append(f"{place}:{i}: {column.name}: expected {wanted}, got {show(field.decode())}")

    def _expected(self, kind: str, field: bytes, lost: bool) -> str:
        """What the field should have been, empty if it is right. `lost`: of a request without output."""
        wanted = expected(kind, self._zero_output) if kind not in (*_IDENTITIES, NAME, IGNORED) else ""
        if not wanted:
            return ""
        if not _FULL[kind].fullmatch(field):
            return wanted
        if kind == SECONDS:
            return "" if math.isfinite(float(field)) and float(field) >= 0 else wanted
        if kind == DATE:
            dates = read_dates([field])
            if not dates.is_date[0]:
                return wanted
            if self._has_zone is None:
                self._has_zone = bool(dates.has_zone[0])
            if dates.has_zone[0] != self._has_zone:
                return f"a time {'with' if self._has_zone else 'without'} a zone, as in the first row"
            return ""
        least = 0 if lost or (kind == OUTPUT and self._zero_output == "drop") else 1
        return "" if least <= int(field) <= MAX_TOKENS else wanted


def are_in_range(columns: dict[str, np.ndarray], zero_output: str) -> bool:
    """Whether arrivals are finite and not negative, and lengths from 1 to MAX_TOKENS; see `ReadOptions.zero_output`."""
    for kind in ARRIVALS:
        if kind in columns and kind != DATE and not (np.isfinite(columns[kind]) & (columns[kind] >= 0)).all():
            return False
    prompt, output = columns[PROMPT], columns[OUTPUT]
    lost = (output == 0) & (zero_output == "drop")
    least = np.where(lost, 0, 1)
    return bool(((prompt >= least) & (prompt <= MAX_TOKENS) & (output >= least) & (output <= MAX_TOKENS)).all())


def read_header(path: str, line: bytes) -> tuple[Format, list[str]]:
    """The format of a CSV file and the names of its columns in their order.

    Raises:
        UserError: no known format; or a column is missing, unknown or there twice.
    """
    names = line.decode().split(",")
    form = find_csv_format(names)
    if form is None:
        raise UserError(f"{path}:1:1: header: expected {HEADERS}, got {show(','.join(names))}")
    known = [column.name for column in form.columns]
    problems = []
    for i, name in enumerate(names):
        if name in names[:i]:
            problems.append(f"{path}:1:{i + 1}: {name}: a second column of this name")
        elif name not in known:
            problems.append(f"{path}:1:{i + 1}: unknown column {show(name)}: expected {', '.join(known)}")
    for column in form.columns:
        if column.required and column.name not in names:
            lengths = {form.column(PROMPT).name, form.column(OUTPUT).name} <= set(names)
            why = ": lengths without arrivals are no trace" if column.kind in ARRIVALS and lengths else ""
            problems.append(f"{path}:1:{len(names) + 1}: {column.name}: column missing{why}")
    if problems:
        raise UserError(join_problems(problems))
    return form, names


def _row_pattern(columns: list[Column]) -> re.Pattern[bytes]:
    """Any number of rows; possessive, so that a bad row is found without going back over the good ones."""
    return re.compile(b"(?:" + b",".join(PATTERNS[column.kind] for column in columns) + b"\n)*+")


def _ignore(column: Column) -> Column:
    return column._replace(kind=IGNORED)


def _split(block: Block, num_columns: int) -> list[list[bytes]]:
    """The fields of each column; all rows have as many."""
    flat = block.text[:-1].replace(b"\n", b",").split(b",")
    return [flat[i::num_columns] for i in range(num_columns)]
