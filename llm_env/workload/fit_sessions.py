"""Sessions read off a trace: how many turns, how long between them, and what each adds to the prompt.

Knows columns of requests; fits nothing but probabilities of another turn and log-normal times between turns.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from llm_env.config import SessionSettings
from llm_env.errors import UserError
from llm_env.settings import MAX_TOKENS
from llm_env.workload.fit_split import LEAST_REQUESTS
from llm_env.workload.statistics import significant
from llm_env.workload.traffic import Traffic

MAX_ORDER = 16  # turns with a probability of their own
LEAST_AT_RISK = 50  # sessions that reached a turn, for its own probability of another one
MAX_MORE, MAX_SIGMA = 0.999, 2.0  # of the settings


class SessionTurns(NamedTuple):
    """A trace turn by turn, in the order of sessions."""

    first: np.ndarray  # (n,) bool: first turn of its session
    start_s: np.ndarray  # (n,) float64: when its session began
    since_s: np.ndarray  # (n,) float64: from the arrival of the turn before it; 0 for a first turn
    prompt_tokens: np.ndarray  # (n,) int64
    new_tokens: np.ndarray  # (n,) int64: prompt less prompt and output of the turn before it; may be below 1
    output_tokens: np.ndarray  # (n,) int64


def turns_of(traffic: Traffic) -> SessionTurns:
    """The turns of all sessions; a request without a session is one of its own.

    Raises:
        UserError: the trace has no sessions of two turns.
    """
    if traffic.session is None:
        raise UserError("trace: --sessions needs a column session with integers")
    session = traffic.session.astype(np.int64)
    alone = session < 0
    session[alone] = session.max() + 1 + np.arange(int(alone.sum()))
    order = np.argsort(session, kind="stable")
    session, arrival = session[order], traffic.arrival_s[order]
    prompt, output = (tokens[order].astype(np.int64) for tokens in (traffic.prompt_tokens, traffic.output_tokens))
    first = np.ones(session.size, np.bool_)
    first[1:] = session[1:] != session[:-1]
    if first.all():
        raise UserError("trace: --sessions: no session has a second turn")
    which = np.cumsum(first) - 1
    since = np.diff(arrival, prepend=arrival[0])
    context = np.concatenate(((0,), (prompt + output)[:-1]))
    return SessionTurns(first, arrival[first][which], np.where(first, 0.0, since), prompt, prompt - context, output)


def fit_sessions(turns: SessionTurns) -> SessionSettings:
    """Probabilities of another turn, and the times between turns; lengths are not filled in.

    After turn k comes another one as often as it did in the trace, with a probability of its own up to turn 16 as long
    as 50 sessions got that far; all later turns share one. Sessions that the end of the trace cuts count as ended. The
    longest context is that of these turns, as far as settings allow it.

    Raises:
        UserError: fewer than 200 turns follow another one.
    """
    later_s = turns.since_s[~turns.first]
    if later_s.size < LEAST_REQUESTS:
        raise UserError(f"trace: --sessions: {later_s.size} later turns are too few, expected {LEAST_REQUESTS}")
    starts = np.flatnonzero(turns.first)
    lengths = np.diff(np.concatenate((starts, [turns.first.size])))
    reached = np.bincount(lengths)[::-1].cumsum()[::-1][1:].astype(float)  # sessions with at least 1, 2, ... turns
    reached = np.append(reached, 0.0)
    own = min(MAX_ORDER, max(1, int(np.sum(reached >= LEAST_AT_RISK))))
    more = [*(reached[1:own] / reached[: own - 1]), reached[own:].sum() / reached[own - 1 :].sum()]
    logs = np.log(np.maximum(later_s, 1e-3))  # turns at one instant have no logarithm
    sigma = min(float(logs.std()), MAX_SIGMA)
    return SessionSettings(
        more_turns=tuple(min(round(float(p), 4), MAX_MORE) for p in more),
        think_s=significant(math.exp(float(logs.mean()) + sigma**2 / 2.0)),
        think_sigma=significant(sigma),
        max_context_tokens=min(int((turns.prompt_tokens + turns.output_tokens).max()), MAX_TOKENS),
    )
