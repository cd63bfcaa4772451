"""Scenarios with fitted traffic: what their descriptions say holds, and a scheduler makes a difference in them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from llm_env.config import OnOffArrivals, ProfileArrivals, with_changes
from llm_env.metrics import summarise
from llm_env.scenarios import load_scenario
from llm_env.simulate import simulate
from llm_env.workload import capacity_requests_per_s, draw_workload, mean_length, request_rate
from llm_env.workload.fit_split import Pieces, piece_dispersion

# mean requests of an episode, and the standard deviation between episodes as a share of it (over seeds 100 to 139)
SIZES = {
    "agentic": (214, 0.29),
    "chat-azure": (3560, 0.16),
    "chat-short": (2130, 0.02),
    "code-azure": (1870, 0.37),
    "diurnal": (4920, 0.02),
    "flash-crowd": (2460, 0.10),
    "long-context-sessions": (492, 0.07),
    "multi-tenant": (7100, 0.20),
    "reasoning": (3170, 0.18),
    "summarisation": (364, 0.05),
}
each = pytest.mark.parametrize("name", SIZES)


def load(name: str) -> float:
    scenario = load_scenario(name)
    return request_rate(scenario) / capacity_requests_per_s(scenario)


@each
def test_an_episode_has_other_numbers_of_requests_than_its_rate_says(name):
    scenario = load_scenario(name)
    size, deviation = SIZES[name]
    assert request_rate(scenario) * scenario.episode.arrivals_s == pytest.approx(size, rel=0.01)
    num = max(4, math.ceil((4 * deviation / 0.2) ** 2))  # episodes, so that 20 % are four standard errors of their mean
    sizes = [draw_workload(scenario, seed).size for seed in range(num)]
    assert np.mean(sizes) == pytest.approx(size, rel=4 * deviation / math.sqrt(num))


@each
def test_it_makes_no_difference_which_scheduler_runs(name):
    scenario = load_scenario(name)
    if name == "agentic":  # ten minutes of its sessions tell schedulers apart as well as half an hour
        scenario = with_changes(scenario, {"episode.arrivals_s": 600.0, "episode.horizon_s": 1200.0})
    met = {}
    for policy, parameters in (("sarathi", {"token_budget": "slo"}), ("moore-hodgson", {})):
        runs = (simulate(scenario, draw_workload(scenario, seed), policy, parameters, seed) for seed in range(3))
        met[policy] = np.mean([summarise(state, scenario).slo_attainment for state in runs])
    assert 0.02 < met["sarathi"] < met["moore-hodgson"] < 0.999


@pytest.mark.parametrize(("name", "stated"), [("chat-azure", 0.77), ("code-azure", 0.58)])
def test_the_rate_of_the_trace_is_another_load_than_the_description_says(name, stated):
    assert load(name) == pytest.approx(stated, abs=0.006)
    assert f"load {stated}" in load_scenario(name).description


@pytest.mark.parametrize(
    ("name", "dispersions"),
    [("chat-azure", (1.32, 3.59, 15.6)), ("code-azure", (12.9, 70.1, 173.0))],
)
def test_arrivals_are_not_as_bursty_as_the_trace(name, dispersions):
    """Held-back dispersion at 1, 10 and 60 s, in the scenario's source; long runs, so little is left to chance."""
    scenario = load_scenario(name)
    episode = scenario.episode.model_copy(update={"arrivals_s": 2280.0, "horizon_s": 1e4})
    scenario = scenario.model_copy(update={"episode": episode})
    held = Pieces(np.arange(60.0, 2280.0, 120.0), 60.0)
    runs = [draw_workload(scenario, seed)["arrival_s"] for seed in range(30)]
    for width, expected in zip((1.0, 10.0, 60.0), dispersions, strict=True):
        found = np.mean([piece_dispersion(times, held, width) for times in runs])
        assert found == pytest.approx(expected, rel=0.35)  # the criterion the fit is held to, not a scatter of the mean
        assert f"{expected:g}" in scenario.source


def test_code_azure_is_not_silent_for_four_fifths_of_the_time():
    arrivals = load_scenario("code-azure").workload.arrivals
    assert isinstance(arrivals, OnOffArrivals)
    assert arrivals.off_share == pytest.approx(0.8, abs=0.01)


def test_a_day_of_diurnal_has_other_loads_than_the_description_says():
    arrivals = load_scenario("diurnal").workload.arrivals
    assert isinstance(arrivals, ProfileArrivals)
    loads = load("diurnal") * np.array(arrivals.multipliers) / np.mean(arrivals.multipliers)
    assert (round(loads.max(), 2), round(loads.min(), 2)) == (0.94, 0.48)


@pytest.mark.parametrize(("name", "prompt", "output"), [("chat-short", 140, 250), ("summarisation", 2600, 300)])
def test_mean_lengths_are_not_those_of_the_description(name, prompt, output):
    workload = load_scenario(name).workload
    assert mean_length(workload.prompt) == pytest.approx(prompt, rel=0.03)
    assert mean_length(workload.output) == pytest.approx(output, rel=0.03)
    assert f"{prompt:,} tokens" in load_scenario(name).description


@pytest.mark.parametrize("name", ["long-context-sessions", "agentic"])
def test_later_turns_of_a_session_share_nothing(name):
    requests = draw_workload(load_scenario(name), 0)
    later = requests["previous"] >= 0
    assert later.mean() > 0.2
    share = requests["shared_tokens"][later] / requests["prompt_tokens"][later]
    assert share.mean() > 0.75
