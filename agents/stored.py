"""Values that were read from a file, each checked as it is taken out. An error names the file and the field."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from llm_env.errors import UserError


def json_object(place: Path, data: bytes) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        UserError: it is no JSON, no object, or holds NaN.
    """

    def refuse(word: str) -> NoReturn:
        raise ValueError(f"{word} is no JSON number")

    try:
        found = json.loads(data.decode("utf-8"), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: not valid JSON: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{place}: expected an object, got {type(found).__name__}")
    return found


class Stored:
    """Values by name. Every method raises UserError where the value is missing or is not of its kind.

    Args:
        values: arrays and JSON values.
        place: the file or folder that they were read from, for errors.
        prefix: of all names that are asked for.
    """

    def __init__(self, values: Mapping[str, Any], place: Path, prefix: str = "") -> None:
        self.values, self.place, self.prefix = values, place, prefix

    def below(self, prefix: str) -> Stored:
        """The values whose names begin with a prefix, under what follows it."""
        long = f"{prefix}."
        mine = {name[len(long) :]: value for name, value in self.values.items() if name.startswith(long)}
        return Stored(mine, self.place, f"{self.prefix}{long}")

    def fail(self, name: str, expected: str, value: Any) -> NoReturn:
        """Raises the error for a field."""
        got = repr(value)
        got = got if len(got) <= 80 else got[:77] + "..."
        raise UserError(f"{self.place}: {self.prefix}{name}: expected {expected}, got {got}")

    def value(self, name: str) -> Any:
        """Whatever is there."""
        if name not in self.values:
            raise UserError(f"{self.place}: {self.prefix}{name}: is missing")
        return self.values[name]

    def text(self, name: str) -> str:
        """A text."""
        value = self.value(name)
        return value if isinstance(value, str) else self.fail(name, "text", value)

    def integer(self, name: str, low: int, high: int) -> int:
        """A whole number from low to high."""
        value = self.value(name)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            self.fail(name, f"a whole number from {low} to {high}", value)
        return value

    def number(self, name: str) -> float:
        """A finite number."""
        value = self.value(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            self.fail(name, "a finite number", value)
        return float(value)

    def object(self, name: str) -> dict[str, Any]:
        """A JSON object."""
        value = self.value(name)
        return value if isinstance(value, dict) else self.fail(name, "an object", value)

    def list(self, name: str) -> list[Any]:
        """A JSON list."""
        value = self.value(name)
        return value if isinstance(value, list) else self.fail(name, "a list", value)

    def array(self, name: str, dtype: np.dtype | type, shape: tuple[int, ...], finite: bool = True) -> np.ndarray:
        """An array of this dtype and shape; unless `finite` is False, without NaN and infinity."""
        value = self.value(name)
        if not isinstance(value, np.ndarray):
            self.fail(name, "an array", value)
        if value.dtype != np.dtype(dtype):
            self.fail(name, f"an array of {np.dtype(dtype)}", value.dtype)
        if value.shape != shape:
            self.fail(name, f"shape {shape}", value.shape)
        if finite and value.dtype.kind == "f" and not np.isfinite(value).all():
            raise UserError(f"{self.place}: {self.prefix}{name}: holds NaN or infinite numbers")
        return value
