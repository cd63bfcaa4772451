"""Arrivals of clients who are processes of their own: each a renewal process with its rate and its burstiness."""

from __future__ import annotations

import numpy as np

from llm_env.arrival_settings import ClientArrivals
from llm_env.workload.clients import population
from llm_env.workload.limits import check_amount
from llm_env.workload.rate_paths import RatePath, arrivals_along, autoregression
from llm_env.workload.renewal import gamma, weibull
from llm_env.workload.seeds import CLIENTS, POPULATION, stream_bits
from llm_env.workload_settings import ClientSettings


def client_burstiness(settings: ClientArrivals, clients: ClientSettings) -> tuple[np.ndarray, np.ndarray]:
    """The cv of each client's times between requests, (count,) float64, and whether they are Weibull, (count,) bool.

    Drawn from `clients.population`: the same in every episode. log cv = mean + sd * (r * Z + sqrt(1 - r^2) * Z'), where
    Z is the client's log-rate in standard units (`Population.rate_score`) and r is `rate_cv_correlation`.
    """
    rng = np.random.Generator(stream_bits(clients.population, POPULATION, CLIENTS))
    own, kind = rng.random((clients.count, 2)).T  # row by row: one more client changes no other
    from scipy.special import ndtri  # here, because scipy takes long to import

    score = population(clients).rate_score
    r = settings.rate_cv_correlation if score.any() else 0.0  # equal rates go with nothing
    z = r * score + np.sqrt(1.0 - r**2) * ndtri(np.maximum(own, np.finfo(np.float64).tiny))
    cv = np.exp(settings.log_cv_mean + settings.log_cv_sd * z)
    return np.clip(cv, settings.min_cv, settings.max_cv), kind < settings.weibull_share


def draw_from_clients(
    settings: ClientArrivals,
    clients: ClientSettings,
    rate_per_s: float,
    duration_s: float,
    rng: np.random.Generator,
    modulation: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Arrivals in [0, duration_s) of all clients, and who sent each.

    Each client has streams of its own: with one more client the others do the same at the same rates of their own.
    With `window_sd` a client's rate in window w of the episode is its mean times exp(window_sd * X_w - window_sd^2 /
    2), X autoregressive and stationary, so the mean over time is exact. The first window begins with the episode.

    Returns:
        float64[n], ascending, seconds; int64[n].

    Raises:
        UserError: more than 20,000,000 arrivals or changes of the rate are expected.

    Source: Xiang et al., "ServeGen", arXiv:2505.09999, section 4.
    """
    rates = population(clients).shares * rate_per_s
    cvs, are_weibull = client_burstiness(settings, clients)
    multiples = _window_multiples(settings, rates.size, duration_s, modulation)
    window_s = np.full(multiples.shape[1], settings.window_s)
    per_client = []
    for rate, cv, is_weibull, own, multiple in zip(
        rates.tolist(), cvs.tolist(), are_weibull.tolist(), rng.spawn(rates.size), multiples, strict=True
    ):
        draw = weibull if is_weibull else gamma
        if multiple.size:
            path = RatePath(window_s, rate * multiple)
            per_client.append(arrivals_along(path, duration_s, lambda end, d=draw, c=cv, r=own: d(c, end, r)))
        else:
            times = draw(cv, rate * duration_s, own) / rate
            per_client.append(times[: np.searchsorted(times, duration_s)])
    times = np.concatenate(per_client)
    sender = np.repeat(np.arange(rates.size), [part.size for part in per_client])
    order = np.argsort(times, kind="stable")
    return times[order], sender[order]


def _window_multiples(
    settings: ClientArrivals, count: int, duration_s: float, modulation: np.random.Generator
) -> np.ndarray:
    """(count, windows) multiples of each client's mean rate, (count, 0) if it never changes."""
    if settings.window_sd == 0.0:
        return np.empty((count, 0))
    num_windows = int(duration_s / settings.window_s) + 1
    check_amount("changes of the rate", float(count) * num_windows, "lengthen window_s or have fewer clients")
    z = np.stack([own.standard_normal(num_windows) for own in modulation.spawn(count)])
    sd = settings.window_sd
    return np.exp(sd * autoregression(z, settings.window_ac) - sd**2 / 2.0)
