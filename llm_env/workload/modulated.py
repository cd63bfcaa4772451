"""Rates that wander by chance: Markov-modulated with two or n states, the Cox process, and flash crowds.

Each function gives a `RatePath` that begins in its stationary state and reaches beyond the end of the episode. Except
in `mmpp2_path` a longer episode begins with the path of a shorter one.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, cast

import numpy as np

from llm_env.arrival_settings import CoxArrivals, FlashCrowdArrivals, MMPP2Arrivals, MMPPArrivals
from llm_env.workload.limits import check_amount
from llm_env.workload.rate_paths import RatePath, autoregression

STEPS_PER_TAU = 64  # of a Cox process with sigma <= 1; sigma^2 times as many above, since its rate moves faster
_SLOWER = "lengthen the times between them or shorten episode.arrivals_s"


def mmpp2_path(settings: MMPP2Arrivals, rate_per_s: float, duration_s: float, rng: np.random.Generator) -> RatePath:
    """Quiet and busy periods in turn; the process starts in either with its share of the time.

    Source: Fischer and Meier-Hellstern, "The Markov-modulated Poisson process (MMPP) cookbook", Performance
    Evaluation 18 (1993) 149-171.
    """
    p = settings.busy_share
    check_amount("changes of state", 2.0 * duration_s / settings.cycle_s)
    quiet_rate = rate_per_s / (1.0 - p + p * settings.rate_ratio)

    starts_busy = rng.random() < p
    mean_s = np.array((p, 1.0 - p) if starts_busy else (1.0 - p, p)) * settings.cycle_s
    rates = np.array((settings.rate_ratio, 1.0) if starts_busy else (1.0, settings.rate_ratio)) * quiet_rate
    cycles = int(duration_s / settings.cycle_s * 1.2) + 8
    dwell_s = rng.standard_exponential((cycles, 2)) * mean_s  # exponential, so the first one is a residual too
    while dwell_s.sum() < duration_s:
        dwell_s = np.concatenate((dwell_s, rng.standard_exponential((cycles, 2)) * mean_s))
    return RatePath(dwell_s, rates)


# ---- n states --------------------------------------------------------------------------------------------------------
def mmpp_path(settings: MMPPArrivals, rate_per_s: float, duration_s: float, rng: np.random.Generator) -> RatePath:
    """A rate for each of the states of `mmpp_states`.

    Raises:
        UserError: more than 20,000,000 changes of state are expected, or drawn.
    """
    lasts_s, states = mmpp_states(settings, duration_s, rng)
    rates = np.array(settings.rates) / (state_shares(settings) @ settings.rates) * rate_per_s
    return RatePath(lasts_s, rates[states])


def mmpp_states(settings: MMPPArrivals, duration_s: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """States that follow each other as a Markov chain, each with an exponential length, whatever the rates.

    The first state has the stationary law over time, and what is left of it is exponential again.

    Returns:
        How long each lasts, float64, and which it is, int64; together they reach beyond duration_s.

    Raises:
        UserError: more than 20,000,000 changes of state are expected, or drawn.

    Source: Fischer and Meier-Hellstern (1993), section 1.
    """
    following = following_of(settings)
    dwell_s = np.array(settings.dwell_s)
    shares = state_shares(settings)
    visits_per_s = float((shares / dwell_s).sum())
    check_amount("changes of state", duration_s * visits_per_s, _SLOWER)

    steps = np.cumsum(following, axis=1)
    steps /= steps[:, -1:]
    state = _cut(shares, rng.random())
    chunk = int(1.2 * duration_s * visits_per_s) + 8
    visited, lasts_s, covered_s, drawn = [], [], 0.0, 0
    while covered_s < duration_s:
        draws = rng.random((chunk, 2))  # row by row: a longer episode goes on where a shorter one ends
        states = _walk(state, steps, draws[:, 0])
        visited.append(states[:-1])
        lasts_s.append(-np.log1p(-draws[:, 1]) * dwell_s[states[:-1]])
        covered_s += float(lasts_s[-1].sum())
        state, drawn = int(states[-1]), drawn + chunk
        check_amount("changes of state", drawn / 2.0, _SLOWER)  # twice as many are bad luck
    return np.concatenate(lasts_s), np.concatenate(visited)


def following_of(settings: MMPPArrivals) -> np.ndarray:
    """(n, n): the probability that state j follows i."""
    n = len(settings.rates)
    if settings.following is None:
        return (1.0 - np.eye(n)) / (n - 1.0)
    following = np.array(settings.following)
    return following / following.sum(axis=1, keepdims=True)


def state_shares(settings: MMPPArrivals) -> np.ndarray:
    """(n,): the share of the time that the process is in each state."""
    return np.array(_state_shares(cast(Any, settings)))  # settings are frozen and so hashable, unseen by type checkers


@lru_cache(maxsize=256)
def _state_shares(settings: MMPPArrivals) -> tuple[float, ...]:
    """Visits by state reduction, times their length. It subtracts nothing, so rare states are as exact as others.

    Source: Grassmann, Taksar and Heyman, "Regenerative analysis and steady state distributions for Markov chains",
    Operations Research 33 (1985) 1107-1116.
    """
    chain = following_of(settings)
    for k in range(len(chain) - 1, 0, -1):
        chain[:k, k] /= chain[k, :k].sum()
        chain[:k, :k] += np.outer(chain[:k, k], chain[k, :k])
    visits = np.ones(len(chain))
    for k in range(1, len(chain)):
        visits[k] = visits[:k] @ chain[:k, k]
    shares = visits * settings.dwell_s
    return tuple(shares / shares.sum())


def _cut(probabilities: np.ndarray, uniform: float) -> int:
    steps = np.cumsum(probabilities)
    return int(np.searchsorted(steps / steps[-1], uniform, side="right"))


def _walk(start: int, steps: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
    """(m + 1,) states of a chain from `start` on, one step for each of the uniforms.

    Args:
        start: the first state.
        steps: (n, n) cumulative probabilities of what follows each state.
        uniforms: (m,).

    The path is cut into about sqrt(m) stretches. All are walked side by side from every state, then joined, then
    walked once more from their first states: 2 sqrt(m) steps of numpy instead of m of Python.
    """
    n, m = len(steps), uniforms.size
    width = math.isqrt(m) + 1
    stretches = -(-m // width)
    padded = np.zeros(width * stretches)
    padded[:m] = uniforms
    columns = np.ascontiguousarray(padded.reshape(stretches, width).T)  # (width, stretches)
    ends = np.tile(np.arange(n), (stretches, 1))  # of each stretch, by its first state
    for column in columns:
        after = np.stack([np.searchsorted(row, column, side="right") for row in steps], axis=1)
        ends = np.take_along_axis(after, ends, axis=1)
    firsts = np.empty(stretches, np.int64)
    for stretch in range(stretches):
        firsts[stretch] = start
        start = ends[stretch, start]
    states = np.empty((width, stretches), np.int64)
    for k, column in enumerate(columns):
        states[k] = firsts
        firsts = (steps[firsts] <= column[:, None]).sum(axis=1)
    path = np.append(states.T.ravel(), firsts[-1])  # the padding, at the end, is walked too
    return path[: m + 1]


# ---- Cox process -----------------------------------------------------------------------------------------------------
def cox_path(settings: CoxArrivals, rate_per_s: float, duration_s: float, rng: np.random.Generator) -> RatePath:
    """rate * exp(X - sigma^2 / 2), X an Ornstein-Uhlenbeck process, in steps of equal length.

    X is exact at the borders of the steps: there it is an autoregression with correlation exp(-step / tau_s). Within a
    step the rate is the mean of both borders, so its mean over time is exact. Its variance within a step is too small
    by the factor 1 - s * sigma^2 / (1 - exp(-sigma^2)) / 6 to first order in s = step / tau_s, which is 1 / 64, or 1 /
    (64 sigma^2) where sigma > 1: less than half a percent. Over longer times the error is of the order of s^2.

    Raises:
        UserError: more than 20,000,000 steps are needed.

    Source: Moller, Syversveen and Waagepetersen, "Log Gaussian Cox processes", Scandinavian Journal of Statistics 25
    (1998) 451-482; exact discretisation: Gillespie, Physical Review E 54 (1996) 2084-2091.
    """
    if settings.sigma == 0.0:
        return RatePath(np.array((duration_s,)), np.array((rate_per_s,)))
    step_s = settings.tau_s / STEPS_PER_TAU / max(1.0, settings.sigma**2)
    check_amount("steps of the rate", duration_s / step_s, "lengthen tau_s or shorten episode.arrivals_s")
    steps = int(duration_s / step_s) + 1
    x = autoregression(rng.standard_normal(steps + 1), math.exp(-step_s / settings.tau_s))
    rate = rate_per_s * np.exp(settings.sigma * x - settings.sigma**2 / 2.0)
    return RatePath(np.full(steps, step_s), (rate[1:] + rate[:-1]) / 2.0)


# ---- flash crowds ----------------------------------------------------------------------------------------------------
def crowd_path(settings: FlashCrowdArrivals, duration_s: float, rng: np.random.Generator) -> RatePath:
    """Calm times and crowds in turn, as multiples of the mean rate.

    An arbitrary moment falls into a calm time with its share of the time, and then what is left of it is exponential.
    Else it falls uniformly into a crowd whose length is length-biased: with a density proportional to d between low
    and high, d^2 is uniform between low^2 and high^2. The multiple of a crowd does not depend on its length.

    Source: Cox, Renewal Theory (1962), sections 5.3 (length-biased intervals) and 7.1 (alternating processes).
    """
    low_s, high_s = settings.duration_s
    multipliers = np.array(settings.multipliers)
    cycle_s, calm = calm_and_crowd(settings)
    check_amount("changes of the rate", 2.0 * duration_s / cycle_s, _SLOWER)

    where, which, length, part = rng.random(4)
    lasts_s, rates, covered_s = [], [], 0.0
    if where * cycle_s >= settings.every_s:
        whole_s = math.sqrt(low_s**2 + length * (high_s**2 - low_s**2))
        lasts_s.append(np.array((part * whole_s,)))
        rates.append(np.array((calm * multipliers[int(which * multipliers.size)],)))
        covered_s = part * whole_s
    while covered_s < duration_s:
        draws = rng.random((int(1.2 * duration_s / cycle_s) + 8, 3))
        crowds = calm * multipliers[(draws[:, 1] * multipliers.size).astype(np.int64)]
        periods_s = (-np.log1p(-draws[:, 0]) * settings.every_s, low_s + (high_s - low_s) * draws[:, 2])
        lasts_s.append(np.stack(periods_s, axis=1).ravel())
        rates.append(np.stack((np.full(crowds.size, calm), crowds), axis=1).ravel())
        covered_s += float(lasts_s[-1].sum())
    return RatePath(np.concatenate(lasts_s), np.concatenate(rates))


def calm_and_crowd(settings: FlashCrowdArrivals) -> tuple[float, float]:
    """Mean seconds of a calm time and a crowd together, and the multiple of the mean rate in calm times."""
    crowd_s = sum(settings.duration_s) / 2.0
    cycle_s = settings.every_s + crowd_s
    return cycle_s, cycle_s / (settings.every_s + crowd_s * float(np.mean(settings.multipliers)))
