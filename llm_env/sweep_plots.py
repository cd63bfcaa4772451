"""The picture of a sweep: what each contender got against what was changed, with bands of 95 % intervals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llm_env.build import system_record
from llm_env.config import Scenario
from llm_env.plotting import COLOURS, DARK_GREY, pyplot, save, titled
from llm_env.sweeps import ATTAINMENT, AXES, TTFT, SweepRow
from llm_env.workload import concrete

STYLES = ("-", "--", ":")  # where there are more contenders than colours
_TIE = 1e-9  # of attainment: who is no further below leads too
_WIDTH, _HEIGHT, _WIDEST = 4.6, 3.3, 15.0  # of a panel, and of all of them side by side, inches


def plot_sweep(rows: Sequence[SweepRow], path: Path, scenario: Scenario, where: str, details: str) -> None:
    """A column for each axis, a row for each measure that it draws.

    Args:
        scenario: as it is, with its targets.
        where: the sweep was done, for the title's finding.
        details: the title's last line.
    """
    plt = pyplot()
    names = list(dict.fromkeys(row.point.axis for row in rows))
    measures = AXES[names[0]].drawn
    width = 7.4 if len(names) == 1 else min(_WIDTH * len(names), _WIDEST)
    size = {"figsize": (width, _HEIGHT * len(measures) + 0.5), "layout": "constrained"}
    fig, panels = plt.subplots(len(measures), len(names), sharex="col", sharey="row", squeeze=False, **size)
    for column, name in enumerate(names):
        mine = [row for row in rows if row.point.axis == name]
        for ax, measure in zip(panels[:, column], measures, strict=True):
            _draw(ax, mine, measure, scenario)
            _mark_now(ax, name, scenario)
            if column == 0:
                ax.set_ylabel(_label(measure, scenario))
        _label_values(panels[-1, column], name, sorted({row.point.value for row in mine}))
    handles, labels = panels[0, 0].get_legend_handles_labels()
    if any(row.row.unstable for row in rows) and len(measures) > 1:
        handles.append(plt.Line2D([], [], color=DARK_GREY, marker="o", mfc="white", lw=0))
        labels.append("the backlog grew")
    fig.legend(handles, labels, loc="outside right center")
    finding = titled(f"{finding_of(rows)} on {where}", 75 if len(names) == 1 else 120)
    fig.suptitle(f"{finding}\n{details}", x=0.01, ha="left", fontsize=11.5)
    save(fig, path)


def finding_of(rows: Sequence[SweepRow]) -> str:
    """Who keeps the most promises, alone or with others, at how many points; of one contender its name."""
    points: dict[tuple[str, float], list[SweepRow]] = {}
    for row in rows:
        points.setdefault((row.point.axis, row.point.value), []).append(row)
    most = [max(row.row.headline.mean for row in mine) for mine in points.values()]
    leads = [
        [row.row.contender for row in mine if row.row.headline.mean > best - _TIE]
        for mine, best in zip(points.values(), most, strict=True)
    ]
    names = [name for leaders in leads for name in leaders]
    winner = max(dict.fromkeys(names), key=names.count)
    if len({row.row.contender for row in rows}) == 1:
        return winner
    tied = sum(winner in leaders and len(leaders) > 1 for leaders in leads)
    shared = f" ({tied} tied)" if tied else ""
    return f"{winner} keeps the most promises at {names.count(winner)} of {len(leads)} values{shared}"


def _label_values(ax: Any, name: str, values: Sequence[float]) -> None:
    """Title and ticks of x: the values themselves."""
    if AXES[name].doubling and values[-1] > 0:
        least = min(value for value in values if value > 0)
        if values[0] > 0:
            ax.set_xscale("log", base=2)
        else:  # with a place for 0
            ax.set_xscale("symlog", base=2, linthresh=least)
        ax.set_xlim(values[0] / 1.2 if values[0] > 0 else -0.2 * least, values[-1] * 1.2)
    ax.set_xticks(values, [f"{value:g}" for value in values])
    ax.minorticks_off()
    ax.set_xlabel(AXES[name].title)


def _draw(ax: Any, rows: Sequence[SweepRow], measure: str, scenario: Scenario) -> None:
    """Lines and bands of one measure on one axis, and the targets that it is held against."""
    from matplotlib import ticker  # takes long to import

    factor = 100 if measure == ATTAINMENT else 1 if measure == TTFT else 1e3
    for k, name in enumerate(dict.fromkeys(row.row.contender for row in rows)):
        mine = [row for row in rows if row.row.contender == name]
        x = np.array([row.point.value for row in mine])
        mean, half = (factor * np.array(each) for each in zip(*(row.interval(measure) for row in mine), strict=True))
        style = {"color": COLOURS[k % len(COLOURS)], "ls": STYLES[k // len(COLOURS) % len(STYLES)]}
        low = mean - np.nan_to_num(half)
        ax.fill_between(x, np.maximum(low, 0), mean + np.nan_to_num(half), color=style["color"], alpha=0.15, lw=0)
        ax.plot(x, mean, lw=1.8, label=name, **style)
        grew = np.array([row.row.unstable for row in mine]) & (measure != ATTAINMENT)
        dots = {"color": style["color"], "ls": "", "marker": "o", "ms": 5}
        ax.plot(x[~grew], mean[~grew], **dots)
        ax.plot(x[grew], mean[grew], mfc="white", **dots)
    if measure == ATTAINMENT:
        ax.set_ylim(0, 104)
        return
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
    ax.yaxis.set_minor_locator(ticker.NullLocator())
    values = [getattr(c, "ttft_ms" if measure == TTFT else "tbt_ms") for c in scenario.slo.classes]
    for ms in sorted(set(values)):
        target = ms / 1e3 if measure == TTFT else ms
        ax.axhline(target, color=DARK_GREY, ls="--", lw=1, zorder=1)
        where = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
        ax.annotate("target", (1, target), (3, 0), va="center", fontsize=8.5, color=DARK_GREY, **where)


def _mark_now(ax: Any, name: str, scenario: Scenario) -> None:
    """A line where the scenario as it is stands; for token budgets, at the largest batch within the TBT target."""
    now = AXES[name].now(scenario)
    text = "as it is"
    if name == "chunk":
        now, text = float(system_record(concrete(scenario, 0))[0]["slo_budget"]), "SLO budget"
    if now is None:
        return
    ax.axvline(now, color=DARK_GREY, ls=":", lw=1, zorder=1)
    if ax.get_subplotspec().is_first_row():
        ax.annotate(
            text,
            (now, 1),
            (0, 2),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=8.5,
            color=DARK_GREY,
        )


def _label(measure: str, scenario: Scenario) -> str:
    if measure == ATTAINMENT:
        weight = " by weight" if scenario.slo.weighted else ""
        return f"SLO attainment{weight} (%)"
    return "P99 TTFT (s)" if measure == TTFT else "P99 TBT (ms)"
