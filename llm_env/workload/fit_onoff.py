"""On/off processes fitted to a trace: bursts split at long gaps, then matched to the dispersion of counts.

Pieces cut bursts and silences short, so what is read off them is where a search begins whose aim is the dispersion
that generated traces have in the same pieces. Knows arrival times only.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from llm_env.config import OnOffArrivals, WorkloadSettings
from llm_env.workload.arrivals import draw_arrivals_of_clients
from llm_env.workload.fit_split import Pieces, piece_dispersion, within
from llm_env.workload.seeds import streams
from llm_env.workload.statistics import coefficient_of_variation, significant

THRESHOLDS = (4.0, 8.0, 16.0, 32.0)  # times the mean gap: silences are longer
LEAST_SILENCES = 10
MAX_REQUESTS = 10_000  # of a simulated trace: longer ones say hardly more about the parameters
SIMULATED, FIRST_SEED = 12, 1_000_000  # traces of one trial, and their seeds, which the comparison does not use
MAX_TRIALS, SEARCHED = 45, 2  # of one search, and thresholds from which one begins
BOUNDS = ((1.5, 1e5), (0.02, 0.98), (0.0, 3.0))  # burst_requests, off_share, off_sigma


class Bursts(NamedTuple):
    """What lies between long gaps, in all pieces together."""

    sizes: np.ndarray  # (b,) requests
    gaps_s: np.ndarray  # within bursts
    silences_s: np.ndarray  # between bursts


def split_bursts(times: np.ndarray, pieces: Pieces, threshold_s: float) -> Bursts:
    """Bursts and silences within each piece; those that a piece cuts count as far as they are seen."""
    inside = within(times, pieces)
    t = times[inside]
    piece = np.searchsorted(pieces.starts_s, t, side="right")
    gaps = np.diff(t)
    same = piece[1:] == piece[:-1]
    ends = np.flatnonzero(~same | (gaps > threshold_s))
    sizes = np.diff(np.concatenate(([-1], ends, [t.size - 1])))
    return Bursts(sizes, gaps[same & (gaps <= threshold_s)], gaps[same & (gaps > threshold_s)])


def fit_onoff(
    times: np.ndarray, pieces: Pieces, rate_per_s: float, dispersions: dict[float, float]
) -> OnOffArrivals | None:
    """An on/off process, None where at no threshold ten silences are seen.

    For each threshold bursts are split and the process read off them. From the two closest ones `burst_requests`,
    `off_share` and `off_sigma` are moved (Nelder and Mead) until simulated traces have the measured dispersions, in
    least squares of the logarithms. The threshold whose search ends best is kept.

    Args:
        times: (n,) arrival times.
        pieces: of the time, to be fitted to.
        rate_per_s: mean rate within them.
        dispersions: measured, by window width (s).

    Source: simulated moments: McFadden, "A method of simulated moments", Econometrica 57 (1989) 995-1026.
    """
    if not dispersions:
        return None
    bursts = [split_bursts(times, pieces, threshold / rate_per_s) for threshold in THRESHOLDS]
    starts = [read_off(b) for b in bursts if min(b.silences_s.size, b.gaps_s.size) >= LEAST_SILENCES]
    pieces = _shortened(pieces, rate_per_s)
    starts.sort(key=lambda start: _misses(start, rate_per_s, pieces, dispersions))
    found = [_matched(start, rate_per_s, pieces, dispersions) for start in starts[:SEARCHED]]
    return min(found, key=lambda end: end[0])[1] if found else None


def read_off(bursts: Bursts) -> OnOffArrivals:
    """The process with the moments of these bursts: log-normal sizes and silences, gamma gaps."""
    silent_s, busy_s = float(bursts.silences_s.sum()), float(bursts.gaps_s.sum())
    return _settings(
        burst_requests=max(float(bursts.sizes.mean()), BOUNDS[0][0]),
        burst_sigma=min(float(np.log(bursts.sizes).std()), 3.0),
        off_share=min(max(silent_s / (silent_s + busy_s), BOUNDS[1][0]), BOUNDS[1][1]),
        off_sigma=min(float(np.log(bursts.silences_s).std()), 3.0),
        gap_cv=coefficient_of_variation(bursts.gaps_s) if busy_s > 0 else 1.0,
    )


def _matched(
    start: OnOffArrivals, rate_per_s: float, pieces: Pieces, dispersions: dict[float, float]
) -> tuple[float, OnOffArrivals]:
    """The sum of squares at the end of the search, and where it ended."""
    from scipy.optimize import minimize  # here, because scipy takes long to import

    def settings(x: np.ndarray) -> OnOffArrivals:
        (least, most), (low, high), (narrow, wide) = BOUNDS
        return _settings(
            burst_requests=min(max(math.exp(x[0]), least), most),
            burst_sigma=start.burst_sigma,
            off_share=min(max(1.0 / (1.0 + math.exp(-x[1])), low), high),
            off_sigma=min(max(x[2], narrow), wide),
            gap_cv=start.gap_cv,
        )

    share = start.off_share
    x = np.array([math.log(start.burst_requests), math.log(share / (1.0 - share)), start.off_sigma])
    corners = np.array([x, *(x + step for step in np.diag([0.5, 0.7, 0.4]))])
    options = {"initial_simplex": corners, "maxfev": MAX_TRIALS, "xatol": 0.01, "fatol": 1e-3}
    found = minimize(
        lambda x: _misses(settings(x), rate_per_s, pieces, dispersions), x, method="Nelder-Mead", options=options
    )
    return float(found.fun), settings(found.x)


def _misses(settings: OnOffArrivals, rate_per_s: float, pieces: Pieces, dispersions: dict[float, float]) -> float:
    """Sum of squares of the logarithms of simulated over measured dispersions."""
    found = simulated_dispersions(settings, rate_per_s, pieces, tuple(dispersions))
    return float(((np.log(np.maximum(found, 1e-9)) - np.log(list(dispersions.values()))) ** 2).sum())


def simulated_dispersions(
    settings: OnOffArrivals, rate_per_s: float, pieces: Pieces, widths_s: tuple[float, ...]
) -> np.ndarray:
    """Mean over a few generated traces, by width; the same seeds for all settings, so that a search sees no noise."""
    workload = WorkloadSettings(arrivals=settings, rate_per_s=rate_per_s)
    end_s = float(pieces.starts_s[-1] + pieces.length_s)
    drawn = [
        draw_arrivals_of_clients(workload, rate_per_s, end_s, streams(FIRST_SEED + k))[0] for k in range(SIMULATED)
    ]
    found = [[piece_dispersion(times, pieces, width) for width in widths_s] for times in drawn]
    return np.nan_to_num(np.array(found)).mean(axis=0)  # NaN: no request at all


def _shortened(pieces: Pieces, rate_per_s: float) -> Pieces:
    """The first pieces, up to MAX_REQUESTS requests and what lies between."""
    starts = pieces.starts_s - pieces.starts_s[0]
    few = starts[: max(2, int(np.searchsorted(starts, MAX_REQUESTS / rate_per_s)))]
    return Pieces(few, pieces.length_s)


def _settings(**values: float) -> OnOffArrivals:
    """With four significant digits, cut to what the settings allow."""
    values["gap_cv"] = min(max(values["gap_cv"], 0.05), 20.0)
    return OnOffArrivals.model_validate({name: significant(value) for name, value in values.items()})
