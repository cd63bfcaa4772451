"""What somebody decides in a situation, read from outside of the loops: from a compiled policy or from an action.

It decides without acting: the State stays as it is, but for the scores that an action of the form "ranked" notes and
that acting on it would note again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numba
import numpy as np
from numba import types

from llm_env.actions import MOST_FLOATS, to_decision
from llm_env.jit import njit
from llm_env.records import DECIDE_TYPE, STATE_TYPE, State, decision, policy
from llm_env.rollout import Decide
from llm_env.view import make_view

CHOICE = np.dtype(
    [
        # the situation, as a View shows it
        ("time_s", "f8"),
        ("worker", "i8"),
        ("slo_budget", "f8"),
        ("num_waiting", "i8"),
        ("waiting_tokens", "i8"),
        ("num_decodes", "i8"),
        ("decode_slack_s", "f8"),  # until the most urgent decode's next token is late; FAR if nothing decodes
        ("kv_used", "f8"),
        # the decision
        ("token_budget", "i8"),
        ("prefill_tokens", "i8"),
        ("chunk_tokens", "i8"),
        ("hold_s", "f8"),
    ],
    align=True,
)
_BY_POLICY = -1  # in place of a kind of action
_NO_INTEGERS, _NO_FLOATS = np.zeros(4, np.int64), np.zeros(MOST_FLOATS)


def _choose(state, decide, kind, integers, floats, out):
    view = make_view(state)
    made = decide(view) if kind == _BY_POLICY else to_decision(state, kind, integers, floats)
    row = out[0]
    row["time_s"], row["worker"], row["slo_budget"] = view.now_s, view.worker, view.slo_budget
    row["num_waiting"], row["waiting_tokens"] = view.num_waiting, view.waiting_tokens
    row["num_decodes"], row["decode_slack_s"], row["kv_used"] = view.num_decodes, view.min_decode_slack_s, view.kv_used
    row["token_budget"], row["prefill_tokens"] = made.token_budget, made.prefill_tokens
    row["chunk_tokens"], row["hold_s"] = made.chunk_tokens, made.hold_s


@cache
def _compiled() -> Callable[..., None]:
    rows = types.Array(numba.from_dtype(CHOICE), 1, "C")
    integers, floats = types.Array(types.int64, 1, "C"), types.Array(types.float64, 1, "C")
    return njit(types.void(STATE_TYPE, DECIDE_TYPE, types.int64, integers, floats, rows))(_choose)


@cache
def _nobody() -> Any:
    """A policy that is never asked: compiled code needs one of each type."""

    @policy
    def nobody(view):
        return decision(1)

    return nobody


def choice_of_policy(state: State, decide: Decide) -> np.ndarray:
    """(1,) CHOICE of a compiled policy for the worker whose decision is due. Args: state: one system."""
    out = np.zeros(1, CHOICE)
    _compiled()(state, decide, _BY_POLICY, _NO_INTEGERS, _NO_FLOATS, out)
    return out


def choice_of_action(state: State, kind: int, integers: np.ndarray, floats: np.ndarray) -> np.ndarray:
    """(1,) CHOICE that an action means. Args: as `llm_env.actions.to_decision`."""
    out = np.zeros(1, CHOICE)
    _compiled()(state, _nobody(), kind, integers, floats, out)
    return out
