"""Markov-modulated Poisson processes fitted to counts by expectation maximisation. Knows counts in short bins only."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from llm_env.config import MMPPArrivals
from llm_env.workload.fit_split import Pieces, cut_pieces, piece_counts
from llm_env.workload.seeds import FIT, stream_bits
from llm_env.workload.statistics import significant

BIN_REQUESTS = 2.0  # mean requests of a bin: short enough to see a change of state, long enough to see the rate
PIECE_BINS = (30, 240)
MAX_PIECES = 2000  # of longer traces every so-manieth piece is used
ROUNDS, TOLERANCE, STARTS = 200, 1e-7, 3
LEAST_RATE = 1e-4  # requests per bin of a silent state: 0 could never be left again
_FIRST_STAY = 0.9  # probability to stay in a state for one more bin, where the search begins


class _Chain(NamedTuple):
    log_likelihood: float
    rates: np.ndarray  # (k,) requests per bin
    stay: np.ndarray  # (k,) expected bins in each state
    flows: np.ndarray  # (k, k) expected changes from state to state


def fit_mmpp(times: np.ndarray, pieces: Pieces, num_states: int, block_s: float = 60.0) -> MMPPArrivals:
    """A Markov-modulated Poisson process of `num_states` states, by Baum and Welch's algorithm on counts in bins.

    Pieces are independent series. Of several seeded starts the most likely one is kept. The changes into and out of a
    state are made equal (each pair of flows gets its mean), so that the share of the time in a state, and with it the
    mean rate, are those that were seen.

    Args:
        times: (n,) arrival times.
        pieces: of the time, to be fitted to.
        num_states: 2 or more.
        block_s: longer pieces are cut to this length.

    Source: Rabiner, "A tutorial on hidden Markov models", Proc. IEEE 77 (1989) 257-286, section III (re-estimation,
    scaling, several series); Poisson emissions: MacDonald and Zucchini, Hidden Markov and Other Models for
    Discrete-valued Time Series (1997), section 2.
    """
    short = cut_pieces(pieces, block_s)
    chosen = np.unique(np.linspace(0, short.starts_s.size - 1, min(MAX_PIECES, short.starts_s.size)).astype(int))
    short = Pieces(short.starts_s[chosen], short.length_s)
    requests = piece_counts(times, short, short.length_s).mean()
    bins = int(np.clip(round(requests / BIN_REQUESTS), *PIECE_BINS))
    bin_s = short.length_s / bins
    counts = piece_counts(times, short, bin_s)
    rng = np.random.Generator(stream_bits(0, FIT, num_states))
    best = max((_search(counts, rates) for rates in _starts(counts, num_states, rng)), key=lambda c: c.log_likelihood)

    order = np.argsort(best.rates)
    rates, stay = best.rates[order] / bin_s, best.stay[order] * bin_s
    flows = best.flows[np.ix_(order, order)]
    flows = (flows + flows.T) / 2.0
    np.fill_diagonal(flows, 0.0)
    flows = np.maximum(flows, 1e-3 * (1.0 - np.eye(num_states)))  # a state never left would last for ever
    leaves = flows.sum(axis=1)
    following = flows / leaves[:, None]
    return MMPPArrivals(
        rates=tuple(map(significant, rates)),
        dwell_s=tuple(map(significant, np.maximum(stay / leaves, bin_s / 10.0))),
        following=None if num_states == 2 else tuple(_distribution(row, i) for i, row in enumerate(following)),
    )


def _starts(counts: np.ndarray, k: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Rates (k,) from which the search begins: a quiet state and quantiles of the bins with requests; then random."""
    busy = counts[counts > 0]
    shares = [(np.arange(k) + 0.5) / k, *(np.sort(rng.uniform(0.02, 0.99, k)) for _ in range(STARTS - 1))]
    starts = [np.quantile(busy, share) + 0.1 * np.arange(k) for share in shares]  # never two states alike
    for rates in starts[: STARTS - 1]:
        rates[0] = min(rates[0], max(0.1 * counts.mean(), 0.02)) if np.mean(counts == 0) > 0.2 else rates[0]
    return starts


def _search(counts: np.ndarray, rates: np.ndarray) -> _Chain:
    """Baum-Welch from `rates`; counts (pieces, bins)."""
    from scipy.special import gammaln  # here, because scipy takes long to import

    k = rates.size
    change = np.full((k, k), (1.0 - _FIRST_STAY) / (k - 1))
    np.fill_diagonal(change, _FIRST_STAY)
    first = np.full(k, 1.0 / k)
    constant = -float(gammaln(counts + 1).sum())
    chain = _Chain(-np.inf, rates, np.ones(k), change)
    for _ in range(ROUNDS):
        log_likelihood, stay, flows, start, sums = _expectations(counts, chain.rates, change, first)
        log_likelihood += constant
        converged = log_likelihood - chain.log_likelihood < TOLERANCE * abs(log_likelihood)
        chain = _Chain(log_likelihood, np.maximum(sums / np.maximum(stay, 1e-12), LEAST_RATE), stay, flows)
        change = np.maximum(flows, 1e-12) / np.maximum(flows, 1e-12).sum(axis=1, keepdims=True)
        first = start / start.sum()
        if converged:
            break
    return chain


def _expectations(
    counts: np.ndarray, rates: np.ndarray, change: np.ndarray, first: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """One pass forward and back over all pieces at once.

    Returns:
        log-likelihood without the factorials; (k,) expected bins in each state; (k, k) expected moves from bin to bin;
        (k,) expected pieces that begin in each state; (k,) expected requests in each state.
    """
    num_pieces, bins = counts.shape
    k = rates.size
    logs = counts[..., None] * np.log(rates) - rates  # (pieces, bins, k)
    highest = logs.max(axis=2, keepdims=True)
    likelihood = np.exp(logs - highest).transpose(1, 0, 2)  # (bins, pieces, k)
    forward, scale = np.empty((bins, num_pieces, k)), np.empty((bins, num_pieces, 1))
    state = np.broadcast_to(first, (num_pieces, k))
    for t in range(bins):
        state = state * likelihood[t]
        scale[t] = state.sum(axis=1, keepdims=True)
        state = state / scale[t]
        forward[t] = state
        state = state @ change
    backward = np.ones((bins, num_pieces, k))
    for t in range(bins - 2, -1, -1):
        backward[t] = (likelihood[t + 1] * backward[t + 1] / scale[t + 1]) @ change.T
    posterior = forward * backward
    ahead = (likelihood[1:] * backward[1:] / scale[1:]).reshape(-1, k)
    flows = forward[:-1].reshape(-1, k).T @ ahead * change
    sums = (posterior * counts.T[..., None]).sum(axis=(0, 1))
    return float(np.log(scale).sum() + highest.sum()), posterior.sum(axis=(0, 1)), flows, posterior[0].sum(axis=0), sums


def _distribution(row: np.ndarray, itself: int) -> tuple[float, ...]:
    """Probabilities with four decimals that sum to 1, none for the state itself and none of 0 for another one."""
    rounded = np.maximum(np.round(row, 4), 1e-4)
    rounded[itself] = 0.0
    rounded[np.argmax(rounded)] += 1.0 - rounded.sum()
    return tuple(round(float(p), 4) for p in rounded)
