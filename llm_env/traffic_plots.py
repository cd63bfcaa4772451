"""The pictures of traffic as PNG and SVG: all of them at once, and those over time.

Each function draws one figure whose title states the finding, or says in a text why there is nothing to draw.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from llm_env.config import Length
from llm_env.plotting import COLOURS, DARK_GREY, figure_text, pyplot, save, titled
from llm_env.traffic_shape_plots import (
    OUTPUT,
    PROMPT,
    draw_dispersion,
    draw_interarrivals,
    draw_lengths_picture,
    draw_prompt_output,
    plain_log_axis,
)
from llm_env.workload.statistics import window_counts
from llm_env.workload.summary import MINUTE_S, TrafficSummary, per_minute, summarise_traffic
from llm_env.workload.traffic import Traffic

PICTURES = (
    "requests_per_minute",
    "tokens_per_minute",
    "lengths",
    "interarrivals",
    "dispersion",
    "prompt_output",
    "burst",
    "hours",
)
SUFFIXES = (".png", ".svg")
MAX_DOTS = 3_000  # requests in the close-up: every k-th of more
_MAX_STEPS = 500  # of a curve over time: minutes are joined beyond it
_DAY_S, _HOUR_S = 86_400.0, 3_600.0


def plot_traffic(
    traffic: Traffic,
    folder: Path,
    prompt_fit: Length | None = None,
    output_fit: Length | None = None,
    drawn: Callable[[str], None] | None = None,
) -> dict[str, str]:
    """Writes every picture as PNG and SVG. The same traffic gives the same bytes.

    Args:
        traffic: the requests.
        folder: exists.
        prompt_fit: distribution to draw over the prompt lengths; by default the log-normal with their moments.
        output_fit: the same of the outputs.
        drawn: called with the name of each picture when it is done.

    Returns:
        Picture -> why it was left out, of those that were.

    Raises:
        UserError: no requests.
    """
    summary = summarise_traffic(traffic)
    minutes = per_minute(traffic)
    figures: dict[str, Callable[[], Any]] = {
        "requests_per_minute": lambda: draw_requests_per_minute(minutes, summary),
        "tokens_per_minute": lambda: draw_tokens_per_minute(minutes, summary),
        "lengths": lambda: draw_lengths_picture(traffic, summary, prompt_fit, output_fit),
        "interarrivals": lambda: draw_interarrivals(traffic, summary),
        "dispersion": lambda: draw_dispersion(traffic, summary),
        "prompt_output": lambda: draw_prompt_output(traffic, summary),
        "burst": lambda: draw_burst(traffic, summary),
        "hours": lambda: draw_hours(traffic, summary),
    }
    left_out = {}
    for name in PICTURES:
        figure = figures[name]()
        if isinstance(figure, str):
            left_out[name] = figure
        else:
            save(figure, *(folder / f"{name}{suffix}" for suffix in SUFFIXES))
        if drawn is not None:
            drawn(name)
    return left_out


# ---- minute by minute ----------------------------------------------------------------------------------------------
def draw_requests_per_minute(minutes: dict[str, np.ndarray], summary: TrafficSummary) -> Any:
    """Requests in each minute, against what Poisson arrivals of the same rate would give."""
    values = _whole_minutes(minutes["requests"], summary)
    mean, peak = float(values.mean()), float(values.max())
    edges, steps, highest = _joined(values)
    unit_s, unit = time_unit(summary.span_s)
    at = edges * MINUTE_S / unit_s
    fig, ax = pyplot().subplots(figsize=(8.6, 4.2), layout="constrained")
    spread = 1.96 * math.sqrt(mean / max(1.0, values.size / steps.size))  # a mean over k minutes spreads less
    if values.size > 1:
        ax.axhspan(max(0.0, mean - spread), mean + spread, color="#DDDDDD", label="95 % of Poisson arrivals")
    ax.axhline(mean, color=DARK_GREY, ls="--", lw=1, label=f"mean, {figure_text(mean)}")
    if steps.size < values.size:
        ax.stairs(highest, at, color=COLOURS[5], lw=0.8, baseline=None, label="busiest minute of each step")
    few = steps.size < 5  # bars: a line of so few steps says nothing
    ax.stairs(steps, at, color=COLOURS[0], lw=1.4, fill=few, alpha=0.7 if few else 1.0, baseline=0 if few else None)
    ax.set_ylim(0, 1.3 * peak)
    ax.set_xlim(at[0], at[-1])
    ax.set_xlabel(f"time from the first arrival ({unit})")
    ax.set_ylabel("requests per minute" + _per_step(values, steps))
    ax.legend(loc="upper right", ncol=3)
    what = f"{summary.requests:,} request{'s' if summary.requests > 1 else ''}"
    what += f" in {duration_text(summary.span_s)}" if summary.span_s > 0 else " at one instant"
    if values.size == 1:
        ax.set_title(titled(what))
    else:
        finding = f"{figure_text(mean)} a minute on average, {figure_text(peak)} in the busiest"
        ax.set_title(titled(f"{what}: {finding} ({figure_text(peak / mean) if mean else 0}x){_silent(values)}"))
    return fig


def draw_tokens_per_minute(minutes: dict[str, np.ndarray], summary: TrafficSummary) -> Any:
    """Prompt and output tokens in each minute, stacked."""
    prompt, output = (_whole_minutes(minutes[f"{name}_tokens"], summary) for name in ("prompt", "output"))
    edges, lower, _ = _joined(prompt)
    upper = _joined(prompt + output)[1]
    unit_s, unit = time_unit(summary.span_s)
    at = edges * MINUTE_S / unit_s
    factor, thousands = (1e3, "thousand ") if upper.max() >= 1e4 else (1.0, "")
    fig, ax = pyplot().subplots(figsize=(8.6, 4.2), layout="constrained")
    ax.stairs(upper / factor, at, baseline=lower / factor, fill=True, color=OUTPUT, label="output tokens")
    ax.stairs(lower / factor, at, fill=True, color=PROMPT, label="prompt tokens")
    ax.set_ylim(0, 1.25 * float(upper.max()) / factor)
    ax.set_xlim(at[0], at[-1])
    ax.set_xlabel(f"time from the first arrival ({unit})")
    ax.set_ylabel(f"{thousands}tokens per minute{_per_step(prompt, lower)}")
    ax.legend(loc="upper right", ncol=2)
    total = prompt + output
    finding = f"{100 * summary.prefill_share:.0f} % of the tokens are prompt"
    if total.size > 1:
        finding += f": {figure_text(total.mean())} tokens a minute, {figure_text(total.max())} in the busiest"
        finding += f" ({figure_text(total.max() / total.mean())}x)"
    ax.set_title(titled(finding))
    return fig


def _whole_minutes(values: np.ndarray, summary: TrafficSummary) -> np.ndarray:
    """Without the last minute, which is a part of one, unless there is no other."""
    whole = int(summary.span_s / MINUTE_S)
    return values[:whole] if whole else values


def _joined(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Edges in minutes of at most _MAX_STEPS equal steps, and the mean and largest value of each; the rest is cut."""
    width = -(-values.size // _MAX_STEPS)
    steps = values[: values.size // width * width].reshape(-1, width)
    return np.arange(len(steps) + 1) * width, steps.mean(axis=1), steps.max(axis=1)


def _per_step(values: np.ndarray, steps: np.ndarray) -> str:
    width = -(-values.size // _MAX_STEPS)
    return f"\n(mean of {width} minutes)" if steps.size < values.size else ""


def _silent(values: np.ndarray) -> str:
    silent = int((values == 0).sum())
    return f"; {silent:,} minute{'s' if silent > 1 else ''} without any" if silent else ""


def time_unit(span_s: float) -> tuple[float, str]:
    """Seconds in the unit of a time axis of this length, and its name."""
    for limit_s, unit_s, unit in ((180, 1.0, "s"), (4 * _HOUR_S, 60.0, "minutes"), (4 * _DAY_S, _HOUR_S, "hours")):
        if span_s <= limit_s:
            return unit_s, unit
    return _DAY_S, "days"


def duration_text(span_s: float) -> str:
    """How long something lasts, for a title."""
    unit_s, unit = time_unit(span_s)
    return f"{figure_text(span_s / unit_s)} {unit}"


# ---- close up ------------------------------------------------------------------------------------------------------
def draw_burst(traffic: Traffic, summary: TrafficSummary) -> Any:
    """The 60 seconds with most requests: how many in each second, and each request with its tokens."""
    arrivals = traffic.arrival_s
    in_minute = np.searchsorted(arrivals, arrivals + MINUTE_S) - np.arange(arrivals.size)
    first = int(in_minute.argmax())
    number = int(in_minute[first])
    burst = traffic.take(slice(first, first + number))
    start_s = float(arrivals[first])
    seconds = np.bincount((burst.arrival_s - start_s).astype(np.int64), minlength=60)
    fig, (above, below) = pyplot().subplots(
        2, 1, figsize=(8.6, 5.4), sharex=True, layout="constrained", height_ratios=(1, 1.2)
    )
    above.bar(np.arange(60) + 0.5, seconds[:60], 1.0, color=COLOURS[0], edgecolor="white", lw=0.4)
    above.set_ylabel("requests per second")
    above.set_ylim(0, 1.25 * seconds.max())
    rate = summary.requests_per_s
    if not math.isnan(rate):
        above.axhline(rate, color=DARK_GREY, ls="--", lw=1.2, label=f"mean of all the traffic, {figure_text(rate)}/s")
        above.legend(loc="upper right")
    every = -(-number // MAX_DOTS)
    shown = burst.take(slice(None, None, every))
    style = {"s": 9 if shown.size > 300 else 22, "lw": 0, "alpha": 0.6, "rasterized": True}
    below.scatter(shown.arrival_s - start_s, shown.prompt_tokens, color=PROMPT, label="prompt", **style)
    below.scatter(shown.arrival_s - start_s, shown.output_tokens, color=OUTPUT, label="output", **style)
    below.set_yscale("log")
    plain_log_axis(below.yaxis)
    below.set_ylabel("tokens of each request" if every == 1 else f"tokens, 1 request in {every}")
    since = duration_text(start_s - float(arrivals[0]))
    below.set_xlabel("seconds" if first == 0 else f"seconds, from {since} after the first arrival on")
    below.set_xlim(-0.5, 60.5)
    below.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), markerscale=2)
    times = f", {figure_text(number / (rate * MINUTE_S))}x the mean" if rate * MINUTE_S <= summary.requests else ""
    finding = f"The busiest 60 s bring {number:,} request{'s' if number > 1 else ''}{times}"
    above.set_title(titled(f"{finding}; the busiest second of them {figure_text(seconds.max())}"))
    return fig


# ---- heat map ------------------------------------------------------------------------------------------------------
def draw_hours(traffic: Traffic, summary: TrafficSummary) -> Any:
    """Requests in each hour of each day; where the traffic is shorter, minutes of hours or seconds of minutes.

    Time runs from the first arrival: columns of traffic have no clock. Cells that the traffic does not fill are blank.
    """
    row_s, cell_s, row, column = _grid(summary.span_s)
    first_s = float(traffic.arrival_s[0])
    counts = window_counts(traffic.arrival_s, cell_s, first_s, float(traffic.arrival_s[-1]))
    per_row = round(row_s / cell_s)
    if counts.size < 2 * per_row:
        return f"the traffic spans {duration_text(summary.span_s)}, less than two rows of a heat map"
    num_rows = -(-counts.size // per_row)
    cells = np.full(num_rows * per_row, np.nan)
    cells[: counts.size] = counts
    fig, ax = pyplot().subplots(figsize=(8.6, min(6.5, 2.0 + 0.12 * num_rows + 0.2)), layout="constrained")
    unit = {_DAY_S: 24, _HOUR_S: 60, MINUTE_S: 60}[row_s]  # columns are labelled in hours, minutes or seconds
    image = ax.imshow(
        cells.reshape(num_rows, per_row),
        aspect="auto",
        origin="upper",
        extent=(0, unit, num_rows, 0),
        cmap="cividis",
        vmin=0,
        interpolation="nearest",
    )
    ax.grid(False)
    ax.set_xticks(np.arange(0, unit + 1, unit // 6))
    ax.yaxis.get_major_locator().set_params(integer=True)
    ax.set_xlabel(f"{column} from the first arrival")
    ax.set_ylabel(f"{row} from the first arrival")
    fig.colorbar(image, ax=ax, label=f"requests per {_cell_text(cell_s)}")
    peak, where = int(counts.max()), int(counts.argmax())
    at = f"{row.split()[0]} {where // per_row}, {column.split()[0]} {where % per_row * unit / per_row:g}"
    empty = 100 * float((counts == 0).mean())
    finding = f"The fullest {_cell_text(cell_s)} ({at}) bring{'s' if cell_s != 5 else ''} {figure_text(peak)} requests"
    finding += f", {figure_text(peak / counts.mean())}x the mean" + (f"; {empty:.0f} % are empty" if empty >= 1 else "")
    ax.set_title(titled(finding))
    return fig


def _grid(span_s: float) -> tuple[float, float, str, str]:
    """Seconds in a row and in a cell of the heat map, and what rows and columns are."""
    if span_s >= 2 * _DAY_S:
        return _DAY_S, _HOUR_S, "day", "hour of the day"
    if span_s >= 6 * _HOUR_S:
        return _HOUR_S, MINUTE_S, "hour", "minute of the hour"
    return MINUTE_S, 5.0, "minute", "second of the minute"


def _cell_text(cell_s: float) -> str:
    return {_HOUR_S: "hour", MINUTE_S: "minute"}.get(cell_s, f"{cell_s:g} s")
