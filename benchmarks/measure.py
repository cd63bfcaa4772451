"""CPU time of a piece of work beside a calibration loop, again and again in turns. Knows nothing of what is measured.

On a machine that others use too, the clock on the wall says little and CPU seconds drift by tens of per cent with what
runs beside. The calibration loop drifts with them: the ratio of the two is what can be compared.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Literal, NamedTuple

CALIBRATION_ITERATIONS = 20_000  # between two looks at the clock


class Lap(NamedTuple):
    """What one call of a work did: units of work, and the CPU seconds that count."""

    units: float
    cpu_s: float


Work = Callable[[], Lap]


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much is measured.

    Attributes:
        name: figures of different efforts are not compared: their sizes differ.
        rounds: how often each work is measured; figures are medians.
        seconds: CPU time of one measurement.
        backlogs: numbers of waiting requests; the first is what the others are divided by.
        trace_requests: of the trace that is run from file to metrics.
        warm_steps: of a vector environment, before it is measured.
        study_seeds: of each contender.
        processes: of a study.
        cold_start: also measure with an empty cache of compiled code, which takes minutes.
    """

    name: str
    rounds: int
    seconds: float
    backlogs: tuple[int, ...]
    trace_requests: int
    warm_steps: int
    study_seeds: int
    processes: tuple[int, ...]
    cold_start: bool


FULL = Effort(
    name="full",
    rounds=5,
    seconds=0.25,
    backlogs=(100, 1_000, 10_000, 100_000, 1_000_000),
    trace_requests=1_000_000,
    warm_steps=300,
    study_seeds=160,
    processes=(1, 2),
    cold_start=True,
)
QUICK = Effort(
    name="quick",
    rounds=3,
    seconds=0.02,
    backlogs=(100, 1_000, 10_000),
    trace_requests=10_000,
    warm_steps=60,
    study_seeds=2,
    processes=(1,),
    cold_start=False,
)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One line of the table.

    Attributes:
        name: "group/what".
        value: what a reader wants to know, in `unit`, the median of the rounds.
        unit: of the value.
        ratio: what the guard compares: of a rate, units of work per iteration of the calibration loop; of a time, how
            many of its iterations pass meanwhile; else the value itself.
        better: whether "more" or "less" of the ratio is.
        spread: (largest - smallest) / median of the rounds' ratios; None where it was measured once.
        peer: what it was measured beside, and the ratio of the two.
        note: what one must know to read it.
    """

    name: str
    value: float
    unit: str
    ratio: float
    better: Literal["more", "less"]
    spread: float | None = None
    peer: str = ""
    peer_ratio: float | None = None
    note: str = ""


class Sample(NamedTuple):
    """Rounds of one work: units per CPU-second, and per iteration of the calibration loop."""

    rates: list[float]
    ratios: list[float]


# ---- clocks --------------------------------------------------------------------------------------------------------
def calibration(seconds: float) -> float:
    """Iterations per CPU-second of a pure-Python loop: how fast this machine is just now."""
    began, done, x = time.process_time(), 0, 1
    while True:
        for _ in range(CALIBRATION_ITERATIONS):
            x = (x * 1103515245 + 12345) & 0x7FFFFFFF
        done += CALIBRATION_ITERATIONS
        passed = time.process_time() - began
        if passed >= seconds:
            return done / passed


def timed(work: Callable[[], float]) -> Work:
    """A work of which every moment counts, from a function that returns its units."""

    def lap() -> Lap:
        began = time.process_time()
        units = work()
        return Lap(units, time.process_time() - began)

    return lap


def alternate(works: Mapping[str, Work], effort: Effort) -> dict[str, Sample]:
    """Every work in every round, a calibration between any two; a first call of each only warms up."""
    for work in works.values():
        work()
    samples = {name: Sample([], []) for name in works}
    share = max(0.01, effort.seconds / 4)
    before = calibration(share)
    for _ in range(effort.rounds):
        for name, work in works.items():
            units, cpu_s = work()
            while cpu_s < effort.seconds:
                lap = work()
                units, cpu_s = units + lap.units, cpu_s + lap.cpu_s
            after = calibration(share)
            rate = units / cpu_s
            samples[name].rates.append(rate)
            samples[name].ratios.append(2 * rate / (before + after))
            before = after
    return samples


# ---- figures -------------------------------------------------------------------------------------------------------
def spread(values: list[float]) -> float | None:
    """(largest - smallest) / median; None of a single value."""
    return (max(values) - min(values)) / median(values) if len(values) > 1 else None


def rate_figure(name: str, unit: str, sample: Sample, note: str = "", peer: str = "", beside: Sample | None = None):
    """Units of work per CPU-second. Args: beside: rounds of the peer, paired with these."""
    return Figure(
        name=name,
        value=median(sample.rates),
        unit=f"{unit}/CPU-s",
        ratio=median(sample.ratios),
        better="more",
        spread=spread(sample.ratios),
        peer=peer,
        peer_ratio=_paired(sample, beside),
        note=note,
    )


def time_figure(name: str, unit: str, sample: Sample, note: str = "", peer: str = "", beside: Sample | None = None):
    """CPU time of one unit of work. Args: unit: "s", "ms" or "us"."""
    times = [1 / ratio for ratio in sample.ratios]
    return Figure(
        name=name,
        value={"s": 1.0, "ms": 1e3, "us": 1e6}[unit] / median(sample.rates),
        unit=unit,
        ratio=median(times),
        better="less",
        spread=spread(times),
        peer=peer,
        peer_ratio=_paired(sample, beside),
        note=note,
    )


def _paired(sample: Sample, beside: Sample | None) -> float | None:
    """The median over the rounds of how many times faster than the peer it was."""
    if beside is None:
        return None
    return median(mine / theirs for mine, theirs in zip(sample.ratios, beside.ratios, strict=True))
