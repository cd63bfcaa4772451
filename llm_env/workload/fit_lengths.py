"""Length distributions fitted to tokens: log-normal, mixtures of log-normals, and tables of quantiles.

All work on the distinct lengths and how often each occurs, so a million requests cost no more than a thousand.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np

from llm_env.config import Length, LognormalLength, LognormalMixtureLength, QuantileLength
from llm_env.settings import MAX_TOKENS
from llm_env.workload.lengths import length_cdf
from llm_env.workload.seeds import FIT, stream_bits
from llm_env.workload.statistics import ks_distance, significant

LengthModel = Literal["auto", "lognormal", "mixture", "quantiles"]
GOOD_KS = 0.05  # of "auto": the simplest model at most so far from the lengths
MAX_COMPONENTS, STARTS, ROUNDS, TOLERANCE = 4, 4, 500, 1e-7
GAIN = 1e-3  # log-likelihood per request that one more component must bring on requests it was not fitted to
LEAST_SIGMA = 0.02  # of a component: below it a single length attracts a density without bound
MAX_KNOTS, TABLE_KS = 128, 0.004  # a table of quantiles ends with whichever comes first
_DIGITS = 5  # of mu and sigma: exp(mu) is a length
_STEP = 1e-7  # between the probabilities of two neighbouring atoms, which must not be equal


class FittedLength(NamedTuple):
    """One distribution, and how far it is from both parts of the trace."""

    name: str
    length: Length
    fit_ks: float  # KS distance from the lengths it was fitted to
    held_ks: float  # from those held back


class Mixture(NamedTuple):
    """Normal components of the logarithms, the smallest mean first, and how the search went."""

    w: np.ndarray  # (k,)
    mu: np.ndarray
    sigma: np.ndarray
    log_likelihood: float  # mean per request
    history: tuple[float, ...]  # of the log-likelihood, round by round, of the start that won


def fit_lengths(tokens: np.ndarray, held: np.ndarray) -> list[FittedLength]:
    """Every model of one length, the simplest first.

    Args:
        tokens: (n,) lengths to fit to, at least 1.
        held: (m,) lengths held back; only measured against.
    """
    models: tuple[tuple[str, Length], ...] = (
        ("lognormal", fit_lognormal(tokens, int(tokens.min()), _most(tokens))),
        ("mixture", fit_mixture(tokens[0::2], tokens[1::2])),
        ("quantiles", fit_quantiles(tokens)),
    )
    return [
        FittedLength(name, model, ks_distance(tokens, length_cdf(model)), ks_distance(held, length_cdf(model)))
        for name, model in models
    ]


def choose_length(rows: list[FittedLength], model: LengthModel = "auto") -> FittedLength:
    """The model of this name; "auto" is the first within GOOD_KS of the lengths it was fitted to, else the last."""
    if model != "auto":
        return next(row for row in rows if row.name == model)
    return next((row for row in rows if row.fit_ks <= GOOD_KS), rows[-1])


def fit_lognormal(tokens: np.ndarray, min_tokens: int = 1, max_tokens: int = MAX_TOKENS) -> LognormalLength:
    """Log-normal with the mean and deviation of the lengths' logarithms: maximum likelihood. Clipped to the bounds."""
    logs = np.log(tokens)
    return LognormalLength(
        mu=significant(logs.mean(), _DIGITS),
        sigma=significant(min(max(logs.std(), LEAST_SIGMA), 5.0), _DIGITS),
        min_tokens=min_tokens,
        max_tokens=max_tokens,
    )


def fit_mixture(tokens: np.ndarray, checked: np.ndarray) -> LognormalMixtureLength:
    """A mixture of one to four log-normals by expectation maximisation, clipped to the smallest and largest length.

    One more component is taken as long as it raises the mean log-likelihood of `checked`, which no mixture is fitted
    to while their number is chosen; then it is fitted to both together.

    Args:
        tokens: (n,) lengths, at least 1.
        checked: (m,) other lengths of the same part of the trace.
    """
    logs, counts = np.unique(np.log(checked), return_counts=True)
    chosen, reached = 1, -math.inf
    for k in range(1, MAX_COMPONENTS + 1):
        value = mean_log_likelihood(mixture_of(tokens, k), logs, counts)
        if value < reached + GAIN:
            break
        chosen, reached = k, value
    both = np.concatenate((tokens, checked))
    found = mixture_of(both, chosen)
    w = np.round(found.w, 4)
    w[np.argmax(w)] += 1.0 - w.sum()
    return LognormalMixtureLength(
        w=tuple(round(float(x), 4) for x in w),
        mu=tuple(significant(mu, _DIGITS) for mu in found.mu),
        sigma=tuple(significant(sigma, _DIGITS) for sigma in found.sigma),
        min_tokens=int(both.min()),
        max_tokens=_most(both),
    )


def mixture_of(tokens: np.ndarray, k: int) -> Mixture:
    """The most likely mixture of k log-normals that a few seeded searches find.

    Source: Dempster, Laird and Rubin, "Maximum likelihood from incomplete data via the EM algorithm", Journal of the
    Royal Statistical Society B 39 (1977) 1-38, section 4.3 (mixtures).
    """
    logs, counts = np.unique(np.log(tokens), return_counts=True)
    rng = np.random.Generator(stream_bits(0, FIT, k))
    ordered = np.repeat(logs, np.minimum(counts, 1 + counts * 10_000 // counts.sum()))  # thinned, for quantiles only
    starts = [np.quantile(ordered, (np.arange(k) + 0.5) / k)]
    starts += [np.quantile(ordered, np.sort(rng.random(k))) for _ in range(STARTS - 1 if k > 1 else 0)]
    best = max((_maximise(logs, counts, mu) for mu in starts), key=lambda m: m.log_likelihood)
    order = np.argsort(best.mu)
    return best._replace(w=best.w[order], mu=best.mu[order], sigma=best.sigma[order])


def mean_log_likelihood(mixture: Mixture, logs: np.ndarray, counts: np.ndarray) -> float:
    """Mean log density of the logarithms of lengths, `counts` (m,) of each of `logs` (m,)."""
    return float(counts @ _log_densities(logs, mixture.w, mixture.mu, mixture.sigma)[1] / counts.sum())


def fit_quantiles(tokens: np.ndarray) -> QuantileLength:
    """A table of quantiles with as few knots as keep it within TABLE_KS of the lengths, at most MAX_KNOTS.

    A knot goes where the table is farthest off: one at the middle of a length's own step, or two, one at either end of
    it, if the step itself is larger than the tolerance (an atom, such as a template's or a limit's length).
    """
    values, counts = np.unique(np.minimum(tokens, MAX_TOKENS), return_counts=True)
    above = np.cumsum(counts) / counts.sum()  # P(length <= value)
    below = above - counts / counts.sum()
    at, p = [float(values[0]), float(values[-1])], [0.0, 1.0]
    taken = np.zeros(values.size, np.bool_)
    while len(p) <= MAX_KNOTS - 2:
        misses = np.maximum(
            np.abs(np.interp(values + 0.5, at, p) - above), np.abs(np.interp(values - 0.5, at, p) - below)
        )
        if misses.max() <= TABLE_KS:
            break
        worst = int(np.argmax(np.where(taken, -1.0, misses)))
        if taken[worst]:
            break
        taken[worst] = True
        low, high = float(below[worst]), float(above[worst])
        new = [low, high] if high - low > TABLE_KS else [(low + high) / 2.0]
        knots = {*zip(p, at, strict=True), *((q, float(values[worst])) for q in new)}
        p, at = map(list, zip(*sorted(knots, key=lambda knot: (knot[1], knot[0])), strict=True))
    return QuantileLength(tokens=tuple(int(t) for t in at), p=_rising(p))


def _rising(p: list[float]) -> tuple[float, ...]:
    """With seven decimals; where an atom follows an atom, equal probabilities are moved apart by the last of them."""
    steps = np.arange(len(p))
    moved = np.maximum.accumulate(np.round(np.array(p), 7) - _STEP * steps) + _STEP * steps
    moved = np.minimum(moved, 1.0 - _STEP * steps[::-1])
    return tuple(round(float(x), 7) for x in moved)


def _maximise(logs: np.ndarray, counts: np.ndarray, mu: np.ndarray) -> Mixture:
    """EM from these means; every round raises the likelihood, unless a component is as narrow as it may be."""
    k, n = mu.size, counts.sum()
    w, sigma = np.full(k, 1.0 / k), np.full(k, max(_spread(logs, counts) / k, LEAST_SIGMA))
    mu = mu + 1e-6 * np.arange(k)  # two equal components would stay equal
    history: list[float] = []
    for _ in range(ROUNDS):
        joint, log_density = _log_densities(logs, w, mu, sigma)
        history.append(float(counts @ log_density / n))
        if len(history) > 1 and history[-1] - history[-2] < TOLERANCE:
            break
        share = np.exp(joint - log_density[:, None]) * counts[:, None]  # (m, k) requests of each component
        total = np.maximum(share.sum(axis=0), 1e-12)
        w, mu = total / n, logs @ share / total
        sigma = np.maximum(np.sqrt(((logs[:, None] - mu) ** 2 * share).sum(axis=0) / total), LEAST_SIGMA)
    return Mixture(w, mu, sigma, history[-1], tuple(history))


def _log_densities(logs: np.ndarray, w: np.ndarray, mu: np.ndarray, sigma: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log(w_j * density_j), (m, k), and the logarithm of their sum, (m,)."""
    z = (logs[:, None] - mu) / sigma
    joint = np.log(np.maximum(w, 1e-300)) - np.log(sigma) - 0.5 * (z**2 + math.log(2.0 * math.pi))
    highest = joint.max(axis=1)
    return joint, highest + np.log(np.exp(joint - highest[:, None]).sum(axis=1))


def _spread(logs: np.ndarray, counts: np.ndarray) -> float:
    mean = float(np.average(logs, weights=counts))
    return math.sqrt(float(np.average((logs - mean) ** 2, weights=counts)))


def _most(tokens: np.ndarray) -> int:
    return min(int(tokens.max()), MAX_TOKENS)
