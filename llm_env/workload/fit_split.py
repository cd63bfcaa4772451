"""What of a trace a model is fitted to and what it is held against: pieces of time, and what is counted within them.

No window and no gap between requests ever spans two pieces. Knows arrival times only.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from llm_env.errors import UserError
from llm_env.workload.statistics import SCALES_S, dispersion, whole_windows
from llm_env.workload.trace_report import SHARED_TICKS, detect_tick

LEAST_REQUESTS = 200
LEAST_BLOCKS = 4
LAST_SHARE = 0.3  # of the time, held back by "last"
COARSE_S = 0.1  # a clock that ticks so seldom makes bursts within a second
Holdout = Literal["alternate", "last"]


class Pieces(NamedTuple):
    """Equally long stretches of time, [start, start + length) each."""

    starts_s: np.ndarray  # (k,) float64, ascending
    length_s: float

    @property
    def total_s(self) -> float:
        return self.starts_s.size * self.length_s


class Split(NamedTuple):
    """A trace in two: what is fitted and what is held back. Times are those from the trace's first request."""

    fit: Pieces
    held: Pieces


def split_trace(arrival_s: np.ndarray, holdout: Holdout = "alternate", block_s: float = 60.0) -> Split:
    """Holds part of a trace back.

    Args:
        arrival_s: (n,) ascending, the first at 0.
        holdout: "alternate": every second block of `block_s` seconds, the incomplete one at the end in neither part;
            "last": the last 30 % of the time. Traffic drifts, so "last" compares two different traffics.
        block_s: length of a block.

    Raises:
        UserError: fewer than 200 requests or 4 blocks, or times on ticks so coarse that requests fall on one instant.
    """
    n, span_s = arrival_s.size, float(arrival_s[-1]) if arrival_s.size else 0.0
    if n < LEAST_REQUESTS:
        raise UserError(f"trace: {n} requests are too few to fit, expected at least {LEAST_REQUESTS}")
    num_blocks = int(span_s / block_s)
    if num_blocks < LEAST_BLOCKS:
        raise UserError(
            f"trace: {span_s:g} s are {num_blocks} whole blocks of {block_s:g} s, expected at least {LEAST_BLOCKS}:"
            " give a shorter --block-s or a longer trace"
        )
    tick_s = _tick(arrival_s)
    if tick_s is not None:
        raise UserError(
            f"trace: arrival times lie on ticks of about {tick_s:g} s and many share one, so that bursts would be an"
            f" artefact of the clock: spread them with --tick-s {tick_s:g}"
        )
    if holdout == "last":
        cut_s = span_s * (1.0 - LAST_SHARE)
        split = Split(Pieces(np.zeros(1), cut_s), Pieces(np.array([cut_s]), span_s - cut_s))
    else:
        starts = block_s * np.arange(num_blocks)
        split = Split(Pieces(starts[0::2], block_s), Pieces(starts[1::2], block_s))
    for name, pieces in zip(("fitted", "held back"), split, strict=True):
        found = int(within(arrival_s, pieces).sum())
        if found < LEAST_REQUESTS // 4:
            raise UserError(f"trace: only {found} requests are in the part {name}, expected {LEAST_REQUESTS // 4}")
    return split


def _tick(arrival_s: np.ndarray) -> float | None:
    """Seconds between the ticks of a coarse clock, which may jitter; None if the clock is fine."""
    gaps = np.diff(arrival_s)
    if np.mean(gaps == 0.0) <= SHARED_TICKS:
        return None
    tick_s = detect_tick(arrival_s) or round(float(np.median(gaps[gaps > 0.0])), 2)
    return tick_s if tick_s >= COARSE_S else None


def within(times: np.ndarray, pieces: Pieces) -> np.ndarray:
    """(n,) bool: the times that lie in a piece."""
    piece = np.searchsorted(pieces.starts_s, times, side="right") - 1
    return (piece >= 0) & (times < pieces.starts_s[piece] + pieces.length_s)


def piece_counts(times: np.ndarray, pieces: Pieces, width_s: float) -> np.ndarray:
    """(k, m) int64: arrivals in each whole window of `width_s` of each piece; the rest of a piece is left out."""
    edges = pieces.starts_s[:, None] + width_s * np.arange(whole_windows(pieces.length_s, width_s) + 1)
    return np.diff(np.searchsorted(times, edges), axis=1)


def piece_dispersion(times: np.ndarray, pieces: Pieces, width_s: float) -> float:
    """Index of dispersion of the counts of all windows of all pieces, see `statistics.dispersion`."""
    return dispersion(piece_counts(times, pieces, width_s).ravel())


def piece_gaps(times: np.ndarray, pieces: Pieces) -> np.ndarray:
    """Seconds between requests that follow each other within one piece."""
    inside = within(times, pieces)
    piece = np.searchsorted(pieces.starts_s, times, side="right")
    return np.diff(times)[inside[1:] & inside[:-1] & (piece[1:] == piece[:-1])]


def cut_pieces(pieces: Pieces, length_s: float) -> Pieces:
    """The pieces cut into pieces of about `length_s`, all equally long."""
    parts = max(1, round(pieces.length_s / length_s))
    short_s = pieces.length_s / parts
    return Pieces((pieces.starts_s[:, None] + short_s * np.arange(parts)).ravel(), short_s)


def scales_within(split: Split) -> tuple[float, ...]:
    """Those of `SCALES_S` of which both parts have two windows or more."""
    return tuple(
        scale for scale in SCALES_S if all(whole_windows(p.length_s, scale) * p.starts_s.size >= 2 for p in split)
    )
