"""The printed table and the JSON file of a run, with where it was taken."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.measure import Figure, calibration
from benchmarks.targets import verdict
from llm_env.provenance import provenance


def about() -> dict[str, Any]:
    """Machine, load average, speed of the calibration loop, versions, git commit and command."""
    return {
        "machine": {"processor": _processor(), "architecture": platform.machine(), "cores": os.cpu_count()},
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "calibration_per_cpu_s": round(calibration(0.2)),
        **provenance(),
    }


def _processor() -> str:
    """The processor's name, as the kernel tells it."""
    try:
        told = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in told if line.startswith("model name")), "")


def table(figures: Sequence[Figure], where: dict[str, Any]) -> Table:
    """One line a figure. Args: where: from `about`."""
    speed = where["calibration_per_cpu_s"]
    title = (
        f"{where['machine']['processor']}, load {where['load_average'][0]:g}, {speed:,} calibration iterations/CPU-s"
    )
    found = Table(title=title)
    for name in ("what", "value", "unit", "ratio", "spread", "beside its peer", "target", "holds", "note"):
        found.add_column(name, justify="right" if name in ("value", "ratio", "spread") else "left")
    group = ""
    for figure in figures:
        if group and not figure.name.startswith(group):
            found.add_section()
        group = figure.name.partition("/")[0] + "/"
        found.add_row(*cells(figure))
    return found


def cells(figure: Figure) -> list[str]:
    """The texts of a figure's line."""
    target = verdict(figure)
    return [
        figure.name,
        number(figure.value),
        figure.unit,
        number(figure.ratio),
        "" if figure.spread is None else f"{100 * figure.spread:.0f} %",
        "" if figure.peer_ratio is None else f"{figure.peer_ratio:.2f} x {figure.peer}",
        "" if target is None else target[0],
        "" if target is None else ("yes" if target[1] else "no"),
        figure.note,
    ]


def number(value: float) -> str:
    """Three significant digits, and no exponent where one can do without."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value >= 1e-4 else f"{value:.2e}"


def markdown(figures: Sequence[Figure]) -> str:
    """The table for a page of the documentation."""
    head = (
        "| what | value | ratio | spread | beside its peer | target | holds | note |\n|---|---|---|---|---|---|---|---|"
    )
    rows = []
    for figure in figures:
        name, value, unit, *rest = cells(figure)
        rows.append("| " + " | ".join([name, f"{value} {unit}", *rest]) + " |")
    return "\n".join([head, *rows]) + "\n"


def write_json(path: Path, effort: str, figures: Sequence[Figure], where: dict[str, Any]) -> None:
    """Everything of the run. Args: where: from `about`."""
    rows = []
    for figure in figures:
        target = verdict(figure)
        known = {} if target is None else {"target": target[0], "holds": bool(target[1])}
        rows.append(dataclasses.asdict(figure) | known)
    text = json.dumps({"effort": effort, "figures": rows, **where}, indent=1, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")
