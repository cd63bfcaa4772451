"""Parsers of arguments that every command shares: a number or integer with its range, or an error that names it."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

from llm_env.errors import UserError

_TRACE_ENDINGS = (".csv", ".csv.gz")


def number(least: float, most: float, above: bool = False) -> Callable[[str], float]:
    """A parser of numbers from `least` to `most`, for `type=` of an argument; with `above`, `least` is left out."""
    expected = f"a number {'above' if above else 'from'} {least:g} {'and at most' if above else 'to'} {most:g}"

    def parse(text: str) -> float:
        try:
            value = float(text) if "_" not in text else math.nan
        except ValueError:
            value = math.nan
        if not least <= value <= most or (above and value == least):
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
        return value

    return parse


def integer(least: int, most: int) -> Callable[[str], int]:
    """A parser of integers from `least` to `most`, for `type=` of an argument."""

    def parse(text: str) -> int:
        digits = text.removeprefix("-")
        if not (digits.isascii() and digits.isdigit()) or len(digits) > 19 or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"expected an integer from {least} to {most}, got {text!r}")
        return int(text)

    return parse


def check_trace_name(out: str, read: str | None = None) -> None:
    """Checks the name of a trace that is to be written.

    Args:
        out: the name.
        read: the file that is read meanwhile, None if there is none.

    Raises:
        UserError: it does not end as traces do, or both are one file.
    """
    if not out.endswith(_TRACE_ENDINGS):
        raise UserError(f"--out: expected a name that ends with {' or '.join(_TRACE_ENDINGS)}, got {out!r}")
    if read is not None and Path(out).exists() and Path(read).exists() and Path(out).samefile(read):
        raise UserError(f"--out: {out} is the trace that is read: give another name")
