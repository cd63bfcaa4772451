"""Compares the ratios of a run with those of a stored baseline: what has become slower, and by how much.

Between processors ratios to a loop in Python move, by half or so, and on a busy machine every figure does at times. So
a figure fails only past twice the baseline's, it is measured again before it does, and where it was measured beside a
peer it must be worse beside that as well.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.measure import Figure
from llm_env.errors import InputOutputError, UserError

BASELINE = Path(__file__).resolve().parent / "baseline.json"
WARN, FAIL = 1.25, 2.0  # times worse than the baseline
TRIES = 3  # measurements of a figure before it fails


class Change(NamedTuple):
    """A figure beside the baseline's: how many times worse, below 1 where it is better."""

    name: str
    worse: float


def compare(figures: Sequence[Figure], baseline: dict[str, Any]) -> list[Change]:
    """The figures that both have, the worst first."""
    known = baseline["figures"]
    changes = [Change(figure.name, _worse(figure, known[figure.name])) for figure in figures if figure.name in known]
    return sorted(changes, key=lambda change: -change.worse)


def _worse(figure: Figure, known: dict[str, Any]) -> float:
    """By the ratio to the calibration loop or to the peer, whichever speaks for the figure."""
    worse = known["ratio"] / figure.ratio if figure.better == "more" else figure.ratio / known["ratio"]
    if figure.peer_ratio is not None and "peer_ratio" in known:
        worse = min(worse, known["peer_ratio"] / figure.peer_ratio)
    return worse


def settled(
    figures: Sequence[Figure], baseline: dict[str, Any], groups: Mapping[str, Callable[[], Sequence[Figure]]]
) -> list[Figure]:
    """The figures; of those that would fail the best of up to TRIES measurements.

    Args:
        figures: a first measurement.
        groups: measures those of a group again, by the first part of their names.
    """
    best = {figure.name: figure for figure in figures}
    for _ in range(TRIES - 1):
        slow = {change.name for change in compare(list(best.values()), baseline) if change.worse > FAIL}
        for group in sorted({name.partition("/")[0] for name in slow}):
            for again in groups[group]():
                if again.name in slow:
                    known = baseline["figures"][again.name]
                    best[again.name] = min(best[again.name], again, key=lambda figure: _worse(figure, known))
    return list(best.values())


def lines(changes: Sequence[Change]) -> list[str]:
    """One for each figure that a reader must know of, and one for all the others."""
    told = [
        f"{'FAIL' if change.worse > FAIL else 'warning'}: {change.name} is {change.worse:.2f} times worse"
        for change in changes
        if change.worse > WARN
    ]
    rest = len(changes) - len(told)
    return [*told, f"{rest} of {len(changes)} figures are within {WARN:g} times the baseline or better"]


def failed(changes: Sequence[Change]) -> bool:
    """True if one is more than twice as bad."""
    return any(change.worse > FAIL for change in changes)


def write_baseline(path: Path, effort: str, figures: Sequence[Figure], about: dict[str, Any]) -> None:
    """Stores the ratios. Args: about: machine and versions, for a reader."""
    known = {figure.name: _known(figure) for figure in figures}
    path.write_text(json.dumps({"effort": effort, "figures": known, **about}, indent=1) + "\n", encoding="utf-8")


def _known(figure: Figure) -> dict[str, Any]:
    known: dict[str, Any] = {"ratio": float(f"{figure.ratio:.4g}"), "better": figure.better}
    if figure.peer_ratio is not None:
        known["peer_ratio"] = float(f"{figure.peer_ratio:.4g}")
    return known


def read_baseline(path: Path, effort: str) -> dict[str, Any]:
    """A stored baseline.

    Raises:
        InputOutputError: it cannot be read.
        UserError: it is none, or it is of another effort.
    """
    try:
        baseline = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputOutputError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path}: is no JSON: {error}") from None
    if not isinstance(baseline, dict) or not isinstance(baseline.get("figures"), dict):
        raise UserError(f"{path}: is no baseline: it has no figures")
    if baseline.get("effort") != effort:
        raise UserError(f"{path}: is of a {baseline.get('effort')} run, this one is {effort}: sizes differ")
    return baseline
