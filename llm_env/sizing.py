"""How much traffic a system carries at a promise, and how many workers some traffic needs: by bisection.

Every point of a curve is a mean over the same seeds, for every policy, so that differences between policies are those
of the policies. Runs studies of one contender; prints nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from llm_env.aggregate import headline_samples
from llm_env.config import Scenario, with_changes
from llm_env.errors import UserError
from llm_env.metrics import Interval, mean_ci
from llm_env.prices import Price, costs
from llm_env.study import CellResult, Contender, Study, run_unit
from llm_env.system_settings import MAX_WORKERS
from llm_env.workload import capacity_requests_per_s

STEP = 0.01  # of load: capacities are told to this
LEAST_LOAD, MOST_LOAD = 0.05, 3.0  # below, runs have too few requests to tell


# ---- capacity ------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Capacity:
    """The most traffic at which a contender keeps a share of its promises.

    Attributes:
        policy: the contender.
        target: share of promises.
        load: the highest multiple of STEP at which the mean attainment over seeds is at least the target; 0 if none is.
        low_load, high_load: the same of the lower and the upper end of the mean's 95 % t-interval: what the seeds leave
            open.
        rate_per_s: requests per second at that load; low_rate_per_s, high_rate_per_s: at these.
        at_least: the target is met up to the highest load that was looked at.
    """

    policy: str
    target: float
    load: float
    low_load: float
    high_load: float
    rate_per_s: float
    low_rate_per_s: float
    high_rate_per_s: float
    at_least: bool

    def to_dict(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)


class Curve:
    """Attainment of one contender against load, each point computed when it is first asked for.

    Args:
        scenario: whose load is set.
        contender: who serves.
        seeds: of every point.
    """

    def __init__(self, scenario: Scenario, contender: Contender, seeds: tuple[int, ...]) -> None:
        self._scenario, self._contender, self._seeds = scenario, contender, seeds
        self._known: dict[int, Interval] = {}

    def at(self, step: int) -> Interval:
        """Mean over seeds at load step x STEP, by SLO weight where classes weigh differently."""
        if step not in self._known:
            study = Study(self._scenario, (self._contender,), (round(step * STEP, 6),), self._seeds)
            self._known[step] = mean_ci(_values(study, run_unit(study, self._contender, study.loads[0], self._seeds)))
        return self._known[step]


def _values(study: Study, cells: list[CellResult]) -> list[float]:
    found = headline_samples(study, cells)
    return [value for by_seed in found.values() for value in by_seed.values()]


def capacities(
    scenario: Scenario, contender: Contender, targets: tuple[float, ...], seeds: tuple[int, ...]
) -> list[Capacity]:
    """The capacity of a contender at each target. Args: targets: shares above 0 and below 1.

    Attainment falls with load but for the luck of the seeds; bisection finds a load where it crosses the target.

    Raises:
        UserError: fewer than two seeds, a share out of range, or a scenario that has no load.
    """
    if len(seeds) < 2:
        raise UserError(f"seeds: expected at least 2, got {len(seeds)}")
    for target in targets:
        if not 0 < target < 1:
            raise UserError(f"attainment: expected more than 0 and less than 1, got {target:g}")
    per_load = capacity_requests_per_s(scenario)
    curve = Curve(scenario, contender, seeds)
    found = []
    for target in targets:
        steps = [_last_step(curve, end, target) for end in (_mean, _lower, _upper)]
        load, low, high = (round(k * STEP, 6) for k in steps)
        found.append(
            Capacity(
                policy=contender.label,
                target=target,
                load=load,
                low_load=low,
                high_load=high,
                rate_per_s=load * per_load,
                low_rate_per_s=low * per_load,
                high_rate_per_s=high * per_load,
                at_least=steps[0] == round(MOST_LOAD / STEP),
            )
        )
    return found


def _mean(interval: Interval) -> float:
    return interval.mean


def _lower(interval: Interval) -> float:
    return interval.mean - interval.half_width


def _upper(interval: Interval) -> float:
    return interval.mean + interval.half_width


def _last_step(curve: Curve, end: Callable[[Interval], float], target: float) -> int:
    """The last step of load at which an end of the interval reaches the target, 0 if it does not at the least load."""
    low, high = round(LEAST_LOAD / STEP), round(MOST_LOAD / STEP)
    if not end(curve.at(low)) >= target:
        return 0
    if end(curve.at(high)) >= target:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if end(curve.at(middle)) >= target else (low, middle)
    return low


# ---- fleet ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Fleet:
    """The fewest workers with which a contender keeps a share of its promises, and what they cost.

    Attributes:
        policy: the contender.
        target: share of promises.
        workers: how many, None if MAX_WORKERS are too few.
        attainment, half_width: mean over seeds (blocks of a trace) with that many, and half its 95 % t-interval.
        gpus: of all workers.
        cost_per_hour: of these.
        cost_per_million_output_tokens, cost_per_million_tokens: at the throughput of the run; the latter with prompts.
        cost_per_thousand_good: requests that met their SLO.
        utilisation: share of the time that a worker is busy.
    """

    policy: str
    target: float
    workers: int | None
    attainment: float
    half_width: float
    gpus: int
    cost_per_hour: float
    cost_per_million_output_tokens: float
    cost_per_million_tokens: float
    cost_per_thousand_good: float
    utilisation: float

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, None for what is not known."""
        return {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in asdict(self).items()}


def fleet(study: Study, target: float, price: Price) -> Fleet:
    """The fleet that the only contender of a study needs for its traffic, whose rate stays as it is.

    Args:
        study: of one contender and one load (or the trace as it is); its system has any number of workers.
        target: share of promises.
        price: of a worker.

    Raises:
        UserError: the share is out of range, or a system that is not made of equal workers.
    """
    if not 0 < target < 1:
        raise UserError(f"attainment: expected more than 0 and less than 1, got {target:g}")
    system = study.scenario.system
    if system.layout != "replicas" or system.speeds:
        raise UserError("fleet: expected equal replicas; with a layout or speeds of its own a fleet has no one size")
    known: dict[int, tuple[Interval, list[CellResult]]] = {}

    def with_workers(n: int) -> tuple[Interval, list[CellResult]]:
        if n not in known:
            scenario = with_changes(study.scenario, {"system.workers": n})
            changed = dataclasses.replace(study, scenario=scenario, traffic=study.traffic or study.scenario)
            seeds = study.seeds[:1] if study.trace else study.seeds
            cells = run_unit(changed, study.contenders[0], study.load_labels()[0], seeds)
            known[n] = mean_ci(_values(changed, cells)), cells
        return known[n]

    low, high = 0, 1
    while high < MAX_WORKERS and with_workers(high)[0].mean < target:
        low, high = high, min(2 * high, MAX_WORKERS)
    enough = with_workers(high)[0].mean >= target
    while enough and high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if with_workers(middle)[0].mean >= target else (middle, high)
    interval, cells = with_workers(high)
    names = ("output_tokens_per_s", "tokens_per_s", "goodput_per_s", "utilisation")
    means = {name: float(np.mean([cell.summary[name] for cell in cells])) for name in names}
    return Fleet(
        policy=study.contenders[0].label,
        target=target,
        workers=high if enough else None,
        attainment=interval.mean,
        half_width=interval.half_width,
        gpus=high * price.gpus_per_worker,
        utilisation=means["utilisation"],
        **costs(price.per_hour(high), means),
    )
