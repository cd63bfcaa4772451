"""`python -m llm_env workload summarise`: figures of a trace, or of what a scenario draws, and what it needs."""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from llm_env.command import output_console
from llm_env.commands.arguments import number
from llm_env.commands.showing import without_nan
from llm_env.commands.source import Source, add_source_arguments, source_from
from llm_env.config import Scenario, SLOClass, SLOSettings, SystemSettings
from llm_env.errors import UserError
from llm_env.files import staged_folder, write_csv
from llm_env.scenarios import service_from_text
from llm_env.workload.generate import capacity_tokens_per_s
from llm_env.workload.summary import Demand, LengthFigures, TrafficSummary, demand, per_minute, summarise_traffic

FILES = ("per_minute.csv", "summary.json")
SERVICE = "llama3-70b-a100x2"
TARGET_LOAD = 0.8  # of the workers that are counted
Minutes = dict[str, np.ndarray]


def add_summarise(group: Any) -> None:
    """Adds the command to the group `workload`."""
    add = group.add_parser(
        "summarise",
        help="figures of traffic, and how many workers it needs",
        description="Prints rates, burstiness, lengths, clients and sessions of a trace, or of what a scenario draws,"
        " and what share of a worker's capacity that is.",
        epilog="exit codes: 0 done, 1 a bug, 2 bad input, 3 input or output failed, 130 interrupted",
        allow_abbrev=False,
    )
    add.set_defaults(run=_summarise)
    add_source_arguments(add)
    need = add.add_argument_group("what it needs")
    need.add_argument(
        "--service",
        metavar="C,A,B0|PRESET|FILE",
        default=SERVICE,
        help=f"service time of a worker, as for simulate (default: {SERVICE})",
    )
    need.add_argument(
        "--tbt-ms", type=number(0, 1e9, above=True), default=150.0, metavar="MS", help="TBT target (default: 150)"
    )
    give = add.add_argument_group("output")
    give.add_argument("--out", metavar="DIR", type=Path, help="write per_minute.csv and summary.json here")
    give.add_argument("--json", action="store_true", help="print summary.json instead of tables")


def _summarise(arguments: argparse.Namespace) -> None:
    worker = _worker(arguments.service, arguments.tbt_ms)
    if arguments.out is None:
        source, summary, need, text, _ = _figures(arguments, worker)
    else:
        with staged_folder(arguments.out) as folder:
            source, summary, need, text, minutes = _figures(arguments, worker)
            write_csv(folder / "per_minute.csv", minutes)
            (folder / "summary.json").write_text(text + "\n", encoding="utf-8")
    if arguments.json:
        sys.stdout.write(text + "\n")
        return
    console = output_console()
    console.print(Text(source.name, "bold"), soft_wrap=True)
    for remark in source.remarks:
        console.print(Text(remark), soft_wrap=True)
    _print_lengths(console, summary)
    _print_figures(console, summary)
    _print_demand(console, need, arguments.service, arguments.tbt_ms)
    if arguments.out is not None:
        console.print(Text(f"\n{', '.join(FILES)} are in {arguments.out}"), soft_wrap=True)


def _figures(arguments: argparse.Namespace, worker: Scenario) -> tuple[Source, TrafficSummary, Demand, str, Minutes]:
    """The traffic, its figures, what it needs, all of them as JSON text, and the table of minutes."""
    source = source_from(arguments)
    summary, minutes = summarise_traffic(source.traffic), per_minute(source.traffic)
    need = demand(summary, minutes, worker, TARGET_LOAD)
    system = {"service": arguments.service, "tbt_ms": arguments.tbt_ms, "target_load": TARGET_LOAD}
    content = {**source.origin, "summary": asdict(summary), "demand": {**system, **asdict(need)}}
    text = json.dumps(without_nan(content), indent=2, allow_nan=False, ensure_ascii=False)
    return source, summary, need, text, minutes


def _worker(service: str, tbt_ms: float) -> Scenario:
    """One worker with this service time and TBT target.

    Raises:
        UserError: no such service, or even its smallest batch takes longer than the target.
    """
    slo = SLOSettings(classes=(SLOClass(tbt_ms=tbt_ms),))
    scenario = Scenario(name="worker", system=SystemSettings(service=service_from_text(service)), slo=slo)
    try:
        capacity_tokens_per_s(scenario)
    except UserError as error:  # said of a scenario's load; here it is about two arguments
        reason = str(error).removeprefix("scenario: workload.load: ").partition(", so ")[0]
        raise UserError(f"--service {service}, --tbt-ms {tbt_ms:g}: {reason}") from None
    return scenario


# ---- what is printed -----------------------------------------------------------------------------------------------
def _figure(value: float | None, digits: int = 1, factor: float = 1.0) -> str:
    return "-" if value is None or math.isnan(value) else f"{value * factor:,.{digits}f}"


def _significant(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:,.4g}"


def _print_lengths(console: Console, s: TrafficSummary) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 1))
    table.add_column("tokens", no_wrap=True)
    most = max(s.prompt.max, s.output.max)
    for name in ("mean", "p1", "p5", "p25", "p50", "p75", "p95", "p99", "max"):
        table.add_column(name, justify="right", no_wrap=True, min_width=len(f"{most:,}"))
    for name, figures in (("prompt", s.prompt), ("output", s.output)):
        table.add_row(name, *_lengths(figures))
    console.print()
    console.print(table)


def _lengths(f: LengthFigures) -> list[str]:
    return [
        _figure(f.mean, 1 if f.mean < 1000 else 0),
        *(_figure(q, 0) for q in (f.p1, f.p5, f.p25, f.p50, f.p75, f.p95, f.p99)),
        f"{f.max:,}",
    ]


def _print_figures(console: Console, s: TrafficSummary) -> None:
    rows = [
        ("requests", f"{s.requests:,}", "interarrival CV (Poisson 1)", _figure(s.interarrival_cv, 2)),
        ("span (s)", _figure(s.span_s), "index of dispersion, 1 s (Poisson 1)", _figure(s.dispersion_1s, 2)),
        ("requests/s", _figure(s.requests_per_s, 3), "  10 s", _figure(s.dispersion_10s, 2)),
        ("prompt tokens/s", _figure(s.prompt_tokens_per_s), "  60 s", _figure(s.dispersion_60s, 2)),
        ("output tokens/s", _figure(s.output_tokens_per_s), "peak to mean, 1 s", _figure(s.peak_to_mean_1s, 2)),
        ("prompt tokens (% of all)", _figure(s.prefill_share, 2, 100), "  10 s", _figure(s.peak_to_mean_10s, 2)),
        ("prompt/output rank correlation", _figure(s.rank_correlation, 3), "  60 s", _figure(s.peak_to_mean_60s, 2)),
        (
            "  of the logarithms",
            _figure(s.log_correlation, 3),
            "longest silence (s)",
            _significant(s.longest_silence_s),
        ),
        ("", "", "at the instant of another (%)", _figure(s.same_instant_share, 2, 100)),
    ]
    if s.clients is not None:
        top = f"{_figure(s.top_1_percent_clients_share, 1, 100)} / {_figure(s.top_10_percent_clients_share, 1, 100)}"
        rows.append(("clients", f"{s.clients:,}", "top 1 / 10 % of clients send (%)", top))
    if s.sessions is not None:
        turns = f"{_figure(s.turns_mean, 2)} / {_figure(s.turns_p95, 0)} / {s.turns_max:,}"
        rows.append(("sessions", f"{s.sessions:,}", "turns of a session, mean / p95 / max", turns))
    console.print()
    console.print(_pairs(rows))


def _print_demand(console: Console, need: Demand, service: str, tbt_ms: float) -> None:
    def workers(number: int | None) -> str:
        return "-" if number is None else f"{number:,}"

    rows = [
        ("share of one worker, mean rate (%)", _figure(need.mean, 1, 100), "workers", workers(need.workers_mean)),
        ("  busiest minute (%)", _figure(need.busiest_minute, 1, 100), "", workers(need.workers_busiest_minute)),
    ]
    capacity = f"{need.capacity_tokens_per_s:,.0f} tokens/s"
    console.print(Text(f"\non {service} with a TBT target of {tbt_ms:g} ms: {capacity} a worker", "bold"))
    console.print(_pairs(rows))
    console.print(Text(f"workers: for load {TARGET_LOAD:g}; KV memory and the terms beside the curve are left out"))


def _pairs(rows: list[tuple[str, str, str, str]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2), show_header=False)
    for justify in ("left", "right", "left", "right"):
        table.add_column(justify=justify)
    for row in rows:
        table.add_row(*row)
    return table
