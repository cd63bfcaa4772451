"""Arrival times of an episode, of every process of `llm_env.arrival_settings` whose requests do not wait for answers.

A process is a pattern of rate 1 (Poisson, renewal or on/off), taken in order from the stream `arrivals` and stretched
by the rate, and for some a path of the rate from the stream `modulation`. So without a path a process at twice the rate
is the same pattern twice as dense; with one the path stays when only the rate changes; and a longer episode begins
with the arrivals of a shorter one. Only mmpp2 draws both from `arrivals`: its path stays, its arrivals do not.
Knows nothing of lengths or classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from llm_env.arrival_settings import (
    Arrivals,
    ClientArrivals,
    CoxArrivals,
    FlashCrowdArrivals,
    GammaArrivals,
    MMPP2Arrivals,
    MMPPArrivals,
    OnOffArrivals,
    PoissonArrivals,
    ProfileArrivals,
    SuperposedArrivals,
    WeibullArrivals,
)
from llm_env.workload import renewal
from llm_env.workload.bursts import on_off
from llm_env.workload.client_arrivals import draw_from_clients
from llm_env.workload.clients import draw_clients
from llm_env.workload.limits import MAX_EXPECTED, check_amount
from llm_env.workload.modulated import cox_path, crowd_path, mmpp2_path, mmpp_path, mmpp_states
from llm_env.workload.profiles import profile_path
from llm_env.workload.rate_paths import RatePath, arrivals_along, product
from llm_env.workload.seeds import Streams
from llm_env.workload_settings import ClientSettings, WorkloadSettings

__all__ = ["MAX_EXPECTED", "draw_arrivals", "draw_arrivals_of_clients", "draw_session_starts", "states_at"]

_Drawn = tuple[np.ndarray, np.ndarray | None]
_UNMODULATED = PoissonArrivals | GammaArrivals | WeibullArrivals | MMPP2Arrivals


def draw_arrivals_of_clients(
    workload: WorkloadSettings, rate_per_s: float, duration_s: float, rngs: Streams
) -> tuple[np.ndarray, np.ndarray | None]:
    """Arrival times as `draw_arrivals`, and who sent each, (n,) int64, None if the workload has no clients.

    Clients that are arrival processes of their own name their requests. All others, the other parts of a superposition
    too, are of any client with its share of the requests, independently.
    """
    times, sender = _draw(workload.arrivals, rate_per_s, duration_s, rngs.arrivals, rngs.modulation, workload.clients)
    if workload.clients is None:
        return times, None
    if sender is None:
        return times, draw_clients(workload.clients, times.size, rngs.clients)
    if sender.size and sender.min() < 0:
        sender = np.where(sender < 0, draw_clients(workload.clients, times.size, rngs.clients), sender)
    return times, sender


def states_at(
    settings: MMPPArrivals, times_s: np.ndarray, duration_s: float, modulation: np.random.Generator
) -> np.ndarray:
    """The state that the process was in at each arrival.

    Args:
        settings: of the process that the arrivals are of.
        times_s: (n,) its arrivals in [0, duration_s).
        duration_s: as it was for `draw_arrivals`.
        modulation: a new generator like the one that `draw_arrivals` was given.

    Returns:
        int64[n].
    """
    lasts_s, states = mmpp_states(settings, duration_s, modulation.spawn(2)[1])
    return states[np.searchsorted(np.cumsum(lasts_s), times_s, side="right")]


def draw_session_starts(
    workload: WorkloadSettings, rate_per_s: float, duration_s: float, history_s: float, rngs: Streams, before: Streams
) -> tuple[np.ndarray, np.ndarray]:
    """Starts of sessions in [0, duration_s), and of those in (-history_s, 0).

    Both are one stationary process that goes on through 0. Only Poisson, gamma and mmpp2 are drawn as two that know
    nothing of each other, the earlier one backwards in time from `before`.

    Returns:
        float64, ascending; and float64 in any order.
    """
    settings = workload.arrivals
    if isinstance(settings, PoissonArrivals | GammaArrivals | MMPP2Arrivals):
        starts = draw_arrivals(settings, rate_per_s, duration_s, rngs.arrivals)
        return starts, -draw_arrivals(settings, rate_per_s, history_s, before.arrivals)
    both = draw_arrivals(settings, rate_per_s, history_s + duration_s, rngs.arrivals, rngs.modulation, history_s)
    now = np.searchsorted(both, history_s)
    return both[now:] - history_s, both[:now] - history_s


def draw_arrivals(
    settings: Arrivals,
    rate_per_s: float,
    duration_s: float,
    rng: np.random.Generator,
    modulation: np.random.Generator | None = None,
    earlier_s: float = 0.0,
) -> np.ndarray:
    """Arrival times of a process with mean rate `rate_per_s`, stationary unless it follows a profile.

    Args:
        settings: which process.
        rate_per_s: mean arrivals per second, above 0.
        duration_s: length of the interval, above 0.
        rng: used by nothing else (see `llm_env.workload.streams`).
        modulation: another one, of how the rate changes; by default a child of `rng`.
        earlier_s: the interval begins that long before the `start_s` of a profile.

    Returns:
        float64[n], seconds, ascending, in [0, duration_s). Their expected number is rate_per_s * duration_s; with a
        profile that begins at a set moment, over whole cycles.

    Raises:
        UserError: more than 20,000,000 arrivals, or changes of the rate, are expected; or bursts without gaps.
        TypeError: arrivals that need more than settings: those of clients, and closed loops.
    """
    if modulation is None and not isinstance(settings, _UNMODULATED):
        modulation = rng.spawn(1)[0]
    return _draw(settings, rate_per_s, duration_s, rng, modulation, None, earlier_s)[0]


def _draw(
    settings: Arrivals,
    rate_per_s: float,
    duration_s: float,
    rng: np.random.Generator,
    modulation: np.random.Generator | None,
    clients: ClientSettings | None,
    earlier_s: float = 0.0,
) -> _Drawn:
    """Times, and senders where the process knows some of them, -1 for those that it does not."""
    check_amount("arrivals", rate_per_s * duration_s)
    if isinstance(settings, _UNMODULATED):
        return _arrivals(settings, rate_per_s, duration_s, rng, None, rng), None
    assert modulation is not None
    if isinstance(settings, ClientArrivals):
        if clients is None:
            raise TypeError("arrivals of clients need the clients: use draw_arrivals_of_clients")
        return draw_from_clients(settings, clients, rate_per_s, duration_s, rng, modulation)
    if isinstance(settings, SuperposedArrivals):
        return _superposed(settings, rate_per_s, duration_s, (rng, modulation), clients, earlier_s)
    outer, inner = modulation.spawn(2)
    if isinstance(settings, ProfileArrivals):
        path = profile_path(settings, duration_s, earlier_s, outer)
        return _arrivals(settings.base, rate_per_s, duration_s, rng, path, inner), None
    if isinstance(settings, FlashCrowdArrivals):
        path = crowd_path(settings, duration_s, outer)
        return _arrivals(settings.base, rate_per_s, duration_s, rng, path, inner), None
    return _arrivals(settings, rate_per_s, duration_s, rng, None, inner), None


def _superposed(
    settings: SuperposedArrivals,
    rate_per_s: float,
    duration_s: float,
    rngs: tuple[np.random.Generator, np.random.Generator],
    clients: ClientSettings | None,
    earlier_s: float,
) -> _Drawn:
    """Each part has streams of its own, so one more part changes none of the others at the same rate."""
    num_parts = len(settings.parts)
    whole = math.fsum(part.share for part in settings.parts)
    drawn = [
        _draw(part.arrivals, part.share / whole * rate_per_s, duration_s, rng, modulation, clients, earlier_s)
        for part, rng, modulation in zip(settings.parts, *(rng.spawn(num_parts) for rng in rngs), strict=True)
    ]
    times = np.concatenate([part for part, _ in drawn])
    order = np.argsort(times, kind="stable")  # stable: it finds the sorted parts, and ties have one order everywhere
    if all(sender is None for _, sender in drawn):
        return times[order], None
    named = [np.full(part.size, -1) if sender is None else sender for part, sender in drawn]
    return times[order], np.concatenate(named)[order]


def _arrivals(
    settings: Arrivals,
    rate_per_s: float,
    duration_s: float,
    rng: np.random.Generator,
    outer: RatePath | None,
    modulation: np.random.Generator,
) -> np.ndarray:
    """Arrivals of one process, its rate times that of `outer`, a path of multiples.

    A process with a path of its own keeps its times in seconds: the rates are multiplied. One without is stretched.
    """
    path = _path(settings, rate_per_s, duration_s, rng, modulation)
    pattern = _pattern(settings, rng, modulation)
    if outer is not None:
        path = (
            outer._replace(rate_per_s=outer.rate_per_s * rate_per_s)
            if path is None
            else product(outer, path, duration_s)
        )
    if path is not None:
        return arrivals_along(path, duration_s, pattern)
    times = pattern(rate_per_s * duration_s) / rate_per_s
    return times[: np.searchsorted(times, duration_s)]  # division may round up to the end


def _path(
    settings: Arrivals, rate_per_s: float, duration_s: float, rng: np.random.Generator, modulation: np.random.Generator
) -> RatePath | None:
    """How the rate of a process changes, arrivals per second; None if it does not."""
    if isinstance(settings, MMPP2Arrivals):
        return mmpp2_path(settings, rate_per_s, duration_s, rng)
    if isinstance(settings, MMPPArrivals):
        return mmpp_path(settings, rate_per_s, duration_s, modulation)
    if isinstance(settings, CoxArrivals):
        return cox_path(settings, rate_per_s, duration_s, modulation)
    return None


def _pattern(
    settings: Arrivals, rng: np.random.Generator, modulation: np.random.Generator
) -> Callable[[float], np.ndarray]:
    """Arrivals in [0, end) of the process at rate 1, given `end`."""
    if isinstance(settings, PoissonArrivals | MMPP2Arrivals | MMPPArrivals):
        return lambda end: renewal.poisson(end, rng)
    if isinstance(settings, CoxArrivals) and settings.cv == 1.0:
        return lambda end: renewal.poisson(end, rng)
    if isinstance(settings, GammaArrivals | CoxArrivals):
        return lambda end: renewal.gamma(settings.cv, end, rng)
    if isinstance(settings, WeibullArrivals):
        return lambda end: renewal.weibull(settings.cv, end, rng)
    if isinstance(settings, OnOffArrivals):
        return lambda end: on_off(settings, end, rng, modulation)
    raise TypeError(f"not an arrival process that can be drawn before the run: {settings!r}")
