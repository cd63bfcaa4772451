"""The pictures of a study as PNG: attainment against load, TTFT and TBT distributions, batch composition over time.

Titles say the finding, axes have units.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llm_env.aggregate import Row
from llm_env.build import system_record
from llm_env.config import Scenario
from llm_env.plotting import COLOURS, GREY, pyplot, save
from llm_env.study import CellResult
from llm_env.validation_rows import FAILED, STANDARD_ERRORS, Point
from llm_env.validation_rows import Row as Comparison
from llm_env.workload import concrete

MAX_HIGHLIGHTED = 5


def highlighted(rows: Sequence[Row]) -> list[str]:
    """Who gets a colour: agents, then the baselines with the best mean attainment; at most MAX_HIGHLIGHTED."""
    scores: dict[str, list[float]] = {}
    agents = []
    for row in rows:
        scores.setdefault(row.contender, []).append(row.headline.mean)
        if row.is_agent and row.contender not in agents:
            agents.append(row.contender)
    ranked = sorted((name for name in scores if name not in agents), key=lambda name: -float(np.mean(scores[name])))
    return (agents + ranked)[:MAX_HIGHLIGHTED]


def plot_attainment(rows: Sequence[Row], path: Path, scenario: Scenario, where: str) -> None:
    """SLO attainment against load with 95 % intervals: a line per contender (bars if there is one load only)."""
    plt = pyplot()
    chosen = highlighted(rows)
    loads = sorted({row.load for row in rows if row.load is not None})
    best = chosen[0] if chosen else ""
    fig, ax = plt.subplots(figsize=(8.6, 5))
    if len(loads) > 1:
        names = list(dict.fromkeys(row.contender for row in rows))
        for name in sorted(names, key=lambda n: n in chosen):
            mine = sorted((r for r in rows if r.contender == name), key=lambda r: r.load or 0)
            x = [r.load for r in mine]
            y = [100 * r.headline.mean for r in mine]
            e = [100 * np.nan_to_num(r.headline.half_width) for r in mine]
            if name in chosen:
                k = chosen.index(name)
                x = [(v or 0) + 0.004 * (k - (len(chosen) - 1) / 2) for v in x]  # side by side, or bars hide each other
                style = {"color": COLOURS[k], "lw": 2.4 if mine[0].is_agent else 1.6, "zorder": 5, "label": name}
                ax.errorbar(x, y, yerr=e, capsize=3, marker="o", ms=5, **style)
            else:
                ax.plot(x, y, color=GREY, lw=1, zorder=2)
        ax.plot([], [], color=GREY, lw=1, label="other baselines")
        handles, labels = ax.get_legend_handles_labels()
        order = [labels.index(name) for name in chosen] + [labels.index("other baselines")]
        ax.legend([handles[k] for k in order], [labels[k] for k in order], bbox_to_anchor=(1.0, 1.0), loc="upper left")
        ax.set_xlabel("load (share of the capacity within the TBT target)")
        ax.set_xticks(loads)
    else:
        ranked = sorted(rows, key=lambda r: r.headline.mean)
        y = np.arange(len(ranked))
        values = [100 * r.headline.mean for r in ranked]
        errors = [100 * np.nan_to_num(r.headline.half_width) for r in ranked]
        ax.barh(y, values, xerr=errors, color=[COLOURS[1] if r.is_agent else COLOURS[0] for r in ranked], capsize=3)
        ax.set_yticks(y, [r.contender for r in ranked])
        for k, value in enumerate(values):
            ax.text(min(value + errors[k] + 1, 101), k, f"{value:.1f}", va="center", fontsize=9)
        best = ranked[-1].contender
    by_weight = " by weight" if scenario.slo.weighted else ""
    label = f"SLO attainment{by_weight} (%), rule {scenario.slo.rule}"
    if len(loads) < 2:
        ax.set_xlim(0, 108)
        ax.set_xlabel(label)
    else:
        ax.set_ylim(0, 105)
        ax.set_ylabel(label)
        best = max(chosen, key=lambda n: np.mean([r.headline.mean for r in rows if r.contender == n]))
    ax.set_title(_finding(rows, best, where))
    save(fig, path)


def _finding(rows: Sequence[Row], best: str, where: str) -> str:
    """What the picture shows: an agent's mean difference to the best baseline of each load, or who is best."""
    differences = [100 * row.difference.mean for row in rows if row.is_agent and row.difference is not None]
    agents = {row.contender for row in rows if row.is_agent}
    if len(agents) != 1 or not differences:
        return f"{best} keeps the most promises on {where}"
    mean = float(np.mean(differences))
    against = f"{abs(mean):.1f} points {'above' if mean >= 0 else 'below'} the best baseline of each load"
    return f"{agents.pop()} is {against} on {where}"


def plot_distributions(
    cells: Sequence[CellResult], rows: Sequence[Row], load: float | None, path: Path, scenario: Scenario, where: str
) -> None:
    """Share of requests with a TTFT above x, and of gaps above x, at one load; the targets as lines."""
    plt = pyplot()
    names = highlighted(rows)
    fig, axes = plt.subplots(1, 2, figsize=(11, 4.6), sharey=True)
    for k, name in enumerate(names):
        mine = [c for c in cells if c.contender == name and c.load == load]
        ttft = np.concatenate([_ttft(c) for c in mine])
        _ccdf(axes[0], ttft, np.ones(len(ttft)), name, COLOURS[k])
        gaps = np.concatenate([c.gaps for c in mine])
        _ccdf(axes[1], gaps[:, 0], gaps[:, 1], name, COLOURS[k])
    for ax, target_ms, what in zip(axes, _targets(scenario), ("TTFT", "TBT (every gap)"), strict=True):
        for ms in target_ms:
            ax.axvline(ms / 1e3, color="#444444", ls="--", lw=1)
            ax.text(ms / 1e3, 1.25, f"target {ms / 1e3:g} s", ha="center", va="bottom", fontsize=9)
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_ylim(5e-4, 1.15)
        ax.set_xlabel(f"{what} in seconds")
    axes[0].set_ylabel("share above (unserved requests count as never)")
    if axes[1].get_legend_handles_labels()[0]:
        axes[1].legend(bbox_to_anchor=(1.0, 1.0), loc="upper left")
    at = "" if load is None else f" at load {load:g}"
    fig.suptitle(f"Who waits how long on {where}{at}", x=0.06, ha="left", fontsize=12)
    save(fig, path)


def _ttft(cell: CellResult) -> np.ndarray:
    first, arrival = cell.requests["first_token_s"], cell.requests["arrival_s"]
    return np.where(first >= 0, first - arrival, np.inf)


def _targets(scenario: Scenario) -> tuple[list[float], list[float]]:
    """TTFT and TBT targets of all classes; none where they differ from episode to episode."""
    if any(path.startswith("slo.classes") for entry in scenario.vary for path in entry.paths):
        return [], []
    classes = scenario.slo.classes
    return sorted({c.ttft_ms for c in classes}), sorted({c.tbt_ms for c in classes})


def _ccdf(ax: Any, values: np.ndarray, weights: np.ndarray, label: str, colour: str) -> None:
    if len(values) == 0:
        return
    order = np.argsort(values)
    above = 1 - np.cumsum(weights[order]) / weights.sum()
    finite = np.isfinite(values[order])
    ax.step(values[order][finite], above[finite], where="post", color=colour, lw=1.6, label=label)


def plot_batches(cells: Sequence[CellResult], names: Sequence[str], path: Path, scenario: Scenario, where: str) -> None:
    """Tokens of the batches over time, prefill and decode stacked: one strip per contender, the same workload."""
    plt = pyplot()
    shown = [c for name in names for c in cells if c.contender == name and len(c.batches)]
    if not shown:
        return  # nobody formed a batch
    fig, axes = plt.subplots(len(shown), 1, figsize=(10, 1.2 + 2 * len(shown)), sharex=True, squeeze=False)
    budget = float(system_record(concrete(scenario, shown[0].seed))[0]["slo_budget"])
    end_s = max(float(c.requests["arrival_s"].max()) for c in shown)
    for ax, cell in zip(axes[:, 0], shown, strict=True):
        log = cell.batches[cell.batches["worker"] == 0]
        centre, prefill, decode = _binned(log, end_s)
        width = centre[1] - centre[0] if len(centre) > 1 else 1.0
        ax.bar(centre, decode, width, color=COLOURS[0], label="decode tokens")
        ax.bar(centre, prefill, width, bottom=decode, color=COLOURS[4], label="prefill tokens")
        ax.axhline(budget, color="#444444", ls="--", lw=1, label=f"SLO budget ({budget:.0f} tokens)")
        ax.set_ylim(0, 1.08 * max(budget, float((prefill + decode).max())))
        ax.set_title(cell.contender, fontsize=10)
        ax.set_ylabel("tokens\nper batch")
    axes[0, 0].legend(bbox_to_anchor=(1.0, 1.02), loc="lower right", ncol=3)
    axes[-1, 0].set_xlabel("time in seconds")
    load = "" if shown[0].load is None else f" at load {shown[0].load:g}"
    title = f"What the batches hold on {where}{load} (means over {_BINS} stretches)"
    fig.suptitle(title, x=0.06, y=1.0, ha="left", va="bottom")
    save(fig, path)


_BINS = 240


def _binned(log: np.ndarray, end_s: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centres (s) of _BINS stretches, and the mean prefill and decode tokens of the batches that start in each."""
    edges = np.linspace(0, end_s, _BINS + 1)
    number, _ = np.histogram(log["start_s"], edges)
    prefill, _ = np.histogram(log["start_s"], edges, weights=log["prefill_tokens"])
    decode, _ = np.histogram(log["start_s"], edges, weights=log["decode_tokens"])
    return (edges[1:] + edges[:-1]) / 2, prefill / np.maximum(number, 1), decode / np.maximum(number, 1)


def plot_fit(tokens: np.ndarray, ms: np.ndarray, fitted_ms: np.ndarray, r2: float, mape: float, path: Path) -> None:
    """Fitted against measured durations of batches, and the relative error against their size.

    Args:
        tokens: of each batch, as ms and fitted_ms (milliseconds).
        r2: of the fit.
        mape: mean of |fitted - measured| / measured.
        path: of the picture.
    """
    plt = pyplot()
    fig, (left, right) = plt.subplots(1, 2, figsize=(8.6, 4))
    ends = [min(ms.min(), fitted_ms.min()), max(ms.max(), fitted_ms.max())]
    points = {"s": 7, "alpha": 0.4, "lw": 0, "color": COLOURS[0], "rasterized": True}
    left.scatter(ms, fitted_ms, **points)
    left.plot(ends, ends, color=COLOURS[1], lw=1.2, label="fitted = measured")
    left.set_xlabel("measured (ms)")
    left.set_ylabel("fitted (ms)")
    left.set_title(f"The fit is off by {mape:.1%} on average, R² {r2:.4f}")
    left.legend()
    right.scatter(tokens, 100 * (fitted_ms - ms) / ms, **points)
    right.axhline(0, color=COLOURS[1], lw=1.2)
    right.set_xlabel("tokens in the batch")
    right.set_ylabel("fitted - measured (% of measured)")
    fig.tight_layout()
    save(fig, path)


Curve = tuple[Sequence[Point], Callable[[np.ndarray], np.ndarray]]  # simulated, and the mean by theory at loads


def plot_validation(curves: Mapping[str, Curve], rows: Sequence[Comparison], path: Path) -> None:
    """Simulation against theory: sojourn against load, errors in standard errors, and errors of what is exact."""
    plt = pyplot()
    drawn = [row for row in rows if np.isfinite(row.standard_errors)]
    exact = [row for row in rows if np.isfinite(row.share) and not np.isfinite(row.standard_errors)]
    height = 1.6 + 0.2 * max(len(drawn) + len(exact) + 4, 22)
    fig = plt.figure(figsize=(13, height), layout="constrained")
    left, right = fig.subfigures(1, 2, width_ratios=(1, 1.25))
    _draw_curves(left.subplots(), curves)
    share = (max(len(drawn), 3), max(len(exact), 3))
    above, below = right.subplots(2, 1, gridspec_kw={"height_ratios": share})
    _draw_errors(above, drawn)
    _draw_exact(below, exact)
    save(fig, path)


def _draw_curves(ax: Any, curves: Mapping[str, Curve]) -> None:
    offs = []
    for k, (name, (points, theory)) in enumerate(curves.items()):
        loads = np.array([p.load for p in points])
        fine = np.linspace(loads.min(), loads.max(), 61)
        means, errors = np.array([p.mean_s for p in points]), np.array([p.error_s for p in points])
        ax.plot(fine, theory(fine), color=COLOURS[k], lw=1.6, zorder=2)
        style = {"fmt": "osD^v"[k % 5], "ms": 6, "mfc": "white", "mew": 1.5, "capsize": 4, "zorder": 3}
        ax.errorbar(loads, means, yerr=STANDARD_ERRORS * errors, color=COLOURS[k], label=name, **style)
        offs += list(np.abs(means - theory(loads)) / errors)
    count = int(np.sum(np.array(offs) > STANDARD_ERRORS))
    ax.set_yscale("log")
    ax.set_yticks([1, 2, 3, 5], ["1", "2", "3", "5"])
    ax.minorticks_off()
    ax.set_xlabel("load (share of capacity)")
    ax.set_ylabel("mean time in the system (multiples of the mean service time)")
    said = "All simulated means lie" if count == 0 else f"{count} of {len(offs)} simulated means do not lie"
    ax.set_title(f"{said} on the curves of theory")
    if curves:
        ax.legend(title=f"lines: theory; points: simulation ±{STANDARD_ERRORS:g} s.e.", loc="upper left")


def _draw_errors(ax: Any, rows: Sequence[Comparison]) -> None:
    """Errors in standard errors, one line a row."""
    y = np.arange(len(rows))[::-1]
    values = np.clip([row.standard_errors for row in rows], -2 * STANDARD_ERRORS, 2 * STANDARD_ERRORS)
    ax.axvspan(-STANDARD_ERRORS, STANDARD_ERRORS, color="#EEF3F8", zorder=0)
    ax.axvline(0, color="#444444", lw=1, zorder=1)
    for sign in (-1, 1):
        ax.axvline(sign * STANDARD_ERRORS, color="#444444", ls="--", lw=1, zorder=1)
    _dots(ax, values, y, rows)
    ax.set_xlim(-2.1 * STANDARD_ERRORS, 2.1 * STANDARD_ERRORS)
    off = sum(abs(row.standard_errors) > STANDARD_ERRORS for row in rows)
    worst = max((abs(row.standard_errors) for row in rows), default=0.0)
    ax.set_xlabel("simulated − theory (standard errors; SLO bound: s.d. of a sample)")
    ax.set_title(
        f"Stationary values are at most {worst:.1f} standard errors off"
        if off == 0
        else f"{off} of {len(rows)} stationary values are more than {STANDARD_ERRORS:g} standard errors off"
    )


def _draw_exact(ax: Any, rows: Sequence[Comparison]) -> None:
    """Errors of what holds on every path, as shares of the tolerance."""
    y = np.arange(len(rows))[::-1]
    _dots(ax, np.clip([row.share for row in rows], 1e-9, 1e3), y, rows)
    ax.axvline(1, color="#444444", ls="--", lw=1)
    ax.text(1.4, len(rows) - 0.3, "tolerance", va="top", fontsize=8.5, color="#444444")
    ax.set_xscale("log")
    ax.set_xlim(5e-10, 2e3)
    ax.set_xlabel("largest error / tolerance (1e-9 relative; other engines: 1e-6 s); 0 at the left")
    off = sum(row.share > 1 for row in rows)
    ax.set_title(
        "What holds on every path holds to rounding" if off == 0 else f"{off} of {len(rows)} identities are broken"
    )


def _dots(ax: Any, x: np.ndarray, y: np.ndarray, rows: Sequence[Comparison]) -> None:
    """A dot a row with its name; the failed ones in another colour and shape."""
    failed = np.array([row.verdict == FAILED for row in rows], bool)
    ax.scatter(x[~failed], y[~failed], s=34, color=COLOURS[0], zorder=3)
    ax.scatter(x[failed], y[failed], s=60, color=COLOURS[1], marker="X", zorder=4)
    ax.set_yticks(y, [row.case for row in rows], fontsize=8.5)
    ax.set_ylim(-0.8, len(rows) - 0.2)
