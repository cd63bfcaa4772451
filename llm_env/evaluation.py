"""`python evaluate.py`: arguments, the study, its tables, and the files it leaves behind."""

from __future__ import annotations

import dataclasses
import math
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console

from llm_env.aggregate import Bounds, Row, aggregate, best_baseline, study_bounds
from llm_env.cell_store import FOLDER, CellStore
from llm_env.command import exit_code, output_console, progress_bar
from llm_env.errors import RequirementError, UserError, join_problems
from llm_env.files import staged_folder
from llm_env.plots import highlighted, plot_attainment, plot_batches, plot_distributions
from llm_env.prices import Price
from llm_env.replications import precise_enough, with_warmup
from llm_env.report.page import report
from llm_env.requirements import missed_requirements, parse_requirement
from llm_env.scenarios import check_changes_of_trace, load_scenario
from llm_env.study import (
    AHEAD,
    FIRST_REPORTED_SEED,
    STANDARD_BASELINES,
    CellResult,
    Store,
    Study,
    agent_contender,
    baseline_contender,
    looking_ahead,
    run_study,
    sort_cells,
    trace_remarks,
)
from llm_env.study_files import results_of, to_json, write_study, write_times
from llm_env.tables import UNSTABLE, difference_table, slo_table, time_table, usage_table
from llm_env.trainings import trainings
from llm_env.tuned import tuned_policies
from llm_env.what_if import Effect, changed_study, effects, effects_table
from llm_env.workload import WHOLE, checked_trace_settings, is_closed, refuse_rate


@dataclass(frozen=True)
class Arguments:
    """Compares agents and baselines on identical seeded workloads, or on a real trace.

    Prints SLO attainment with 95 % intervals and paired differences to the best baseline; writes results.json,
    cells.csv, requests.csv.gz, scenario.toml, report.html and plots.
    """

    agents: tuple[str, ...] = ()
    """Names of --list-agents, run folders of train.py, or folders of exported agents. A name comes before a folder in
    the working directory; ./NAME is that folder."""

    list_agents: bool = False
    """Show the agents that come with the package, and end."""

    trust_pickle: bool = False
    """Also read agents that Stable-Baselines3 saved as model.zip. These hold pickles: reading one runs whatever code
    its maker put there."""

    baselines: tuple[str, ...] = ("all",)
    """"all", "none", "tuned" (all that were tuned for the scenario), or policies, with parameters like
    sarathi:token_budget=1024,max_running=64, for short sarathi:1024 or sarathi:slo, or tuned ones: sarathi@tuned; with
    a routing rule like sarathi/score (llm_env/router.py)."""

    lookahead: tuple[str, ...] = ()
    """Policies, written as in --baselines, to plan ahead from: with and without it they are contenders
    (docs/lookahead.md)."""

    clairvoyant: tuple[str, ...] = ()
    """The same with the true future: a bound on what planning could gain, and no policy."""

    scenario: str = "chat-bursty"
    """A shipped scenario's name or a TOML file: system, promises, traffic."""

    change: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY=VALUE ...")] = ()
    """Settings of the scenario to change, like system.workers=4 system.router=least-tokens."""

    loads: tuple[float, ...] = ()
    """Loads to compare at; the scenario's own, or the trace as it is, if none is given."""

    seeds: Annotated[int, tyro.conf.arg(metavar="N")] = 16
    """How many seeds, each one workload that all policies meet."""

    precision: float | None = None
    """Add seeds until half of each 95 % interval is within this share of its mean (of 0.1 where that is smaller)."""

    most_seeds: int = 1000
    """Where --precision gives up."""

    warmup_s: str | None = None
    """Measure arrivals from then on: seconds, or "auto" to find them by MSER-5; the scenario's own by default."""

    first_seed: int = FIRST_REPORTED_SEED
    """The first of them. From 2,000,000 on seeds are for reporting; do not train or tune on these."""

    trace: str | None = None
    """A trace file to run whole in place of the scenario's traffic; 20 blocks of it take the place of seeds."""

    time_scale: float = 1.0
    """Factor on the trace's arrival times: 2 halves the rate."""

    trace_part: Annotated[tuple[float, float], tyro.conf.arg(metavar="FROM TO")] = WHOLE
    """Run the trace between these shares of its time alone: 0.7 1 is what train.py --trace-part 0 0.7 has not seen."""

    out: str = "results/latest"
    """Folder for the results."""

    fresh: bool = False
    """Compute everything anew. Cells of a study that are in --out already, from the same settings and code, are
    otherwise taken from there: what was stopped goes on, and more seeds or policies cost only what is new."""

    bound: bool = False
    """Also show attainment as a share of what no policy can pass on the same workloads (llm_env/bounds.py)."""

    usage: bool = False
    """Also show what the workers' time went into (prefill, decode, idle), how full batches were, and evictions."""

    price: float | None = None
    """Of a GPU for an hour: also measure what a million tokens and a thousand requests that met their SLO cost."""

    gpus_per_worker: Annotated[int, tyro.conf.arg(metavar="N")] = 1
    """That one worker stands for; only with --price."""

    what_if: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY=VALUE[;KEY=VALUE] ...")] = ()
    """Also run the same requests on a changed system, once for each: system.kv.blocks=64100, "system.workers=2;
    system.router=shortest-queue", slo.classes.0.ttft_ms=1000, or service=PRESET, and tell what the change makes."""

    require: Annotated[tuple[str, ...], tyro.conf.arg(name="assert", metavar="POLICY.MEASURE>=VALUE ...")] = ()
    """Exit with 4 if one of these does not hold at every load, like agent:mine.slo_attainment>=0.9; measures are the
    fields of a row of results.json."""

    json: bool = False
    """Print results.json in place of the tables."""

    engine: Literal["local"] = "local"
    """Who runs the cells. local: processes of this machine."""

    processes: int = field(default_factory=lambda: os.cpu_count() or 1)
    """Parallel processes. The results do not depend on it."""


def main(argv: list[str] | None = None) -> int:
    """Runs the command. Returns the exit code (see `llm_env.command.exit_code`)."""
    return exit_code(lambda: _run(tyro.cli(Arguments, args=argv, prog="evaluate.py")))


def _run(arguments: Arguments) -> int:
    if arguments.list_agents:
        _list_agents()
        return 0
    study = make_study(arguments)
    for text in arguments.what_if:
        changed_study(study, text)  # which says at once what is wrong
    requirements = [parse_requirement(text, study) for text in arguments.require]
    for remark in trace_remarks(study):
        sys.stderr.write(f"{remark}\n")
    if arguments.warmup_s is not None:
        study, remarks = with_warmup(study, arguments.warmup_s, arguments.processes)
        for remark in remarks:
            sys.stderr.write(f"{remark}\n")
    bounds = study_bounds(study) if arguments.bound else None
    console = output_console()
    with staged_folder(arguments.out) as folder:
        began = time.monotonic()
        first_seeds = study.seeds
        study, rows, cells, kept = _run_to_precision(study, arguments)
        if bounds is not None and study.seeds != first_seeds:
            bounds = study_bounds(study)
        changes = [effect for text in arguments.what_if for effect in _run_what_if(study, rows, cells, text, arguments)]
        seconds = time.monotonic() - began
        results = results_of(study, rows, cells, asdict_of(arguments), bounds)
        several = trainings(study, rows, cells)
        if several:
            results["trainings"] = [each.to_dict() for each in several]
        if changes:
            results["what_if"] = [effect.to_dict() for effect in changes]
        write_study(folder, study, cells, results, repeating(arguments))
        if kept < len(cells):  # else the times of the study are those of before
            write_times(folder, seconds, len(cells) - kept, arguments.processes)
        page = report(study, rows, cells, results, repeating(arguments))
        (folder / "report.html").write_text(page, encoding="utf-8", newline="\n")
        (folder / "plots").mkdir()
        draw(study, rows, cells, folder / "plots")
    missed = missed_requirements(requirements, rows)
    if arguments.json:
        sys.stdout.write(to_json(results))
    else:
        print_tables(study, rows, console, bounds, arguments.usage)
        for each in several:
            console.print(each.text(), highlight=False)
        for load in study.load_labels() if changes else ():
            at = "" if load is None else f" at load {load:g}"
            title = f"{_where(study)}{at}: the same requests on a changed system"
            console.print(effects_table([e for e in changes if e.row.load == load], title))
        _say_where(console, arguments, len(cells), kept, seconds)
    if missed:
        raise RequirementError(join_problems(missed))
    return 0


def _run_to_precision(study: Study, arguments: Arguments) -> tuple[Study, list[Row], list[CellResult], int]:
    """Runs the study, and with --precision half as many seeds again until it is reached.

    Returns:
        The study with all seeds, its rows and cells, and how many of these were there before.
    """
    kept = None
    while True:
        store = CellStore(Path(arguments.out) / FOLDER, study)
        known = [] if arguments.fresh and kept is None else store.found()
        kept = len(known) if kept is None else kept
        cells = _run_with_progress(study, arguments.processes, store, known)
        rows = aggregate(study, cells)
        if arguments.precision is None or precise_enough(rows, arguments.precision):
            return study, rows, cells, kept
        more = min(len(study.seeds) + (len(study.seeds) + 1) // 2, arguments.most_seeds)
        if more <= len(study.seeds):
            sys.stderr.write(f"precision: not reached with {len(study.seeds)} seeds (--most-seeds)\n")
            return study, rows, cells, kept
        seeds = tuple(range(arguments.first_seed, arguments.first_seed + more))
        study = dataclasses.replace(study, seeds=seeds)


def _run_what_if(
    study: Study, rows: list[Row], cells: list[CellResult], text: str, arguments: Arguments
) -> list[Effect]:
    changed = changed_study(study, text)
    store = CellStore(Path(arguments.out) / FOLDER, changed)
    known = [] if arguments.fresh else store.found()
    return effects(study, rows, cells, text, changed, _run_with_progress(changed, arguments.processes, store, known))


def _say_where(console: Console, arguments: Arguments, cells: int, known: int, seconds: float) -> None:
    kept = f", {known} of them kept from before" if known else ""
    told = f"{cells} cells in {seconds:.1f} s{kept}; results in {arguments.out}"
    console.print(told, highlight=False, soft_wrap=True)


NO_RESULTS = ("engine", "processes", "fresh", "json", "usage")  # arguments on which no result depends


def asdict_of(arguments: Arguments) -> dict[str, Any]:
    """The arguments that results depend on, and where they lie."""
    return {name: value for name, value in dataclasses.asdict(arguments).items() if name not in NO_RESULTS}


def repeating(arguments: Arguments) -> list[str]:
    """The words of the command that gives these results."""
    words = ["python", "evaluate.py"]
    for name in (each.name for each in dataclasses.fields(arguments) if each.name not in NO_RESULTS):
        value, default = getattr(arguments, name), getattr(Arguments(), name)
        if value == default:
            continue
        words.append("--assert" if name == "require" else f"--{name.replace('_', '-')}")
        if value is not True:
            words += [str(each) for each in (value if isinstance(value, tuple) else (value,))]
    return words


def _list_agents() -> None:
    from agents.shipped import about, shipped_names

    console = output_console()
    for name in shipped_names():
        console.print(f"{name}: {about(name)}", highlight=False, markup=False)
    if not shipped_names():
        console.print("no agents come with this package")


def make_study(arguments: Arguments) -> Study:
    """The checked study that the arguments ask for.

    Raises:
        UserError: an unknown policy, agent or scenario, or a number out of range.
    """
    if not 1 <= arguments.seeds <= 1_000_000:
        raise UserError(f"seeds: expected 1 to 1000000, got {arguments.seeds}")
    if arguments.first_seed < 0:
        raise UserError(f"first-seed: expected at least 0, got {arguments.first_seed}")
    if arguments.precision is not None and not 0 < arguments.precision < 1:
        raise UserError(f"precision: expected more than 0 and less than 1, got {arguments.precision:g}")
    if arguments.precision is not None and (arguments.trace is not None or arguments.seeds < 2):
        raise UserError("precision: needs at least 2 seeds, and no trace, whose blocks are all there are")
    if not 1 <= arguments.most_seeds <= 1_000_000:
        raise UserError(f"most-seeds: expected 1 to 1000000, got {arguments.most_seeds}")
    if not 1 <= arguments.processes <= 1024:
        raise UserError(f"processes: expected 1 to 1024, got {arguments.processes}")
    for load in arguments.loads:
        if not (math.isfinite(load) and 0 < load <= 10):
            raise UserError(f"loads: expected numbers above 0 and up to 10, got {load:g}")
    if len(set(arguments.loads)) != len(arguments.loads):
        raise UserError(f"loads: one is given twice: {' '.join(f'{x:g}' for x in arguments.loads)}")
    if arguments.price is None and arguments.gpus_per_worker != 1:
        raise UserError("gpus-per-worker: only with --price")
    price = None if arguments.price is None else Price(arguments.price, arguments.gpus_per_worker)
    trace_part = checked_trace_settings(arguments.trace, arguments.time_scale, arguments.trace_part)
    if arguments.trace is not None:
        check_changes_of_trace(arguments.change)
    scenario = load_scenario(arguments.scenario, arguments.change)
    if arguments.loads and arguments.trace is None:
        refuse_rate(scenario, "loads")
    contenders = []
    for path in arguments.agents:
        contenders.append(agent_contender(path, {c.label for c in contenders}, arguments.trust_pickle))
    for spec in (*_specs(arguments.baselines, scenario.name), *arguments.lookahead, *arguments.clairvoyant):
        contender = baseline_contender(spec, scenario.name)
        if contender.label not in {c.label for c in contenders}:
            contenders.append(contender)
    for ahead, specs in zip(AHEAD, (arguments.lookahead, arguments.clairvoyant), strict=True):
        if specs and arguments.trace is not None:
            raise UserError(f"{ahead}: the laws of a trace's lengths are not known: leave --trace out")
        contenders += [
            looking_ahead(baseline_contender(spec, scenario.name), ahead, scenario) for spec in dict.fromkeys(specs)
        ]
    seeds = tuple(range(arguments.first_seed, arguments.first_seed + arguments.seeds))
    loads = tuple(sorted(arguments.loads))
    trace = (arguments.trace, arguments.time_scale, trace_part)
    return Study(scenario, tuple(contenders), loads, seeds, *trace, price=price)


def _specs(given: tuple[str, ...], scenario: str) -> tuple[str, ...]:
    groups = {"none": (), "all": STANDARD_BASELINES}
    if "tuned" in given:
        groups["tuned"] = tuple(f"{name}@tuned" for name in tuned_policies(scenario))
        if not groups["tuned"]:
            raise UserError(f"baselines: nothing was tuned for scenario {scenario} (python -m llm_env tune)")
    return tuple(spec for name in given for spec in groups.get(name, (name,)))


def _run_with_progress(study: Study, processes: int, store: Store, known: list[CellResult]) -> list[CellResult]:
    cells = list(known)
    done_before = {(cell.load, cell.contender, cell.seed) for cell in known}
    with progress_bar("evaluating") as tell:
        for done, total, new in run_study(study, processes, store, done_before):
            cells += new
            tell(done, total)
    return sort_cells(study, cells)


# ---- what is shown -------------------------------------------------------------------------------------------------
def print_tables(
    study: Study, rows: list[Row], console: Console, bounds: Bounds | None = None, usage: bool = False
) -> None:
    """The tables of every load, and how to read them.

    Args:
        bounds: of `study_bounds`, for one more column.
        usage: show the table of what workers did, which is there in any case where the study has a price.
    """
    usage = usage or study.price is not None
    rule = study.scenario.slo.rule
    for load in study.load_labels():
        mine = [row for row in rows if row.load == load]
        where = _where(study)
        at = "" if load is None else f" at load {load:g}"
        kind = "blocks of one run" if study.trace else "seeds"
        if mine[0].empty_seeds:
            console.print(f"{mine[0].empty_seeds} of {len(study.seeds)} seeds had no measured request and are left out")
        bound = bounds[load][rule] if bounds is not None else None
        console.print(slo_table(mine, f"{where}{at}: {mine[0].replications} {kind}", rule, bound))
        if bound is not None:
            text = f"bound: no policy can pass {100 * bound:.1f} % here under rule {rule}, whatever its batches"
            console.print(text, highlight=False)
        if study.weighted or bound is not None:  # then the first table has no room for all of it
            console.print(difference_table(mine, f"{where}{at}: differences to the best baseline"))
        console.print(time_table(mine, f"{where}{at}: times and throughput"))
        if usage:
            console.print(usage_table(mine, f"{where}{at}: what the workers did{_priced(study)}"))
    slo = study.scenario.slo
    same = "same users and thoughts, who ask when they are answered" if is_closed(study.scenario) else "same requests"
    weights = [f", weight {c.weight:g}" if slo.weighted else "" for c in slo.classes]
    drawn = ", ".join(entry.label for entry in study.scenario.vary)
    vary = f" Drawn for each seed, and what is stated here is not that of an episode: {drawn}." if drawn else ""
    promises = [f"{c.name}: TTFT {c.ttft_ms:g} ms, TBT {c.tbt_ms:g} ms" for c in slo.classes]
    targets = "; ".join(map("".join, zip(promises, weights, strict=True)))
    weighted = study.weighted
    ranked = " By weight: of the classes' weights, under that rule; it ranks and is compared." if weighted else ""
    console.print(
        f"SLO {targets}.{vary} * is the scenario's rule.{ranked} ± is half a 95 % t-interval; differences are paired"
        f" ({same}, same noise), p is that of their sign-flip test. Unfinished and rejected requests are misses. The"
        " best baseline is chosen on these same workloads. Percentiles are means over seeds of each seed's percentile."
        + (f" {UNSTABLE} unstable: the backlog grew all through the run." if any(r.unstable for r in rows) else "")
        + (" Of SLO: tokens of a batch by the most within the tightest TBT target." if usage else ""),
        highlight=False,
    )


def _priced(study: Study) -> str:
    """For a title: at which price."""
    if study.price is None:
        return ""
    gpus = study.price.gpus_per_worker
    return f", at {study.price.per_gpu_hour:g} per GPU-hour, {gpus} GPU{'s' if gpus > 1 else ''} a worker"


def _where(study: Study) -> str:
    """What the study ran on, for titles."""
    if study.trace is None:
        return study.scenario.name
    start, end = study.trace_part
    return Path(study.trace).name + ("" if study.trace_part == WHOLE else f" from {start:g} to {end:g}")


def draw(study: Study, rows: list[Row], cells: list[CellResult], folder: Path) -> None:
    """The pictures, as PNG files in a folder."""
    scenario, where = study.scenario, _where(study)
    plot_attainment(rows, folder / "attainment.png", scenario, where)
    for load in study.load_labels():
        name = "distributions.png" if load is None else f"distributions-load-{load:g}.png"
        plot_distributions(cells, [r for r in rows if r.load == load], load, folder / name, scenario, where)
    load = study.load_labels()[-1]
    at_load = [r for r in rows if r.load == load]
    names = [row.contender for row in at_load if row.is_agent][:2]
    names += [name for name in (best_baseline(rows, load), "sarathi", "vllm-v0") if name]
    present = {row.contender for row in at_load}
    names = [name for name in dict.fromkeys([*names, *highlighted(at_load)]) if name in present][:4]
    plot_batches([c for c in cells if c.load == load], names, folder / "batches.png", scenario, where)
