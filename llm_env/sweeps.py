"""Sweeps: a study run again and again with one thing changed, on the same seeds. An axis is a row of the table AXES.

Every point is a study of its own, whose cells are kept (`llm_env.cell_store`). But on the axis of load a point has the
requests of the study as it is, at their rate, unless the load is held: then they come at the same share of the
capacity that the point has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from llm_env.aggregate import Row, aggregate, number_or_none
from llm_env.cell_store import FOLDER, CellStore
from llm_env.config import Scenario, with_changes
from llm_env.errors import UserError
from llm_env.metrics import Interval, mean_ci
from llm_env.processes import shared_out
from llm_env.study import CellResult, Contender, Study, one_of_each_kind, run_and_keep, sort_cells, units
from llm_env.workload import capacity_requests_per_s, refuse_rate

Hold = Literal["rate", "load"]
ATTAINMENT, TTFT, TBT = "attainment", "ttft_p99_s", "tbt_p99_s"  # what can be drawn


@dataclass(frozen=True)
class Axis:
    """What is changed, and where the study as it is stands on it.

    Attributes:
        title: what the values are, with their unit.
        values: that are looked at unless others are given.
        at: the study with a value.
        now: the value of a scenario as it is, None if there is none.
        drawn: what is drawn against it.
        whole: values are integers.
        doubling: it is drawn so that doubling a value is the same step everywhere.
    """

    title: str
    values: tuple[float, ...]
    at: Callable[[Study, float], Study]
    now: Callable[[Scenario], float | None] = lambda _: None
    drawn: tuple[str, ...] = (ATTAINMENT,)
    whole: bool = False
    doubling: bool = False


@dataclass(frozen=True)
class Point:
    """One value of one axis. Attributes: study: that is run there."""

    axis: str
    value: float
    study: Study


@dataclass(frozen=True)
class SweepRow:
    """What a contender got at a point.

    Attributes:
        row: of the point's study.
        times: mean of TTFT and TBT, each run's 99th percentile, with the half-width of its 95 % t-interval over runs.
    """

    point: Point
    row: Row
    times: dict[str, Interval]

    def interval(self, name: str) -> Interval:
        """Args: name: ATTAINMENT, TTFT or TBT."""
        return self.row.headline if name == ATTAINMENT else self.times[name]

    def to_dict(self) -> dict[str, Any]:
        """For files."""
        widths = {f"{name}_ci95": number_or_none(interval.half_width) for name, interval in self.times.items()}
        return {"axis": self.point.axis, "value": self.point.value} | self.row.to_dict() | widths


# ---- axes ----------------------------------------------------------------------------------------------------------
def _changed(study: Study, changes: dict[str, Any]) -> Study:
    """The study on another system or with other promises, with the requests that it has as it is."""
    return replace(study, scenario=with_changes(study.scenario, changes), traffic=study.traffic or study.scenario)


def _slo_scale(study: Study, value: float) -> Study:
    classes = enumerate(study.scenario.slo.classes)
    return _changed(
        study,
        {f"slo.classes.{k}.{name}": value * getattr(one, name) for k, one in classes for name in ("ttft_ms", "tbt_ms")},
    )


def _token_budget(study: Study, value: float) -> Study:
    return replace(study, contenders=tuple(_with_budget(contender, int(value)) for contender in study.contenders))


def _with_budget(contender: Contender, tokens: int) -> Contender:
    """The baseline with another token budget, under the same label.

    Raises:
        UserError: it has none.
    """
    from baselines import make_policy, policy_info

    known = [] if contender.agent else [p.name for p in policy_info(contender.policy).parameters]
    if "token_budget" not in known:
        raise UserError(f"chunk: {contender.label}: expected policies with the parameter token_budget")
    parameters = tuple((dict(contender.parameters) | {"token_budget": tokens}).items())
    make_policy(contender.policy, **dict(parameters))
    return contender._replace(parameters=parameters)


def _service(name: str, title: str, values: tuple[float, ...], whole: bool = False) -> Axis:
    """An axis of a setting of `system.service`."""

    def at(study: Study, value: float) -> Study:
        return _changed(study, {f"system.service.{name}": int(value) if whole else value})

    return Axis(title, values, at, lambda scenario: float(getattr(scenario.system.service, name)), whole=whole)


def _noise(term: str, family: str) -> Axis:
    """An axis of the coefficient of variation of the noise on one term of the service time; 0 is none."""
    setting = f"system.service.{term}_noise"
    what = {"setup": "c", "per_token": "a"}[term]

    def at(study: Study, value: float) -> Study:
        return _changed(study, {setting: family if value else "none", f"{setting}_cv": value or None})

    def now(scenario: Scenario) -> float | None:
        return 0.0 if getattr(scenario.system.service, f"{term}_noise") == "none" else None

    values = (0.0, 0.05, 0.2, 0.5, 1.0)
    return Axis(f"CV of {family} noise on {what}", values, at, now, (ATTAINMENT, TBT), doubling=True)


AXES: dict[str, Axis] = {
    "load": Axis(
        "load (share of the capacity within the TBT target)",
        (0.4, 0.6, 0.8, 1.0, 1.2),
        lambda study, value: replace(study, loads=(value,)),
        lambda scenario: scenario.workload.load,
        (ATTAINMENT, TTFT),
    ),
    "slo-scale": Axis(
        "SLO targets, times those of the scenario", (0.5, 0.75, 1.0, 1.5, 2.0), _slo_scale, lambda _: 1.0
    ),
    "chunk": Axis(
        "token budget of a batch (tokens)",
        (64, 128, 256, 384, 512, 1024, 2048),
        _token_budget,
        drawn=(ATTAINMENT, TTFT, TBT),
        whole=True,
        doubling=True,
    ),
    "service-setup": _service("setup_ms", "setup time c (ms)", (20.0, 27.5, 35.0, 42.5, 50.0)),
    "service-per-token": _service("per_token_ms", "time per token a (ms)", (0.1, 0.2, 0.3, 0.4, 0.5)),
    "service-free-tokens": _service("free_tokens", "free tokens b0", (0, 32, 64, 128, 256), whole=True),
    "noise-setup-gamma": _noise("setup", "gamma"),
    "noise-setup-lognormal": _noise("setup", "lognormal"),
    "noise-per-token-gamma": _noise("per_token", "gamma"),
    "noise-per-token-lognormal": _noise("per_token", "lognormal"),
}
GROUPS: dict[str, tuple[str, ...]] = {  # several axes, one at a time
    group: tuple(name for name in AXES if name.startswith(f"{group}-")) for group in ("service", "noise")
}


# ---- points, and what they give ------------------------------------------------------------------------------------
def axes_of(name: str) -> tuple[str, ...]:
    """The axes that a name stands for: one of AXES or of GROUPS."""
    return GROUPS.get(name, (name,))


def sweep_points(study: Study, name: str, values: Sequence[float] = (), hold: Hold = "rate") -> list[Point]:
    """The points of a sweep, axis by axis in the order of the values.

    Args:
        study: as it is, at one load or its own; no trace.
        name: of AXES or GROUPS.
        values: in place of the axis's own.
        hold: what stays as it is where capacities change: requests per second, or the load.

    Raises:
        UserError: values that the axis cannot have, a scenario without a load where one is held, or one that varies.
    """
    scenario = study.scenario
    if scenario.vary:
        raise UserError("sweep: the scenario varies from episode to episode, perhaps in what is changed: take another")
    if values and name in GROUPS:
        raise UserError(f"values: {name} is several axes: give one of {', '.join(GROUPS[name])}")
    if name == "load" or hold == "load":
        refuse_rate(scenario, f"sweep {name}" if name == "load" else "hold")
    if hold == "load":
        if name == "load":
            raise UserError("hold: not with the axis load, on which it changes")
        if scenario.workload.load is None and not study.loads:
            raise UserError("hold: the scenario has a rate and no load: give --load")
    if len(set(values)) != len(values):
        raise UserError(f"values: one is given twice: {' '.join(f'{value:g}' for value in values)}")
    points = []
    for axis_name in axes_of(name):
        axis = AXES[axis_name]
        for value in sorted(values or axis.values):
            points.append(Point(axis_name, value, _at(study, axis_name, axis, value, hold)))
    return points


def _at(study: Study, name: str, axis: Axis, value: float, hold: Hold) -> Study:
    if axis.whole and value != int(value):
        raise UserError(f"values: {name}: expected whole numbers, got {value:g}")
    if name == "load" and not 0 < value <= 10:
        raise UserError(f"values: {name}: expected above 0 and at most 10, got {value:g}")
    changed = axis.at(study, value)
    if hold == "load":
        changed = replace(changed, traffic=None)
    if changed.loads or changed.scenario.workload.load is not None:
        capacity_requests_per_s(changed.traffic or changed.scenario)  # which says what is wrong, if there is none
    return changed


def run_sweep(
    points: Sequence[Point], folder: Path, processes: int, fresh: bool, tell: Callable[[int, int], None]
) -> list[SweepRow]:
    """The rows of all points, in their order and that of the contenders; the number of processes does not matter.

    Args:
        folder: cells are kept below it, and taken from there.
        fresh: take none.
        tell: is called with the pieces of work that are done and their number, whenever one is.
    """
    stores = [CellStore(folder / FOLDER, point.study) for point in points]
    cells = [[] if fresh else store.found() for store in stores]
    jobs, owners = [], []
    for k, (point, store) in enumerate(zip(points, stores, strict=True)):
        known = {(cell.load, cell.contender, cell.seed) for cell in cells[k]}
        jobs += [(point.study, store, piece) for piece in units(point.study, known)]
        owners += [k] * (len(jobs) - len(owners))
    here = one_of_each_kind([piece[0] for _, _, piece in jobs])
    for done, (job, new) in enumerate(shared_out(run_and_keep, jobs, processes, here), 1):
        cells[owners[job]] += new
        tell(done, len(jobs))
    return [row for point, mine in zip(points, cells, strict=True) for row in _rows(point, mine)]


def _rows(point: Point, cells: list[CellResult]) -> list[SweepRow]:
    cells = sort_cells(point.study, cells)
    found = []
    for row in aggregate(point.study, cells):
        mine = [cell.summary for cell in cells if cell.contender == row.contender and cell.summary["num_requests"] > 0]
        times = {name: _mean([summary[name] for summary in mine]) for name in (TTFT, TBT)}
        found.append(SweepRow(point, row, times))
    return found


def _mean(values: list[float]) -> Interval:
    """Of the values that there are."""
    return mean_ci([value for value in values if value == value])
