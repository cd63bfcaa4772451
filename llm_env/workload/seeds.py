"""What a seed means: independent random streams, each with a number of its own. Knows nothing of what is drawn.

A stream never changes what another one draws, so two settings of one part meet the same luck in all others.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from llm_env.errors import UserError

# spawn keys: never renumber, or every seed changes meaning; new ones come at the end
ARRIVALS, PROMPT, OUTPUT, CLASSES, NOISE, LOAD, WINDOW, PREDICTION, CLIENTS, TURNS, THINK, HISTORY = range(12)
POPULATION, MODULATION = range(12, 14)
TRACE = 14  # of what is changed in a trace that is read
SCENARIO = 15  # which of several an episode is of
FIT = 16  # where searches begin, by what is fitted
VARY = 17  # settings that an episode draws, by their names
KIND = 18  # which kind each request is of
LOOKAHEAD = 20  # futures that a planner imagines, by decision


class Streams(NamedTuple):
    """Independent generators of one seed. Service noise has one more per worker, behind `draw_noise`."""

    arrivals: np.random.Generator
    prompt: np.random.Generator
    output: np.random.Generator
    classes: np.random.Generator
    prediction: np.random.Generator
    clients: np.random.Generator
    turns: np.random.Generator
    think: np.random.Generator
    modulation: np.random.Generator


_KEYS = (ARRIVALS, PROMPT, OUTPUT, CLASSES, PREDICTION, CLIENTS, TURNS, THINK, MODULATION)


def streams(seed: int) -> Streams:
    """The generators of a seed. What one of them drew never changes what another will draw.

    Raises:
        UserError: the seed is not an integer of at least 0.
    """
    return Streams(*(np.random.Generator(stream_bits(seed, key)) for key in _KEYS))


def history_streams(seed: int) -> Streams:
    """A second set, for the sessions that began before the episode."""
    return Streams(*(np.random.Generator(stream_bits(seed, HISTORY, key)) for key in _KEYS))


def draw_load(seed: int, low: float, high: float) -> float:
    """The load of an episode whose load is random: uniform in [low, high), from a stream of its own."""
    return float(np.random.Generator(stream_bits(seed, LOAD)).uniform(low, high))


def draw_start(seed: int, low_s: float, high_s: float) -> float:
    """Where a window of a trace begins: uniform in [low_s, high_s), from a stream of its own."""
    return float(np.random.Generator(stream_bits(seed, WINDOW)).uniform(low_s, high_s))


def draw_scenario(seed: int, count: int) -> int:
    """Which of `count` scenarios an episode has, all equally likely, from a stream of its own."""
    return int(np.random.Generator(stream_bits(seed, SCENARIO)).integers(count)) if count > 1 else 0


def draw_uniform(seed: int, *key: int) -> float:
    """One number in [0, 1) from a stream that has no other."""
    return float(_sequence(seed, key).generate_state(1, np.uint64)[0] >> np.uint64(11)) * 2.0**-53


def stream_bits(seed: int, *key: int) -> np.random.PCG64:
    """The bits of one stream.

    Raises:
        UserError: the seed is not an integer of at least 0.
    """
    # PCG64 by name, because numpy may change what default_rng means
    return np.random.PCG64(_sequence(seed, key))


def _sequence(seed: int, key: tuple[int, ...]) -> np.random.SeedSequence:
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise UserError(f"seed: expected an integer of at least 0, got {seed!r}")
    return np.random.SeedSequence(int(seed), spawn_key=key)
