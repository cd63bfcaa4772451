"""A whole trace to a whole workload: split, arrivals, lengths, sessions, and the fitted workload beside the real one.

Knows the parts of the fit and how traffic is drawn; nothing of tables and files.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from llm_env.config import EpisodeSettings, Scenario, SessionSettings, WorkloadSettings
from llm_env.errors import UserError
from llm_env.workload.fit_arrivals import fit_all, mean_rate
from llm_env.workload.fit_compare import Compared, Measured, best, compare, measure
from llm_env.workload.fit_lengths import FittedLength, LengthModel, choose_length, fit_lengths
from llm_env.workload.fit_sessions import fit_sessions, turns_of
from llm_env.workload.fit_split import (
    Holdout,
    Pieces,
    Split,
    piece_counts,
    piece_gaps,
    scales_within,
    split_trace,
    within,
)
from llm_env.workload.generate import draw_traffic
from llm_env.workload.statistics import coefficient_of_variation, dispersion, ks_distance, rank_correlation, significant
from llm_env.workload.traffic import Traffic

DRAWN = 20  # workloads drawn to set beside the real one, seeds 0, 1, ...
_QUANTILES = (0.05, 0.5, 0.95, 0.99)


class FittedPart(NamedTuple):
    """One length of the workload: every model tried, and the one taken."""

    rows: list[FittedLength]
    chosen: FittedLength


class TraceFit(NamedTuple):
    """Everything that was found of a trace."""

    split: Split
    measured: Measured  # burstiness of the requests, or of the starts of sessions
    arrivals: list[Compared]
    chosen: Compared
    lengths: dict[str, FittedPart]  # by name: prompt, output, and with sessions first_prompt
    workload: WorkloadSettings
    turns_cut: float | None  # with sessions: share of later turns whose prompt did not grow, left out of new tokens


class Figures(NamedTuple):
    """One figure of the held-back part beside the drawn workloads."""

    name: str
    real: float
    drawn: float  # mean
    spread: float  # standard deviation between single workloads


def fit_trace(
    traffic: Traffic,
    holdout: Holdout = "alternate",
    block_s: float = 60.0,
    lengths: LengthModel = "auto",
    sessions: bool = False,
) -> TraceFit:
    """Fits arrivals and lengths to one part of a trace and measures them against the other.

    Args:
        traffic: requests in order of arrival.
        holdout: which part is held back, see `split_trace`.
        block_s: length of its blocks.
        lengths: model of prompt and output.
        sessions: fit sessions: `arrivals` are those of their first turns, and `prompt` what a later turn adds. A
            session belongs to the part in which it begins.

    Raises:
        UserError: too little data, or times on coarse ticks.
    """
    if not traffic.size:
        raise UserError("trace: no requests")
    times = traffic.arrival_s - traffic.arrival_s[0]
    session_settings, turns_cut = None, None
    if sessions:
        split, parts, times, session_settings, turns_cut = _sessions_apart(traffic, holdout, block_s)
    else:
        split = split_trace(times, holdout, block_s)
        fit, held = within(times, split.fit), within(times, split.held)
        columns = {"prompt": traffic.prompt_tokens, "output": traffic.output_tokens}
        parts = {name: [column[fit], column[held]] for name, column in columns.items()}

    rate = mean_rate(times, split.fit)
    rows = compare(times, split, fit_all(times, split.fit, block_s), rate)
    chosen = best(rows)
    fitted = {}
    for name, (fit_part, held_part) in parts.items():
        found = fit_lengths(fit_part, held_part)
        fitted[name] = FittedPart(found, choose_length(found, lengths))
    correlation = 0.0
    if session_settings is None:
        correlation = rank_correlation(parts["prompt"][0], parts["output"][0])
        correlation = 0.0 if math.isnan(correlation) else round(min(max(correlation, -0.99), 0.99), 3)
    else:
        session_settings = session_settings.model_copy(update={"first_prompt": fitted["first_prompt"].chosen.length})
    workload = WorkloadSettings(
        arrivals=chosen.model.arrivals,
        prompt=fitted["prompt"].chosen.length,
        output=fitted["output"].chosen.length,
        correlation=correlation,
        rate_per_s=significant((traffic.size - 1) / traffic.span_s, 5),
        sessions=session_settings,
    )
    return TraceFit(split, measure(times, split), rows, chosen, fitted, workload, turns_cut)


def _sessions_apart(
    traffic: Traffic, holdout: Holdout, block_s: float
) -> tuple[Split, dict[str, list[np.ndarray]], np.ndarray, SessionSettings, float]:
    """The split, the lengths of both parts, the starts of sessions, the session settings, and what did not grow."""
    turns = turns_of(traffic)
    zero = traffic.arrival_s[0]
    starts = np.sort(turns.start_s[turns.first]) - zero
    split = split_trace(starts, holdout, block_s)
    fit, held = (within(turns.start_s - zero, part) for part in split)
    grown = ~turns.first & (turns.new_tokens >= 1)
    parts = {
        "first_prompt": [turns.prompt_tokens[turns.first & part] for part in (fit, held)],
        "prompt": [turns.new_tokens[grown & part] for part in (fit, held)],
        "output": [turns.output_tokens[part] for part in (fit, held)],
    }
    if min(part.size for both in parts.values() for part in both) < 2:
        raise UserError("trace: --sessions: hardly any later turn continues the prompt and output before it")
    settings = fit_sessions(type(turns)(*(column[fit] for column in turns)))
    return split, parts, starts, settings, 1.0 - float(grown.sum()) / float((~turns.first).sum())


def beside(traffic: Traffic, fit: TraceFit, scenario: Scenario) -> list[Figures]:
    """Figures of the held-back part, and of workloads drawn from the scenario, as long and in the same pieces."""
    times = traffic.arrival_s - traffic.arrival_s[0]
    real = _figures(traffic._replace(arrival_s=times), fit.split)
    end_s = float(max(part.starts_s[-1] + part.length_s for part in fit.split))
    episode = EpisodeSettings(arrivals_s=end_s, warmup_s=0.0, horizon_s=end_s)
    long = scenario.model_copy(update={"episode": episode})
    drawn, distances = [], []
    held = within(times, fit.split.held)
    for seed in range(DRAWN):
        workload = draw_traffic(long, seed)
        drawn.append(list(_figures(workload, fit.split).values()))
        distances.append(
            [
                ks_distance(getattr(workload, name), getattr(traffic, name)[held])
                for name in ("prompt_tokens", "output_tokens")
            ]
        )
    mean, spread = np.mean(drawn, axis=0), np.std(drawn, axis=0, ddof=1)
    rows = [Figures(name, real[name], float(m), float(s)) for name, m, s in zip(real, mean, spread, strict=True)]
    for k, name in enumerate(("KS distance of prompts", "KS distance of outputs")):
        column = np.array(distances)[:, k]
        rows.append(Figures(name, math.nan, float(column.mean()), float(column.std(ddof=1))))
    return rows


def _figures(traffic: Traffic, split: Split) -> dict[str, float]:
    pieces: Pieces = split.held
    times = traffic.arrival_s
    inside = within(times, pieces)
    found = {
        "requests per second": mean_rate(times, pieces),
        "CV of the gaps": coefficient_of_variation(piece_gaps(times, pieces)),
    }
    for scale in scales_within(split):
        counts = piece_counts(times, pieces, scale).ravel()
        found[f"dispersion, {scale:g} s"] = dispersion(counts)
        found[f"peak to mean, {scale:g} s"] = float(counts.max() / max(counts.mean(), 1e-12))
    for name in ("prompt", "output"):
        tokens = getattr(traffic, f"{name}_tokens")[inside]
        found[f"{name} tokens, mean"] = float(tokens.mean())
        for q in _QUANTILES:
            found[f"{name} tokens, p{100 * q:g}"] = float(np.quantile(tokens, q))
    found["rank correlation"] = rank_correlation(traffic.prompt_tokens[inside], traffic.output_tokens[inside])
    return found
