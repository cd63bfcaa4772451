"""How long a study's runs warm up, and how many of them are enough. Runs small studies for the first."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from llm_env.aggregate import Row
from llm_env.config import with_changes
from llm_env.dtypes import NEVER
from llm_env.errors import UserError
from llm_env.study import CellResult, Study, run_study
from llm_env.warmup import binned, mser5

PILOTS = 5  # runs that the end of the warm-up is looked for in
BINS = 200
LEAST_MEAN = 0.1  # precision is relative to the mean, but never to less than this


def with_warmup(study: Study, given: str, processes: int) -> tuple[Study, list[str]]:
    """The study with another warm-up, and what is to be said of it.

    Args:
        given: seconds, or "auto": from runs of the first seeds that are measured from the start, by MSER-5 on the mean
            over them of TTFT by arrival, the longest that a contender needs at some load.

    Raises:
        UserError: neither, on a trace, or longer than arrivals last.
    """
    if study.trace is not None:
        raise UserError("warmup-s: a trace is measured whole")
    if any(entry.label == "episode.arrivals_s" for entry in study.scenario.vary):
        raise UserError("warmup-s: not where the length of episodes is drawn")
    if given == "auto":
        return _automatic(study, processes)
    try:
        seconds = float(given)
    except ValueError:
        raise UserError(f'warmup-s: expected a number of seconds or "auto", got "{given}"') from None
    if not 0 <= seconds < study.scenario.episode.arrivals_s:
        raise UserError(f"warmup-s: expected 0 to less than {study.scenario.episode.arrivals_s:g}, got {given}")
    return _changed(study, seconds), []


def _changed(study: Study, seconds: float) -> Study:
    return dataclasses.replace(study, scenario=with_changes(study.scenario, {"episode.warmup_s": seconds}))


def _automatic(study: Study, processes: int) -> tuple[Study, list[str]]:
    pilot = dataclasses.replace(_changed(study, 0.0), seeds=study.seeds[:PILOTS])
    cells = [cell for _, _, new in run_study(pilot, processes) for cell in new]
    end_s = study.scenario.episode.arrivals_s
    longest, unsettled = 0.0, []
    for load in pilot.load_labels():
        for contender in pilot.contenders:
            mine = [cell for cell in cells if cell.load == load and cell.contender == contender.label]
            skipped = mser5(pooled_ttft(mine, end_s))
            if skipped is None:
                unsettled.append(contender.label + ("" if load is None else f" at load {load:g}"))
            else:
                longest = max(longest, skipped / BINS * end_s)
    seconds = float(math.ceil(longest))
    said = [f"warm-up: {seconds:g} s, by MSER-5 on {len(pilot.seeds)} runs of each contender"]
    if unsettled:
        said.append(f"warm-up: not settled within half of {end_s:g} s, and left out: {', '.join(unsettled)}")
    return _changed(study, seconds), said


def pooled_ttft(cells: Sequence[CellResult], end_s: float) -> np.ndarray:
    """(BINS,) mean over runs of the TTFT of those who arrive in each part of (0, end_s), seconds.

    Who never got a first token counts with the time until the last event that is known of the run.
    """
    runs = []
    for cell in cells:
        arrival, first = cell.requests["arrival_s"], cell.requests["first_token_s"]
        last = max([0.0, *cell.requests["finish_s"], *first, *arrival])
        runs.append(binned(arrival, np.where(first == NEVER, last, first) - arrival, end_s, BINS))
    return np.mean(runs, axis=0)


def precise_enough(rows: Sequence[Row], precision: float) -> bool:
    """Whether the half-width of each row's headline is within a share of its mean, or of LEAST_MEAN if that is less.

    The share is precision / (1 + precision), so that the error relative to the unknown true mean is within `precision`.
    Source: Law, "Simulation Modeling and Analysis" (5th ed., 2015), section 9.4.1.
    """
    share = precision / (1 + precision)
    return all(row.headline.half_width <= share * max(row.headline.mean, LEAST_MEAN) for row in rows)
