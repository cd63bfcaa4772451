"""Spaces and checked arguments that the single and the vector environment share. Knows Gymnasium and the settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from llm_env.actions import BOX_NAMES, DISCRETE_TABLE, NVEC
from llm_env.config import Scenario, with_changes
from llm_env.errors import UserError
from llm_env.scenarios import load_scenario
from llm_env.systems import Workload, checked_load_range, drawn_from
from llm_env.view import FEATURES
from llm_env.workload import at_load, cut_window, draw_load, read_trace, trace_load


def observation_space() -> spaces.Box:
    """Box of the features' bounds, float32, new at each call."""
    low = np.array([low for _, low, _, _ in FEATURES], np.float32)
    high = np.array([high for _, _, high, _ in FEATURES], np.float32)
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
    if action == "box":
        return spaces.Box(-1.0, 1.0, (len(BOX_NAMES),), np.float32)
    raise UserError(f"action: expected multidiscrete, discrete or box, got {action!r}")


def resolve_scenario(scenario: str | Path | Scenario, changes: dict[str, Any] | None) -> Scenario:
    """A scenario by name, path or as it is, with changes by dotted paths ({"workload.load": 0.9})."""
    found = scenario if isinstance(scenario, Scenario) else load_scenario(scenario)
    return with_changes(found, changes) if changes else found


def resolve_workload(
    scenario: Scenario,
    load_range: tuple[float, float] | None,
    trace: str | Path | None,
    time_scale: float,
) -> Workload:
    """Where episodes come from: the scenario, or windows of a trace.

    Args:
        scenario: settings of the episodes.
        load_range: each episode draws its load from it; on a trace, time is stretched so that the trace has it.
        trace: a file that `llm_env.workload.read_trace` reads.
        time_scale: factor on the trace's arrival times.
    """
    if trace is None:
        if time_scale != 1.0:
            raise UserError("time_scale: only for a trace; the rate of a scenario is its load")
        return drawn_from(scenario, load_range)
    requests = read_trace(trace, time_scale, scenario.slo, workload=scenario.workload)
    if load_range is None:
        return lambda seed: cut_window(requests, scenario, seed)
    load_range = checked_load_range(load_range)
    trace_load(requests, scenario)  # or an error now and not at the first reset
    return lambda seed: cut_window(at_load(requests, scenario, draw_load(seed, *load_range)), scenario, seed)
