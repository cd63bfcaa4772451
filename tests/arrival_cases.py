"""Arrival processes that the tests draw, one of each kind and a few more, and how."""

from __future__ import annotations

import hashlib

import numpy as np

from llm_env.config import (
    ArrivalPart,
    Arrivals,
    ClientArrivals,
    ClientSettings,
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
    WorkloadSettings,
)
from llm_env.workload.arrivals import draw_arrivals_of_clients
from llm_env.workload.seeds import streams

CYCLE = ((0.0, 0.7, 0.3), (0.1, 0.0, 0.9), (1.0, 0.0, 0.0))
WITHOUT_CLIENTS: dict[str, Arrivals] = {
    "poisson": PoissonArrivals(),
    "gamma": GammaArrivals(cv=3.0),
    "weibull": WeibullArrivals(cv=3.0),
    "regular weibull": WeibullArrivals(cv=0.2),
    "mmpp2": MMPP2Arrivals(),
    "mmpp": MMPPArrivals(rates=(1.0, 0.0, 6.0), dwell_s=(4.0, 10.0, 2.0), following=CYCLE),
    "mmpp, any order": MMPPArrivals(rates=(1.0, 2.0, 4.0, 8.0), dwell_s=(8.0, 4.0, 2.0, 1.0)),
    "on-off": OnOffArrivals(burst_requests=8.0, burst_sigma=0.8, off_sigma=0.8),
    "on-off, uneven": OnOffArrivals(burst_requests=2.0, burst_sigma=0.5, gap_cv=2.0, off_share=0.2, off_sigma=0.3),
    "cox": CoxArrivals(sigma=0.6, tau_s=10.0),
    "cox of gamma": CoxArrivals(sigma=1.1, tau_s=5.0, cv=2.0),
    "profile": ProfileArrivals(multipliers=(0.0, 1.0, 5.0, 2.0), period_s=40.0),
    "profile of cox": ProfileArrivals(multipliers=(1.0, 3.0), period_s=7.0, base=CoxArrivals(tau_s=3.0)),
    "profile of mmpp2": ProfileArrivals(multipliers=(1.0, 3.0), period_s=30.0, base=MMPP2Arrivals(cycle_s=5.0)),
    "flash-crowd": FlashCrowdArrivals(every_s=20.0, duration_s=(2.0, 14.0), multipliers=(3.0, 10.0)),
    "flash-crowd of on-off": FlashCrowdArrivals(every_s=20.0, base=OnOffArrivals(burst_requests=4.0)),
    "superposition": SuperposedArrivals(
        parts=(
            ArrivalPart(share=0.5, arrivals=GammaArrivals(cv=2.0)),
            ArrivalPart(share=0.3, arrivals=MMPP2Arrivals(cycle_s=10.0)),
            ArrivalPart(share=0.2, arrivals=OnOffArrivals(burst_requests=4.0)),
        )
    ),
}
CLIENTS = ClientSettings(count=12, skew=0.8)
OF_CLIENTS: dict[str, Arrivals] = {
    "clients": ClientArrivals(weibull_share=0.5),
    "clients with windows": ClientArrivals(window_s=10.0, window_sd=0.5, window_ac=0.7, max_cv=3.0),
    "superposition with clients": SuperposedArrivals(
        parts=(
            ArrivalPart(share=0.6, arrivals=ClientArrivals(max_cv=3.0)),
            ArrivalPart(share=0.4, arrivals=CoxArrivals(tau_s=10.0)),
        )
    ),
}
ALL = WITHOUT_CLIENTS | OF_CLIENTS


def draw(process: Arrivals, rate: float, duration: float, seed: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Times and senders, as an episode of this seed has them."""
    workload = WorkloadSettings(arrivals=process, clients=CLIENTS if process in OF_CLIENTS.values() else None)
    return draw_arrivals_of_clients(workload, rate, duration, streams(seed))


def counts(process: Arrivals, rate: float, duration: float, episodes: int, windows) -> np.ndarray:
    """(windows, episodes): arrivals of each episode in each [low, high)."""
    drawn = [draw(process, rate, duration, seed)[0] for seed in range(episodes)]
    return np.array([[np.diff(np.searchsorted(t, window))[0] for t in drawn] for window in windows])


def digest() -> str:
    """Of what all processes draw."""
    found = hashlib.sha256()
    for process in ALL.values():
        for part in draw(process, 5.0, 100.0, 7):
            found.update(b"" if part is None else part.tobytes())
    return found.hexdigest()
