"""Who sends the requests: a population of clients, the same in every episode, and the client of each request."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple, cast

import numpy as np

from llm_env.workload.seeds import POPULATION, stream_bits
from llm_env.workload_settings import ClientSettings


class Population(NamedTuple):
    """What tells clients apart; one entry a client."""

    shares: np.ndarray  # (count,) float64: of the requests, sum 1
    prompt_shift: np.ndarray  # (count,) float64: added to the logarithm of a prompt
    output_shift: np.ndarray  # (count,) float64
    rate_score: np.ndarray  # (count,) float64: log-rates in standard units, all 0 if the rates are equal


def population(settings: ClientSettings) -> Population:
    """The clients of `settings`, drawn from `settings.population` alone. Arrays are not to be written."""
    return _population(cast(Any, settings))  # settings are frozen and so hashable, which type checkers cannot see


@lru_cache(maxsize=64)
def _population(settings: ClientSettings) -> Population:
    rng = np.random.Generator(stream_bits(settings.population, POPULATION))
    rates, first, second = rng.standard_normal((settings.count, 3)).T  # all three always: one setting moves no other
    if settings.log_rate_sd is not None:
        weights = np.exp(settings.log_rate_sd * rates)
        score = rates if settings.log_rate_sd > 0.0 else np.zeros(settings.count)
    else:
        weights = np.arange(1.0, settings.count + 1.0) ** -cast(float, settings.skew)
        spread = np.log(weights).std()
        score = (np.log(weights) - np.log(weights).mean()) / spread if spread > 0.0 else np.zeros(settings.count)
    rho = settings.length_correlation
    second = rho * first + np.sqrt(1.0 - rho**2) * second
    return Population(weights / weights.sum(), settings.prompt_sigma * first, settings.output_sigma * second, score)


def draw_clients(settings: ClientSettings, n: int, rng: np.random.Generator) -> np.ndarray:
    """(n,) int64: independent clients with the population's shares."""
    steps = np.cumsum(population(settings).shares)
    return np.searchsorted(steps / steps[-1], rng.random(n), side="right")
