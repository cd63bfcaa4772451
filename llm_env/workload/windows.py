"""Episodes cut from a trace: windows of real traffic, rescaled in time to a load, within a part of the trace.

A window costs time and memory by its own length, not by the trace's: a trace stays in columns (`Traffic`), and only the
requests of a window become REQUEST records. Knows no files.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from llm_env.config import Scenario
from llm_env.errors import UserError
from llm_env.workload.generate import (
    assign_classes,
    capacity_tokens_per_s,
    declare_outputs,
    predict_outputs,
    requests_of,
)
from llm_env.workload.seeds import draw_start, streams
from llm_env.workload.traffic import Traffic

WHOLE = (0.0, 1.0)  # the part of a trace that is all of it


# ---- parts ---------------------------------------------------------------------------------------------------------
def checked_part(part: Sequence[float]) -> tuple[float, float]:
    """(from, to) if 0 <= from < to <= 1.

    Raises:
        UserError: it is no such pair.
    """
    try:
        start, end = (float(share) for share in part)
    except (TypeError, ValueError):
        start = end = float("nan")
    if not 0 <= start < end <= 1:
        raise UserError(f"trace_part: expected (from, to) with 0 <= from < to <= 1, got {part!r}")
    return start, end


def checked_trace_settings(trace: str | Path | None, time_scale: float, part: Sequence[float]) -> tuple[float, float]:
    """The part, checked as by `checked_part`.

    Raises:
        UserError: it is wrong, or it or the time scale is given without a trace.
    """
    part = checked_part(part)
    if trace is None and time_scale != 1.0:
        raise UserError("time_scale: only for a trace; the rate of a scenario is its load")
    if trace is None and part != WHOLE:
        raise UserError("trace_part: only for a trace")
    return part


def part_of(arrival_s: np.ndarray, part: Sequence[float]) -> slice:
    """Which requests lie in a part of the time from the first arrival to the last, by shares of it.

    The moment at which a part ends belongs to the next one, so that (0, 0.7) and (0.7, 1) have no request in common;
    the last request belongs to a part that ends with 1.

    Args:
        arrival_s: (n,) ascending, at least one.
        part: (from, to), shares of the time.

    Raises:
        UserError: the shares are wrong, or no request lies between them.
    """
    start, end = checked_part(part)
    first_s, span_s = float(arrival_s[0]), float(arrival_s[-1] - arrival_s[0])
    first = int(np.searchsorted(arrival_s, first_s + start * span_s))
    last = int(np.searchsorted(arrival_s, first_s + end * span_s)) if end < 1 else arrival_s.size
    if first >= last:
        raise UserError(f"trace_part: no request arrives between the shares {start:g} and {end:g} of the trace's time")
    return slice(first, last)


# ---- loads ---------------------------------------------------------------------------------------------------------
def trace_load(traffic: Traffic, scenario: Scenario) -> float:
    """The load that a trace puts on a scenario's system: its tokens of work per second over the capacity.

    Raises:
        UserError: all requests arrive at one instant, so there is no rate.
    """
    if traffic.span_s <= 0:
        raise UserError("trace: all requests arrive at one instant, so it has no rate to scale")
    tokens = traffic.prompt_tokens.sum(dtype=np.int64) + traffic.output_tokens.sum(dtype=np.int64)
    return float(tokens - traffic.size) / traffic.span_s / capacity_tokens_per_s(scenario)


def at_load(requests: np.ndarray, scenario: Scenario, load: float) -> np.ndarray:
    """A copy of a whole trace with its arrival times stretched or squeezed so that `trace_load` is `load`.

    Squeezing keeps the order and the shape of the bursts, and makes them as much faster as everything else.

    Args:
        requests: REQUEST[n] in order of arrival.
    """
    scaled = requests.copy()
    columns = Traffic(requests["arrival_s"], requests["prompt_tokens"], requests["output_tokens"])
    factor = trace_load(columns, scenario) / load
    scaled["arrival_s"] = _stretched(requests["arrival_s"], requests["arrival_s"][0], factor)
    return scaled


def _stretched(arrival_s, first_s, factor):
    return first_s + (arrival_s - first_s) * factor


# ---- windows -------------------------------------------------------------------------------------------------------
class Windows:
    """Windows of a trace as episodes of a scenario.

    Args:
        traffic: the trace, or a part of it; at least one request.
        scenario: its `episode.arrivals_s` is the length of a window. Clients allow what `workload.declared_tokens`
            says, by default the longest output of the traffic.
        scalable: windows will be cut at other loads than the trace's own.

    Raises:
        UserError: scalable, and the traffic has no rate (see `trace_load`).
    """

    def __init__(self, traffic: Traffic, scenario: Scenario, scalable: bool = False) -> None:
        self.traffic, self.scenario = traffic, scenario
        self._load = trace_load(traffic, scenario) if scalable else None
        self._longest = int(traffic.output_tokens.max())

    def span_s(self, load: float | None = None) -> float:
        """From the first arrival to the last, in seconds, at a load (None: as it is).

        Where it is no more than `episode.arrivals_s`, every seed gives the same arrivals.
        """
        factor = 1.0 if load is None else self._factor(load)
        return self.traffic.span_s * factor

    def cut(self, seed: int, load: float | None = None) -> np.ndarray:
        """`episode.arrivals_s` seconds that begin at a moment drawn from the seed, uniformly.

        The same seed gives the same bytes. Traffic shorter than that (see `span_s`) is returned whole. A window that
        lies in a silence is empty, or the windows would hold more than the load. Times start at 0; classes and
        predictions are drawn from the seed, as in `draw_workload`. The first turn of a session within the window has
        no previous one.

        Args:
            seed: of the moment, classes and predictions.
            load: arrival times are stretched or squeezed so that the whole traffic has this load: a window at a higher
                load is of a longer stretch of the trace. None: times as they are.

        Returns:
            REQUEST[n] in order of arrival. It may be empty.
        """
        arrivals, length_s = self.traffic.arrival_s, self.scenario.episode.arrivals_s
        first_s = float(arrivals[0])
        scale = (lambda time_s: time_s) if load is None else self._scale_to(load)
        latest_s = max(first_s, float(scale(arrivals[-1])) - length_s)
        start_s = draw_start(seed, first_s, latest_s)
        first, last = (bisect_left(arrivals, time_s, key=scale) for time_s in (start_s, start_s + length_s))
        window = requests_of(self.traffic.take(slice(first, last)))
        window["arrival_s"] = scale(arrivals[first:last]) - start_s
        workload, rngs = self.scenario.workload, streams(seed)
        assign_classes(window, self.scenario.slo, rngs.classes)
        declare_outputs(window, workload, self._longest)
        predict_outputs(window, workload.prediction_sigma, rngs.prediction)
        return window

    def _scale_to(self, load: float):
        first_s, factor = self.traffic.arrival_s[0], self._factor(load)
        return lambda time_s: _stretched(time_s, first_s, factor)

    def _factor(self, load: float) -> float:
        assert self._load is not None
        return self._load / load
