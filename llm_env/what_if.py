"""Counterfactuals: the same requests on a changed system, and the paired difference that the change makes.

The traffic of a changed system is that of the system as it is, at the same rate: a load is a share of a capacity, which
the change may move. Promises are those of the changed scenario.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from llm_env.aggregate import Row, aggregate, headline_samples, number_or_none
from llm_env.config import with_changes
from llm_env.errors import UserError
from llm_env.metrics import Interval
from llm_env.scenarios import parse_changes, service_like
from llm_env.statistics import Comparison, compare, sign_flip_test
from llm_env.study import CellResult, Study
from llm_env.tables import p_value_text, percent_text, points_text, titled_table

SERVICE = "service"  # a key of its own: a preset, as simulate --service takes it
TRAFFIC = ("workload", "episode", "name", "description", "source", "vary", "reward")  # settings that are no system's


@dataclass(frozen=True)
class Effect:
    """One contender at one load under one change.

    Attributes:
        change: as it was given.
        row: of the changed study.
        comparison: of the headline, paired: changed against as it is.
        p_value: of that difference by the sign-flip permutation test.
        base: the headline as it is.
    """

    change: str
    row: Row
    comparison: Comparison
    p_value: float
    base: Interval

    def to_dict(self) -> dict[str, Any]:
        """For results.json."""
        mean, half = self.comparison.difference
        return {
            "change": self.change,
            **self.row.to_dict(),
            "difference_to_as_it_is": number_or_none(mean),
            "difference_to_as_it_is_ci95": number_or_none(half),
            "difference_to_as_it_is_p_value": number_or_none(self.p_value),
            **{f"difference_to_as_it_is_{name}": getattr(self.comparison, name) for name in ("wins", "ties", "losses")},
        }


def changed_study(study: Study, text: str) -> Study:
    """The study on a changed system, with the traffic that it has as it is.

    Args:
        text: "KEY=VALUE", or several that hold together, with ";" between them; "service=PRESET" for a preset.

    Raises:
        UserError: no such setting or value, or one of the traffic.
    """
    parts = [part.strip() for part in text.split(";") if part.strip()]
    presets = [part.partition("=")[2].strip() for part in parts if part.partition("=")[0].strip() == SERVICE]
    changes = parse_changes([part for part in parts if part.partition("=")[0].strip() != SERVICE])
    for key in changes:
        if key.split(".")[0] in TRAFFIC:
            raise UserError(f"what-if: {key}: expected a setting of system or slo; traffic is the same in both")
    if len(presets) > 1:
        raise UserError(f'what-if: {SERVICE} is given twice in "{text}"')
    if not changes and not presets:
        raise UserError(f'what-if: expected KEY=VALUE, got "{text}"')
    for preset in presets:
        changes["system.service"] = service_like(study.scenario, preset)
    scenario = with_changes(study.scenario, changes)
    return dataclasses.replace(study, scenario=scenario, traffic=study.scenario)


def effects(
    study: Study,
    rows: Sequence[Row],
    cells: Sequence[CellResult],
    text: str,
    changed: Study,
    changed_cells: Sequence[CellResult],
) -> list[Effect]:
    """What a change makes of each contender at each load. Args: rows, cells: as it is."""
    base = {(row.load, row.contender): row.headline for row in rows}
    before, after = headline_samples(study, list(cells)), headline_samples(changed, list(changed_cells))
    found = []
    for row in aggregate(changed, list(changed_cells)):
        key = (row.load, row.contender)
        seeds = sorted(before[key].keys() & after[key].keys())
        new, old = (np.array([values[key][s] for s in seeds]) for values in (after, before))
        found.append(Effect(text, row, compare(new, old), sign_flip_test(new - old), base[key]))
    return found


def effects_table(found: Sequence[Effect], title: str) -> Table:
    """A row for each contender and change, those of a contender together. Args: found: of one load."""
    table = titled_table(title)
    table.add_column("policy", overflow="fold")
    table.add_column("what if", overflow="fold")
    for column in ("met\n%", "change\npts", "p\n", "goodput\nreq/s", "TTFT s\np99", "TBT ms\np99", "util\n%"):
        table.add_column(column, justify="right", no_wrap=True)
    shown = ""
    for effect in sorted(found, key=lambda e: e.row.contender):
        row = effect.row
        name = row.contender if row.contender != shown else ""
        if name:
            table.add_row(Text(name), "as it is", percent_text(effect.base), *[""] * 6)
        shown = row.contender
        m = row.means
        table.add_row(
            "",
            effect.change,
            percent_text(row.headline),
            points_text(effect.comparison.difference),
            p_value_text(effect.p_value),
            f"{m['goodput_per_s']:.3f}",
            "unstable" if row.unstable else f"{m['ttft_p99_s']:.2f}",
            f"{1e3 * m['tbt_p99_s']:.0f}",
            f"{100 * m['utilisation']:.0f}",
        )
    return table
