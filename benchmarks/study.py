"""Cells per CPU-second of what evaluate.py runs: drawing, running with logs, summing up. Of all processes together."""

from __future__ import annotations

import os

from benchmarks.measure import Effort, Figure, Lap, Work, alternate, rate_figure
from llm_env.aggregate import aggregate
from llm_env.evaluation import Arguments, make_study
from llm_env.study import STANDARD_BASELINES, run_study, sort_cells


def figures(effort: Effort) -> list[Figure]:
    """One for each number of processes."""
    works = {f"study/{n} process{'es' * (n > 1)}": cells(effort.study_seeds, n) for n in effort.processes}
    samples = alternate(works, effort)
    note = f"{len(STANDARD_BASELINES)} baselines x {effort.study_seeds} seeds, bursty chat at load 0.8"
    first, *others = samples
    found = [rate_figure(first, "cells", samples[first], note)]
    for name in others:
        found.append(rate_figure(name, "cells", samples[name], "", "1 process", samples[first]))
    return found


def cells(seeds: int, processes: int) -> Work:
    """One study, drawn, run and aggregated."""
    study = make_study(Arguments(loads=(0.8,), seeds=seeds, processes=processes))

    def lap() -> Lap:
        began = _cpu_s()
        found = [cell for _, _, new in run_study(study, processes) for cell in new]
        aggregate(study, sort_cells(study, found))
        return Lap(len(found), _cpu_s() - began)

    return lap


def _cpu_s() -> float:
    """CPU seconds of this process and of the children that have ended."""
    return sum(os.times()[:4])
