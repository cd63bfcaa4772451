"""What a contender does in which situation: maps of the token budget it chose and of the batches that followed.

From the decisions of recorded runs, by how many requests wait and how full KV memory is (where it is unlimited or never
fills, by how many requests decode). The slack of the decodes is no axis: a batch that holds all decodes ends at the
moment of their tokens, so at the next decision each has its whole TBT target left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from llm_env.report.markup import Panel, number
from llm_env.report.player import Run

MOST_MAPS = 4
FEWEST = 5  # decisions in a cell that is shown
_WAITING = (0, 1, 2, 4, 8, 16, 32, 64)  # a column begins at each
_DECODES = (0, 1, 4, 8, 16, 32, 64)
_KV = (0.0, 0.25, 0.5, 0.7, 0.8, 0.9, 0.95)
_FULL = 0.5  # KV memory in use below which it is no matter what is decided
_ROW = 30  # units
_STRONGEST = 0.6  # opacity of a cell: its number stays readable on it
_FARTHEST = 2.0  # doublings of the SLO budget that have it


class Side(NamedTuple):
    """An axis of the maps: where each row or column begins, and what stands at it."""

    label: str
    edges: tuple[float, ...]
    names: tuple[str, ...]


def _whole(label: str, edges: tuple[int, ...], values: np.ndarray) -> Side:
    """An axis of whole numbers, up to the range of the largest value."""
    kept = edges[: max(2, int(np.searchsorted(edges, values.max(), side="right")))]
    ends = [*(edge - 1 for edge in kept[1:]), None]
    names = [f"{a}+" if b is None else str(a) if a == b else f"{a}–{b}" for a, b in zip(kept, ends, strict=True)]
    return Side(label, tuple(map(float, kept)), tuple(names))


def _sides(runs: Sequence[Run]) -> tuple[Side, Side, str]:
    """Columns, rows, and the field of CHOICE that the rows are of."""
    choices = np.concatenate([run.recording.choices for run in runs])
    columns = _whole("requests that wait", _WAITING, choices["num_waiting"])
    if runs[0].scenario.system.kv.blocks is None or np.quantile(choices["kv_used"], 0.95) < _FULL:
        return columns, _whole("Requests that decode", _DECODES, choices["num_decodes"]), "num_decodes"
    percents = [f"{100 * edge:g}" for edge in (*_KV, 1.0)]
    names = tuple(f"{low}–{high} %" for low, high in pairwise(percents))
    return columns, Side("KV memory in use", _KV, names), "kv_used"


def maps(runs: Sequence[Run]) -> list[tuple[Run, list[str]]]:
    """(run, its panels) of those that decided anything: the budget in units of the SLO budget, and the mix."""
    runs = [run for run in runs if len(run.recording.choices)][:MOST_MAPS]
    if not runs:
        return []
    columns, rows, field = _sides(runs)
    found = []
    for run in runs:
        made = run.recording.choices[run.recording.choices["hold_s"] <= 0]
        place = np.column_stack([_within(rows, made[field]), _within(columns, made["num_waiting"])])
        budget = made["token_budget"] / made["slo_budget"]
        share = _prefill_share(run, made)
        panels = [
            _panel(run, "Token budget / SLO budget, median", columns, rows, place, budget, _budget_tone, _times),
            _panel(run, "Prefill share of the batch, mean, %", columns, rows, place, share, _share_tone, _percent),
        ]
        found.append((run, panels))
    return found


def _within(side: Side, values: np.ndarray) -> np.ndarray:
    """The row or column of each value."""
    return np.searchsorted(np.array(side.edges), values, side="right") - 1


def _prefill_share(run: Run, made: np.ndarray) -> np.ndarray:
    """Of the batch that each decision began: (decisions,) float64, NaN if it began none."""
    log = run.recording.batches
    began = {(w, s): k for k, (w, s) in enumerate(zip(log["worker"].tolist(), log["start_s"].tolist(), strict=True))}
    which = [began.get(key, -1) for key in zip(made["worker"].tolist(), made["time_s"].tolist(), strict=True)]
    shares = np.append(log["prefill_tokens"] / np.maximum(1, log["prefill_tokens"] + log["decode_tokens"]), np.nan)
    return shares[which]


def _times(value: float) -> str:
    return f"{value:.2g}×" if value < 9.95 else f"{value:.0f}×"


def _percent(value: float) -> str:
    return number(100 * value, 0)


def _budget_tone(value: float) -> tuple[str, float]:
    """Class and opacity: how far above or below the SLO budget, in doublings."""
    far = float(np.log2(max(value, 1e-9)))
    return ("above" if far > 0 else "below"), _STRONGEST * min(1.0, abs(far) / _FARTHEST)


def _share_tone(value: float) -> tuple[str, float]:
    return "prefill", _STRONGEST * value


def _panel(
    run: Run,
    label: str,
    columns: Side,
    rows: Side,
    place: np.ndarray,
    values: np.ndarray,
    tone: Callable[[float], tuple[str, float]],
    words: Callable[[float], str],
) -> str:
    known = ~np.isnan(values)
    place, values = place[known], values[known]
    middle = np.median if words is _times else np.mean
    height = 36 + _ROW * len(rows.names) + 46
    told, drawn = [], []
    for r, c in np.ndindex(len(rows.names), len(columns.names)):
        inside = values[(place[:, 0] == r) & (place[:, 1] == c)]
        if len(inside) >= FEWEST:
            value = float(middle(inside))
            where = f"{rows.label} {rows.names[r]}, {columns.names[c]} {columns.label}"
            told.append(f"{where}: {words(value)}")
            drawn.append((r, c, value, f"{where}: {words(value)} ({len(inside)} decisions)"))
    panel = Panel(f"{label} of {run.name}", "; ".join(told) or "Too few decisions.", height, left=84, top=36)
    wide = (panel.x1 - panel.x0) / len(columns.names)
    panel.text(0, panel.y1 - 16, label, "label strong")
    for r, name in enumerate(rows.names):
        panel.text(panel.x0 - 10, _row_top(panel, r) + _ROW / 2 + 4.5, name, "tick", "end")
    for c, name in enumerate(columns.names):
        panel.text(panel.x0 + wide * (c + 0.5), panel.y0 + 18, name, "tick", "middle")
    panel.text((panel.x0 + panel.x1) / 2, panel.y0 + 38, columns.label, "label", "middle")
    panel.text(0, panel.y0 + 38, rows.label, "label")
    for r, c, value, said in drawn:
        kind, strength = tone(value)
        x, y = panel.x0 + wide * c, _row_top(panel, r)
        panel.cell(x + 1, y + 1, wide - 2, _ROW - 2, kind, strength, said)
        panel.text(x + wide / 2, y + _ROW / 2 + 4.5, words(value), "in-cell", "middle")
    return panel.svg()


def _row_top(panel: Panel, r: int) -> float:
    """Units; the first row is the lowest."""
    return panel.y0 - _ROW * (r + 1)
