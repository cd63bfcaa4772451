"""Figures of one run: queue, KV memory and what the batches hold, over time. From the batch logs of the first seed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from llm_env.build import system_record
from llm_env.report.markup import Axis, Panel, number, steps
from llm_env.report.story import Cast
from llm_env.study import CellResult, Study
from llm_env.workload import concrete

_BINS = 150
_MOST_OF = 0.98  # of the stretches fit the axis of prefill tokens


def over_time(study: Study, cells: Sequence[CellResult], cast: Cast) -> list[tuple[str, list[str]]]:
    """(contender, its panels) of those whose runs are shown, on common axes; nothing where nobody formed a batch."""
    shown = [
        c
        for name in cast.pair()
        for c in cells
        if c.contender == name and c.load == cast.load and c.seed == study.seeds[0] and len(c.batches)
    ]
    if not shown:
        return []
    end_s = max(float(c.batches["start_s"].max()) for c in shown)
    system = system_record(concrete(study.scenario, study.seeds[0]))[0]
    blocks = float(system["kv_blocks"]) if system["kv_limited"] else 0.0
    binned = [_binned(c.batches, end_s, blocks) for c in shown]
    queue_top = max(float(b["waiting"].max()) for b in binned)
    decode_top = max(float(b["decode"].max()) for b in binned)
    prefill_top = max(float(np.quantile(b["prefill"], _MOST_OF)) for b in binned)  # a few may be many times the rest
    found = []
    for cell, means in zip(shown, binned, strict=True):
        tone = cast.tone(cell.contender)
        panels = [_filled(cell, means, "waiting", "Requests that wait", queue_top, end_s, tone)]
        if blocks:
            panels.append(_filled(cell, means, "kv", "KV memory in use, %", 100.0, end_s, tone))
        panels.append(_prefill(cell, means, prefill_top, end_s, float(system["slo_budget"])))
        panels.append(_tokens(cell, means, "decode", "Decode tokens per batch, mean", decode_top, end_s).svg())
        found.append((cell.contender, panels))
    return found


def _binned(log: np.ndarray, end_s: float, blocks: float) -> dict[str, np.ndarray]:
    """Means over the batches that start in each of _BINS stretches; a stretch without a batch has the one before's.

    Args:
        log: BATCH rows.
        end_s: of the axis.
        blocks: of KV memory of one worker; 0: unlimited.
    """
    which = np.minimum((log["start_s"] / max(end_s, 1e-9) * _BINS).astype(np.int64), _BINS - 1)
    count = np.bincount(which, minlength=_BINS)
    columns = {"waiting": "num_waiting", "kv": "kv_used_blocks", "prefill": "prefill_tokens", "decode": "decode_tokens"}
    found = {}
    for name, column in columns.items():
        mean = np.bincount(which, weights=log[column], minlength=_BINS) / np.maximum(count, 1)
        if name in ("waiting", "kv"):
            last = np.maximum.accumulate(np.where(count > 0, np.arange(_BINS), 0))
            mean = mean[last]
        found[name] = mean
    found["kv"] = 100 * found["kv"] / blocks if blocks else found["kv"]
    return found


def _filled(
    cell: CellResult, means: dict[str, np.ndarray], key: str, label: str, top: float, end_s: float, tone: str
) -> str:
    values = means[key]
    peak = int(np.argmax(values))
    told = f"Highest {number(float(values[peak]), 0)}, {number(peak * end_s / _BINS, 0)} s after the start."
    panel = Panel(f"{label} over time under {cell.contender}", told, 180, top=32)
    ticks = steps(max(top, 1.0), 4)
    x, y = Axis(0, end_s, panel.x0, panel.x1), Axis(0, ticks[-1], panel.y0, panel.y1)
    panel.y_axis(y, ticks, lambda v: f"{v:g}", label)
    panel.x_axis(x, _times(end_s), lambda v: f"{v:g}", "time, seconds")
    xs, ys = x.all((np.arange(_BINS) + 0.5) * end_s / _BINS), y.all(values)
    panel.area(xs, [panel.y0] * _BINS, ys, f"fill {tone}")
    panel.path(xs, ys, tone)
    return panel.svg()


def _tokens(cell: CellResult, means: dict[str, np.ndarray], key: str, label: str, top: float, end_s: float) -> Panel:
    """Means of one kind of tokens, as steps: a panel to be finished."""
    log = cell.batches
    total = (log["prefill_tokens"] + log["decode_tokens"]).sum()
    mine = log[f"{key}_tokens"]
    told = (
        f"{len(log)} batches; {number(float(mine.mean()), 0)} {key} tokens each on average, "
        f"{number(100 * float(mine.sum() / max(1, total)), 0)} % of all tokens."
    )
    panel = Panel(f"{label} under {cell.contender}", told, 180, top=32)
    ticks = steps(max(top, 1.0), 4)
    x, y = Axis(0, end_s, panel.x0, panel.x1), Axis(0, ticks[-1], panel.y0, panel.y1)
    panel.y_axis(y, ticks, lambda v: f"{v:g}", label)
    panel.x_axis(x, _times(end_s), lambda v: f"{v:g}", "time, seconds")
    if (most := float(means[key].max())) > ticks[-1]:
        panel.text(panel.x0 + 4, panel.y1 + 4, f"cut: up to {most:,.0f}", "tick")
    edges = x.all(np.arange(_BINS + 1) * end_s / _BINS)
    xs = [v for a, b in pairwise(edges) for v in (a, b)]
    panel.area(xs, [panel.y0] * len(xs), [y(float(v)) for v in means[key] for _ in range(2)], key)
    return panel


def _prefill(cell: CellResult, means: dict[str, np.ndarray], top: float, end_s: float, budget: float) -> str:
    shown = budget <= 4 * top  # else the line would press the rest flat
    high = max(top, budget) if shown else top
    panel = _tokens(cell, means, "prefill", "Prefill tokens per batch, mean", high, end_s)
    if not shown:
        return panel.svg()
    y = Axis(0, steps(max(high, 1.0), 4)[-1], panel.y0, panel.y1)
    panel.line(panel.x0, y(budget), panel.x1, y(budget), "target")
    panel.text(panel.x1, panel.y1 - 12, f"TBT target: {budget:.0f} in all", "target-name", "end")
    return panel.svg()


def _times(end_s: float) -> list[float]:
    return [tick for tick in steps(end_s) if tick <= end_s]
