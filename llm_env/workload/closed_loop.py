"""The script of a closed loop: what each user will ask, how long each thinks before. When, the run decides."""

from __future__ import annotations

import numpy as np

from llm_env.arrival_settings import ClosedLoopArrivals
from llm_env.config import Scenario, WorkloadSettings
from llm_env.dtypes import INF
from llm_env.errors import UserError
from llm_env.workload.arrivals import MAX_EXPECTED
from llm_env.workload.lengths import draw_request_lengths
from llm_env.workload.seeds import THINK, Streams, stream_bits
from llm_env.workload.traffic import Traffic

LEAST_THINK_S = 1e-6  # nobody asks again at the very moment of an answer


def is_closed(scenario: Scenario) -> bool:
    """True if the scenario's users wait for their answers."""
    return isinstance(scenario.workload.arrivals, ClosedLoopArrivals)


def refuse_rate(scenario: Scenario, what: str) -> None:
    """Raises a UserError if a rate or load is asked of a closed loop. Args: what: who asks, as the message begins."""
    if is_closed(scenario):
        raise UserError(
            f"{what}: workload.arrivals.kind is closed-loop: users wait for their answers, so there is no rate and no"
            " load; set workload.arrivals.users and workload.arrivals.think_s"
        )


def draw_script(workload: WorkloadSettings, duration_s: float, seed: int, rngs: Streams) -> tuple[Traffic, np.ndarray]:
    """All that the users of a closed loop could ask before `duration_s`, grouped by user.

    Each user has as many requests as would come if every answer took no time, so a run never needs more. The thoughts
    of a user are a stream of their own: they depend neither on the policy nor on how many others there are.

    Returns:
        The requests, where arrival_s is that of each user's first request and infinite for the others, and client is
        the user; and the times of thought before them, (n,) float64 seconds.

    Raises:
        UserError: more than 20,000,000 requests are possible.
    """
    settings = workload.arrivals
    assert isinstance(settings, ClosedLoopArrivals)
    _check_amount(settings.users * duration_s / settings.think_s)
    think_s: list[np.ndarray] = []
    total = 0
    for user in range(settings.users):
        think_s.append(_thoughts(settings, duration_s, np.random.Generator(stream_bits(seed, THINK, user))))
        total += len(think_s[-1])
        _check_amount(total)
    sizes = np.array([len(thoughts) for thoughts in think_s])
    thoughts_s = np.concatenate(think_s)
    arrival_s = np.full(len(thoughts_s), INF)
    firsts = np.cumsum(sizes[sizes > 0]) - sizes[sizes > 0]
    arrival_s[firsts] = thoughts_s[firsts]
    user = np.repeat(np.arange(settings.users), sizes)
    prompt, output = draw_request_lengths(workload, len(thoughts_s), rngs)
    return Traffic(arrival_s, prompt, output, user), thoughts_s


def _thoughts(settings: ClosedLoopArrivals, duration_s: float, rng: np.random.Generator) -> np.ndarray:
    """Log-normal times of mean `think_s` whose sum is below `duration_s`, as many as fit; seconds."""
    mu, sigma = np.log(settings.think_s) - settings.think_sigma**2 / 2.0, settings.think_sigma
    size = min(MAX_EXPECTED, int(1.2 * duration_s / settings.think_s) + 8)  # nearly always enough at once
    thoughts_s = np.empty(0)
    while len(thoughts_s) < MAX_EXPECTED and thoughts_s.sum() < duration_s:
        more_s = np.exp(mu + sigma * rng.standard_normal(size))
        thoughts_s = np.append(thoughts_s, np.maximum(more_s, LEAST_THINK_S))
    return thoughts_s[: np.searchsorted(np.cumsum(thoughts_s), duration_s)]


def _check_amount(requests: float) -> None:
    if not requests <= MAX_EXPECTED:
        raise UserError(
            f"workload: {requests:.3g} requests or more are possible in one episode, at most {MAX_EXPECTED} may be:"
            " fewer workload.arrivals.users, longer think_s or shorter episode.arrivals_s"
        )
