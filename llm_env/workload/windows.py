"""Episodes cut from a trace: windows of real traffic, rescaled in time to a load. Knows traces only as requests."""

from __future__ import annotations

import numpy as np

from llm_env.config import Scenario
from llm_env.errors import UserError
from llm_env.workload.generate import assign_classes, capacity_tokens_per_s, predict_outputs
from llm_env.workload.seeds import draw_start, streams
from llm_env.workload.sessions import link_turns


def trace_load(requests: np.ndarray, scenario: Scenario) -> float:
    """The load that a trace puts on a scenario's system: its tokens of work per second over the capacity.

    Raises:
        UserError: all requests arrive at one instant, so there is no rate.
    """
    span_s = float(requests["arrival_s"][-1] - requests["arrival_s"][0])
    if span_s <= 0:
        raise UserError("trace: all requests arrive at one instant, so it has no rate to scale")
    work = float((requests["prompt_tokens"] + requests["output_tokens"] - 1).sum())
    return work / span_s / capacity_tokens_per_s(scenario)


def at_load(requests: np.ndarray, scenario: Scenario, load: float) -> np.ndarray:
    """A copy of the trace with its arrival times stretched or squeezed so that `trace_load` is `load`.

    Squeezing keeps the order and the shape of the bursts, and makes them as much faster as everything else.
    """
    scaled = requests.copy()
    first_s = requests["arrival_s"][0]
    factor = trace_load(requests, scenario) / load
    scaled["arrival_s"] = first_s + (requests["arrival_s"] - first_s) * factor
    return scaled


def cut_window(requests: np.ndarray, scenario: Scenario, seed: int) -> np.ndarray:
    """`episode.arrivals_s` seconds of a trace that begin at a moment drawn from the seed; times start at 0.

    A trace shorter than that is returned whole. Classes and predictions are drawn anew from the seed, as in
    `draw_workload`. The first turn of a session within the window has no previous one.

    Args:
        requests: REQUEST[n] in order of arrival.
    """
    arrivals = requests["arrival_s"]
    length_s = scenario.episode.arrivals_s
    latest_s = max(float(arrivals[0]), float(arrivals[-1]) - length_s)
    start_s = draw_start(seed, float(arrivals[0]), latest_s)
    first, last = np.searchsorted(arrivals, (start_s, start_s + length_s))
    window = requests[first:last].copy()
    window["arrival_s"] -= start_s
    window["row"] = np.arange(len(window))
    link_turns(window)
    rngs = streams(seed)
    assign_classes(window, scenario.slo, rngs.classes)
    predict_outputs(window, scenario.workload.prediction_sigma, rngs.prediction)
    return window
