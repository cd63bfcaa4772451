"""Cells per CPU-second of what evaluate.py runs: drawing, running with logs, summing up. Of all processes together.

Processes beyond the first start Python and load the compiled code, two CPU-seconds or so each; the study is so large
that this is a part of the cost and not most of it. What a user waits for is in the notes: cells per second on the
clock, which is worth as much as the machine is idle.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from statistics import median

from benchmarks.measure import Effort, Figure, Lap, Work, alternate, rate_figure
from llm_env.aggregate import aggregate
from llm_env.evaluation import Arguments, make_study
from llm_env.study import STANDARD_BASELINES, run_study, sort_cells

_ROUNDS = 3  # at most: a study takes ten seconds


def figures(effort: Effort) -> list[Figure]:
    """One for each number of processes."""
    clocks: dict[str, list[float]] = {f"study/{n} process{'es' * (n > 1)}": [] for n in effort.processes}
    works = {name: cells(effort.study_seeds, n, clocks[name]) for name, n in zip(clocks, effort.processes, strict=True)}
    samples = alternate(works, replace(effort, rounds=min(effort.rounds, _ROUNDS)))
    what = f"{len(STANDARD_BASELINES)} baselines x {effort.study_seeds} seeds, bursty chat at load 0.8"
    first = next(iter(works))
    return [
        rate_figure(
            name,
            "cells",
            sample,
            f"{median(clocks[name]):,.0f} cells/s on the clock; {what}",
            "" if name == first else "1 process",
            None if name == first else samples[first],
        )
        for name, sample in samples.items()
    ]


def cells(seeds: int, processes: int, clock: list[float]) -> Work:
    """One study, drawn, run and aggregated. Args: clock: is told the cells per second that pass on the wall's clock."""
    study = make_study(Arguments(loads=(0.8,), seeds=seeds, processes=processes))

    def lap() -> Lap:
        began, began_at = _cpu_s(), time.perf_counter()
        found = [cell for _, _, new in run_study(study, processes) for cell in new]
        aggregate(study, sort_cells(study, found))
        clock.append(len(found) / (time.perf_counter() - began_at))
        return Lap(len(found), _cpu_s() - began)

    return lap


def _cpu_s() -> float:
    """CPU seconds of this process and of the children that have ended."""
    return sum(os.times()[:4])
