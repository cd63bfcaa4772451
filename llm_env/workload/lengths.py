"""Prompt and output lengths: draws from a length distribution, its exact mean, probabilities and quantiles.

Each draw uses its generator request by request, so the first n lengths are the same however many follow: a run at a
higher load begins with the requests of a run at a lower one. Knows nothing of arrivals.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from statistics import NormalDist
from typing import Any, cast

import numpy as np

from llm_env.config import (
    ChoiceLength,
    ClientSettings,
    FixedLength,
    GeometricLength,
    Length,
    LognormalLength,
    LognormalMixtureLength,
    PairSettings,
    QuantileLength,
    UniformLength,
    WorkloadSettings,
    ZipfLength,
)
from llm_env.workload.clients import population
from llm_env.workload.lognormal import lognormal_below, lognormal_mean, lognormal_means
from llm_env.workload.seeds import Streams

_EVALUATIONS = 1 << 25  # of a distribution function, about a second's worth


# ---- of the requests of a workload ---------------------------------------------------------------------------------
def draw_request_lengths(
    workload: WorkloadSettings,
    n: int,
    rngs: Streams,
    client: np.ndarray | None = None,
    first: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Prompt and output tokens of n requests, or new tokens and output tokens of n turns.

    Prompts come from the stream of prompts and outputs from that of outputs; measured pairs from that of prompts.

    With a `correlation` both are quantiles of two normals with the correlation 2 sin(pi correlation / 6), whose rank
    correlation (Spearman's) is `correlation`. Lengths that are equal take a little of it away. With the mean rank for
    equal ones (`llm_env.workload.statistics.rank_correlation`) that is, at 0.5, less than 0.0001 for the default
    prompts and outputs, 5 % with outputs of 1 to 4 tokens, and 18 % with three sizes of each (`ChoiceLength()`).

    Args:
        workload: its lengths, pairs, correlation, clients and first prompts.
        n: how many.
        rngs: of the episode.
        client: (n,) who sent each; needed where lengths differ between clients.
        first: (n,) bool: whose prompt is that of `sessions.first_prompt`.

    Returns:
        int64[n] each, at least 1.

    Source: Pearson, On Further Methods of Determining Correlation (1907); Kruskal, Ordinal Measures of Association,
    JASA 53 (1958) 814-861; for the copula McNeil, Frey and Embrechts, Quantitative Risk Management (2005), section 5.3.
    """
    if workload.pairs is not None:
        columns = _pair_columns(cast(Any, workload.pairs))
        prompt, output = columns[:, rngs.prompt.integers(columns.shape[1], size=n)]
        return prompt, output
    if workload.clients is not None and _differ(workload.clients):
        assert client is not None
        people = population(workload.clients)
        prompt = draw_lengths(workload.prompt, n, rngs.prompt, people.prompt_shift[client])
        return prompt, draw_lengths(workload.output, n, rngs.output, people.output_shift[client])
    first_prompt = None if workload.sessions is None else workload.sessions.first_prompt
    if workload.correlation == 0.0 and first_prompt is None:
        return draw_lengths(workload.prompt, n, rngs.prompt), draw_lengths(workload.output, n, rngs.output)

    from scipy.special import ndtr  # here, because scipy takes longer to import than the rest of this file

    z = rngs.prompt.standard_normal(n)
    prompt = length_quantiles(workload.prompt, ndtr(z))
    if first_prompt is not None and first is not None:
        prompt[first] = length_quantiles(first_prompt, ndtr(z[first]))
    if workload.correlation == 0.0:
        return prompt, draw_lengths(workload.output, n, rngs.output)
    rho = normal_correlation(workload.correlation)
    other = rho * z + math.sqrt(1.0 - rho**2) * rngs.output.standard_normal(n)
    return prompt, length_quantiles(workload.output, ndtr(other))


def normal_correlation(rank_correlation: float) -> float:
    """The correlation of two normals with this rank correlation (Spearman's); source: see `draw_request_lengths`."""
    return 2.0 * math.sin(math.pi * rank_correlation / 6.0)


def largest_output(workload: WorkloadSettings) -> int:
    """The longest output that the settings allow, in tokens."""
    if workload.pairs is not None:
        return int(_pair_columns(cast(Any, workload.pairs))[1].max())
    return max(largest_length(kind.output) for kind in workload.kinds or (workload,))


def mean_tokens(workload: WorkloadSettings) -> float:
    """Mean prompt + output tokens of a request without sessions; of clients that differ, by their shares.

    Exact up to rounding; with clients that differ up to a relative error of 1e-10 (see `lognormal_means`).
    """
    if workload.pairs is not None:
        return float(_pair_columns(cast(Any, workload.pairs)).mean(axis=1).sum())
    if workload.clients is not None and _differ(workload.clients):
        means = (
            _mean_of_clients(cast(Any, lengths), cast(Any, workload.clients), prompt)
            for lengths, prompt in ((workload.prompt, True), (workload.output, False))
        )
        return cast(float, sum(means))
    return mean_length(workload.prompt) + mean_length(workload.output)


def sum_probabilities(prompt: Length, output: Length, correlation: float, size: int) -> np.ndarray:
    """P(prompt + output = k), k = 0 .. size - 1, float64[size], of lengths with this rank correlation.

    The normal behind the prompt is cut into cells: a regular grid and the edges of all prompts that are wider than one
    of its cells. Given its cell the output has the distribution of a normal given the middle of the cell. With outputs
    of up to 8,192 tokens the grid has 4,096 cells, and the mean of the sum is off by less than 3e-5 of it; with longer
    ones it is coarser, down to 256 cells and 1e-3.
    """
    from scipy.special import ndtr, ndtri  # here, because scipy takes longer to import than the rest of this file

    rho = normal_correlation(correlation)
    rest = math.sqrt(1.0 - rho**2)
    tops = ndtri(_steps(cast(Any, output)))  # of the normal behind the output
    num_cells = int(np.clip(_EVALUATIONS / tops.size, 256, 4096))
    grid = np.linspace(-8.5, 8.5, num_cells + 1)
    edges = np.clip(ndtri(np.concatenate(((0.0,), _steps(cast(Any, prompt))))), grid[0], grid[-1])
    wide = np.flatnonzero(np.diff(edges) > grid[1] - grid[0])
    cells = np.unique(np.concatenate((grid, edges[wide], edges[wide + 1])))
    shares = np.diff(ndtr(cells[1:-1]), prepend=0.0, append=1.0)
    middles = (cells[1:] + cells[:-1]) / 2.0
    shortest = length_quantiles(prompt, ndtr(middles)) + _bounds(output)[0]
    sums = np.zeros(size)
    for share, middle, start in zip(shares, middles, shortest, strict=True):
        if start < size:
            below = ndtr((tops[: size - start] - rho * middle) / rest)
            sums[start : start + below.size] += share * np.diff(below, prepend=0.0)
    return sums


def _differ(clients: ClientSettings) -> bool:
    """Whether lengths differ between clients."""
    return clients.prompt_sigma > 0.0 or clients.output_sigma > 0.0


@lru_cache(maxsize=16)
def _pair_columns(pairs: PairSettings) -> np.ndarray:
    """int64[2, number of pairs]: prompts and outputs. Not to be written."""
    columns = np.array((pairs.prompt_tokens, pairs.output_tokens), np.int64)
    columns.setflags(write=False)
    return columns


@lru_cache(maxsize=64)
def _mean_of_clients(settings: Length, clients: ClientSettings, prompt: bool) -> float:
    """Mean prompt, or output, of a request by one of these clients."""
    if not isinstance(settings, LognormalLength | LognormalMixtureLength):
        return mean_length(settings)  # only log-normal ones differ
    people = population(clients)
    shift = people.prompt_shift if prompt else people.output_shift
    bounds = (settings.min_tokens, settings.max_tokens)
    return sum(
        w * float(people.shares @ lognormal_means(mu + shift, sigma, *bounds)) for w, mu, sigma in _parts(settings)
    )


# ---- of one distribution -------------------------------------------------------------------------------------------
def draw_lengths(settings: Length, n: int, rng: np.random.Generator, shift: np.ndarray | float = 0.0) -> np.ndarray:
    """Independent lengths.

    Args:
        settings: the distribution.
        n: how many.
        rng: used by nothing else (see `llm_env.workload.streams`).
        shift: (n,) added to the logarithm before it is rounded and clipped; only log-normals and mixtures have one.

    Returns:
        int64[n], tokens, at least 1.
    """
    if isinstance(settings, FixedLength):
        return np.full(n, settings.tokens, np.int64)
    if isinstance(settings, LognormalLength):
        return _to_tokens(settings.mu + shift + settings.sigma * rng.standard_normal(n), settings)
    if isinstance(settings, LognormalMixtureLength):
        picks, z = rng.standard_normal((n, 2)).T
        # The component is picked by a normal draw against the normal quantiles of the weights: a uniform draw would
        # need a second array, and the two together would depend on n.
        component = np.searchsorted(_thresholds(settings.w), picks, side="right")
        return _to_tokens(np.array(settings.mu)[component] + shift + np.array(settings.sigma)[component] * z, settings)
    if isinstance(settings, GeometricLength):
        return np.minimum(rng.geometric(settings.p, n), settings.max_tokens).astype(np.int64)
    if isinstance(settings, ChoiceLength):
        steps = np.cumsum(settings.probabilities)
        return np.array(settings.tokens, np.int64)[np.searchsorted(steps / steps[-1], rng.random(n), side="right")]
    return length_quantiles(settings, rng.random(n))


def mean_length(settings: Length) -> float:
    """Exact mean of what `draw_lengths` gives, after rounding and clipping, in tokens.

    For lengths X in [lo, hi] it is lo + the sum of P(X > k) over k = lo .. hi - 1. Results are kept, because an episode
    asks for them at every reset.
    """
    return _mean(cast(Any, settings))  # settings are frozen and so hashable, which type checkers cannot see


@lru_cache(maxsize=256)
def _mean(settings: Length) -> float:
    if isinstance(settings, LognormalLength):
        return lognormal_mean(settings.mu, settings.sigma, settings.min_tokens, settings.max_tokens)
    if isinstance(settings, LognormalMixtureLength):
        bounds = (settings.min_tokens, settings.max_tokens)
        means = [lognormal_mean(mu, sigma, *bounds) for mu, sigma in zip(settings.mu, settings.sigma, strict=True)]
        return float(np.dot(settings.w, means) / sum(settings.w))
    if isinstance(settings, GeometricLength):
        # the sum of (1 - p)^k over k = 0 .. max_tokens - 1
        if settings.p == 1.0:
            return 1.0
        return float(-np.expm1(settings.max_tokens * np.log1p(-settings.p)) / settings.p)
    if isinstance(settings, ChoiceLength):
        return float(np.dot(settings.probabilities, settings.tokens) / sum(settings.probabilities))
    lo, _ = _bounds(settings)
    return lo + float((1.0 - _steps(cast(Any, settings))[:-1]).sum())


def largest_length(settings: Length) -> int:
    """The largest length that the settings allow, in tokens."""
    return _bounds(settings)[1]


def _bounds(settings: Length) -> tuple[int, int]:
    """The smallest and the largest length that the settings allow, in tokens."""
    if isinstance(settings, FixedLength):
        return settings.tokens, settings.tokens
    if isinstance(settings, ChoiceLength | QuantileLength):
        return min(settings.tokens), max(settings.tokens)
    if isinstance(settings, GeometricLength):
        return 1, settings.max_tokens
    return settings.min_tokens, settings.max_tokens


def length_quantiles(settings: Length, u: np.ndarray) -> np.ndarray:
    """Quantiles of what `draw_lengths` gives: the smallest length k with P(length <= k) >= u.

    Args:
        settings: the distribution.
        u: (n,) in [0, 1]; 0 is the smallest length with a probability above 0.

    Returns:
        int64[n], tokens.
    """
    steps = _steps(cast(Any, settings))
    return _bounds(settings)[0] + np.searchsorted(steps, np.maximum(u, np.finfo(np.float64).tiny)).astype(np.int64)


def length_cdf(settings: Length) -> Callable[[np.ndarray], np.ndarray]:
    """The function x -> P(length <= x), float64[n] of any float64[n]."""
    lo, hi = _bounds(settings)
    steps = np.concatenate(((0.0,), _steps(cast(Any, settings))))
    return lambda x: steps[(np.clip(np.floor(x), lo - 1, hi) - (lo - 1)).astype(np.int64)]


@lru_cache(maxsize=32)  # more than there are lengths in a mixture of all shipped scenarios
def _steps(settings: Length) -> np.ndarray:
    """(hi - lo + 1,) P(length <= k) for k = lo .. hi, the last exactly 1. Not to be written."""
    lo, hi = _bounds(settings)
    if isinstance(settings, UniformLength):
        steps = np.arange(1.0, hi - lo + 2.0) / (hi - lo + 1.0)
    elif isinstance(settings, LognormalLength | LognormalMixtureLength):
        steps = sum((w * lognormal_below(mu, sigma, lo, hi) for w, mu, sigma in _parts(settings)), np.zeros(hi - lo))
        steps = np.append(steps, 1.0)
    elif isinstance(settings, QuantileLength):
        # the value before rounding is at most k + 1/2, which is never a knot: what is flat (an atom) is never asked for
        p = np.linspace(0.0, 1.0, len(settings.tokens)) if settings.p is None else settings.p
        steps = np.interp(np.arange(lo, hi + 1) + 0.5, settings.tokens, p)
    else:
        steps = np.cumsum(length_probabilities(settings, hi + 1)[lo:])
    steps = np.minimum(steps, 1.0)
    steps[-1] = 1.0
    steps.setflags(write=False)
    return steps


def length_probabilities(settings: Length, size: int) -> np.ndarray:
    """Exact probabilities of what `draw_lengths` gives.

    Returns:
        float64[size]: of the lengths 0, 1, ..., size - 1. Those of `size` and more tokens are left out.
    """
    lo, hi = _bounds(settings)
    wide = np.zeros(max(size, hi + 1))
    if isinstance(settings, FixedLength):
        wide[settings.tokens] = 1.0
    elif isinstance(settings, ChoiceLength):
        np.add.at(wide, list(settings.tokens), np.array(settings.probabilities) / sum(settings.probabilities))
    elif isinstance(settings, GeometricLength):  # what is longer than max_tokens is cut to it
        longer = np.power(1.0 - settings.p, np.arange(hi))  # P(length > k), k = 0 .. max_tokens - 1
        wide[1:hi] = settings.p * longer[: hi - 1]
        wide[hi] = longer[hi - 1]
    elif isinstance(settings, LognormalLength | LognormalMixtureLength):
        for w, mu, sigma in _parts(settings):
            wide[lo : hi + 1] += w * np.diff(lognormal_below(mu, sigma, lo, hi), prepend=0.0, append=1.0)
    elif isinstance(settings, ZipfLength):
        weights = (np.arange(lo, hi + 1) / lo) ** -settings.exponent
        wide[lo : hi + 1] = weights / weights.sum()
    else:
        wide[lo : hi + 1] = np.diff(_steps(cast(Any, settings)), prepend=0.0)
    return wide[:size]


def _parts(settings: LognormalLength | LognormalMixtureLength) -> list[tuple[float, float, float]]:
    """Weight, mu and sigma of each component; the weights sum to 1."""
    if isinstance(settings, LognormalLength):
        return [(1.0, settings.mu, settings.sigma)]
    total = sum(settings.w)
    return [(w / total, mu, sigma) for w, mu, sigma in zip(settings.w, settings.mu, settings.sigma, strict=True)]


def _to_tokens(logarithms: np.ndarray, settings: LognormalLength | LognormalMixtureLength) -> np.ndarray:
    with np.errstate(over="ignore"):  # an infinite length is clipped like any other
        return np.clip(np.rint(np.exp(logarithms)), settings.min_tokens, settings.max_tokens).astype(np.int64)


def _thresholds(weights: tuple[float, ...]) -> np.ndarray:
    """Normal quantiles that cut the real line into pieces with these probabilities, one fewer than weights."""
    steps = np.cumsum(weights)
    return np.array([_quantile(float(step)) for step in steps[:-1] / steps[-1]])


def _quantile(p: float) -> float:
    if p <= 0.0:
        return -np.inf
    return np.inf if p >= 1.0 else NormalDist().inv_cdf(p)
