"""Multi-turn sessions: their turns drawn, joined to the turns before them, and the work that they mean in the long run.

All turns are drawn before the run, so arrivals stay open loop: a user who is answered late does not come back later.
Knows lengths and arrivals; nothing of classes, clients or the kernel.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple, cast

import numpy as np

from llm_env.config import Length, WorkloadSettings
from llm_env.dtypes import NOBODY
from llm_env.errors import UserError
from llm_env.workload.arrivals import MAX_EXPECTED, draw_session_starts
from llm_env.workload.kinds import kind_shares
from llm_env.workload.lengths import (
    draw_request_lengths,
    length_probabilities,
    mean_length,
    mean_tokens,
    sum_probabilities,
)
from llm_env.workload.seeds import Streams
from llm_env.workload_settings import SessionSettings

HISTORY = 8.0  # see `_history_turns`
_ALIASING = 1e-10  # of the inversion of a generating function


class Turns(NamedTuple):
    """Requests of an episode in order of arrival; sessions are numbered by their first turn in it."""

    arrival_s: np.ndarray  # (n,) float64
    prompt_tokens: np.ndarray  # (n,) int64
    output_tokens: np.ndarray  # (n,) int64
    session: np.ndarray  # (n,) int64
    leader: np.ndarray  # (n,) int64: the first turn of the session in this episode


def draw_sessions(
    workload: WorkloadSettings, rate_per_s: float, duration_s: float, rngs: Streams, before: Streams
) -> Turns:
    """The turns that arrive in [0, duration_s), `rate_per_s` of them on average from the first second on.

    Sessions begin by `workload.arrivals` at rate_per_s / `mean_session_turns` sessions per second. To be stationary the
    episode also has the later turns of sessions that began before it: those of the last `_history_turns` * think_s
    seconds, by the same process. What comes of older ones is missing, see docs/model.md. The k-th session that begins
    in the episode has the same turns, lengths and times between them at every load.

    Args:
        workload: with `sessions`.
        rate_per_s: mean requests per second.
        duration_s: length of the episode.
        rngs: of the sessions that begin in it.
        before: of those that began before.

    Raises:
        UserError: more than 20,000,000 turns are expected.
    """
    settings = workload.sessions
    assert settings is not None
    history_s = _history_turns(settings) * settings.think_s
    starts_per_s = rate_per_s / mean_session_turns(workload)
    expected = starts_per_s * _drawn_turns(settings) * (duration_s + history_s)
    if not expected <= MAX_EXPECTED:
        turns = "more_turns" if settings.mean_turns is None else "mean_turns"
        raise UserError(
            f"workload: about {expected:.3g} turns are expected in one episode and the sessions before it, at most"
            f" {MAX_EXPECTED} are possible: lower the rate, workload.sessions.think_s or {turns}"
        )
    starts, earlier = draw_session_starts(workload, starts_per_s, duration_s, history_s, rngs, before)
    new, old = _turns_of(workload, settings, starts, rngs), _turns_of(workload, settings, earlier, before)
    arrival, prompt, output = (np.concatenate(pair) for pair in list(zip(new, old, strict=True))[:3])
    session = np.concatenate((new[3], starts.size + old[3]))
    inside = np.flatnonzero((arrival >= 0.0) & (arrival < duration_s))
    order = inside[np.argsort(arrival[inside], kind="stable")]  # stable: turns of one moment stay in their order
    _, first, which = np.unique(session[order], return_index=True, return_inverse=True)
    number = np.empty(first.size, np.int64)
    number[np.argsort(first)] = np.arange(first.size)
    return Turns(arrival[order], prompt[order], output[order], number[which], first[which])


def _turns_of(
    workload: WorkloadSettings, settings: SessionSettings, starts: np.ndarray, rngs: Streams
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Arrival, prompt, output and session (place in `starts`) of all turns of sessions that begin at `starts`."""
    counts = _draw_turns(settings, starts.size, rngs.turns)
    session = np.repeat(np.arange(starts.size), counts)
    first = np.zeros(session.size, np.bool_)
    first[np.cumsum(counts) - counts] = True
    sigma = settings.think_sigma
    think_s = settings.think_s * np.exp(sigma * rngs.think.standard_normal(session.size) - sigma**2 / 2.0)
    think_s[first] = 0.0
    since_start_s = _sums_within(think_s, first, counts)
    new, output = draw_request_lengths(workload, session.size, rngs, first=first)
    context = _sums_within(new + output, first, counts)  # prompt and output of each turn
    kept = first | (context <= settings.max_context_tokens)  # it grows: what follows a turn that is cut is cut too
    arrival = starts[session] + since_start_s
    return arrival[kept], (context - output)[kept], output[kept], session[kept]


def _draw_turns(settings: SessionSettings, n: int, rng: np.random.Generator) -> np.ndarray:
    """(n,) int64: the turns of n sessions before `max_context_tokens` cuts any.

    With `more_turns` a session has a turn j if an exponential draw reaches the sum of -log(more_turns[i]) over i < j.
    """
    if settings.mean_turns is not None:
        return rng.geometric(1.0 / settings.mean_turns, n)
    with np.errstate(divide="ignore"):  # a probability of 0 is a hazard that no draw reaches
        hazards = -np.log(_more_turns(settings))
    sums = np.cumsum(hazards)
    drawn = rng.standard_exponential(n)
    counts = 1 + np.searchsorted(sums, drawn, side="right")
    beyond = drawn >= sums[-1]
    counts[beyond] += ((drawn[beyond] - sums[-1]) / hazards[-1]).astype(np.int64)
    return counts


def _more_turns(settings: SessionSettings) -> tuple[float, ...]:
    """The probability of another turn after turn 1, 2, ...; the last holds for all later ones."""
    if settings.more_turns is not None:
        return settings.more_turns
    assert settings.mean_turns is not None
    return (1.0 - 1.0 / settings.mean_turns,)


def _drawn_turns(settings: SessionSettings) -> float:
    """Mean number of turns of a session before `max_context_tokens` cuts any."""
    if settings.mean_turns is not None:
        return settings.mean_turns
    *head, last = _more_turns(settings)
    reached = np.cumprod((1.0, *head))  # P(turn j comes), j = 1 .. len(more_turns)
    return float(reached.sum() + reached[-1] * last / (1.0 - last))


def _history_turns(settings: SessionSettings) -> float:
    """How long before the episode the first session begins, in multiples of think_s.

    HISTORY times the mean number of turns; or more, so that later in their session than that come only exp(-HISTORY) of
    all turns. For a geometric number of turns the first is always more.
    """
    mean = _drawn_turns(settings)
    *head, last = _more_turns(settings)
    reached = np.cumprod((1.0, *head))
    allowed = math.exp(-HISTORY) * mean
    tail = float(reached[-1]) * last / (1.0 - last)  # mean number of turns after turn len(more_turns)
    late = len(reached) + math.log(allowed / tail) / math.log(last) if tail > allowed else 0.0
    return max(HISTORY * mean, late)


def _sums_within(values: np.ndarray, first: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Sums from the first turn of its session up to each turn."""
    sums = np.cumsum(values)
    return sums - np.repeat((sums - values)[first], counts)


def link_turns(requests: np.ndarray) -> None:
    """Fills in `previous` and `shared_tokens` from `session`, prompt and output.

    A turn shares the prompt and the output of the turn before it, if its prompt is longer than these. If it is not (in
    a trace: the history was cut or rewritten), it is still the next turn but shares nothing.

    Args:
        requests: REQUEST[n] in order of arrival; session -1 is none.
    """
    requests["previous"], requests["shared_tokens"] = NOBODY, 0
    members = np.flatnonzero(requests["session"] >= 0)
    members = members[np.argsort(requests["session"][members], kind="stable")]
    follows = requests["session"][members[1:]] == requests["session"][members[:-1]]
    turn, previous = members[1:][follows], members[:-1][follows]
    context = requests["prompt_tokens"][previous] + requests["output_tokens"][previous]
    requests["previous"][turn] = previous
    requests["shared_tokens"][turn] = np.where(requests["prompt_tokens"][turn] > context, context, 0)


# ---- the long run --------------------------------------------------------------------------------------------------
def mean_work(workload: WorkloadSettings) -> float:
    """Exact mean tokens of work of a request, E[prompt + output - 1], with whole prompts (no prefix cache).

    With sessions it is the mean over all turns. With geometric turns and one distribution of prompts that is mean_turns
    * (E[new] + E[output]) - 1, less what `max_context_tokens` cuts off: turn j has the new tokens and outputs of j
    turns, and a request is on average turn number mean_turns.

    Two cases are not exact: lengths that differ between clients (`mean_tokens`), and sessions whose prompts and outputs
    are correlated (`sum_probabilities`).
    """
    return _long_run(workload)[1]


def mean_session_turns(workload: WorkloadSettings) -> float:
    """Exact mean number of turns of a session, less what `max_context_tokens` cuts off."""
    return _long_run(workload)[0]


def _long_run(workload: WorkloadSettings) -> tuple[float, float]:
    settings = workload.sessions
    if workload.kinds is not None:
        means = [mean_length(kind.prompt) + mean_length(kind.output) for kind in workload.kinds]
        return 1.0, float(kind_shares(workload) @ means) - 1.0
    if settings is None:
        return 1.0, mean_tokens(workload) - 1.0
    first_prompt = settings.first_prompt or workload.prompt
    first_work = mean_length(first_prompt) + mean_length(workload.output) - 1.0
    more_turns = _more_turns(settings)
    if more_turns[0] == 0.0:
        return 1.0, first_work
    later_turns, later_work = cast(
        "tuple[float, float]",
        _later_turns(
            cast(Any, workload.prompt),
            cast(Any, first_prompt),
            cast(Any, workload.output),
            workload.correlation,
            more_turns,
            settings.max_context_tokens,
        ),
    )
    return 1.0 + later_turns, (first_work + later_work) / (1.0 + later_turns)


@lru_cache(maxsize=64)
def _later_turns(
    prompt: Length,
    first_prompt: Length,
    output: Length,
    correlation: float,
    more_turns: tuple[float, ...],
    max_context_tokens: int,
) -> tuple[float, float]:
    """Mean number of a session's turns after the first, and the mean sum of their work (tokens).

    Let f be the probabilities of a turn's new tokens + output, g those of the first turn, and q_j the probability of
    another turn after turn j, the same from j = m on. Turn j comes if its context, the sum of j such draws, is at most
    the limit, and is context - 1 tokens of work. Let h_k be the mean number of later turns with a context of k. Its
    generating function is g t_1, where t_j is that of the turns after turn j and of their tokens since then: t_j = q_j
    f (1 + t_(j+1)), and t_m = q_m f / (1 - q_m f). It is inverted by a Fourier transform on a circle within the unit
    circle, which makes what wraps around negligible.

    Source: Abate and Whitt, "Numerical inversion of probability generating functions", Operations Research Letters 12
    (1992) 245-251.
    """
    size = max_context_tokens + 1
    n = 1 << (2 * size - 1).bit_length()
    damping = _ALIASING ** (np.arange(size) / n)
    f = _transform(prompt, output, correlation, damping, n)
    g = f if first_prompt == prompt else _transform(first_prompt, output, correlation, damping, n)
    *head, last = more_turns
    h = last * (g * f) / (1.0 - last * f)  # g t_m
    for more in reversed(head):
        h = more * f * (g + h)
    h = np.fft.irfft(h, n)[:size] / damping
    return float(h.sum()), float(h @ (np.arange(size) - 1.0))


def _transform(prompt: Length, output: Length, correlation: float, damping: np.ndarray, n: int) -> np.ndarray:
    """The generating function of prompt + output at n points of a circle."""
    size = damping.size
    if correlation != 0.0:
        return np.fft.rfft(sum_probabilities(prompt, output, correlation, size) * damping, n)
    f = np.fft.rfft(length_probabilities(prompt, size) * damping, n)
    f *= np.fft.rfft(length_probabilities(output, size) * damping, n)
    return f
