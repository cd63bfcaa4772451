"""Figures of what was measured over all workloads: against load, distributions, paired differences, prompt lengths.

Each is a list of panels (SVG texts) for a grid of one or two columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

import numpy as np

from llm_env import groups
from llm_env.aggregate import Row
from llm_env.config import Scenario
from llm_env.dtypes import LATE_TOLERANCE_S
from llm_env.metrics import Interval, mean_ci
from llm_env.report.markup import NAMES, Axis, Panel, number, plus_minus, seconds, shortened, steps
from llm_env.report.story import Cast, at_load, cast_of, difference, told_points
from llm_env.study import CellResult, Study
from llm_env.workload import concrete

_CURVE_POINTS = 160
_LOWEST_SHARE = 1e-3  # of a distribution that is drawn
_NEAR = 0.15  # a difference of attainment that readers will want to see to scale


# ---- against load --------------------------------------------------------------------------------------------------
def against_load(study: Study, rows: Sequence[Row], cells: Sequence[CellResult], cast: Cast) -> list[str]:
    """Attainment and goodput against load, with bands of 95 % intervals; nothing if there is one load only."""
    loads = [load for load in study.load_labels() if load is not None]
    if len(loads) < 2:
        return []

    def goodput(row: Row) -> Interval:
        mine = [c for c in cells if c.load == row.load and c.contender == row.contender]
        values = [c.summary["goodput_per_s"] for c in mine if c.summary["num_requests"] > 0]
        return mean_ci(values)

    by_weight = " by weight" if study.weighted else ""
    return [
        _lines_of_loads(
            rows, cast, loads, f"Promises kept{by_weight}, %", lambda row: _scaled(row.headline, 100), 100.0
        ),
        _lines_of_loads(rows, cast, loads, "Goodput, requests per second within their promise", goodput, None),
    ]


def _scaled(interval: Interval, factor: float) -> Interval:
    return Interval(factor * interval.mean, factor * interval.half_width)


def _lines_of_loads(
    rows: Sequence[Row],
    cast: Cast,
    loads: Sequence[float],
    label: str,
    measure: Callable[[Row], Interval],
    top: float | None,
) -> str:
    found = {(row.contender, row.load): measure(row) for row in rows}
    shown = [*cast.ranked, *cast.bounds]
    high = top or max(v.mean + np.nan_to_num(v.half_width) for v in found.values())
    ticks = steps(high)
    tone = {name: cast.tone(name) for name in shown}
    named = [name for name in shown if tone[name] != "other"]
    named += [name for name in cast.few(6) if name not in named]
    told = "; ".join(
        f"{name} from {number(found[name, loads[0]].mean)} at load {loads[0]:g}"
        f" to {number(found[name, loads[-1]].mean)} at {loads[-1]:g}"
        for name in named
    )
    panel = Panel(f"{label} against load", told, 340, right=NAMES, top=34)
    x = Axis(loads[0], loads[-1], panel.x0 + 8, panel.x1 - 8)
    y = Axis(0.0, ticks[-1], panel.y0, panel.y1)
    panel.y_axis(y, ticks, lambda v: f"{v:g}", label)
    panel.x_axis(x, loads, lambda v: f"{v:g}", "load, share of capacity within the TBT target")
    for name in sorted(shown, key=lambda n: ("other", "rival").index(tone[n]) if tone[n][:4] != "hero" else 2):
        values = [found[name, load] for load in loads]
        xs, ys = x.all(loads), y.all([v.mean for v in values])
        said = f"{name}: " + ", ".join(
            f"{plus_minus(*v, 1 if top else 2)} at {load:g}" for v, load in zip(values, loads, strict=True)
        )
        if tone[name] != "other" and all(math.isfinite(v.half_width) for v in values):
            low, high_ = ([y(v.mean + sign * v.half_width) for v in values] for sign in (-1, 1))
            panel.area(xs, low, high_, f"band {tone[name]}")
        panel.path(xs, ys, cast.line(name), said)
        for a, b in zip(xs, ys, strict=True):
            panel.dot(a, b, tone[name], 4 if tone[name] != "other" else 2.5, said)
    panel.end_labels([(y(found[name, loads[-1]].mean), name, tone[name]) for name in named], panel.x1 + 4)
    return panel.svg()


# ---- distributions -------------------------------------------------------------------------------------------------
def distributions(study: Study, cells: Sequence[CellResult], cast: Cast) -> list[str]:
    """Shares of first tokens that took longer than x, and of gaps, on logarithmic axes with the targets."""
    names = cast.few()
    ttft, gaps = {}, {}
    for name in names:
        mine = [c for c in cells if c.contender == name and c.load == cast.load]
        times = np.concatenate([ttft_s(c.requests)[measured(study, c)] for c in mine])
        ttft[name] = (times, np.ones(len(times)))
        both = np.concatenate([c.gaps for c in mine])
        gaps[name] = (both[:, 0], both[:, 1])
    targets = targets_ms(study.scenario)
    return [
        _tail(cast, ttft, [ms / 1e3 for ms in targets[0]], "TTFT", "requests whose first token takes longer"),
        _tail(cast, gaps, [ms / 1e3 for ms in targets[1]], "TBT", "gaps between tokens that are longer"),
    ]


def ttft_s(requests: dict[str, np.ndarray]) -> np.ndarray:
    """Seconds from arrival to the first token, infinite where none came."""
    first = requests["first_token_s"]
    return np.where(first >= 0, first - requests["arrival_s"], np.inf)


def measured(study: Study, cell: CellResult) -> np.ndarray:
    """Which requests of a cell count: those that arrive in the measured window, of a trace all. (requests,) bool."""
    return groups.measured(cell, concrete(study.scenario, cell.seed))


def targets_ms(scenario: Scenario) -> tuple[list[float], list[float]]:
    """TTFT and TBT targets of all classes; none where they differ from episode to episode."""
    if any(path.startswith("slo.classes") for entry in scenario.vary for path in entry.paths):
        return [], []
    classes = scenario.slo.classes
    return sorted({c.ttft_ms for c in classes}), sorted({c.tbt_ms for c in classes})


def _tail(
    cast: Cast, curves: dict[str, tuple[np.ndarray, np.ndarray]], targets: Sequence[float], what: str, label: str
) -> str:
    finite = [v[np.isfinite(v) & (v > 0)] for v, _ in curves.values()]
    everything = np.concatenate(finite) if finite else np.zeros(0)
    if len(everything) == 0:
        return ""
    low = min(float(np.quantile(everything, 0.01)), *targets, 1e9) / 1.3
    high = max([float(everything.max()), *targets]) * 1.1
    told, drawn = [], []
    for name, (values, weights) in curves.items():
        xs, shares = _above(values, weights, low, high)
        drawn.append((name, xs, shares))
        for target in targets:
            past = 100 * _share_above(values, weights, target)
            told.append(f"{name}: {number(past)} % above {seconds(target)}")
    panel = Panel(f"How {what} is distributed{at_load(cast.load)}", "; ".join(told), 340, right=NAMES, top=34, left=56)
    x = Axis(low, high, panel.x0, panel.x1, log=True)
    y = Axis(_LOWEST_SHARE, 1.0, panel.y0, panel.y1, log=True)
    panel.y_axis(y, [1e-3, 1e-2, 1e-1, 1.0], lambda v: f"{100 * v:g} %", f"Share of {label}")
    panel.x_axis(x, _decades(low, high), seconds_tick, f"{what}, seconds (logarithmic)")
    for target in targets:
        panel.line(x(target), panel.y0, x(target), panel.y1 - 4, "target")
        level = 8 + 18 * targets.index(target)
        right = x(target) > (panel.x0 + panel.x1) / 2
        anchor, shift = ("end", -6) if right else ("start", 6)
        panel.text(x(target) + shift, panel.y0 - level, f"target {seconds(target)}", "target-name", anchor)
    for name, xs, shares in sorted(drawn, key=lambda entry: cast.tone(entry[0])[:4] == "hero"):
        panel.path(x.all(xs), y.all(shares), cast.line(name), name)
    # tails end in one place, so the names stand in a column, the latest first, each with its line and what is late
    late = {name: _share_above(*curves[name], targets[0]) if len(targets) == 1 else math.nan for name in curves}
    order = sorted(curves, key=lambda name: -late[name]) if len(targets) == 1 else list(curves)
    for k, name in enumerate(order):
        top = panel.y1 + 6 + 44 * k
        panel.path([panel.x1 + 10, panel.x1 + 34], [top - 4, top - 4], cast.line(name))
        panel.text(panel.x1 + 10, top + 13, shortened(name), f"name {cast.tone(name)}")
        if math.isfinite(late[name]):
            panel.text(panel.x1 + 40, top, f"{number(100 * late[name])} % above", "tick")
    return panel.svg()


def _share_above(values: np.ndarray, weights: np.ndarray, target: float) -> float:
    return float(weights[values > target + LATE_TOLERANCE_S].sum() / max(weights.sum(), 1))


def _above(values: np.ndarray, weights: np.ndarray, low: float, high: float) -> tuple[list[float], list[float]]:
    """Points (x, share above x) of a complementary distribution function, at places that are even in log x."""
    order = np.argsort(values, kind="stable")
    kept, total = np.cumsum(weights[order]), max(float(weights.sum()), 1e-300)
    xs = np.geomspace(low, high, _CURVE_POINTS)
    index = np.searchsorted(values[order], xs, side="right")
    shares = 1 - np.where(index > 0, kept[np.maximum(index - 1, 0)], 0.0) / total
    last = int(np.argmax(shares < _LOWEST_SHARE)) if (shares < _LOWEST_SHARE).any() else len(xs) - 1
    return xs[: last + 1].tolist(), shares[: last + 1].tolist()


def _decades(low: float, high: float) -> list[float]:
    """Ticks at powers of ten, at 1-2-5 where there are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [10.0**p for p in powers if low <= 10.0**p <= high]
    if len(ticks) < 3:
        ticks = [m * 10.0**p for p in powers for m in (1, 2, 5) if low <= m * 10.0**p <= high]
    return ticks


def seconds_tick(value: float) -> str:
    """Of an axis in seconds: 0.01, 100."""
    return f"{value:g}"


# ---- paired differences --------------------------------------------------------------------------------------------
def forest(study: Study, rows: Sequence[Row], cells: Sequence[CellResult], cast: Cast) -> list[str]:
    """For each load the paired difference of every contender to the reference, with its 95 % interval."""
    panels = []
    for load in study.load_labels():
        there = cast_of(study, rows, load)
        rule = next(row.headline_rule for row in rows if row.load == load)
        names = [name for name in (*there.ranked, *there.bounds) if name != cast.reference]
        if names:
            gaps = {name: difference(study, cells, load, name, cast.reference, rule) for name in names}
            panels.append(_forest(cast, load, gaps))
    return panels


def _forest(cast: Cast, load: float | None, gaps: dict[str, Interval]) -> str:
    ends = [100 * (v.mean + s * float(np.nan_to_num(v.half_width))) for v in gaps.values() for s in (-1, 1)]
    low, high = min(0.0, *ends), max(0.0, *ends)
    cut = _cut(gaps)
    low = max(low, cut)
    step = steps(max(high - low, 1.0), 4)[1]
    low, high = math.floor(low / step) * step, math.ceil(high / step) * step
    if high == low:
        low, high = -step, step
    told = "; ".join(
        f"{name} {plus_minus(100 * v.mean, 100 * v.half_width, sign=True)} points" for name, v in gaps.items()
    )
    height = 34 + 24 * len(gaps) + 50
    title = f"Difference to {cast.reference}{at_load(load)}"
    panel = Panel(title, told, height, left=138, right=104, top=30)
    x = Axis(low, high, panel.x0, panel.x1)
    ticks = [low + k * step for k in range(round((high - low) / step) + 1)]
    panel.text(0, 12, at_load(load).strip().capitalize() or "Difference", "label strong")
    for tick in ticks:
        panel.line(x(tick), panel.y0, x(tick), panel.y1 - 4, "zero" if abs(tick) < 1e-9 else "grid")
    digits = 0 if step == round(step) else 1
    panel.x_axis(x, ticks, lambda v: number(v, digits, True), f"points, 0 is {shortened(cast.reference)}")
    for k, (name, gap) in enumerate(gaps.items()):
        y, tone = panel.y1 + 14 + 24 * k, cast.tone(name)
        panel.text(panel.x0 - 10, y + 4.5, shortened(name), f"name {tone}", "end")
        mean, half = 100 * gap.mean, 100 * gap.half_width
        if mean < low:
            panel.line(x(low) + 10, y, x(low), y, f"whisker {tone}")
            panel.path([x(low) + 5, x(low), x(low) + 5], [y - 5, y, y + 5], tone)
            panel.text(panel.x1 + 100, y + 4.5, told_points(gap), "tick figures", "end")
            continue
        if math.isfinite(half):
            panel.line(x(mean - half), y, x(mean + half), y, f"whisker {tone}")
        shown = told_points(gap)
        panel.dot(x(mean), y, tone, 4.5, f"{name}: {shown} points")
        panel.text(panel.x1 + 100, y + 4.5, shown, "tick figures", "end")
    return panel.svg()


def _cut(gaps: dict[str, Interval]) -> float:
    """Points below which nothing is drawn to scale: beside some near 0, others far below would press them flat."""
    near = [100 * (v.mean - float(np.nan_to_num(v.half_width))) for v in gaps.values() if abs(v.mean) <= _NEAR]
    far = any(v.mean < -2 * _NEAR for v in gaps.values())
    return min(*near, -5.0) if near and far else -math.inf


# ---- by prompt length ----------------------------------------------------------------------------------------------
def by_prompt_length(study: Study, cells: Sequence[CellResult], cast: Cast) -> list[str]:
    """Promises kept, and the median TTFT, of each quarter of the requests by prompt length: starvation shows."""
    names = cast.few()
    mine = {
        name: [c for c in cells if c.contender == name and c.load == cast.load and c.summary["num_requests"] > 0]
        for name in names
    }
    pooled = np.concatenate([c.requests["prompt_tokens"][measured(study, c)] for c in next(iter(mine.values()))])
    cuts = np.unique(np.quantile(pooled, np.linspace(0, 1, groups.QUARTERS + 1)[1:-1]))
    edges = [0, *(int(cut) for cut in cuts), int(pooled.max())]
    edges = sorted(set(edges))
    if len(edges) < 3:
        return []  # all prompts have one length
    kept: dict[str, list[Interval]] = {}
    medians: dict[str, list[float]] = {}
    for name, of_name in mine.items():
        kept[name], medians[name] = [], []
        for low, high in pairwise(edges):
            inside = [
                measured(study, c) & (c.requests["prompt_tokens"] > low) & (c.requests["prompt_tokens"] <= high)
                for c in of_name
            ]
            shares = [float(c.requests["slo_met"][k].mean()) for c, k in zip(of_name, inside, strict=True) if k.any()]
            kept[name].append(_scaled(mean_ci(shares), 100))
            times = np.concatenate([ttft_s(c.requests)[k] for c, k in zip(of_name, inside, strict=True)])
            medians[name].append(float(np.median(times)) if len(times) else math.nan)
    labels = [f"{low + 1:,}–{high:,}" for low, high in pairwise(edges)]
    labels[0], labels[-1] = f"≤ {edges[1]:,}", f"> {edges[-2]:,}"
    return [
        _quarters(cast, labels, kept, "Promises kept, %", None),
        _quarters(
            cast, labels, {n: [Interval(v, math.nan) for v in vs] for n, vs in medians.items()}, "Median TTFT", study
        ),
    ]


def _quarters(
    cast: Cast, labels: Sequence[str], values: dict[str, list[Interval]], label: str, times: Study | None
) -> str:
    told = "; ".join(
        f"{name}: " + ", ".join(seconds(v.mean) if times else number(v.mean) for v in row)
        for name, row in values.items()
    )
    title = f"{label.removesuffix(', %')} by prompt length{at_load(cast.load)}"
    panel = Panel(title, f"Prompts of {', '.join(labels)} tokens. {told}", 340, right=NAMES, top=34)
    x = Axis(0, len(labels) - 1, panel.x0 + 24, panel.x1 - 24)
    if times:
        targets = [ms / 1e3 for ms in targets_ms(times.scenario)[0]]
        finite = [v.mean for row in values.values() for v in row if math.isfinite(v.mean) and v.mean > 0]
        low, high = _range([*finite, *targets])
        y = Axis(low, high, panel.y0, panel.y1, log=True)
        panel.y_axis(y, _decades(low, high), seconds_tick, f"{label}, seconds (logarithmic)")
        for target in targets:
            panel.line(panel.x0, y(target), panel.x1, y(target), "target")
            panel.text(panel.x0 + 4, y(target) - 6, f"target {seconds(target)}", "target-name")
    else:
        y = Axis(0.0, 100.0, panel.y0, panel.y1)
        panel.y_axis(y, steps(100.0), lambda v: f"{v:g}", label)
    panel.x_axis(x, range(len(labels)), lambda k: labels[int(k)], "prompt tokens, a quarter of the requests each")
    ends = []
    for name in sorted(values, key=lambda n: cast.tone(n)[:4] == "hero"):
        row = [(k, v) for k, v in enumerate(values[name]) if not math.isnan(v.mean)]
        if not row:
            continue
        xs, ys = [x(k) for k, _ in row], [y(v.mean) for _, v in row]
        tone = cast.tone(name)
        if tone != "other" and not times and all(math.isfinite(v.half_width) for _, v in row):
            panel.area(
                xs,
                [y(v.mean - v.half_width) for _, v in row],
                [y(v.mean + v.half_width) for _, v in row],
                f"band {tone}",
            )
        panel.path(xs, ys, cast.line(name), name)
        for a, b, (_, v) in zip(xs, ys, row, strict=True):
            panel.dot(a, b, tone, 3.5, f"{name}: {seconds(v.mean) if times else plus_minus(*v)}")
        ends.append((ys[-1], name, tone))
    panel.end_labels(ends, panel.x1 - 8)
    return panel.svg()


def _range(values: Iterable[float]) -> tuple[float, float]:
    """Ends of a logarithmic axis that holds all values."""
    found = sorted(values)
    return (found[0] / 1.4, found[-1] * 1.4) if found else (0.1, 10.0)
