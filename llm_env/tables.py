"""The tables of a study for a terminal: at most 100 columns, plain text where there is no terminal. Prints nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from llm_env.aggregate import Row
from llm_env.dtypes import SLO_RULES
from llm_env.metrics import WEIGHTED, Interval
from llm_env.prices import COSTS


def slo_table(rows: Sequence[Row], title: str, rule: str, bound: float | None = None) -> Table:
    """SLO attainment under the three rules, goodput and the paired difference to the best baseline.

    If neither weights nor a bound take the room, also what else `difference_table` tells.

    Args:
        rows: of one load.
        title: of the table.
        rule: the scenario's rule, by which baselines are ranked and differences are taken; where the classes' weights
            differ, by attainment weighted with them under that rule, which then has a column.
        bound: what no policy can pass under it; one more column if given.
    """
    table = titled_table(title)
    table.add_column("policy", overflow="fold")
    for name in SLO_RULES:
        table.add_column(f"{'*' if name == rule else ''}{_RULE_TITLES[name]}\nmet, %", justify="right", no_wrap=True)
    weighted = any(WEIGHTED in row.attainment for row in rows)
    if weighted:
        table.add_column("*by weight\nmet, %", justify="right", no_wrap=True)
    table.add_column("goodput\nreq/s", justify="right", no_wrap=True)
    table.add_column("diff to\nbest, pts", justify="right", no_wrap=True)
    room = not weighted and bound is None
    for column in ("p\n", "won/tied\n/lost") if room else ():
        table.add_column(column, justify="right", no_wrap=True)
    if bound is not None:
        table.add_column("of the\nbound, %", justify="right", no_wrap=True)
    for row in rows:
        share = 100 * row.attainment[rule].mean / bound if bound else math.nan
        of_bound = [] if bound is None else [_figure(share, 1)]
        table.add_row(
            _name(row),
            *(percent_text(row.attainment[name]) for name in (*SLO_RULES, *([WEIGHTED] if weighted else []))),
            _figure(row.means["goodput_per_s"], 3),
            *difference_texts(row)[: 3 if room else 1],
            *of_bound,
        )
    return table


def difference_table(rows: Sequence[Row], title: str) -> Table:
    """The paired difference to the best baseline with its interval, the p value of its sign-flip test, and on how many
    workloads it was above, the same and below.
    """
    table = titled_table(title)
    table.add_column("policy", overflow="fold")
    for column in ("difference, pts", "p", "won/tied/lost"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(_name(row), *difference_texts(row))
    return table


def time_table(rows: Sequence[Row], title: str) -> Table:
    """Share of first tokens on time, TTFT, TBT, throughput, utilisation and what was left undone."""
    table = titled_table(title)
    table.add_column("policy", overflow="fold")
    for column in (
        "TTFT\nmet, %",
        "TTFT s\np50",
        "\np95",
        "\np99",
        "TBT ms\np50",
        "\np99",
        "\nmax",
        "tok/s\n",
        "util\n%",
        "unfin-\nished",
    ):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        m = row.means
        ttft = [_figure(m[f"ttft_{p}_s"], 2) for p in ("p50", "p95", "p99")]
        table.add_row(
            _name(row),
            _figure(100 * m["ttft_attainment"], 1),
            *(["", "", "unstable"] if row.unstable else ttft),
            *(_figure(1e3 * m[f"tbt_{p}_s"], 0) for p in ("p50", "p99", "max")),
            _figure(m["tokens_per_s"], 0),
            _figure(100 * m["utilisation"], 0),
            _figure(m["unfinished"], 1 if m["unfinished"] < 100 else 0),
        )
    return table


def usage_table(rows: Sequence[Row], title: str) -> Table:
    """What the workers' time went into, how full batches were, evictions; and costs, where the rows have them."""
    priced = any(COSTS[0] in row.means for row in rows)
    table = titled_table(title)
    table.add_column("policy", overflow="fold")
    columns = ("pre-\nfill %", "de-\ncode %", "idle\n%", "req a\nbatch", "tok a\nbatch", "of SLO\n%", "evic-\ntions")
    for column in (*columns, *(("1M out\ncost", "1M tok\ncost", "1,000\ngood") if priced else ())):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        m = row.means
        table.add_row(
            _name(row),
            *(_figure(100 * m[f"{what}_time_share"], 1) for what in ("prefill", "decode", "idle")),
            _figure(m["mean_batch_requests"], 1),
            _figure(m["mean_batch_tokens"], 0),
            _figure(100 * m["slo_budget_share"], 0),
            _figure(m["evictions"], 1 if m["evictions"] < 100 else 0),
            *(money_text(m[name]) for name in COSTS[1:] if priced),
        )
    return table


UNSTABLE = "†"  # beside a name: the backlog grew, so that times depend on how long the run was
_RULE_TITLES = {"max": "every gap", "p99": "P99 gap", "deadline": "deadline"}


def titled_table(title: str) -> Table:
    """A table of this title without columns, in the style of all tables that have one."""
    return Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))


def _name(row: Row) -> Text:
    text = Text(row.contender, style="bold" if row.is_agent else "")
    if row.unstable:
        text.append(f" {UNSTABLE}", style="red")
    return text


def percent_text(interval: Interval) -> str:
    """A share in percent with half its interval."""
    return f"{100 * interval.mean:.1f}{_half(interval, 100, 1)}"


def points_text(interval: Interval) -> str:
    """A difference of shares in points with half its interval."""
    return f"{100 * interval.mean:+.1f}{_half(interval, 100, 1)}"


def money_text(value: float) -> str:
    """An amount with four digits or more; "n/a" where there was nothing to pay for."""
    return "n/a" if math.isnan(value) else f"{value:.{3 if value < 10 else 2}f}"


def difference_texts(row: Row) -> tuple[str, str, str]:
    """Difference, p value and wins/ties/losses for a table."""
    if row.comparison is None or row.p_value is None:
        return "best", "", ""
    found = row.comparison
    return points_text(found.difference), p_value_text(row.p_value), f"{found.wins}/{found.ties}/{found.losses}"


def p_value_text(p_value: float) -> str:
    """A p value with three decimals."""
    return "<0.001" if p_value < 0.001 else _figure(p_value, 3)


def _half(interval: Interval, factor: float, digits: int) -> str:
    return "" if math.isnan(interval.half_width) else f" ±{factor * interval.half_width:.{digits}f}"


def _figure(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"
