"""A study: every contender on identical seeded workloads, in parallel processes, to one table of cells.

A contender is a baseline with parameters ("sarathi:1024", "sarathi:slo,max_running=64"), with those that tuning found
for the scenario ("sarathi@tuned"), also with a routing rule of its own ("sarathi/score", "sarathi@tuned/score@tuned"),
or a trained agent (a folder).
A cell is one contender at one load with one seed. On a trace run whole, consecutive blocks of requests take the place
of seeds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

import baselines
from baselines.lookahead import Lookahead, run_lookahead
from llm_env.config import Scenario, refuse_varying, with_changes
from llm_env.dtypes import ROUTERS, SLO_RULES
from llm_env.errors import UserError
from llm_env.futures import refuse
from llm_env.metrics import WEIGHTED, block_values, slo_marks, summarise
from llm_env.prices import Price
from llm_env.processes import shared_out
from llm_env.records import State
from llm_env.rollout import rollout
from llm_env.tuned import tuned_parameters, tuned_router
from llm_env.workload import (
    WHOLE,
    ReadReport,
    at_load,
    concrete,
    draw_workload,
    is_closed,
    read_requests,
    request_rate,
)

FIRST_REPORTED_SEED = 2_000_000  # seeds from here on are for reported results; nobody trains or tunes on them
MAX_SECONDS = 1e9  # the longest episode that settings take
TRACE_BLOCKS = 20  # of a trace run whole, for batch-means intervals

# "all" baselines: those that suit one shared queue of requests that say nothing of themselves, each with its engine's
# own setting, and once more with the budget derived from the TBT target where it has one. The others are named one by
# one: they need pools, clients, predictions or weights to show what they do, or study one question of batching.
STANDARD_BASELINES = (
    "fcfs",
    "request-level",
    "orca",
    "vllm-v0",
    "vllm-v1",
    "vllm-v1:slo",
    "sarathi",
    "sarathi:slo",
    "sarathi-spf",
    "sarathi-spf:slo",
    "decode-first",
    "slack-fill",
    "moore-hodgson",
    "random",
)


RULES = tuple(rule for rule in ROUTERS if rule != "agent")  # of routing
LOOKAHEAD, CLAIRVOYANT = AHEAD = ("lookahead", "clairvoyant")


class Contender(NamedTuple):
    """Who competes: a baseline with its parameters, or an agent's folder."""

    label: str
    policy: str  # name of a baseline, or "" for an agent
    parameters: tuple[tuple[str, Any], ...]
    agent: str  # name or folder of an agent, or "" for a baseline
    router: str = ""  # the routing rule it is run with, "" for the scenario's
    weights: tuple[tuple[str, Any], ...] | None = None  # of that rule, `system.routing`; None for the scenario's
    trusted: bool = False  # the agent may be a file that runs code when it is read
    ahead: str = ""  # one of AHEAD: the baseline is what looking ahead begins from

    @property
    def is_bound(self) -> bool:
        """It knows the future: what it attains is a bound, and no policy could."""
        return self.ahead == CLAIRVOYANT


def baseline_contender(spec: str, scenario: str = "") -> Contender:
    """A contender from "name", "name:key=value,key=value" or "name@tuned"; "slo" or a number alone is the token_budget.

    Args:
        spec: parameters that are given beside "@tuned" hold in place of the tuned ones.
        scenario: the name of the scenario for which "@tuned" was found.

    "/router" at its end is the routing rule (`system.router`) that it is run with in place of the scenario's.

    Raises:
        UserError: unknown policy, parameter or router, a bad value, or nothing was tuned for the scenario.
    """
    policy, slash, rule = spec.partition("/")
    router, router_at, router_mark = rule.partition("@")
    if slash and router not in RULES:
        raise UserError(f"{spec}: router: expected one of {', '.join(RULES)}, got {router!r}")
    plain, at, mark = policy.partition("@")
    for sign, word in ((at, mark), (router_at, router_mark)):
        if sign and word != "tuned":
            raise UserError(f'{spec}: after "@" expected "tuned", got {word!r}')
    weights = tuple(tuned_router(scenario, router).items()) if router_at else None
    name, _, rest = plain.partition(":")
    parts = [part.strip() for part in rest.split(",") if part.strip()]
    texts = [f"token_budget={part}" if part == "slo" or part.isdecimal() else part for part in parts]
    given = baselines.parse_parameters(name, texts)
    parameters = tuned_parameters(scenario, name) | given if at else given
    baselines.make_policy(name, **parameters)
    return Contender(spec, name, tuple(parameters.items()), "", router, weights)


def looking_ahead(base: Contender, ahead: str, scenario: Scenario) -> Contender:
    """The planner that begins from a baseline. Args: ahead: one of AHEAD.

    Raises:
        UserError: the scenario is none in which it can plan (`llm_env.futures.refuse`).
    """
    refuse(scenario)
    label = f"lookahead({base.label})" if ahead == LOOKAHEAD else f"bound:clairvoyant({base.label})"
    return base._replace(label=label, ahead=ahead)


def agent_contender(path: str | Path, taken: set[str], trust_pickle: bool = False) -> Contender:
    """A contender from an agent of the package by its name, or from a folder; its label is that name, made unique.

    Args:
        path: see `agents.load`.
        taken: labels of others.
        trust_pickle: it may be a file of Stable-Baselines3, which runs code when it is read.

    Raises:
        UserError: no agent there, or a damaged one.
    """
    import agents

    agents.load(path, trust_pickle)
    label = name = f"agent:{Path(path).resolve().name}"
    number = 2
    while label in taken:
        label, number = f"{name}-{number}", number + 1
    return Contender(label, "", (), str(path), trusted=trust_pickle)


@dataclass(frozen=True)
class Study:
    """What is compared on what.

    Attributes:
        scenario: system, promises and traffic.
        contenders: in the order of the table.
        loads: of a scenario, or to which a trace is squeezed; empty: the scenario's own, or the trace as it is.
        seeds: one cell each; a trace uses the first, for service noise.
        trace: a file to run whole in place of drawn workloads.
        time_scale: factor on the trace's arrival times.
        trace_part: shares of the trace's time between which it is run.
        traffic: whose traffic the workloads are, at its rates, if not that of `scenario`; promises are of `scenario`.
        price: of a worker; None: costs are no measure. No run depends on it.
    """

    scenario: Scenario
    contenders: tuple[Contender, ...]
    loads: tuple[float, ...]
    seeds: tuple[int, ...]
    trace: str | None = None
    time_scale: float = 1.0
    trace_part: tuple[float, float] = WHOLE
    traffic: Scenario | None = None
    price: Price | None = None

    def __post_init__(self) -> None:
        if self.trace is not None:
            refuse_varying(self.scenario, "trace")

    @cached_property
    def weighted(self) -> bool:
        """True if in some episode a request of one class counts for more than one of another."""
        return any(concrete(self.scenario, seed).slo.weighted for seed in self.seeds)

    def cost_per_hour(self, seed: int) -> float:
        """Of all workers, of which episodes may have more or fewer; NaN without a price."""
        return float("nan") if self.price is None else self.price.per_hour(concrete(self.scenario, seed).system.workers)

    def load_labels(self) -> tuple[float | None, ...]:
        """The loads of the table; None stands for "as it is"."""
        return self.loads or (None,)


@dataclass
class CellResult:
    """One contender at one load with one seed."""

    load: float | None
    contender: str
    seed: int
    summary: dict[str, Any]
    requests: dict[str, np.ndarray]  # columns of requests.csv.gz, and slo_met under the scenario's rule
    gaps: np.ndarray  # (n, 2): gap in seconds, how often
    batches: np.ndarray = field(repr=False)  # BATCH log, empty but for the first seed
    blocks: dict[str, np.ndarray] = field(repr=False)  # attainment of blocks under each rule, and WEIGHTED, on a trace


# ---- one unit of work: a contender at a load with some seeds -------------------------------------------------------
@cache
def _read(path: str, time_scale: float, part: tuple[float, float], scenario: Scenario) -> tuple[np.ndarray, ReadReport]:
    return read_requests(path, time_scale, scenario.slo, workload=scenario.workload, part=part)


def _trace(study: Study) -> tuple[np.ndarray, ReadReport]:
    """The study's trace, read once in each process."""
    assert study.trace is not None
    return _read(study.trace, study.time_scale, study.trace_part, study.scenario)  # pyright: ignore[reportArgumentType]


def trace_remarks(study: Study) -> list[str]:
    """What was done to the trace when it was read, a line each; none if workloads are drawn.

    Raises:
        UserError: its content is wrong.
        InputOutputError: it cannot be read.
    """
    return [] if study.trace is None else _trace(study)[1].remarks()


def at_this_load(study: Study, load: float | None) -> tuple[Scenario, np.ndarray | None]:
    """The scenario at a load, and the trace at it (None if workloads are drawn from the scenario)."""
    if study.trace is None:
        return (study.scenario if load is None else with_changes(study.scenario, {"workload.load": load})), None
    requests = _trace(study)[0]
    requests = at_load(requests, study.traffic or study.scenario, load) if load is not None else requests.copy()
    requests["arrival_s"] -= requests["arrival_s"][0]  # when the log began is no matter
    end_s = float(requests["arrival_s"][-1])
    horizon_s = 2.0 * end_s + study.scenario.episode.horizon_s
    if horizon_s > MAX_SECONDS:
        raise UserError(f"{study.trace}: lasts {end_s:g} s after scaling, too long: at most {MAX_SECONDS / 2:g} s")
    episode = {"arrivals_s": end_s + 1.0, "warmup_s": 0.0, "horizon_s": horizon_s}
    return with_changes(study.scenario, {"episode": episode}), requests


def traffic_at(study: Study, load: float | None) -> Scenario:
    """The scenario whose workloads are run at a load."""
    if study.traffic is None:
        return at_this_load(study, load)[0]
    given = study.traffic if load is None else with_changes(study.traffic, {"workload.load": load})
    if given.slo != study.scenario.slo and not given.vary and not is_closed(given):
        given = with_changes(given, {"workload.rate_per_s": request_rate(given)})  # a load is one of its own promises
    return given.model_copy(update={"slo": study.scenario.slo})


def run_unit(study: Study, contender: Contender, load: float | None, seeds: tuple[int, ...]) -> list[CellResult]:
    """Runs one contender at one load with the given seeds; agents take all their seeds in one batch."""
    scenario, trace = at_this_load(study, load)
    if contender.router:
        scenario = with_changes(scenario, {"system.router": contender.router})
    if contender.weights is not None:
        scenario = with_changes(scenario, {"system.routing": dict(contender.weights)})

    def workload(seed: int) -> np.ndarray:
        return draw_workload(traffic_at(study, load), seed) if trace is None else trace

    if contender.agent:
        import agents
        from agents.routing_run import run_trained

        systems = run_trained(agents.load(contender.agent, contender.trusted), scenario, seeds, workload)
        states = [systems.state(e) for e in range(len(seeds))]
    else:
        decide = baselines.make_policy(contender.policy, **dict(contender.parameters))
        states = [_run(contender, decide, concrete(scenario, seed), workload(seed), seed) for seed in seeds]
    first = study.seeds[0]
    return [
        _result(study, concrete(scenario, seed), contender, load, seed, state, seed == first)
        for seed, state in zip(seeds, states, strict=True)
    ]


def _run(contender: Contender, decide: Any, scenario: Scenario, requests: np.ndarray, seed: int) -> State:
    if not contender.ahead:
        return rollout(scenario, decide, requests, seed, record=True)
    settings = Lookahead.bound() if contender.is_bound else Lookahead(seed=seed)
    return run_lookahead(scenario, decide, requests, seed, settings, record=True)[0]


def _result(
    study: Study, scenario: Scenario, contender: Contender, load: float | None, seed: int, state: State, keep: bool
) -> CellResult:
    system = state.system[0]
    requests = state.requests[: int(system["num_requests"])]
    by_row = requests[np.argsort(requests["row"], kind="stable")]
    columns = {name: by_row[name].copy() for name in REQUEST_COLUMNS}
    columns["slo_met"] = slo_marks(by_row, scenario.slo.rule)
    log = state.gap_log[: int(system["num_gaps"])]
    values, where = np.unique(log["gap_s"], return_inverse=True)
    counts = np.bincount(where, weights=log["count"], minlength=len(values))
    rules = SLO_RULES if study.trace else ()
    blocks = {rule: block_values(state, scenario, TRACE_BLOCKS, rule=rule) for rule in rules}
    if study.trace and study.weighted:
        blocks[WEIGHTED] = block_values(state, scenario, TRACE_BLOCKS, weighted=True)
    return CellResult(
        load,
        contender.label,
        seed,
        summarise(state, scenario).to_dict() | _hashes(state, by_row),
        columns,
        np.column_stack([values, counts]) if len(values) else np.zeros((0, 2)),
        state.batch_log[: int(system["num_batches"])].copy() if keep else state.batch_log[:0].copy(),
        blocks,
    )


WORKLOAD = ("prompt_tokens", "output_tokens", "ttft_target_s", "tbt_target_s", "weight", "slo_class")  # and arrivals

FINAL = (
    *("status", "computed_tokens", "emitted_tokens", "last_token_s", "first_scheduled_s", "first_token_s", "finish_s"),
    *("max_tbt_s", "late_gaps", "late_tokens", "evictions", "worker"),
)  # what a run has written of a request


def _hashes(state: State, by_row: np.ndarray) -> dict[str, str]:
    """What identifies what came in and what came out of a run, 16 hex digits each."""
    workload, final = hashlib.sha256(), hashlib.sha256()
    for name in ("arrival_s", *WORKLOAD):
        workload.update(np.ascontiguousarray(by_row[name]).tobytes())
    for name in FINAL:
        final.update(np.ascontiguousarray(by_row[name]).tobytes())
    for name in ("now_s", "busy_s", "epoch", "num_batches"):
        final.update(np.ascontiguousarray(state.system[name]).tobytes())
    return {"workload_sha256": workload.hexdigest()[:16], "final_sha256": final.hexdigest()[:16]}


REQUEST_COLUMNS = (
    "row",
    "arrival_s",
    "prompt_tokens",
    "output_tokens",
    "slo_class",
    "client",
    "status",
    "first_scheduled_s",
    "first_token_s",
    "finish_s",
    "max_tbt_s",
    "late_gaps",
    "evictions",
)


# ---- all of them ---------------------------------------------------------------------------------------------------
Piece = tuple[Contender, float | None, tuple[int, ...]]
Known = Collection[tuple[float | None, str, int]]  # load, label and seed of cells


class Store(Protocol):
    """Where cells are kept as soon as they are there; it goes to other processes."""

    def keep(self, cells: Iterable[CellResult]) -> None: ...


def units(study: Study, known: Known = ()) -> list[Piece]:
    """The study in pieces for processes: one contender, one load, some seeds. Args: known: cells that are left out."""
    all_seeds = study.seeds[:1] if study.trace else study.seeds
    pieces = []
    for load in study.load_labels():
        for contender in study.contenders:
            seeds = tuple(seed for seed in all_seeds if (load, contender.label, seed) not in known)
            size = max(1, len(seeds) if contender.agent else -(-len(seeds) // 2))
            pieces += [(contender, load, seeds[k : k + size]) for k in range(0, len(seeds), size)]
    return pieces


def run_and_keep(study: Study, store: Store | None, piece: Piece) -> list[CellResult]:
    """The cells of a piece, kept as soon as they are there."""
    cells = run_unit(study, *piece)
    if store is not None:
        store.keep(cells)
    return cells


def run_study(
    study: Study, processes: int, store: Store | None = None, known: Known = ()
) -> Iterator[tuple[int, int, list[CellResult]]]:
    """Runs all cells; the results do not depend on the number of processes.

    Args:
        store: keeps each piece's cells.
        known: cells that are not run.

    Yields:
        (pieces done, pieces in all, their new cells), in whatever order they end.

    Raises:
        UserError: the study has no contender, load or seed, or a process died.
    """
    if not study.contenders or not study.seeds:
        raise UserError("nothing to compare: give at least one baseline or agent, and one seed")
    pieces = units(study, known)
    jobs = [(study, store, piece) for piece in pieces]
    finished = shared_out(run_and_keep, jobs, processes, one_of_each_kind([contender for contender, *_ in pieces]))
    for done, (_, cells) in enumerate(finished, 1):
        yield done, len(pieces), cells


def one_of_each_kind(contenders: Sequence[Contender]) -> list[int]:
    """Where the first baseline and the first agent stand: with them all that contenders run is compiled."""
    first = {bool(contender.agent): k for k, contender in reversed(list(enumerate(contenders)))}
    return sorted(first.values())


def sort_cells(study: Study, cells: list[CellResult]) -> list[CellResult]:
    """The cells in the order of the study: load, contender, seed."""
    loads = {load: k for k, load in enumerate(study.load_labels())}
    names = {contender.label: k for k, contender in enumerate(study.contenders)}
    return sorted(cells, key=lambda cell: (loads[cell.load], names[cell.contender], cell.seed))
