"""`python -m llm_env validate`: runs every case that theory or another engine decides, prints one table, draws it."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from llm_env.errors import RequirementError
from llm_env.files import staged_folder
from llm_env.plots import plot_validation
from llm_env.provenance import provenance
from llm_env.validation_cases import exact_cases
from llm_env.validation_references import reference_cases
from llm_env.validation_rows import FAILED, SKIPPED, Case, Row
from llm_env.validation_stationary import CURVES, curve_points, curve_theory, long_run_cases

FILES = ("validation.json", "theory.png")
_STYLES = {FAILED: "bold red", SKIPPED: "yellow"}


def all_cases(references: Path | None) -> list[Case]:
    """Every case, in the order of the table. Args: references: a folder of runs of other engines.

    Raises:
        InputOutputError: the folder holds none.
    """
    return exact_cases() + long_run_cases() + reference_cases(references)


def validate(out: Path, fast: bool, references: Path | None, console: Console) -> None:
    """Runs the cases, prints the table and writes FILES.

    Args:
        out: folder for them.
        fast: only the cases that take seconds, and shorter runs for the curves.
        references: folder with runs of other engines; None: beside the project, if they are there.
        console: for the table.

    Raises:
        RequirementError: a case failed. The table is printed and the files are written.
        InputOutputError: `out` cannot be written, or `references` holds no runs.
    """
    cases = [case for case in all_cases(references) if case.fast or not fast]
    with staged_folder(out) as folder:
        rows, curves = _run(cases, fast)
        plot_validation(curves, [row for _, row in rows], folder / FILES[1])
        found = [{"group": group, **_plain(row)} for group, row in rows]
        text = json.dumps({"rows": found, "fast": fast, **provenance()}, indent=1, allow_nan=False, ensure_ascii=False)
        (folder / FILES[0]).write_text(text + "\n", encoding="utf-8")
    console.print(validation_table(rows))
    failed = [row.case for _, row in rows if row.verdict == FAILED]
    skipped = sum(row.verdict == SKIPPED for _, row in rows)
    console.print(
        f"{len(rows) - len(failed) - skipped} of {len(rows)} agree, {len(failed)} failed, {skipped} skipped"
        f" (s.e.: standard errors of 30 replications, at most 4); {', '.join(FILES)} are in {out}",
        highlight=False,
        soft_wrap=True,
    )
    if failed:
        raise RequirementError(f"validate: {len(failed)} of {len(rows)} failed: {'; '.join(failed)}")


def _run(cases: list[Case], fast: bool) -> tuple[list[tuple[str, Row]], dict]:
    """Rows with their group; points and theory of every curve."""
    rows: list[tuple[str, Row]] = []
    curves = {}
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=len(cases) + len(CURVES))
        for case in cases:
            progress.update(task, description=case.name)
            rows += [(case.group, row) for row in case.run()]
            progress.advance(task)
        for name in CURVES:
            progress.update(task, description=f"curve of {name}")
            curves[name] = (
                curve_points(name, fast),
                lambda loads, name=name: curve_theory(name, loads),
            )
            progress.advance(task)
    return rows, curves


def _plain(row: Row) -> dict:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(row).items()}


def validation_table(rows: list[tuple[str, Row]]) -> Table:
    """The rows with their groups, at most 100 columns wide."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name, justify in (("case", "left"), ("expected", "right"), ("got", "right"), ("error", "right")):
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    table.add_column("verdict", no_wrap=True)
    last = rows[0][0] if rows else ""
    for group, row in rows:
        if group != last:
            table.add_section()
        last = group
        verdict = Text(row.verdict, style=_STYLES.get(row.verdict, ""))
        table.add_row(row.case, row.expected, row.got, row.error, verdict)
    return table
