"""How long one waits before anything happens: the import, and the first step of a first and of any later process."""

from __future__ import annotations

import tempfile

from benchmarks.child import run_child
from benchmarks.measure import Effort, Figure, Sample, time_figure


def figures(effort: Effort) -> list[Figure]:
    """CPU seconds of fresh processes, without the start of the interpreter itself."""
    run_child("first-step")  # the compiled code is in the cache then, the source in __pycache__
    found = [
        time_figure("startup/import llm_env", "s", _sample("import", effort.rounds)),
        time_figure("startup/first step, warm", "s", _sample("first-step", effort.rounds), "import, make, reset, step"),
    ]
    if effort.cold_start:
        with tempfile.TemporaryDirectory() as folder:
            cold = _sample("first-step", 1, LLM_ENV_CACHE_DIR=folder)
        found.append(time_figure("startup/first step, cold", "s", cold, "with an empty cache of compiled code"))
    return found


def _sample(task: str, rounds: int, **environment: str) -> Sample:
    rates, ratios = [], []
    for _ in range(rounds):
        found = run_child(task, **environment)
        rates.append(1 / found["cpu_s"])
        ratios.append(1 / found["cpu_s"] / found["calibration"])
    return Sample(rates, ratios)
