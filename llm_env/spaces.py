"""Spaces and checked arguments that the single and the vector environment share. Knows Gymnasium and the settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from llm_env.actions import ACTION_KINDS, DISCRETE_TABLE, FLOAT_NAMES, NVEC
from llm_env.config import Scenario, refuse_varying, with_changes
from llm_env.errors import UserError
from llm_env.ranking import observed
from llm_env.scenarios import load_scenario
from llm_env.systems import Workload, checked_load_range, drawn_from
from llm_env.workload import (
    WHOLE,
    ReadOptions,
    Traffic,
    Windows,
    checked_trace_settings,
    draw_load,
    part_of,
    read_traffic,
)

Given = str | Path | Scenario | Sequence[str | Path | Scenario]  # one scenario or several


def observation_space(action: str = "multidiscrete") -> spaces.Box:
    """Box of the bounds of what is seen under a form of action, float32, new at each call."""
    low = np.array([low for _, low, _, _ in observed(action)], np.float32)
    high = np.array([high for _, _, high, _ in observed(action)], np.float32)
    return spaces.Box(low, high, dtype=np.float32)


def action_space(action: str) -> spaces.Space[Any]:
    """The space of an action form.

    Raises:
        UserError: unknown form.
    """
    if action == "multidiscrete":
        return spaces.MultiDiscrete(np.array(NVEC))
    if action == "discrete":
        return spaces.Discrete(len(DISCRETE_TABLE))
    if action in FLOAT_NAMES:
        return spaces.Box(-1.0, 1.0, (len(FLOAT_NAMES[action]),), np.float32)
    raise UserError(f"action: expected one of {', '.join(ACTION_KINDS)}, got {action!r}")


def resolve_scenarios(scenario: Given, changes: dict[str, Any] | None) -> tuple[Scenario, ...]:
    """Scenarios by name, path or as they are, with changes by dotted paths ({"workload.load": 0.9}) in all of them.

    Raises:
        UserError: an unknown scenario or a bad change; of several, two have one name.
    """
    given = [scenario] if isinstance(scenario, str | Path | Scenario) else list(scenario)
    if not given:
        raise UserError("scenario: expected at least one, got none")
    found = [each if isinstance(each, Scenario) else load_scenario(each) for each in given]
    names = [each.name for each in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f'scenario: two of them are called "{twice}": change the name of one to tell them apart')
    return tuple(with_changes(each, changes) for each in found) if changes else tuple(found)


def traffic_of(
    trace: str | Path | None,
    time_scale: float,
    trace_part: Sequence[float] = WHOLE,
    remark: Callable[[str], object] | None = None,
) -> Traffic | None:
    """A part of a trace, None without a trace.

    Args:
        trace: a file that `llm_env.workload.read_traffic` reads.
        time_scale: factor on its arrival times.
        trace_part: (from, to), shares of its time (see `llm_env.workload.windows.part_of`).
        remark: called with each line on what was done to the trace when it was read.

    Raises:
        UserError: settings of a trace without one, or its content is wrong.
        InputOutputError: it cannot be read.
    """
    trace_part = checked_trace_settings(trace, time_scale, trace_part)
    if trace is None:
        return None
    traffic, report = read_traffic(trace, ReadOptions(time_scale=time_scale))
    if remark is not None:
        for line in report.remarks():
            remark(line)
    return traffic.take(part_of(traffic.arrival_s, trace_part))


def resolve_episodes(
    scenario: Given,
    changes: dict[str, Any] | None,
    load_range: tuple[float, float] | None,
    trace: str | Path | None,
    time_scale: float,
    trace_part: Sequence[float],
) -> tuple[tuple[Scenario, ...], list[Workload]]:
    """The scenarios that an environment is given by its arguments, and where the episodes of each come from."""
    scenarios = resolve_scenarios(scenario, changes)
    traffic = traffic_of(trace, time_scale, trace_part)
    return scenarios, [workload_of(each, load_range, traffic) for each in scenarios]


def workload_of(scenario: Scenario, load_range: tuple[float, float] | None, traffic: Traffic | None) -> Workload:
    """Where episodes of a scenario come from: the scenario itself, or windows of a trace.

    Args:
        scenario: settings of the episodes.
        load_range: each episode draws its load from it; on a trace, time is stretched so that the trace has it.
        traffic: the trace, None for none.
    """
    if traffic is None:
        return drawn_from(scenario, load_range)
    refuse_varying(scenario, "trace")
    if load_range is None:
        return Windows(traffic, scenario).cut
    low, high = checked_load_range(load_range)
    windows = Windows(traffic, scenario, scalable=True)
    return lambda seed: windows.cut(seed, draw_load(seed, low, high))
