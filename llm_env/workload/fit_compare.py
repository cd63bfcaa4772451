"""Fitted arrival processes against a trace: generated afresh, and counted in the pieces of both of its parts.

Knows the settings of processes and how to draw them; not how they were fitted.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from llm_env.config import GammaArrivals, PoissonArrivals, WeibullArrivals, WorkloadSettings
from llm_env.workload.arrivals import draw_arrivals_of_clients
from llm_env.workload.fit_arrivals import Fitted
from llm_env.workload.fit_split import Split, piece_dispersion, piece_gaps, scales_within
from llm_env.workload.seeds import streams
from llm_env.workload.statistics import coefficient_of_variation, ks_distance

GENERATED = 100  # traces of each process, seeds 0, 1, ...
PLAIN_DEVIATIONS = 2.0
Plain = PoissonArrivals | GammaArrivals | WeibullArrivals
GAP_TRACES = 5  # whose gaps are compared: KS distances hardly scatter


class Measured(NamedTuple):
    """Burstiness of the real trace, in both parts."""

    scales_s: tuple[float, ...]
    fitted: tuple[float, ...]  # index of dispersion of the part that was fitted, by scale
    held: tuple[float, ...]
    gap_cv: float  # of the held-back part


class Compared(NamedTuple):
    """One fitted process beside the trace: counted like the held-back part, unless a name begins with fit."""

    model: Fitted
    dispersion: tuple[float, ...]  # mean over the generated traces, by scale
    spread: tuple[float, ...]  # standard deviation between single traces
    worst_error: float  # largest |generated / held back - 1| over the scales
    worst_log_ratio: float  # largest |log(generated / held back)|: what models are ranked by
    fit_log_ratio: float  # the same of generated traces in the fitted pieces against the fitted part
    fit_deviation: float  # largest |generated - fitted part|, both in those pieces, in spreads of one generated trace
    gap_ks: float  # KS distance of the gaps between requests
    gap_cv: float


def measure(times: np.ndarray, split: Split) -> Measured:
    """Burstiness of a trace by scale; scales longer than a piece are left out."""
    scales = scales_within(split)
    fitted, held = (tuple(piece_dispersion(times, part, scale) for scale in scales) for part in split)
    return Measured(scales, fitted, held, coefficient_of_variation(piece_gaps(times, split.held)))


def compare(times: np.ndarray, split: Split, models: list[Fitted], rate_per_s: float) -> list[Compared]:
    """Each model generated GENERATED times as long as the trace, at `rate_per_s`; in the order of `models`.

    Args:
        times: (n,) arrival times of the real trace, the first at 0.
        split: of that trace; generated traces are counted in the same pieces, of either part for itself, because the
            expected dispersion depends on how long a part is.
        models: fitted processes.
        rate_per_s: of the part that was fitted.
    """
    measured = measure(times, split)
    real_gaps = piece_gaps(times, split.held)
    return [_compared(model, measured, split, real_gaps, rate_per_s) for model in models]


def _compared(model: Fitted, real: Measured, split: Split, real_gaps: np.ndarray, rate_per_s: float) -> Compared:
    workload = WorkloadSettings(arrivals=model.arrivals, rate_per_s=rate_per_s)
    end_s = float(max(part.starts_s[-1] + part.length_s for part in split))
    found, distances, cvs = [], [], []  # found: of each trace the dispersion in either part, by scale
    for seed in range(GENERATED):
        times, _ = draw_arrivals_of_clients(workload, rate_per_s, end_s, streams(seed))
        found.append([[piece_dispersion(times, part, scale) for scale in real.scales_s] for part in split])
        if seed < GAP_TRACES:
            gaps = piece_gaps(times, split.held)
            distances.append(ks_distance(gaps, real_gaps) if gaps.size else math.nan)
            cvs.append(coefficient_of_variation(gaps))
    (fit_mean, mean), (fit_spread, spread) = np.nanmean(found, axis=0), np.nanstd(found, axis=0, ddof=1)
    held_back, fitted = np.array(real.held), np.array(real.fitted)
    with np.errstate(divide="ignore", invalid="ignore"):  # a real count that never varies
        return Compared(
            model,
            tuple(mean.tolist()),
            tuple(spread.tolist()),
            float(np.abs(mean / held_back - 1.0).max()),
            float(np.abs(np.log(mean / held_back)).max()),
            float(np.abs(np.log(fit_mean / fitted)).max()),
            float((np.abs(fit_mean - fitted) / np.maximum(fit_spread, 1e-12)).max()),
            float(np.mean(distances)),
            float(np.mean(cvs)),
        )


def best(rows: list[Compared]) -> Compared:
    """The model whose generated dispersion is closest to that of the part it was fitted to, over all scales.

    A process without memory of its rate (poisson, gamma, weibull, in this order) is taken at once if the fitted part
    is within PLAIN_DEVIATIONS spreads of it at every scale: what others come closer to is then chance. The held-back
    part has no say, so that what is reported against it is no matter of choice.
    """
    for row in rows:
        if isinstance(row.model.arrivals, Plain) and row.fit_deviation <= PLAIN_DEVIATIONS:
            return row
    return min(rows, key=lambda row: row.fit_log_ratio)
