"""What traffic looks like in figures: rates, burstiness, lengths, clients, sessions, and one row for each minute.

Also what share of a worker it needs. Knows columns of requests; nothing of files, tables and pictures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from llm_env.config import Scenario
from llm_env.errors import UserError
from llm_env.workload.generate import capacity_tokens_per_s
from llm_env.workload.statistics import (
    SCALES_S,
    coefficient_of_variation,
    dispersion,
    rank_correlation,
    window_counts,
)
from llm_env.workload.trace_report import detect_tick
from llm_env.workload.traffic import Traffic

MINUTE_S = 60.0
MAX_WINDOWS = 20_000_000  # of one width in the whole span: more would not fit into memory


@dataclass(frozen=True)
class LengthFigures:
    """Mean, largest and quantiles of prompt or output lengths, in tokens; quantiles between two lengths are linear."""

    mean: float
    max: int
    p1: float
    p5: float
    p25: float
    p50: float
    p75: float
    p95: float
    p99: float


@dataclass(frozen=True)
class TrafficSummary:
    """Figures of traffic. NaN where a figure does not exist (a rate of one request), None without such a column.

    Rates are per second from the first arrival to the last: (requests - 1) / span, times the mean length for tokens.
    `dispersion_*` is the index of dispersion of the arrivals in windows of that width, `peak_to_mean_*` the fullest of
    these windows over the mean one; NaN with fewer than two windows, or more than MAX_WINDOWS. `same_instant_share` is
    the share of requests that arrive at exactly the moment of another one, `tick_s` the step of a coarse clock, None
    without one (`llm_env.workload.trace_report.detect_tick`).
    `rank_correlation` is Spearman's and `log_correlation` Pearson's of the logarithms of prompt and output.
    `top_*_percent_clients_share` are the requests of the most active clients, their number rounded up.
    """

    requests: int
    span_s: float
    requests_per_s: float
    prompt_tokens_per_s: float
    output_tokens_per_s: float
    work_tokens_per_s: float  # prompt + output - 1 a request: what a server computes
    interarrival_cv: float
    dispersion_1s: float
    dispersion_10s: float
    dispersion_60s: float
    peak_to_mean_1s: float
    peak_to_mean_10s: float
    peak_to_mean_60s: float
    longest_silence_s: float
    same_instant_share: float
    tick_s: float | None
    prompt: LengthFigures
    output: LengthFigures
    prefill_share: float
    rank_correlation: float
    log_correlation: float
    clients: int | None
    top_1_percent_clients_share: float | None
    top_10_percent_clients_share: float | None
    sessions: int | None
    turns_mean: float | None
    turns_p95: float | None
    turns_max: int | None


def summarise_traffic(traffic: Traffic) -> TrafficSummary:
    """The figures of traffic.

    Raises:
        UserError: no requests.

    Source: dispersion: see `llm_env.workload.statistics.dispersion`. Peak-to-mean and the shares of the top clients as
        in Xiang et al., "ServeGen", arXiv:2505.09999, sections 3 and 4.
    """
    n, span_s = traffic.size, traffic.span_s
    if n == 0:
        raise UserError("traffic: no requests, so there is nothing to summarise")
    rate = (n - 1) / span_s if span_s > 0 else math.nan
    gaps_s = np.diff(traffic.arrival_s)
    in_1s, in_10s, in_60s = (_counts(traffic, width_s) for width_s in SCALES_S)
    clients, top_1, top_10 = _clients(traffic.client)
    sessions, turns_mean, turns_p95, turns_max = _sessions(traffic.session)
    prompt, output = length_figures(traffic.prompt_tokens), length_figures(traffic.output_tokens)
    logs = np.log(traffic.prompt_tokens), np.log(traffic.output_tokens)
    ranks = rank_correlation(traffic.prompt_tokens, traffic.output_tokens)
    return TrafficSummary(
        requests=n,
        span_s=span_s,
        requests_per_s=rate,
        prompt_tokens_per_s=rate * prompt.mean,
        output_tokens_per_s=rate * output.mean,
        work_tokens_per_s=rate * (prompt.mean + output.mean - 1.0),
        interarrival_cv=coefficient_of_variation(gaps_s),
        dispersion_1s=dispersion(in_1s),
        dispersion_10s=dispersion(in_10s),
        dispersion_60s=dispersion(in_60s),
        peak_to_mean_1s=_peak_to_mean(in_1s),
        peak_to_mean_10s=_peak_to_mean(in_10s),
        peak_to_mean_60s=_peak_to_mean(in_60s),
        longest_silence_s=float(gaps_s.max()) if n > 1 else math.nan,
        same_instant_share=_same_instant_share(gaps_s),
        tick_s=detect_tick(traffic.arrival_s),
        prompt=prompt,
        output=output,
        prefill_share=prompt.mean / (prompt.mean + output.mean),
        rank_correlation=ranks,
        log_correlation=math.nan if math.isnan(ranks) else float(np.corrcoef(*logs)[0, 1]),
        clients=clients,
        top_1_percent_clients_share=top_1,
        top_10_percent_clients_share=top_10,
        sessions=sessions,
        turns_mean=turns_mean,
        turns_p95=turns_p95,
        turns_max=turns_max,
    )


def length_figures(tokens: np.ndarray) -> LengthFigures:
    """Figures of at least one length."""
    quantiles = np.quantile(tokens, (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99))
    return LengthFigures(float(np.mean(tokens)), int(tokens.max()), *map(float, quantiles))


def _counts(traffic: Traffic, width_s: float) -> np.ndarray:
    """Arrivals in whole windows from the first arrival on; none if there would be more than MAX_WINDOWS."""
    if traffic.span_s / width_s > MAX_WINDOWS:
        return np.empty(0, np.int64)
    return window_counts(traffic.arrival_s, width_s, float(traffic.arrival_s[0]), float(traffic.arrival_s[-1]))


def _peak_to_mean(counts: np.ndarray) -> float:
    return float(counts.max() / counts.mean()) if counts.size > 1 and counts.any() else math.nan


def _same_instant_share(gaps_s: np.ndarray) -> float:
    """Share of requests that have a gap of 0 before or after them."""
    at_once = np.zeros(gaps_s.size + 1, np.bool_)
    at_once[1:] = gaps_s == 0
    at_once[:-1] |= gaps_s == 0
    return float(at_once.mean())


def _clients(client: np.ndarray | None) -> tuple[int | None, float | None, float | None]:
    """Number of clients, and the share of the requests that the top 1 and 10 % of them send; unknown ones left out."""
    known = np.empty(0, np.int64) if client is None else client[client >= 0]
    if known.size == 0:
        return None, None, None
    counts = np.sort(np.unique(known, return_counts=True)[1])[::-1]
    top_1, top_10 = (float(counts[: math.ceil(counts.size * top)].sum() / known.size) for top in (0.01, 0.1))
    return int(counts.size), top_1, top_10


def _sessions(session: np.ndarray | None) -> tuple[int | None, float | None, float | None, int | None]:
    """Number of sessions; mean, 95th percentile and most of the turns that one has here. Other requests left out."""
    known = np.empty(0, np.int64) if session is None else session[session >= 0]
    if known.size == 0:
        return None, None, None, None
    turns = np.unique(known, return_counts=True)[1]
    return int(turns.size), float(turns.mean()), float(np.quantile(turns, 0.95)), int(turns.max())


# ---- minute by minute ----------------------------------------------------------------------------------------------
def per_minute(traffic: Traffic) -> dict[str, np.ndarray]:
    """What arrives in each minute from the first arrival on, empty minutes too. The last one may be a part of one.

    Returns:
        minute, requests, prompt_tokens, output_tokens, total_tokens (int64), prefill_share and decode_share (float64):
        prompt and output tokens over all tokens. In a minute without requests both shares are 0, never NaN.

    Raises:
        UserError: the traffic spans more than MAX_WINDOWS minutes.
    """
    num_minutes = 0 if traffic.size == 0 else int(traffic.span_s / MINUTE_S) + 1
    if num_minutes > MAX_WINDOWS:
        raise UserError(f"traffic: spans {num_minutes} minutes, at most {MAX_WINDOWS} can be tabled: is a time wrong?")
    minute = np.arange(num_minutes)
    start_s = traffic.arrival_s[0] if traffic.size else 0.0
    edges = np.append(np.searchsorted(traffic.arrival_s, start_s + MINUTE_S * minute), traffic.size)
    prompt, output = (_sums(tokens, edges) for tokens in (traffic.prompt_tokens, traffic.output_tokens))
    total = prompt + output
    return {
        "minute": minute,
        "requests": np.diff(edges),
        "prompt_tokens": prompt,
        "output_tokens": output,
        "total_tokens": total,
        "prefill_share": prompt / np.maximum(total, 1),
        "decode_share": output / np.maximum(total, 1),
    }


def _sums(tokens: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """int64: the sums between each edge and the next."""
    return np.diff(np.append(0, np.cumsum(tokens, dtype=np.int64))[edges])


# ---- what it needs -------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Demand:
    """What traffic needs of the workers of a scenario: shares of the capacity of one, and workers for a load."""

    capacity_tokens_per_s: float  # of one worker
    mean: float  # share of it
    busiest_minute: float
    workers_mean: int | None  # None where the share does not exist
    workers_busiest_minute: int | None


def demand(summary: TrafficSummary, minutes: dict[str, np.ndarray], scenario: Scenario, load: float) -> Demand:
    """Tokens of work per second over the capacity of the scenario's system, and how many such systems bring `load`.

    The capacity is `llm_env.workload.generate.capacity_tokens_per_s`, with all that this leaves out. Traffic shorter
    than a minute is its own busiest minute.

    Args:
        summary: of the traffic.
        minutes: its `per_minute`.
        scenario: its system and SLO, of which the tightest TBT target counts.
        load: that each system is to have.

    Raises:
        UserError: no batch meets the TBT target.
    """
    capacity = capacity_tokens_per_s(scenario)
    work = minutes["total_tokens"] - minutes["requests"]
    seconds = min(MINUTE_S, summary.span_s)
    busiest = float(work.max()) / seconds if seconds > 0 else math.nan
    mean, peak = summary.work_tokens_per_s / capacity, busiest / capacity
    return Demand(capacity, mean, peak, _systems(mean, load), _systems(peak, load))


def _systems(share: float, load: float) -> int | None:
    return None if math.isnan(share) else max(1, math.ceil(share / load - 1e-9))
