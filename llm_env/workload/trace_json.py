"""Blocks of JSON lines to columns of numbers, every line a strict JSON object of a known format."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

import numpy as np

from llm_env.errors import UserError
from llm_env.settings import MAX_TOKENS
from llm_env.workload.trace_formats import (
    BAILIAN,
    CHAT,
    HEADERS,
    IGNORED,
    JSON_TIME,
    MOONCAKE,
    OUTPUT,
    PARENT,
    PROMPT,
    Column,
    Format,
    expected,
    show,
)
from llm_env.workload.trace_text import Block

_MAX_DIGITS = 18  # of an integer that is taken for one
_LISTS = ("hash_ids",)


class _Number(str):
    """An integer of more digits than any field may have, as it stands: int() would be slow, or refuse it."""


class _Object(dict):
    """A JSON object with the keys that came twice."""

    twice: list[str]


class JsonReader:
    """Reads the blocks of one file, one after the other, and collects what is wrong with them."""

    def __init__(self, path: str, form: Format, zero_output: str, unit: str | None) -> None:
        self.problems: list[str] = []
        self.notes: list[str] = []
        self._path, self._form, self._zero_output = path, form, zero_output
        self._unit = unit or form.unit
        self._whole_ms = unit is None and form.unit == "ms"
        self._known = {column.name: column for column in form.columns}

    def read(self, block: Block) -> dict[str, np.ndarray] | None:
        """The columns that are not ignored, by their kind; None if something is wrong, which is then in `problems`.

        Arrivals are float64 seconds; all others are int64.
        """
        before = len(self.problems)
        kinds = [column.kind for column in self._form.columns if column.kind != IGNORED]
        rows: list[list[Any]] = []
        for number, line in enumerate(block.text[:-1].split(b"\n"), start=block.first_line):
            found = self._read_line(f"{self._path}:{number}", line)
            if found is not None:
                rows.append([found[kind] for kind in kinds])
        if len(self.problems) > before:
            return None
        columns = dict(zip(kinds, zip(*rows, strict=True), strict=True))
        arrays = {kind: np.array(columns[kind], np.int64) for kind in kinds if kind != JSON_TIME}
        times = np.array(columns[JSON_TIME], np.float64) + 0.0
        return {JSON_TIME: times / 1000.0 if self._unit == "ms" else times, **arrays}

    def _read_line(self, place: str, line: bytes) -> dict[str, Any] | None:
        """The values of a line by the kind of their column, None if something is wrong with it."""
        if not line.strip():
            self.problems.append(f"{place}:1: blank line")
            return None
        try:
            row = parse(line.decode())
        except ValueError as error:
            self.problems.append(f"{place}:{error}")
            return None
        before = len(self.problems)
        if not isinstance(row, _Object):
            self.problems.append(f"{place}:1: expected a JSON object, got {show(line.decode())}")
            return None
        for name in row.twice:
            self.problems.append(f"{place}:{_key_place(row, name)}: {name}: a second key of this name")
        found: dict[str, Any] = {}
        lost = self._zero_output == "drop" and _is_integer(row.get(self._form.column(OUTPUT).name), 0, 0)
        for i, (name, value) in enumerate(row.items(), start=1):
            column = self._known.get(name)
            if column is None:
                names = ", ".join(self._known)
                self.problems.append(f"{place}:{i}: unknown key {show(name)}: expected {names}")
                continue
            wanted = self._expected(column, value, lost)
            if wanted:
                self.problems.append(f"{place}:{i}: {name}: expected {wanted}, got {_show_value(value)}")
            found[column.kind] = value
        for name, column in self._known.items():
            if column.required and name not in row:
                self.problems.append(f"{place}:{len(row) + 1}: {name}: key missing")
        return found if len(self.problems) == before else None

    def _expected(self, column: Column, value: Any, lost: bool) -> str:
        """What the value should have been, empty if it is right. `lost`: of a request without output."""
        kind = column.kind
        if kind == IGNORED:
            is_list = column.name in _LISTS
            right = isinstance(value, list) and set(map(type, value)) <= {int} if is_list else _is_plain(value)
            return "" if right else "a list of integers" if is_list else "a text or an integer"
        if kind == JSON_TIME:
            if self._whole_ms:
                why = "a whole number of milliseconds of at least 0 (in seconds? `workload convert --timestamp-unit s`)"
                return "" if _is_integer(value, 0, 10**_MAX_DIGITS) else why
            right = (
                isinstance(value, float | int) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
            )
            return "" if right else expected(kind, self._zero_output, self._unit)
        if kind in (CHAT, PARENT):
            right = _is_integer(value, -1 if kind == PARENT else 0, 10**_MAX_DIGITS)
        else:
            least = 0 if lost or (kind == OUTPUT and self._zero_output == "drop") else 1
            right = _is_integer(value, least, MAX_TOKENS)
        return "" if right else expected(kind, self._zero_output)


def find_json_format(path: str, line: bytes) -> Format:
    """The format of JSON lines by the keys of the first one.

    Raises:
        UserError: it has none of the keys that are known.
    """
    try:
        row = parse(line.decode())
    except ValueError as error:
        raise UserError(f"{path}:1:{error}") from None
    if isinstance(row, _Object):
        if {BAILIAN.column(CHAT).name, BAILIAN.column(PARENT).name} & set(row):
            return BAILIAN
        if {MOONCAKE.column(kind).name for kind in (JSON_TIME, PROMPT, OUTPUT)} & set(row):
            return MOONCAKE
    raise UserError(f"{path}:1:1: header: expected {HEADERS}, got {show(line.decode())}")


def parse(text: str) -> Any:
    """A strict JSON value: no NaN and Infinity; keys that come twice are kept apart, huge integers as text.

    Raises:
        ValueError: ``column: what is wrong``, the column being that of a character, from 1.
    """
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.pos + 1}: not JSON from this character on, got {show(text[error.pos :])}") from None
    except _NoNumberError as error:
        raise ValueError(f"{text.index(str(error)) + 1}: not JSON: {error} is no number") from None
    except RecursionError:
        raise ValueError("1: not a trace: nested too deeply") from None


class _NoNumberError(Exception):
    pass


def _object(pairs: list[tuple[str, Any]]) -> _Object:
    found = _Object(pairs)
    found.twice = []
    if len(found) < len(pairs):
        found.twice = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
    return found


def _integer(text: str) -> int | str:
    return int(text) if len(text) <= _MAX_DIGITS else _Number(text)


def _constant(text: str) -> None:
    raise _NoNumberError(text)


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer, parse_constant=_constant)


def _is_integer(value: Any, least: int = -(10**_MAX_DIGITS), most: int = 10**_MAX_DIGITS) -> bool:
    return type(value) is int and least <= value <= most


def _is_plain(value: Any) -> bool:
    return type(value) is str or _is_integer(value)


def _key_place(row: _Object, name: str) -> int:
    return list(row).index(name) + 1


def _show_value(value: Any) -> str:
    """As JSON, shortened like a field; numbers and words without quotes."""
    if isinstance(value, _Number):
        text = str(value)
        return text if len(text) <= 40 else text[:40] + "..."
    if isinstance(value, str):
        return show(value)
    try:
        text = json.dumps(value)
    except RecursionError:
        return "something nested deeply"
    return text if len(text) <= 40 else text[:40] + "..."
