"""On/off traffic of rate 1: bursts of requests and silences between them, seen from an arbitrary moment."""

from __future__ import annotations

import math

import numpy as np

from llm_env.arrival_settings import OnOffArrivals
from llm_env.errors import UserError
from llm_env.length_settings import LognormalLength
from llm_env.settings import MAX_TOKENS
from llm_env.workload.lengths import draw_lengths, mean_length
from llm_env.workload.limits import check_amount
from llm_env.workload.renewal import gamma_shape

_LEAST_GAPS = 1e-4  # per burst; with fewer there is next to nothing to fill the time between silences


def burst_sizes(settings: OnOffArrivals) -> LognormalLength:
    """The law of the requests of a burst: log-normal, rounded, cut to [1, 1,048,576]."""
    mu = math.log(settings.burst_requests) - settings.burst_sigma**2 / 2.0
    return LognormalLength(mu=mu, sigma=settings.burst_sigma, max_tokens=MAX_TOKENS)


def mean_times(settings: OnOffArrivals) -> tuple[float, float, float]:
    """Exact means of a burst's requests, of a gap within a burst and of a silence; times in units of 1 / rate.

    A cycle of N requests has N - 1 gaps and a silence. It lasts E[N] on average, `off_share` of which is the silence.

    Raises:
        UserError: hardly any burst has a second request.
    """
    size = mean_length(burst_sizes(settings))
    if size - 1.0 < _LEAST_GAPS:
        raise UserError(
            f"workload.arrivals: nearly all bursts have one request, {size:g} on average, and so no gaps:"
            " raise burst_requests or burst_sigma"
        )
    return size, (1.0 - settings.off_share) * size / (size - 1.0), settings.off_share * size


def on_off(
    settings: OnOffArrivals, end: float, rng: np.random.Generator, modulation: np.random.Generator
) -> np.ndarray:
    """Arrivals in [0, end) of an on/off process of rate 1.

    Exactly stationary. An arbitrary moment falls into a cycle that is length-biased, uniformly. A cycle is a sum, so
    this is the same as to choose the kind of interval by its share of the time, to bias that interval alone, and to
    take the rest of the cycle as it comes:
    - in a silence, with probability `off_share`: it is length-biased, and log-normal again with mu + sigma^2;
    - in a gap: the burst is one of size n with a probability proportional to n - 1, the gap any of its n - 1, and
      length-biased.
    Of that interval a uniform part is left.

    Args:
        settings: bursts and silences.
        end: in units of 1 / rate.
        rng: of the gaps.
        modulation: of the bursts' sizes and the silences.

    Raises:
        UserError: by chance more than 20,000,000 requests have to be drawn.

    Source: Cox, Renewal Theory (1962), sections 5.2 and 5.3; Willinger, Taqqu, Sherman and Wilson, "Self-similarity
    through high-variability", IEEE/ACM Transactions on Networking 5 (1997) 71-86 (on/off sources).
    """
    size, mean_gap, mean_off = mean_times(settings)
    shape, sigma = gamma_shape(settings.gap_cv), settings.off_sigma
    start, sizes, silences = modulation.spawn(3)
    requests, before = _first_burst(settings, mean_gap, mean_off, start)
    times, reached, drawn, num_bursts = [], 0.0, 0, int(1.1 * end / size) + 2
    while reached < end:
        more = draw_lengths(burst_sizes(settings), num_bursts, sizes)
        off = mean_off * np.exp(sigma * silences.standard_normal(num_bursts) - sigma**2 / 2.0)
        requests, before = np.concatenate((requests, more)), np.concatenate((before, off))
        total = int(requests.sum())
        drawn += total
        check_amount("requests", drawn / 2.0, "bursts and silences differ too much; lower the sigmas or the rate")
        intervals = rng.standard_gamma(shape, total) * (mean_gap / shape)
        intervals[np.cumsum(requests) - requests] = before
        times.append(reached + np.cumsum(intervals))
        reached = float(times[-1][-1])
        requests, before, num_bursts = requests[:0], before[:0], num_bursts // 2 + 2
    joined = np.concatenate(times)
    return joined[: np.searchsorted(joined, end)]


def _first_burst(
    settings: OnOffArrivals, mean_gap: float, mean_off: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Requests of the first burst that are still to come, and the time until the first of them, (1,) each."""
    which, part = rng.random(2)
    if which < settings.off_share:
        sigma = settings.off_sigma
        silence = mean_off * np.exp(sigma * rng.standard_normal(1) + sigma**2 / 2.0)
        return draw_lengths(burst_sizes(settings), 1, rng), part * silence
    law, shape = burst_sizes(settings), gamma_shape(settings.gap_cv)
    while True:
        # X biased by itself, then kept with the probability (n - 1) / X, where n = X rounded and cut: below 1 always
        x = np.exp(law.mu + law.sigma**2 + law.sigma * rng.standard_normal(256))
        gaps = np.clip(np.rint(x), law.min_tokens, law.max_tokens) - 1.0
        kept = np.flatnonzero(rng.random(256) * x < gaps)
        if kept.size:
            to_come = 1 + rng.integers(int(gaps[kept[0]]), size=1)
            return to_come, part * mean_gap * rng.standard_gamma(shape + 1.0, 1) / shape
