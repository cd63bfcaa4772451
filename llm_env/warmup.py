"""Where a run has forgotten that it began empty: MSER-5. Knows numpy alone; runs nothing."""

from __future__ import annotations

import numpy as np

BATCH = 5
SEARCHED = 0.5  # share of the series in which the end of the warm-up is looked for


def mser5(series: np.ndarray) -> int | None:
    """How many values at the start of a series to leave out, a multiple of BATCH; None if it does not settle.

    The series is cut into means of BATCH values, and the start that is left out is the one after which the mean of the
    rest is known best: that minimises the sum of squared deviations over the squared number of what is left. It is
    looked for in the first half; if it is at that half's end, the series is too short, or never settles.

    Args:
        series: (n,) float64 in order of time, best the mean over several runs of one model (Welch).

    Source: White, Cobb and Spratt, "A comparison of five steady-state truncation heuristics for simulation" (Winter
    Simulation Conference 2000), section 2.5; Hoad, Robinson and Davies, "Automating warm-up length estimation" (Journal
    of the Operational Research Society 61, 2010), sections 3 and 4.
    """
    values = np.asarray(series, np.float64)
    k = values.size // BATCH
    if k < 4 or not np.isfinite(values).all():
        return None
    means = values[: k * BATCH].reshape(k, BATCH).mean(axis=1)
    left = np.arange(k, 0, -1)
    total, squares = np.cumsum(means[::-1])[::-1], np.cumsum(means[::-1] ** 2)[::-1]
    score = np.maximum(squares - total**2 / left, 0.0) / left**2
    last = int(SEARCHED * k)
    found = int(np.argmin(score[: last + 1]))  # of the few values after a late start the score says little
    return None if found == last else found * BATCH


def binned(times_s: np.ndarray, values: np.ndarray, end_s: float, bins: int) -> np.ndarray:
    """(bins,) mean of the values in equal parts of (0, end_s); an empty part has the mean of the one before it.

    Args:
        times_s, values: (n,) float64.
    """
    where = np.minimum((times_s / end_s * bins).astype(np.int64), bins - 1)
    count, total = np.bincount(where, minlength=bins), np.bincount(where, values, minlength=bins)
    series = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    known = np.flatnonzero(count > 0)
    if known.size == 0:
        return series
    return series[known[np.maximum(np.searchsorted(known, np.arange(bins), side="right") - 1, 0)]]
