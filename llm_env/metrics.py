"""From the final State of a recorded run to numbers: what every request and the system got, and how sure one can be.

Knows the records, the SLO rules and the settings; runs nothing. Times in seconds. Every quantile interpolates linearly
between order statistics (numpy's default, type 7 of Hyndman and Fan, "Sample quantiles in statistical packages", The
American Statistician 50(4), 1996). What cannot be measured is NaN.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from llm_env.config import Scenario
from llm_env.dtypes import FINISHED, NEVER, REJECTED, SLO_RULES
from llm_env.records import State
from llm_env.slo import judged, met_share
from llm_env.usage import usage

EVERYTHING = (-math.inf, math.inf)  # a window that measures every request: for traces
WEIGHTED = "weighted"  # beside the names of the rules: attainment by the weights of classes, under the scenario's rule


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One run in numbers. MEASURED: the requests that arrived in the window. RUN: everything from the first arrival to
    the end, warm-up and drain with it, because batches and gaps serve measured and other requests at once.

    MEASURED, counts:
        num_requests: of them finished, rejected (can never fit in KV memory) and unfinished when the run ended.
        window_s: length of the window; of an open one from the first to the last arrival.

    MEASURED, promises (a share of ALL measured requests, each counted once; rejected and unfinished ones are misses):
        ttft_attainment: first token at most the TTFT target after arrival, finished or not.
        slo_attainment_max, _p99, _deadline: that, finished, and every gap within the TBT target; or the 99th percentile
            (nearest rank) of the request's gaps within it; or token j by arrival + TTFT target + (j - 1) TBT targets.
        slo_attainment: that of the scenario's rule.
        weighted_attainment: the same as a share of the requests' SLO weight (`slo.classes`): what of all that was
            promised was kept. Equal to slo_attainment where all classes weigh the same.
        goodput_per_s: requests that met it per second of the window.
            Source: Zhong et al., "DistServe" (OSDI 2024), section 2.

    MEASURED, times (mean and percentiles over the requests that have the time in question):
        ttft: first token - arrival; num_without_first_token is how many have none and are in no figure.
        tpot: (finish - first token) / (output tokens - 1), of finished requests of two tokens or more.
        e2e: finish - arrival, of finished requests.
        queueing: first scheduled - arrival, of requests that were scheduled.

    RUN:
        tbt: every gap between successive tokens of a request, all gaps pooled, so a long answer weighs more than a
            short one (what vLLM calls ITL); num_gaps of them.
        evictions: requests thrown out of KV memory, to be recomputed or swapped; each time counted.
        makespan_s: first arrival to the end of the run. The next three are per second of it.
        requests_per_s: finished requests.
        tokens_per_s: prompt tokens of the requests with a first token, and all output tokens; recomputed ones do not
            count.
        output_tokens_per_s: output tokens.
        utilisation: time of all workers with a batch / (workers x makespan).
        prefill_time_share, decode_time_share, idle_time_share: what that time went into, and the rest; their sum is 1.
            The time of a batch is split in proportion to its tokens: by S(b) each costs the same, S(b)/b; terms
            beside it are split with it. A worker that changes its role is idle.
        num_batches, mean_batch_tokens, mean_batch_requests: finished batches; the means weigh each batch the same.
        prefill_share: prefill tokens, recomputed ones too, of all processed tokens.
        mean_num_waiting: time average of requests never scheduled yet, by Little's law (Operations Research 9(3),
            1961): the sum of their waits / makespan.
        kv_used_mean, kv_used_max: share of a worker's KV blocks held at the end of its batches; the mean weighs
            batches by duration. NaN if memory is unlimited.
        slo_budget_share: mean over batches of tokens / the largest batch that its worker runs within the tightest TBT
            target; above 1 a batch without noise takes longer than the target.
        unstable: see `is_unstable`.
    """

    num_requests: int
    finished: int
    unfinished: int
    rejected: int
    num_without_first_token: int
    window_s: float
    slo_rule: str
    slo_attainment: float
    weighted_attainment: float
    slo_attainment_max: float
    slo_attainment_p99: float
    slo_attainment_deadline: float
    ttft_attainment: float
    goodput_per_s: float
    ttft_mean_s: float
    ttft_p50_s: float
    ttft_p95_s: float
    ttft_p99_s: float
    tpot_mean_s: float
    tpot_p50_s: float
    tpot_p99_s: float
    e2e_mean_s: float
    e2e_p50_s: float
    e2e_p99_s: float
    queueing_mean_s: float
    queueing_p95_s: float
    num_gaps: int
    tbt_mean_s: float
    tbt_p50_s: float
    tbt_p95_s: float
    tbt_p99_s: float
    tbt_max_s: float
    evictions: int
    makespan_s: float
    requests_per_s: float
    tokens_per_s: float
    output_tokens_per_s: float
    utilisation: float
    prefill_time_share: float
    decode_time_share: float
    idle_time_share: float
    num_batches: int
    mean_batch_tokens: float
    mean_batch_requests: float
    slo_budget_share: float
    prefill_share: float
    mean_num_waiting: float
    kv_used_mean: float
    kv_used_max: float
    unstable: bool

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, in order. NaN where a measure does not exist."""
        return dict(vars(self))


def summarise(state: State, scenario: Scenario, from_s: float | None = None, until_s: float | None = None) -> Summary:
    """All measures of a run.

    Args:
        state: one system, without a leading axis, run with record=True.
        from_s, until_s: requests with from_s <= arrival < until_s are measured; the scenario's warmup_s and arrivals_s
            if None. `summarise(state, scenario, *EVERYTHING)` measures every request of a trace.

    Raises:
        ValueError: the run was not recorded.
    """
    system = state.system[0]
    if not system["record"]:
        raise ValueError("the run kept no logs: run it with record=True")
    scenario = _of_run(state, scenario)
    q = state.requests[: int(system["num_requests"])]
    measured, window_s = _window(q, scenario, from_s, until_s)
    verdicts = judged(q)[measured]
    attained = {rule: verdicts[:, 1 + k] for k, rule in enumerate(SLO_RULES)}
    met = attained[scenario.slo.rule]
    status = q["status"][measured]
    finished, rejected = int(np.sum(status == FINISHED)), int(np.sum(status == REJECTED))
    return Summary(
        num_requests=status.size,
        finished=finished,
        unfinished=status.size - finished - rejected,
        rejected=rejected,
        window_s=window_s,
        slo_rule=scenario.slo.rule,
        slo_attainment=_mean(met),
        weighted_attainment=met_share(met, q["weight"][measured]),
        **{f"slo_attainment_{rule}": _mean(marks) for rule, marks in attained.items()},
        ttft_attainment=_mean(verdicts[:, 0]),
        goodput_per_s=_ratio(int(np.sum(met)), window_s),
        unstable=is_unstable(state, scenario, from_s, until_s),
        **_request_times(q, measured),
        **_gaps(state),
        **_run(state, q),
    )


def weighted_attainment(state: State, scenario: Scenario) -> float:
    """`Summary.weighted_attainment` alone, of a run with or without logs: a tenth of the time of all measures."""
    q = state.requests[: int(state.system[0]["num_requests"])]
    measured, _ = _window(q, scenario, None, None)
    return met_share(slo_marks(q, scenario.slo.rule)[measured], q["weight"][measured])


def block_values(
    state: State,
    scenario: Scenario,
    num_blocks: int = 20,
    from_s: float | None = None,
    until_s: float | None = None,
    rule: str | None = None,
    weighted: bool = False,
) -> np.ndarray:
    """SLO attainment of consecutive blocks of equally many measured requests, in order of arrival.

    `mean_ci` of them is the batch-means interval of a single long run: requests of one run depend on each other, long
    blocks hardly do. What does not divide is left out at the front. With fewer requests than blocks, one a block.

    Args:
        rule: an SLO rule, the scenario's if None.
        weighted: shares of the requests' SLO weight in place of their number.

    Source: Law, "Simulation Modeling and Analysis" (5th ed., 2015), section 9.5.3; 10 to 30 blocks after Schmeiser,
        "Batch size effects in the analysis of simulation output" (Operations Research 30(3), 1982).
    """
    scenario = _of_run(state, scenario)
    q = state.requests[: int(state.system[0]["num_requests"])]
    measured, _ = _window(q, scenario, from_s, until_s)
    marks = slo_marks(q, rule or scenario.slo.rule)[measured]
    num_blocks = max(1, min(num_blocks, marks.size))
    size = marks.size // num_blocks
    blocks = marks[marks.size - size * num_blocks :].reshape(num_blocks, size)
    if not size or not weighted:
        return blocks.astype(np.float64).mean(axis=1) if size else np.empty(0)
    weights = q["weight"][measured][marks.size - size * num_blocks :].reshape(num_blocks, size)
    return np.array([met_share(met, weight) for met, weight in zip(blocks, weights, strict=True)])


def is_unstable(state: State, scenario: Scenario, from_s: float | None = None, until_s: float | None = None) -> bool:
    """True if the backlog grew all through the window, so that every figure depends on how long one looked.

    Let N(t) be the requests that have arrived and are neither finished nor rejected. Unstable means both: N is larger
    at the end of each third of the window than at its start; and over the whole window it grew by at least
    2 sqrt(n), n being the measured arrivals, which is two standard deviations of a Poisson count of n. A stable
    system's N stays of one order while sqrt(n) grows with the window, so the longer the window, the smaller the
    overload that is found: about a quarter over capacity with 100 requests, 3 % with 10,000. One short run of bursty
    traffic cannot tell a burst at its end from overload: of several seeds, look at what most of them say.
    """
    scenario = _of_run(state, scenario)
    q = state.requests[: int(state.system[0]["num_requests"])]
    measured, _ = _window(q, scenario, from_s, until_s)
    n = int(measured.sum())
    if n < 4:
        return False
    start_s, end_s = _bounds(q, scenario, from_s, until_s)
    accepted = q["status"] != REJECTED
    arrivals = np.sort(q["arrival_s"][accepted])
    departures = np.sort(q["finish_s"][q["status"] == FINISHED])
    edges = np.linspace(start_s, end_s, 4)
    number = np.searchsorted(arrivals, edges, side="right") - np.searchsorted(departures, edges, side="right")
    return bool((np.diff(number) > 0).all() and number[-1] - number[0] >= 2 * math.sqrt(n))


# ---- promises ------------------------------------------------------------------------------------------------------
def slo_marks(requests: np.ndarray, rule: str) -> np.ndarray:
    """(n,) bool: which REQUESTs finished and kept their SLO under the rule "max", "p99" or "deadline"."""
    return judged(requests)[:, 1 + SLO_RULES.index(rule)]


def ttft_marks(requests: np.ndarray) -> np.ndarray:
    """(n,) bool: which REQUESTs have their first token, on time."""
    return judged(requests)[:, 0]


def _of_run(state: State, scenario: Scenario) -> Scenario:
    """The scenario with the SLO rule and the last arrival of the run, where they may have been drawn with its seed."""
    if not scenario.vary:
        return scenario
    system = state.system[0]
    slo = scenario.slo.model_copy(update={"rule": SLO_RULES[int(system["slo_rule"])]})
    episode = scenario.episode.model_copy(update={"arrivals_s": float(system["arrivals_s"])})
    return scenario.model_copy(update={"slo": slo, "episode": episode, "vary": ()})


# ---- parts of the summary ------------------------------------------------------------------------------------------
def _bounds(q: np.ndarray, scenario: Scenario, from_s: float | None, until_s: float | None) -> tuple[float, float]:
    """Start and end of the window in seconds; where it is open, the first or the last arrival."""
    start_s = scenario.episode.warmup_s if from_s is None else from_s
    end_s = scenario.episode.arrivals_s if until_s is None else until_s
    if len(q) == 0:
        return 0.0, 0.0
    return (
        float(q["arrival_s"].min()) if start_s == -math.inf else start_s,
        float(q["arrival_s"].max()) if end_s == math.inf else end_s,
    )


def _window(q: np.ndarray, scenario: Scenario, from_s: float | None, until_s: float | None) -> tuple[np.ndarray, float]:
    """Which requests are measured, (n,) bool, and the length of the window in seconds."""
    start_s, end_s = _bounds(q, scenario, from_s, until_s)
    until = math.inf if until_s == math.inf else end_s
    return (q["arrival_s"] >= start_s) & (q["arrival_s"] < until), end_s - start_s


def _request_times(q: np.ndarray, measured: np.ndarray) -> dict[str, Any]:
    arrival, first, finish = q["arrival_s"][measured], q["first_token_s"][measured], q["finish_s"][measured]
    scheduled, gaps = q["first_scheduled_s"][measured], q["output_tokens"][measured] - 1
    started, done = first != NEVER, finish != NEVER
    several = done & (gaps > 0)
    return {
        "num_without_first_token": int(np.sum(~started)),
        **_spread("ttft", (first - arrival)[started], (50, 95, 99)),
        **_spread("tpot", (finish - first)[several] / gaps[several], (50, 99)),
        **_spread("e2e", (finish - arrival)[done], (50, 99)),
        **_spread("queueing", (scheduled - arrival)[scheduled != NEVER], (95,)),
    }


def _gaps(state: State) -> dict[str, Any]:
    log = state.gap_log[: int(state.system[0]["num_gaps"])]
    seconds, counts = log["gap_s"], log["count"]
    total = int(counts.sum())
    values = weighted_quantiles(seconds, counts, (0.5, 0.95, 0.99))
    return {
        "num_gaps": total,
        "tbt_mean_s": _ratio(float((seconds * counts).sum()), total),
        **{f"tbt_p{p}_s": float(v) for p, v in zip((50, 95, 99), values, strict=True)},
        "tbt_max_s": float(seconds.max()) if total else math.nan,
    }


def _run(state: State, q: np.ndarray) -> dict[str, Any]:
    system = state.system[0]
    now_s = float(system["now_s"])
    start_s = min(float(q["arrival_s"].min()), now_s) if len(q) else now_s
    makespan_s = now_s - start_s
    output = int(q["emitted_tokens"].sum())
    prompt = int(q["prompt_tokens"][q["emitted_tokens"] > 0].sum())
    arrived = (q["arrival_s"] <= now_s) & (q["status"] != REJECTED)
    scheduled = q["first_scheduled_s"][arrived]
    waits = np.where(scheduled == NEVER, now_s, scheduled) - q["arrival_s"][arrived]
    return {
        "evictions": int(system["num_evictions"]),
        "makespan_s": makespan_s,
        "requests_per_s": _ratio(int(system["num_finished"]), makespan_s),
        "tokens_per_s": _ratio(prompt + output, makespan_s),
        "output_tokens_per_s": _ratio(output, makespan_s),
        "mean_num_waiting": _ratio(float(waits.sum()), makespan_s),
        **usage(state, makespan_s),
    }


def _spread(name: str, values: np.ndarray, percentiles: tuple[int, ...]) -> dict[str, float]:
    at = np.quantile(values, [p / 100 for p in percentiles]) if values.size else [math.nan] * len(percentiles)
    return {
        f"{name}_mean_s": _mean(values),
        **{f"{name}_p{p}_s": float(v) for p, v in zip(percentiles, at, strict=True)},
    }


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values)) if values.size else math.nan


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole > 0 else math.nan


# ---- statistics ----------------------------------------------------------------------------------------------------
class Interval(NamedTuple):
    """A mean and the half-width of its confidence interval; NaN where there are too few values."""

    mean: float
    half_width: float


def weighted_quantiles(values: np.ndarray, counts: np.ndarray, shares: tuple[float, ...]) -> np.ndarray:
    """`np.quantile` of the values, each repeated `counts` times, without repeating them.

    Args:
        values: (n,) float64.
        counts: (n,) int64, at least 0.
        shares: (m,) in [0, 1].

    Returns:
        (m,) float64, NaN if there is no value.
    """
    total = int(counts.sum())
    if total == 0:
        return np.full(len(shares), math.nan)
    order = np.argsort(values)
    ends = counts[order]
    np.cumsum(ends, out=ends)  # position, from 1, of the last copy of each value
    position = (total - 1) * np.asarray(shares, np.float64)
    below = np.floor(position).astype(np.int64)
    above = np.minimum(below + 1, total - 1)
    low, high = (values[order[np.searchsorted(ends, k, side="right")]] for k in (below, above))
    return low + (high - low) * (position - below)


def mean_ci(values: np.ndarray | list[float], level: float = 0.95) -> Interval:
    """Mean of independent values and its t-interval: mean ± t(n - 1) s / sqrt(n).

    Half-width NaN for one value, 0 if all are equal; both NaN for none or if one of the values is NaN.

    Source: Law, "Simulation Modeling and Analysis" (5th ed., 2015), equation 4.12.
    """
    x = np.asarray(values, np.float64).ravel()
    if x.size == 0:
        return Interval(math.nan, math.nan)
    if x.size == 1:
        return Interval(float(x[0]), math.nan)
    if (x == x[0]).all():
        return Interval(float(x[0]), 0.0)
    from scipy.stats import t  # takes long to import

    half = t.ppf(0.5 + level / 2, x.size - 1) * x.std(ddof=1) / math.sqrt(x.size)
    return Interval(float(x.mean()), float(half))


def paired_ci(a: np.ndarray | list[float], b: np.ndarray | list[float], level: float = 0.95) -> Interval:
    """`mean_ci` of a - b, where a[k] and b[k] met the same luck: far narrower than from two separate intervals.

    Raises:
        ValueError: not equally many.

    Source: common random numbers, Law (2015), section 11.2.
    """
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if first.shape != second.shape:
        raise ValueError(f"cannot pair {first.shape} values with {second.shape}")
    return mean_ci(first - second, level)
