"""From the cells of a study to its table: means with confidence intervals, and paired differences. Runs nothing.

Every contender met the same requests and the same noise, so differences are taken seed by seed (on a trace run whole,
block by block) and only then averaged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from llm_env.bounds import slo_bound
from llm_env.dtypes import SLO_RULES
from llm_env.errors import UserError
from llm_env.metrics import WEIGHTED, Interval, mean_ci
from llm_env.prices import costs
from llm_env.statistics import Comparison, compare, sign_flip_test
from llm_env.study import CellResult, Study, at_this_load, sort_cells
from llm_env.workload import concrete, draw_workload

AVERAGED = (
    "goodput_per_s",
    "ttft_attainment",
    "ttft_mean_s",
    "ttft_p50_s",
    "ttft_p95_s",
    "ttft_p99_s",
    "tbt_p50_s",
    "tbt_p99_s",
    "tbt_max_s",
    "tpot_mean_s",
    "e2e_mean_s",
    "queueing_mean_s",
    "requests_per_s",
    "tokens_per_s",
    "output_tokens_per_s",
    "utilisation",
    "prefill_time_share",
    "decode_time_share",
    "idle_time_share",
    "mean_batch_tokens",
    "mean_batch_requests",
    "slo_budget_share",
    "evictions",
    "unfinished",
    "rejected",
)
UNSTABLE_SHARE = 0.5  # a row is called unstable if the backlog grew in more than this share of its seeds


@dataclass(frozen=True)
class Row:
    """One contender at one load.

    Attributes:
        attainment: SLO attainment under each rule: mean and half-width of its 95 % t-interval over seeds or blocks.
            Where the classes' weights differ also WEIGHTED, under the scenario's rule.
        comparison: of the headline with that of the best baseline at this load, paired (None for itself).
        p_value: of that difference by the sign-flip permutation test (None for itself).
        means: averages over seeds of the other measures; a percentile here is the mean of the seeds' percentiles. Where
            the study has a price also COSTS, of the mean rates.
        unstable: the backlog grew, so that every time and backlog here depends on how long the run was.
        slo_rule: the scenario's.
        headline_rule: what contenders are ranked by: the scenario's SLO rule, or WEIGHTED where there is that.
        empty_seeds: seeds without a measured request, left out for everybody: their workload is the same for all.
    """

    load: float | None
    contender: str
    is_agent: bool
    replications: int
    num_requests: int
    attainment: dict[str, Interval]
    comparison: Comparison | None
    p_value: float | None
    means: dict[str, float]
    unstable: bool
    headline_rule: str
    slo_rule: str
    empty_seeds: int = 0

    @property
    def headline(self) -> Interval:
        """Attainment under the scenario's rule, by weight where the classes' weights differ."""
        return self.attainment[self.headline_rule]

    @property
    def difference(self) -> Interval | None:
        """Paired difference of the headline to that of the best baseline at this load, None for itself."""
        return self.comparison.difference if self.comparison else None

    def to_dict(self) -> dict[str, Any]:
        """For results.json; NaN becomes None."""
        flat: dict[str, Any] = {
            "load": self.load,
            "policy": self.contender,
            "is_agent": self.is_agent,
            "replications": self.replications,
            "num_requests": self.num_requests,
            "unstable": self.unstable,
        }
        for rule, interval in self.attainment.items():
            name = "weighted_attainment" if rule == WEIGHTED else f"slo_attainment_{rule}"
            flat[name], flat[f"{name}_ci95"] = number_or_none(interval.mean), number_or_none(interval.half_width)
        mean, half = self.difference or (np.nan, np.nan)
        flat["difference_to_best_baseline"], flat["difference_ci95"] = number_or_none(mean), number_or_none(half)
        flat["difference_p_value"] = self.p_value
        for name in ("wins", "ties", "losses"):
            flat[f"difference_{name}"] = getattr(self.comparison, name) if self.comparison else None
        return flat | {name: number_or_none(value) for name, value in self.means.items()}


def number_or_none(value: float) -> float | None:
    """For JSON, which has no NaN."""
    return float(value) if np.isfinite(value) else None


def aggregate(study: Study, cells: list[CellResult]) -> list[Row]:
    """The rows of the table, load by load in the order of the contenders."""
    sorted_cells = sort_cells(study, cells)
    rows = []
    for load in study.load_labels():
        cells = [c for c in sorted_cells if c.load == load and c.summary["num_requests"] > 0]
        empty = len({c.seed for c in sorted_cells if c.load == load}) - len({c.seed for c in cells})
        if not cells:
            raise UserError("no seed has a request in the measured window: a higher load or a longer episode has some")
        samples = {
            contender.label: _samples([c for c in cells if c.contender == contender.label], study.weighted)
            for contender in study.contenders
        }
        rule = WEIGHTED if study.weighted else study.scenario.slo.rule
        baselines = [c.label for c in study.contenders if not c.agent and not c.is_bound]
        best = max(baselines, key=lambda label: samples[label][rule].mean(), default=None)
        for contender in study.contenders:
            mine = [c for c in cells if c.contender == contender.label]
            own = samples[contender.label]
            other = samples[best][rule] if best is not None and contender.label != best else None
            rows.append(
                Row(
                    load,
                    contender.label,
                    bool(contender.agent),
                    len(own[rule]),
                    sum(c.summary["num_requests"] for c in mine),
                    {name: mean_ci(values) for name, values in own.items()},
                    None if other is None else compare(own[rule], other),
                    None if other is None else sign_flip_test(own[rule] - other),
                    _means(study, mine),
                    bool(np.mean([c.summary["unstable"] for c in mine]) > UNSTABLE_SHARE),
                    rule,
                    study.scenario.slo.rule,
                    empty,
                )
            )
    return rows


def _means(study: Study, cells: list[CellResult]) -> dict[str, float]:
    """AVERAGED, and COSTS where the study has a price. Args: cells: of one contender at one load."""
    means = {name: _mean([c.summary[name] for c in cells]) for name in AVERAGED}
    if study.price is None:
        return means
    return means | costs(_mean([study.cost_per_hour(c.seed) for c in cells]), means)


Bounds = dict[float | None, dict[str, float]]  # load -> rule -> share of the requests


def study_bounds(study: Study) -> Bounds:
    """What no policy can pass on the workloads of a study, at each load under each rule: means over the seeds.

    Batches may be of any size (`llm_env.bounds`). Seeds without a measured request are left out, as in the rows.

    Raises:
        UserError: the service time is noisy, so there is no bound.
    """
    bounds: Bounds = {}
    for load in study.load_labels():
        scenario, trace = at_this_load(study, load)
        seeds = study.seeds if trace is None else study.seeds[:1]
        episodes = [concrete(scenario, seed) for seed in seeds]
        workloads = [draw_workload(scenario, seed) if trace is None else trace for seed in seeds]
        bounds[load] = {
            rule: _mean([slo_bound(*pair, rule).share for pair in zip(workloads, episodes, strict=True)])
            for rule in SLO_RULES
        }
    return bounds


def best_baseline(rows: list[Row], load: float | None) -> str | None:
    """The baseline with the highest attainment at a load: the one whose difference is not stated."""
    found = [row.contender for row in rows if row.load == load and not row.is_agent and row.difference is None]
    return found[0] if found else None


def headline_samples(study: Study, cells: list[CellResult]) -> dict[tuple[float | None, str], dict[int, float]]:
    """What contenders are ranked by: load and label -> seed (or number of a block) -> attainment."""
    found: dict[tuple[float | None, str], dict[int, float]] = {}
    rule = WEIGHTED if study.weighted else study.scenario.slo.rule
    for cell in cells:
        if cell.summary["num_requests"] == 0:
            continue
        values = _samples([cell], study.weighted)[rule]
        numbers = range(len(values)) if cell.blocks else (cell.seed,)
        found.setdefault((cell.load, cell.contender), {}).update(zip(numbers, values.tolist(), strict=True))
    return found


def _samples(cells: list[CellResult], weighted: bool) -> dict[str, np.ndarray]:
    """The replications of a row under each rule, and WEIGHTED: blocks of the one run of a trace, else seeds."""
    if cells[0].blocks:
        return cells[0].blocks
    samples = {rule: np.array([c.summary[f"slo_attainment_{rule}"] for c in cells]) for rule in SLO_RULES}
    if weighted:
        samples[WEIGHTED] = np.array([c.summary["weighted_attainment"] for c in cells])
    return samples


def _mean(values: list[float]) -> float:
    finite = [v for v in values if np.isfinite(v)]
    return float(np.mean(finite)) if finite else float("nan")
