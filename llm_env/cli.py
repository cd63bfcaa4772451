"""The command line `python -m llm_env`: arguments to settings, settings to one run, a run to a table.

Every mistake of a user ends as one `error: ...` and an exit code: 0 done, 1 a bug, 2 bad input, 3 input or output
failed, 4 a requirement was missed, 130 and 143 stopped by a signal.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from baselines import parse_parameters
from llm_env.command import exit_code, output_console
from llm_env.commands.arguments import integer, number
from llm_env.commands.lists import print_policies, print_scenarios
from llm_env.commands.sizing import add_sizing
from llm_env.commands.sweep import add_sweep
from llm_env.commands.timeline import add_timeline, check_timeline, write_timeline_of
from llm_env.commands.tune import add_tune
from llm_env.commands.workload import add_workload
from llm_env.config import EpisodeSettings, Scenario, SystemSettings, with_changes
from llm_env.errors import UserError
from llm_env.files import staged_folder
from llm_env.metrics import EVERYTHING, Summary, summarise
from llm_env.scenarios import (
    check_changes_of_trace,
    load_scenario,
    parse_changes,
    service_like,
)
from llm_env.simulate import FILES, all_parameters, checked_policy, simulate, summary_json, write_run
from llm_env.workload import concrete, draw_workload, read_requests, refuse_rate

TRACE_SLOTS = 4096  # running requests of a worker without a scenario: the policy's own limit decides
TRACE_HORIZON_S = 1e9  # the largest there is: a trace is run to its end


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code (see `llm_env.command.exit_code`); errors go to stderr."""

    def run() -> None:
        arguments = _parser().parse_args(argv)
        arguments.run(arguments)

    return exit_code(run)


# ---- arguments -----------------------------------------------------------------------------------------------------
class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message.removeprefix("argument "))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m llm_env", description="Simulates LLM serving.", allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_calibrate(commands)
    _add_validate(commands)
    add_workload(commands)
    add_tune(commands)
    add_sizing(commands)
    add_sweep(commands)
    add = commands.add_parser(
        "simulate",
        help="one run of one policy over a trace or a scenario",
        description="One run of one policy over a trace or a scenario: prints a summary; with --out also writes every"
        " request and every batch.",
        epilog="exit codes: 0 done, 1 a bug, 2 bad input, 3 input or output failed, 130 interrupted",
        allow_abbrev=False,
    )
    add.set_defaults(run=_simulate)
    what = add.add_argument_group("workload and system")
    what.add_argument(
        "--trace",
        metavar="FILE",
        help="CSV or JSON lines of any known format, plain or gzip (docs/traces.md). All of it is run and measured."
        " Without --scenario: default service, SLO and one worker, unlimited KV memory",
    )
    what.add_argument("--scenario", metavar="NAME|TOML", help="a shipped scenario, or a file that ends with .toml")
    what.add_argument("--seed", type=integer(0, 2**63 - 1), default=0, help="of the workload and the service noise")
    what.add_argument(
        "--time-scale",
        type=number(0, 1e9, above=True),
        metavar="F",
        help="multiply a trace's times (2: half its rate)",
    )
    what.add_argument(
        "--load", type=number(0, 10, above=True), metavar="F", help="rate of a scenario as a share of its capacity"
    )
    what.add_argument(
        "--service",
        metavar="C,A,B0|PRESET|FILE",
        help="setup ms, ms per token, free tokens: 45.5,0.30,64; or a preset with all its terms; or the line that fits"
        " it best, as PRESET:linear; or a file: the service of a scenario (.toml), a table tokens,ms (.csv). Noise"
        " stays as the scenario has it",
    )
    what.add_argument("--kv-blocks", type=integer(1, 100_000_000), metavar="N", help="KV blocks of each worker")
    what.add_argument(
        "--kv-watermark", type=number(0, 0.999), metavar="F", help="share kept free at admission, not the policy's own"
    )
    what.add_argument("--workers", type=integer(1, 64), metavar="N", help="workers that pull from one queue")
    what.add_argument("--ttft-ms", type=number(0, 1e9, above=True), metavar="MS", help="TTFT target of every class")
    what.add_argument("--tbt-ms", type=number(0, 1e9, above=True), metavar="MS", help="TBT target of every class")
    what.add_argument(
        "--change",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="any setting of the scenario, like system.layout=disaggregated system.prefill_workers=2",
    )
    how = add.add_argument_group("policy")
    how.add_argument("--policy", metavar="NAME", default="sarathi", help="see --list-policies (default: sarathi)")
    how.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="parameters of the policy"
    )
    give = add.add_argument_group("output")
    give.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        help="write requests.csv.gz, batches.csv.gz, summary.json and scenario.toml here",
    )
    add_timeline(give)
    give.add_argument("--json", action="store_true", help="print the summary as JSON, in seconds, instead of a table")
    give.add_argument("--list-policies", action="store_true", help="print every policy and routing rule and stop")
    give.add_argument("--list-scenarios", action="store_true", help="print every scenario and service preset and stop")
    return parser


# ---- simulate ------------------------------------------------------------------------------------------------------
def _simulate(arguments: argparse.Namespace) -> None:
    console = output_console()
    if arguments.list_policies or arguments.list_scenarios:
        if arguments.list_policies:
            print_policies(console)
        if arguments.list_scenarios:
            print_scenarios(console)
        return
    check_timeline(arguments)
    policy, parameters = arguments.policy, parse_parameters(arguments.policy, arguments.set)
    scenario, requests = _problem(arguments)
    decide = checked_policy(scenario, policy, parameters)
    window = EVERYTHING if arguments.trace else (None, None)
    run = {
        "policy": policy,
        "parameters": all_parameters(policy, parameters),
        "seed": arguments.seed,
        "scenario": scenario.name,
        "trace": arguments.trace,
        "time_scale": (arguments.time_scale or 1.0) if arguments.trace else None,
    }
    remark = write_timeline_of(arguments, scenario, decide, requests, run)

    if arguments.out is None:
        state = simulate(scenario, requests, policy, parameters, arguments.seed, in_place=True)
        summary = summarise(state, scenario, *window)
    else:
        with staged_folder(arguments.out) as folder:
            state = simulate(scenario, requests, policy, parameters, arguments.seed, in_place=True)
            summary = summarise(state, scenario, *window)
            write_run(folder, state, scenario, summary, run)
    if arguments.json:
        sys.stdout.write(summary_json(summary, run) + "\n")
    else:
        _print_summary(console, summary, run, scenario)
        if arguments.out is not None:
            console.print(Text(f"\n{', '.join(FILES)} are in {arguments.out}"), soft_wrap=True)
        if remark:
            console.print(Text(f"\n{remark}"), soft_wrap=True)


def _problem(arguments: argparse.Namespace) -> tuple[Scenario, np.ndarray]:
    """The scenario with every override, and its requests."""
    if arguments.trace is None and arguments.scenario is None:
        raise UserError("simulate: give --trace FILE or --scenario NAME (--list-scenarios shows the names)")
    if arguments.trace is None and arguments.time_scale is not None:
        raise UserError("--time-scale: only for a --trace; the rate of a scenario is set with --load")
    if arguments.trace is not None and arguments.load is not None:
        raise UserError("--load: only for a --scenario without a --trace; use --time-scale")
    if arguments.trace is not None:
        check_changes_of_trace(arguments.change)
    scenario = _system(arguments)
    if arguments.load is not None:
        refuse_rate(scenario, "--load")
    scenario = concrete(scenario, arguments.seed)
    if arguments.trace is None:
        return scenario, draw_workload(scenario, arguments.seed)
    scale = 1.0 if arguments.time_scale is None else arguments.time_scale
    requests, report = read_requests(arguments.trace, scale, scenario.slo, arguments.seed, scenario.workload)
    for remark in report.remarks():
        sys.stderr.write(f"{arguments.trace}: {remark}\n")
    last_s = float(requests["arrival_s"].max()) if len(requests) else 0.0
    if last_s >= TRACE_HORIZON_S:
        raise UserError(
            f"{arguments.trace}: arrival_s: expected less than {TRACE_HORIZON_S:g} s, got {last_s:g}: times since 1970?"
            " `workload convert --start-s` makes them begin at 0"
        )
    until_s = float(np.nextafter(max(last_s, 1e-6), math.inf))
    episode = EpisodeSettings(warmup_s=0.0, arrivals_s=until_s, horizon_s=TRACE_HORIZON_S)
    return scenario.model_copy(update={"episode": episode}), requests


def _system(arguments: argparse.Namespace) -> Scenario:
    if arguments.scenario is not None:
        scenario = load_scenario(arguments.scenario)
    else:
        scenario = Scenario(name="trace", system=SystemSettings(max_running=TRACE_SLOTS))
    changes: dict[str, Any] = {
        path: value
        for path, value in (
            ("workload.load", arguments.load),
            ("system.kv.blocks", arguments.kv_blocks),
            ("system.kv.watermark", arguments.kv_watermark),
            ("system.workers", arguments.workers),
        )
        if value is not None
    } | parse_changes(arguments.change)
    if arguments.service is not None:
        changes["system.service"] = service_like(scenario, arguments.service)
    targets = {"ttft_ms": arguments.ttft_ms, "tbt_ms": arguments.tbt_ms}
    targets = {name: value for name, value in targets.items() if value is not None}
    if targets:
        changes["slo.classes"] = [{**c.model_dump(), **targets} for c in scenario.slo.classes]
    return with_changes(scenario, changes) if changes else scenario


# ---- calibrate -----------------------------------------------------------------------------------------------------
def _add_calibrate(commands: Any) -> None:
    add = commands.add_parser(
        "calibrate",
        help="fit the service time to measured batches",
        description="Fits the service time to a CSV file of measured batches by least squares: setup, per token and"
        " free tokens, and a term for each optional column. Prints the fit, R^2 and the mean error.",
        epilog="exit codes: 0 done, 1 a bug, 2 bad input, 3 input or output failed, 130 interrupted",
        allow_abbrev=False,
    )
    add.set_defaults(run=_calibrate)
    add.add_argument(
        "file",
        metavar="FILE",
        type=Path,
        help="columns tokens,ms and optionally decodes, cached_tokens (of the decodes, before the batch) and"
        " prefill_context (sum of chunk tokens x context, the chunk included)",
    )
    add.add_argument(
        "--out", metavar="DIR", type=Path, help="write service.toml (for --service) and fit.png (the fit as a picture)"
    )


def _calibrate(arguments: argparse.Namespace) -> None:
    from llm_env.calibrate import FILES, calibrate  # here, because scipy and the plots take long to import

    console = output_console()
    fit = calibrate(arguments.file, arguments.out)
    table = Table(box=None, pad_edge=False, padding=(0, 2), show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name in fit.terms:
        table.add_row(name, f"{getattr(fit.service, name):.6g}")
    table.add_row("R^2", _figure(fit.r2, digits=6))
    table.add_row("mean absolute percentage error (%)", _figure(fit.mape, 100, 3))
    console.print(Text(f"fit to {len(fit.fitted_ms):,} batches of {arguments.file}", "bold"), soft_wrap=True)
    console.print(table)
    for name in fit.left_out:
        console.print(Text(f"{name}: the same in every batch, so its term was left out"))
    if arguments.out is not None:
        console.print(Text(f"\n{', '.join(FILES)} are in {arguments.out}"), soft_wrap=True)


# ---- validate ------------------------------------------------------------------------------------------------------
def _add_validate(commands: Any) -> None:
    add = commands.add_parser(
        "validate",
        help="compare the simulator with theory and with other engines",
        description="Runs every closed form, recursion, exact optimum and bound that the simulator is held to, and runs"
        " of other engines where they are found. Prints one table; writes the rows and a picture.",
        epilog="exit codes: 0 everything agrees, 1 a bug, 2 bad input, 3 input or output failed, 4 something does not"
        " agree, 130 interrupted",
        allow_abbrev=False,
    )
    add.set_defaults(run=_validate)
    add.add_argument("--fast", action="store_true", help="only cases of some seconds each; all take some minutes")
    add.add_argument(
        "--references",
        metavar="DIR",
        type=Path,
        help="folder with the runs vidur/ and vllm/ (default: ../shared/reference beside the project, if it is there)",
    )
    add.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        default=Path("results/validate"),
        help="write validation.json and theory.png here (default: results/validate)",
    )


def _validate(arguments: argparse.Namespace) -> None:
    from llm_env.validate import validate  # here, because the plots take long to import

    validate(arguments.out, arguments.fast, arguments.references, output_console())


# ---- what is printed -----------------------------------------------------------------------------------------------
def _figure(value: float, factor: float = 1.0, digits: int = 1) -> str:
    return "-" if math.isnan(value) else f"{value * factor:,.{digits}f}"


def _print_summary(console: Console, s: Summary, run: dict[str, Any], scenario: Scenario) -> None:
    """Title, times, and everything else in two columns."""
    given = " ".join(f"{name}={str(value).lower()}" for name, value in run["parameters"].items())
    console.print(Text(f"{run['policy']} {given}".strip(), "bold"))
    console.print(Text(f"on {run['trace'] or run['scenario']}, seed {run['seed']}"))
    if s.unstable:
        console.print(Text("unstable: the backlog grew through the whole window; the figures depend on its length"))
    times = Table("time", "unit", *("mean", "p50", "p95", "p99", "max"), box=None, pad_edge=False, padding=(0, 2))
    for column in times.columns[2:]:
        column.justify = "right"
    for label, name, unit, factor in (
        ("TTFT", "ttft", "ms", 1e3),
        ("TBT (every gap)", "tbt", "ms", 1e3),
        ("TPOT (per request)", "tpot", "ms", 1e3),
        ("E2E", "e2e", "s", 1.0),
        ("queueing delay", "queueing", "s", 1.0),
    ):
        values = [getattr(s, f"{name}_{which}_s", math.nan) for which in ("mean", "p50", "p95", "p99", "max")]
        times.add_row(label, unit, *(_figure(value, factor, 1 if unit == "ms" else 2) for value in values))
    console.print()
    console.print(times)
    console.print()
    targets = ", ".join(f"{c.ttft_ms:g} / {c.tbt_ms:g}" for c in scenario.slo.classes)
    rows = [
        ("requests measured", f"{s.num_requests:,}", "requests/s finished", _figure(s.requests_per_s, digits=3)),
        ("finished", f"{s.finished:,}", "tokens/s, prompt and output", _figure(s.tokens_per_s)),
        ("unfinished", f"{s.unfinished:,}", "tokens/s, output", _figure(s.output_tokens_per_s)),
        ("rejected", f"{s.rejected:,}", "makespan (s)", _figure(s.makespan_s, digits=2)),
        ("TTFT / TBT target (ms)", targets, "utilisation (%)", _figure(s.utilisation, 100, 2)),
        (f"SLO met, rule {s.slo_rule} (%)", _figure(s.slo_attainment, 100, 2), "batches", f"{s.num_batches:,}"),
        ("  rule max (%)", _figure(s.slo_attainment_max, 100, 2), "tokens a batch", _figure(s.mean_batch_tokens)),
        ("  rule p99 (%)", _figure(s.slo_attainment_p99, 100, 2), "requests a batch", _figure(s.mean_batch_requests)),
        (
            "  rule deadline (%)",
            _figure(s.slo_attainment_deadline, 100, 2),
            "prefill tokens (%)",
            _figure(s.prefill_share, 100, 2),
        ),
        (
            "TTFT met (%)",
            _figure(s.ttft_attainment, 100, 2),
            "mean queue (requests)",
            _figure(s.mean_num_waiting, 1, 2),
        ),
        (
            "goodput (requests/s)",
            _figure(s.goodput_per_s, digits=3),
            "KV used, mean / max (%)",
            f"{_figure(s.kv_used_mean, 100)} / {_figure(s.kv_used_max, 100)}",
        ),
        ("without a first token", f"{s.num_without_first_token:,}", "evictions", f"{s.evictions:,}"),
        (
            "batch tokens of SLO budget (%)",
            _figure(s.slo_budget_share, 100),
            "prefill / decode / idle (%)",
            " / ".join(_figure(share, 100) for share in (s.prefill_time_share, s.decode_time_share, s.idle_time_share)),
        ),
    ]
    other = Table(box=None, pad_edge=False, padding=(0, 2), show_header=False)
    for justify in ("left", "right", "left", "right"):
        other.add_column(justify=justify)
    for row in rows:
        other.add_row(*row)
    console.print(other)
