"""What reading a trace did to it, for people: what was dropped and changed, and what to beware of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

_TICKS_S = (60.0, 30.0, 20.0, 15.0, 10.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.5, 0.2, 0.1)  # grids that clocks and bins make
_SAMPLE = 100_000  # arrivals that are compared with the grids
_FEW = 100  # arrivals: too few to tell
SHARED_TICKS = 0.1  # share of arrivals at the time of the one before: more is the work of a clock
_ON_GRID = 0.99
_TOLERANCE = 0.002  # of a tick: Mooncake's clock is up to 2 ms off its 3 s


@dataclass(frozen=True)
class ReadReport:
    """What became of the rows of a file."""

    path: str
    format: str  # as in `llm_env.workload.trace_formats`
    rows: int  # in the file
    requests: int  # that are left
    dropped: Mapping[str, int] = field(default_factory=dict)  # by reason, only those that happened
    clipped: int = 0  # requests that were shortened
    unsorted_rows: int = 0  # that arrive before the row above them
    tick_s: float | None = None  # of a grid on which nearly all arrivals lie, many of them together
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The report as text: how many rows, then the remarks."""
        return [
            f"{self.path}: {self.format}, {counted(self.rows, 'row')}, {counted(self.requests, 'request')}",
            *self.remarks(),
        ]

    def remarks(self) -> list[str]:
        """What is worth a word, a line each; none if the file was read as it is and nothing is odd about it."""
        lines = [f"dropped {counted(count, 'request')}: {reason}" for reason, count in self.dropped.items()]
        if self.clipped:
            lines.append(f"clipped {counted(self.clipped, 'request')} to the longest allowed")
        if self.unsorted_rows:
            lines.append(f"sorted by arrival: {counted(self.unsorted_rows, 'row')} arrived before the row above")
        if self.tick_s is not None:
            lines.append(
                f"advice: nearly all arrivals lie on a grid of {self.tick_s:g} s and many share a tick, so bursts"
                f" shorter than that are made by the clock: `workload convert --tick-s {self.tick_s:g}` spreads them"
            )
        return lines + [f"note: {note}" for note in self.notes]


def detect_tick(arrival_s: np.ndarray) -> float | None:
    """The coarsest usual grid on which 99 % of the arrivals lie, if a tenth of them share a tick with the one before.

    Args:
        arrival_s: (n,) float64, ascending.
    """
    if arrival_s.size < _FEW or np.mean(arrival_s[1:] == arrival_s[:-1]) < SHARED_TICKS:
        return None
    since_s = arrival_s[:: max(1, arrival_s.size // _SAMPLE)] - arrival_s[0]
    for tick_s in _TICKS_S:
        off_s = np.abs(since_s - tick_s * np.round(since_s / tick_s))
        if since_s[-1] >= 10 * tick_s and np.mean(off_s <= _TOLERANCE * tick_s) >= _ON_GRID:
            return tick_s
    return None


def counted(count: int, thing: str) -> str:
    """How many, with a plural s where it belongs."""
    return f"{count} {thing}{'' if count == 1 else 's'}"
