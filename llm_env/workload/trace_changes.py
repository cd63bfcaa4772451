"""Carries out `ReadOptions`: the rows of a file to traffic in order of arrival. Knows nothing of files.

Rows are dropped before they are sorted, so that messages can name their lines; all else works on sorted requests.
"""

from __future__ import annotations

from typing import NamedTuple, NoReturn

import numpy as np

from llm_env.errors import MAX_REPORTED, UserError
from llm_env.workload.seeds import TRACE, stream_bits
from llm_env.workload.trace_options import ReadOptions
from llm_env.workload.traffic import Traffic

_EARLY = 0.01  # of a tick: an arrival so little before a tick belongs to it; Mooncake's clock is 2 ms off its 3 s
_SPREAD, _KEEP, _CLIENTS, _SESSIONS = range(4)  # keys below TRACE


class Rows(NamedTuple):
    """All rows of a file in its order, so that `traffic` is not sorted yet."""

    path: str
    traffic: Traffic
    first_line: int  # of the first row; every row is one line
    columns: tuple[str, str]  # of prompt and output, "2: prompt_tokens", for messages


class Changed(NamedTuple):
    """What is left of a trace, and what was done to it."""

    traffic: Traffic
    row: np.ndarray  # (n,) int64: place of each request in the file, from 0
    dropped: dict[str, int]  # by reason
    clipped: int
    unsorted_rows: int


def change(rows: Rows, options: ReadOptions) -> Changed:
    """The requests of a trace after all options.

    Raises:
        UserError: a request is too long, a column that an option needs is missing, times overflow, or nothing is left.
    """
    left = _Left(rows.traffic)
    left.keep(left.traffic.output_tokens > 0, "without output")
    clipped = _limit_lengths(left, rows, options)
    unsorted_rows = int(np.count_nonzero(rows.traffic.arrival_s[1:] < rows.traffic.arrival_s[:-1]))
    if unsorted_rows:
        left.take(np.argsort(left.traffic.arrival_s, kind="stable"))
    if options.tick_s is not None:
        left.set_arrivals(_spread(left.traffic.arrival_s, options.tick_s, options.seed))
    if options.start_s is not None or options.end_s is not None:
        start_s, end_s = options.start_s or 0.0, np.inf if options.end_s is None else options.end_s
        arrival_s = left.traffic.arrival_s
        left.keep((arrival_s >= start_s) & (arrival_s < end_s), "outside of the window")
        left.set_arrivals(left.traffic.arrival_s - start_s)
    _thin(left, rows.path, options)
    if left.traffic.size == 0:
        reasons = ", ".join(f"{count} dropped: {reason}" for reason, count in left.dropped.items())
        raise UserError(f"{rows.path}: no request is left of {rows.traffic.size} ({reasons})")
    with np.errstate(over="ignore"):
        left.set_arrivals(left.traffic.arrival_s * options.time_scale)
    if not np.isfinite(left.traffic.arrival_s[-1]):
        raise UserError(f"{rows.path}: arrival times overflow when multiplied by time_scale {options.time_scale:g}")
    row = np.arange(left.traffic.size) if left.row is None else left.row
    return Changed(left.traffic, row, left.dropped, clipped, unsorted_rows)


class _Left:
    """The requests that are left, their places in the file, and how many were dropped why."""

    def __init__(self, traffic: Traffic) -> None:
        self.traffic = traffic
        self.row: np.ndarray | None = None  # None: all rows in their order
        self.dropped: dict[str, int] = {}

    def keep(self, which: np.ndarray, reason: str) -> None:
        """Drops the requests outside of a mask."""
        if not which.all():
            places = np.flatnonzero(which)
            self.dropped[reason] = which.size - places.size
            self.take(places)

    def take(self, places: np.ndarray) -> None:
        self.traffic = self.traffic.take(places)
        self.row = places if self.row is None else self.row[places]

    def set_arrivals(self, arrival_s: np.ndarray) -> None:
        self.traffic = self.traffic._replace(arrival_s=arrival_s)


# ---- lengths -------------------------------------------------------------------------------------------------------
def _limit_lengths(left: _Left, rows: Rows, options: ReadOptions) -> int:
    """Refuses, drops or clips what is longer than allowed; the number of requests that were clipped."""
    long = _too_long(left.traffic, options)
    if not long.any():
        return 0
    if options.over_length == "error":
        _refuse(rows, left, long, options)
    if options.over_length == "drop":
        left.keep(~long, "longer than allowed")
        return 0
    left.traffic = _clip(left.traffic, options)
    return int(np.count_nonzero(long))


def _limits(options: ReadOptions) -> tuple[int, int, int]:
    none = np.iinfo(np.int32).max
    found = (options.max_prompt_tokens, options.max_output_tokens, options.max_total_tokens)
    prompt, output, total = (none if limit is None else limit for limit in found)
    return prompt, output, total


def _too_long(traffic: Traffic, options: ReadOptions) -> np.ndarray:
    prompt, output, total = _limits(options)
    both = traffic.prompt_tokens + traffic.output_tokens
    return (traffic.prompt_tokens > prompt) | (traffic.output_tokens > output) | (both > total)


def _refuse(rows: Rows, left: _Left, long: np.ndarray, options: ReadOptions) -> NoReturn:
    """An error with the lines of the requests that are too long."""
    problems = []
    (prompt_column, output_column), (prompt, output, total) = rows.columns, _limits(options)
    for k in np.flatnonzero(long)[:MAX_REPORTED].tolist():
        place = f"{rows.path}:{rows.first_line + (k if left.row is None else int(left.row[k]))}"
        tokens, outputs = int(left.traffic.prompt_tokens[k]), int(left.traffic.output_tokens[k])
        if tokens > prompt:
            problems.append(f"{place}:{prompt_column}: expected at most {prompt} (max_prompt_tokens), got {tokens}")
        if outputs > output:
            problems.append(f"{place}:{output_column}: expected at most {output} (max_output_tokens), got {outputs}")
        if tokens + outputs > total:
            wanted = f"expected at most {total} (max_total_tokens) with the output"
            problems.append(f"{place}:{prompt_column}: {wanted}, got {tokens} + {outputs}")
    problems = problems[:MAX_REPORTED]
    count = np.count_nonzero(long)
    verb = "request is" if count == 1 else "requests are"
    raise UserError("\n".join([*problems, f"{count} {verb} too long: over_length drops or clips them"]))


def _clip(traffic: Traffic, options: ReadOptions) -> Traffic:
    max_prompt, max_output, max_total = _limits(options)
    prompt = np.minimum(traffic.prompt_tokens, max_prompt)
    output = np.minimum(traffic.output_tokens, max_output)
    output = np.minimum(output, max_total - 1)  # one token is left for the prompt
    prompt = np.minimum(prompt, max_total - output)
    return traffic._replace(prompt_tokens=prompt.astype(np.int32), output_tokens=output.astype(np.int32))


# ---- times and shares ----------------------------------------------------------------------------------------------
def _spread(arrival_s: np.ndarray, tick_s: float, seed: int) -> np.ndarray:
    """Every arrival uniform within its tick. Sorted: the draws of one tick go to its requests in their order."""
    drawn = np.random.Generator(stream_bits(seed, TRACE, _SPREAD)).random(arrival_s.size)
    ticks = np.floor(arrival_s / tick_s + _EARLY)
    return np.sort(ticks + drawn) * tick_s


def _thin(left: _Left, path: str, options: ReadOptions) -> None:
    if options.keep < 1.0:
        drawn = np.random.Generator(stream_bits(options.seed, TRACE, _KEEP)).random(left.traffic.size)
        left.keep(drawn < options.keep, "thinned out one by one, which smooths bursts")
    for name, share, key in (("client", options.keep_clients, _CLIENTS), ("session", options.keep_sessions, _SESSIONS)):
        if share < 1.0:
            numbers = getattr(left.traffic, name)
            if numbers is None:
                raise UserError(f"{path}: keep_{name}s: the trace does not say the {name} of its requests")
            left.keep(_hash(numbers, options.seed, key) < share, f"of {name}s that were left out")


def _hash(numbers: np.ndarray, seed: int, key: int) -> np.ndarray:
    """Numbers in [0, 1) that depend on the client or session and the seed alone; -1 by its place, each by itself.

    Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014, the finalizer of
    SplitMix64.
    """
    salt = np.uint64(stream_bits(seed, TRACE, key).random_raw())
    alone = np.uint64(1 << 63) + np.arange(numbers.size, dtype=np.uint64)
    mixed = np.where(numbers < 0, alone, numbers.astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15) + salt
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return (mixed >> np.uint64(11)) * 2.0**-53
