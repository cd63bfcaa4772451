"""How agents learned: validation attainment against decisions, as their card or their own file keeps it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import agents
from agents.shipped import card_text, is_name, shipped_names

CURVE = "curve"  # of an agent's metadata: [[decisions, attainment], ...]
MOST_POINTS = 1000


class Learning(NamedTuple):
    """How an agent learned.

    Attributes:
        runs: name of each run ("seed 0") and its points: decisions and the attainment on validation workloads.
        chosen: the name of the run that the agent is of.
        references: attainment of others on the same workloads.
    """

    runs: tuple[tuple[str, tuple[tuple[float, float], ...]], ...]
    chosen: str
    references: tuple[tuple[str, float], ...]


def curve_of(history: Iterable[tuple[int, float, float]]) -> list[list[float | None]]:
    """What an agent's file keeps of `agents.validation.Keeper.history`: MOST_POINTS at most, the first and last too."""
    rows = [[steps, None if math.isnan(greedy) else greedy] for steps, greedy, _ in history]
    stride = -(-len(rows) // MOST_POINTS)
    return rows[:: max(1, stride)] + (rows[-1:] if stride > 1 and (len(rows) - 1) % stride else [])


def learning_of(path: str | Path, trust_pickle: bool = False) -> Learning | None:
    """The curves of an agent; None where neither a card nor its file keeps any.

    Args:
        path: as of `agents.load`.

    Raises:
        UserError, InputOutputError: as `agents.load`.
    """
    about = agents.load(path, trust_pickle).about
    chosen = f"seed {about.get('seed')}"
    known = about.get("references")
    references = tuple((str(k), float(v)) for k, v in known.items() if _is_share(v)) if isinstance(known, dict) else ()
    runs: dict[str, list[tuple[float, float]]] = {}
    if is_name(path) and path in shipped_names():
        runs = _from_card(card_text(str(path)))
    elif points := _from_file(about.get(CURVE)):
        runs = {chosen: points}
    runs = {name: points for name, points in runs.items() if len(points) > 1}
    return Learning(tuple((n, tuple(p)) for n, p in runs.items()), chosen, references) if runs else None


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _from_file(kept: Any) -> list[tuple[float, float]]:
    """Points of an agent's metadata; of what anybody may have written only what is a point."""
    rows: Sequence[Any] = kept if isinstance(kept, list) else ()
    pairs = [row for row in rows[: MOST_POINTS + 1] if isinstance(row, list) and len(row) == 2]
    return [(float(a), float(b)) for a, b in pairs if isinstance(a, int) and 0 <= a < 1e15 and _is_share(b)]


def _from_card(text: str) -> dict[str, list[tuple[float, float]]]:
    """The table of `agents.card`: a column of points for each run."""
    table = re.search(r"^\| decisions \|(.+)\|\n\|[-:|]+\|\n((?:\|.*\|\n)+)", text, re.MULTILINE)
    if table is None:
        return {}
    names = [name.strip() for name in table[1].split("|")]
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for line in table[2].splitlines():
        steps, *values = (cell.strip() for cell in line.strip("|").split("|"))
        for name, value in zip(names, values, strict=True):
            if value:
                runs[name].append((float(steps.replace(",", "")), float(value)))
    return runs
