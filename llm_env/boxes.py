"""The numbers of a rule as a box of floats from -1 to 1, in which an agent chooses them. Knows no rule."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, floor, log, log10
from typing import Any, NamedTuple

import numpy as np

from llm_env.jit import njit

_FIVE_DIGITS = np.array([10.0 ** (4 - digits) for digits in range(-3, 6)])  # factor by the place of the first, from -3


class Parameter(NamedTuple):
    """A number of a rule.

    Attributes:
        low, high: its range, both ends included.
        neutral: where it is as if the rule did not have it, or else its default.
        scale: "linear" or "log": in what it is even over the range.
    """

    name: str
    low: float
    high: float
    neutral: float
    scale: str
    meaning: str


@njit
def natural_number(low, span, is_log, x) -> float:
    """A number at x, which is clipped to [-1, 1]: -1 is its low end, 1 its high end.

    It has 5 significant digits (5 decimals if linear): numbers that have no more come back from float32 exactly.

    Args:
        low, span, is_log: of its place in a `Box`.
    """
    share = 0.5 * (min(max(x, -1.0), 1.0) + 1.0)
    if not is_log:
        return floor((low + share * span) * 1e5 + 0.5) / 1e5
    value = low * exp(share * span)
    scale = _FIVE_DIGITS[int(log10(value) + 3.0)]
    return floor(value * scale + 0.5) / scale


class Box:
    """A rule's parameters in their order, from 0.001 to below 1,000,000 where they are logarithmic.

    Attributes:
        parameters: the table.
        names, neutral: of it.
        low, high, span: (n,) float64; span is high - low, or log(high / low).
        is_log: (n,) bool.
    """

    def __init__(self, parameters: Sequence[Parameter]) -> None:
        self.parameters = tuple(parameters)
        self.names = tuple(p.name for p in parameters)
        self.neutral = tuple(p.neutral for p in parameters)
        self.low, self.high = np.array([p.low for p in parameters]), np.array([p.high for p in parameters])
        self.is_log = np.array([p.scale == "log" for p in parameters])
        self.span = np.array([log(p.high / p.low) if p.scale == "log" else p.high - p.low for p in parameters])

    def from_unit(self, x: Any) -> np.ndarray:
        """The parameters, (n,) float64, of a point of the box. Args: x: (n,) floats, clipped to [-1, 1]."""
        places = zip(self.low, self.span, self.is_log, x, strict=True)
        return np.array([natural_number(low, span, is_log, float(each)) for low, span, is_log, each in places])

    def to_unit(self, p: Sequence[float] | np.ndarray) -> np.ndarray:
        """The point of the box, (n,) float64 in [-1, 1], whose parameters these are. Args: p: (n,) in their ranges."""
        p = np.asarray(p, np.float64)
        above = np.where(
            self.is_log, np.log(np.where(self.is_log, p, 1.0) / np.where(self.is_log, self.low, 1.0)), p - self.low
        )
        return np.clip(2.0 * above / self.span - 1.0, -1.0, 1.0)
