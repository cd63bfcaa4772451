"""Times with a date, as Azure writes them, to nanoseconds: a block at a time. Knows nothing of files."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

_DIGIT = ord("0")
_WHOLE = 19  # characters of 2023-11-16 18:15:46


class Dates(NamedTuple):
    """Times of one block."""

    ns: np.ndarray  # (n,) int64 since 1970 in UTC, or in the file's own unnamed zone
    is_date: np.ndarray  # (n,) bool: there is such a day, hour, minute, second and zone
    has_zone: np.ndarray  # (n,) bool


def read_dates(stamps: list[bytes]) -> Dates:
    """Times from their text, cut to nanoseconds.

    Args:
        stamps: at least one, each of the form ``YYYY-MM-DD hh:mm:ss[.fraction][Z|+hh:mm|-hh:mm]`` with up to 30 digits
            of fraction; ``T`` may stand in place of the space.
    """
    texts = np.array(stamps)
    text = texts.view(np.uint8).reshape(texts.size, -1)
    year, month, day, hour, minute, second = (
        _number(text, start, length) for start, length in ((0, 4), (5, 2), (8, 2), (11, 2), (14, 2), (17, 2))
    )
    first_of_month = ((year - 1970) * 12 + np.clip(month, 1, 12) - 1).astype("datetime64[M]")
    days = first_of_month.astype("datetime64[D]") + (day - 1)
    same_month = (days.astype("datetime64[M]") == first_of_month) & (month >= 1) & (month <= 12)
    zone_s, zone_fits, has_zone = _zones(text, np.strings.str_len(texts))
    seconds = days.astype(np.int64) * 86_400 + hour * 3600 + minute * 60 + second - zone_s
    is_date = same_month & (hour < 24) & (minute < 60) & (second < 60) & zone_fits
    return Dates(seconds * 1_000_000_000 + _fraction_ns(text), is_date, has_zone)


def _number(text: np.ndarray, start: int, length: int) -> np.ndarray:
    digits = text[:, start : start + length].astype(np.int64) - _DIGIT
    return digits @ 10 ** np.arange(length - 1, -1, -1)


def _fraction_ns(text: np.ndarray) -> np.ndarray:
    ns = np.zeros(len(text), np.int64)
    if text.shape[1] <= _WHOLE + 1:
        return ns
    inside = text[:, _WHOLE] == ord(".")
    for k, digit in enumerate(text[:, _WHOLE + 1 : _WHOLE + 10].T):
        inside = inside & (digit >= _DIGIT) & (digit <= _DIGIT + 9)
        ns += np.where(inside, digit.astype(np.int64) - _DIGIT, 0) * 10 ** (8 - k)
    return ns


def _zones(text: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Seconds ahead of UTC, whether there is such a zone, and whether one is given at all."""
    rows = np.arange(len(text))
    offset_s, fits = np.zeros(len(text), np.int64), np.ones(len(text), np.bool_)
    has_zone = text[rows, lengths - 1] == ord("Z")
    sign = text[rows, lengths - 6]
    ahead = (lengths >= _WHOLE + 6) & ((sign == ord("+")) | (sign == ord("-")))
    if ahead.any():
        places = lengths[ahead, None] + np.array([-5, -4, -2, -1])
        digits = np.take_along_axis(text[ahead], places, 1).astype(np.int64) - _DIGIT
        hours, minutes = digits[:, 0] * 10 + digits[:, 1], digits[:, 2] * 10 + digits[:, 3]
        offset_s[ahead] = np.where(sign[ahead] == ord("+"), 1, -1) * (hours * 3600 + minutes * 60)
        fits[ahead] = (hours < 24) & (minutes < 60)
    return offset_s, fits, has_zone | ahead
