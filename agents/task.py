"""What a run learns and is validated on, made of its arguments: scenarios, loads, workloads, parts of a trace."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agents.arguments import Arguments
from agents.curriculum import Course
from agents.validation import FIRST_VALIDATION_SEED, ValidationSet
from llm_env.config import Scenario, with_changes
from llm_env.scenarios import check_changes_of_trace, load_scenario
from llm_env.spaces import resolve_scenarios, traffic_of, workload_of
from llm_env.systems import Workload
from llm_env.workload import WHOLE, Traffic, Windows, is_closed, part_of, refuse_rate

VALIDATION_SHARE = 0.2  # of the time of a trace or its part, at its end


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is learned and where it is kept.

    Attributes:
        name: of the run: scenarios, algorithm and seed.
        together: names of all scenarios.
        out: the run's folder.
        scenarios: in the order in which they were given.
        load_ranges: what episodes draw their load from, None as it is, of each scenario.
        learned: the part of the trace to learn from, None without one.
        against: what agents are validated on.
    """

    name: str
    together: str
    out: Path
    scenarios: tuple[Scenario, ...]
    load_ranges: tuple[tuple[float, float] | None, ...]
    learned: Traffic | None
    against: ValidationSet

    def workloads(self, course: Course | None = None) -> list[Workload]:
        """Seed -> requests to learn from, of each scenario. Args: course: of the training; None: all loads."""
        course = course or Course(0.0)
        pairs = zip(self.scenarios, self.load_ranges, strict=True)
        return [course.workload(scenario, load_range, self.learned) for scenario, load_range in pairs]


def make_task(arguments: Arguments) -> Task:
    """Reads scenarios and trace, and draws one workload of each, so that what cannot be used is known at once.

    Raises:
        UserError: an argument, a scenario or the trace is wrong.
        InputOutputError: a file cannot be read.
    """
    if arguments.trace is not None:
        check_changes_of_trace(arguments.change)
    scenarios = resolve_scenarios([load_scenario(each, arguments.change) for each in arguments.scenario], None)
    together = "+".join(scenario.name for scenario in scenarios)
    name = f"{together}-{arguments.algo}-{arguments.seed}"
    learned, validated = traffic_parts(arguments)
    load_ranges = tuple(_load_range(arguments, scenario) for scenario in scenarios)
    task = Task(
        name=name,
        together=together,
        out=Path(arguments.out or Path("runs") / name),
        scenarios=scenarios,
        load_ranges=load_ranges,
        learned=learned,
        against=_validation_set(arguments, scenarios, load_ranges, validated),
    )
    for workload in task.workloads():
        workload(0)
    for remark in _same_every_seed(arguments, scenarios, load_ranges, (learned, validated)):
        sys.stderr.write(f"{remark}\n")
    return task


def _load_range(arguments: Arguments, scenario: Scenario) -> tuple[float, float] | None:
    """Where episodes draw their load from; None: as the scenario has it, which for one that varies is drawn too."""
    if arguments.load_range is not None and arguments.trace is None:
        refuse_rate(scenario, "load-range")
    if arguments.load_range is not None or arguments.trace is not None or is_closed(scenario) or scenario.vary:
        return arguments.load_range
    return 0.5, 1.1


def traffic_parts(arguments: Arguments) -> tuple[Traffic | None, Traffic | None]:
    """What is learned from and what is validated on: parts of the trace that follow each other; None without one."""
    start, end = arguments.trace_part
    part = WHOLE if arguments.trace else arguments.trace_part
    whole = traffic_of(arguments.trace, arguments.time_scale, part, lambda line: sys.stderr.write(f"{line}\n"))
    if whole is None:
        return None, None
    middle = validation_begins(start, end)
    learned, validated = (part_of(whole.arrival_s, part) for part in ((start, middle), (middle, end)))
    return whole.take(learned), whole.take(validated)


def _same_every_seed(
    arguments: Arguments,
    scenarios: Sequence[Scenario],
    load_ranges: Sequence[tuple[float, float] | None],
    parts: tuple[Traffic | None, Traffic | None],
) -> list[str]:
    """A remark on each part of the trace, learned or validated, that is no longer than an episode.

    Args:
        parts: of `traffic_parts`.
    """
    start, end = arguments.trace_part
    middle = validation_begins(start, end)
    remarks = []
    for scenario, load_range in zip(scenarios, load_ranges, strict=True):
        highest = (None, None) if load_range is None else (load_range[1], max(arguments.validation_loads))
        bounds = (("learning", start, middle), ("validation", middle, end))
        for (use, low, high), traffic, load in zip(bounds, parts, highest, strict=True):
            if traffic is None:
                continue
            lasts_s = Windows(traffic, scenario, scalable=load is not None).span_s(load)
            if lasts_s > scenario.episode.arrivals_s:
                continue
            at = "" if load is None else f" at load {load:g}"
            remarks.append(
                f"trace: {use} meets the same arrivals with every seed: the part {low:g} to {high:g} of the trace lasts"
                f" {lasts_s:.4g} s{at}, and an episode of {scenario.name} has episode.arrivals_s = "
                f"{scenario.episode.arrivals_s:g}: shorten it (--change episode.arrivals_s=...) or use a longer trace"
            )
    return remarks


def validation_begins(start: float, end: float) -> float:
    """The share of the trace's time where the validated part of (start, end) begins."""
    return end - VALIDATION_SHARE * (end - start)


def _validation_set(
    arguments: Arguments,
    scenarios: Sequence[Scenario],
    load_ranges: Sequence[tuple[float, float] | None],
    traffic: Traffic | None,
) -> ValidationSet:
    """Each scenario at the validation loads, or as it is where learning draws no loads."""
    seeds = tuple(range(FIRST_VALIDATION_SEED, FIRST_VALIDATION_SEED + arguments.validation_seeds))
    cases: list[tuple[str, Scenario, Workload | None]] = []
    for scenario, load_range in zip(scenarios, load_ranges, strict=True):
        name = f"{scenario.name}_" if len(scenarios) > 1 else ""
        if load_range is None:
            word = "trace" if traffic is not None else "drawn" if scenario.vary else "closed_loop"
            cases.append((name + word, scenario, workload_of(scenario, None, traffic)))
            continue
        for load in arguments.validation_loads:
            workload = workload_of(scenario, (load, load), traffic) if traffic is not None else None
            at_load = scenario if traffic is not None else with_changes(scenario, {"workload.load": load})
            cases.append((f"{name}load_{load:g}", at_load, workload))
    return ValidationSet(cases=tuple(cases), seeds=seeds)
