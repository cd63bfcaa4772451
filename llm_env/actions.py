"""From an agent's action to a Decision, in six forms: MultiDiscrete, Discrete and four Boxes. None can stop serving.

Budgets are given relative to the SLO budget tau* = b0 + (TBT target - c) / a, the largest batch that keeps an iteration
inside the TBT target, so that one action means the same on every scenario.
"""

from __future__ import annotations

from math import isnan

import numpy as np

from llm_env.adaptive import NAMES, adaptive_decision, parameters_of
from llm_env.batching import next_helpable
from llm_env.dtypes import PARALLEL_PREFILL
from llm_env.jit import njit
from llm_env.ranking import write_scores
from llm_env.records import (
    DECODES_FIRST,
    DROPPED_LAST,
    EARLIEST_DEADLINE,
    FCFS,
    LEAST_SLACK,
    MOORE_HODGSON,
    MOST_RANKED,
    PREFILL_FIRST,
    QUEUE_ORDERS,
    SHORTEST_PREFILL,
    UNLIMITED,
    Decision,
    State,
    decision,
)
from llm_env.role_rule import BOX as ROLE_BOX
from llm_env.role_rule import role_decision, rule_of
from llm_env.view import make_view

ACTION_KINDS = ("multidiscrete", "discrete", "box", "adaptive", "ranked", "roles")
MULTIDISCRETE, DISCRETE, BOX, ADAPTIVE, RANKED, ROLES = range(6)

# ---- the levels ----------------------------------------------------------------------------------------------------
BUDGET_LEVELS = (0.25, 0.5, 0.7, 0.85, 1.0, 1.25, 2.0, 5.0)  # x tau*; exactly 1.0 must be among them
MIXES = ("decode", "half", "full", "prefill-first")
MIX_DECODE, MIX_HALF, MIX_FULL, MIX_PREFILL_FIRST = range(4)
CHUNK_LEVELS = (128, 512, UNLIMITED)  # most prefill tokens per prompt
ORDERS = (FCFS, SHORTEST_PREFILL, EARLIEST_DEADLINE, LEAST_SLACK, MOORE_HODGSON)
NVEC = (len(BUDGET_LEVELS), len(MIXES), len(CHUNK_LEVELS), len(ORDERS))
MASK_LENGTH = sum(NVEC)
_NUM_BUDGETS, _NUM_MIXES, _NUM_CHUNKS, _NUM_ORDERS = NVEC

# Discrete form: (budget level, mix, chunk level, order)
_WHOLE = len(CHUNK_LEVELS) - 1
DISCRETE_TABLE = (
    *((b, MIX_FULL, _WHOLE, o) for b in (1, 3, 4, 5, 7) for o in (FCFS, SHORTEST_PREFILL, MOORE_HODGSON)),
    (4, MIX_HALF, _WHOLE, MOORE_HODGSON),
    (4, MIX_DECODE, _WHOLE, MOORE_HODGSON),
    (4, MIX_PREFILL_FIRST, _WHOLE, MOORE_HODGSON),
)
BOX_NAMES = ("log_budget_factor", "slack_weight", "drop_weight", "rate_margin")
SCORE_NAMES = tuple(f"score_{c}" for c in range(MOST_RANKED))
# the forms made of floats in [-1, 1]: what each of these is
FLOAT_NAMES = {"box": BOX_NAMES, "adaptive": NAMES, "ranked": SCORE_NAMES + NAMES, "roles": ROLE_BOX.names}
MOST_FLOATS = max(len(names) for names in FLOAT_NAMES.values())

_BUDGETS = np.array(BUDGET_LEVELS)
_CHUNKS = np.array(CHUNK_LEVELS, np.int64)
_ORDERS = np.array(ORDERS, np.int64)
_TABLE = np.array(DISCRETE_TABLE, np.int64)
_FLOAT_SHAPES = {ACTION_KINDS.index(kind): (len(names),) for kind, names in FLOAT_NAMES.items()}


def describe(levels: tuple[int, int, int, int]) -> str:
    """Words for (budget level, mix, chunk level, order), for tables and plots."""
    budget, mix, chunk, order = levels
    limit = "" if CHUNK_LEVELS[chunk] == UNLIMITED else f", chunk {CHUNK_LEVELS[chunk]}"
    return f"{BUDGET_LEVELS[budget]:g}x {MIXES[mix]} {QUEUE_ORDERS[ORDERS[order]]}{limit}"


def is_allowed(action: np.ndarray, kind: int) -> bool:
    """Whether an array is surely an action of one system: (4,) levels, an index of no axis or floats, none NaN."""
    if kind >= BOX:
        return action.shape == _FLOAT_SHAPES[kind] and action.dtype.kind == "f" and not isnan(sum(action.tolist()))
    if action.dtype.kind not in "iu":
        return False
    if kind == DISCRETE:
        return action.shape == () and 0 <= action.item() < len(DISCRETE_TABLE)
    if action.shape != (4,):
        return False
    budget, mix, chunk, order = action.tolist()
    return (
        0 <= budget < _NUM_BUDGETS and 0 <= mix < _NUM_MIXES and 0 <= chunk < _NUM_CHUNKS and 0 <= order < _NUM_ORDERS
    )


# ---- action -> Decision --------------------------------------------------------------------------------------------
@njit
def to_decision(state: State, kind, integers, floats) -> Decision:
    """The Decision that an action means for the worker at hand.

    Args:
        kind: MULTIDISCRETE, DISCRETE, BOX, ADAPTIVE, RANKED or ROLES.
        integers: (4,) int64; MULTIDISCRETE: budget level, mix, chunk level, order; DISCRETE: index, and three unused.
        floats: (MOST_FLOATS,) float64 in [-1, 1]. BOX, the first 4: budget tau* x 2^(1.5 x), weight of deadlines
            against prefill time 1 + min(x, 0), distance of the dropped 2^(6 + 8 x) TTFT targets and from x = 0 on
            behind all others, rate margin 1.5^x; all 0 is Moore-Hodgson at tau*. ADAPTIVE: see `llm_env.adaptive`.
            RANKED: scores of the candidates (`llm_env.ranking`), which are noted in the State; then as ADAPTIVE.
            ROLES: see `llm_env.role_rule`.
    """
    if kind == ADAPTIVE:
        return adaptive_decision(make_view(state), parameters_of(floats))
    if kind == RANKED:
        write_scores(state, floats)
        return adaptive_decision(make_view(state), parameters_of(floats[MOST_RANKED:]), 1)
    if kind == ROLES:
        return role_decision(make_view(state), rule_of(floats))
    worker = state.workers[state.system[0].worker]
    budget = worker.slo_budget
    if kind == BOX:
        return decision(
            max(1, int(budget * 2.0 ** (1.5 * _unit(floats[0])))),
            order=MOORE_HODGSON,
            slack_weight=1.0 + min(_unit(floats[1]), 0.0),
            drop_weight=2.0 ** (6.0 + 8.0 * _unit(floats[2])) if floats[2] < 0.0 else DROPPED_LAST,
            margin=1.5 ** _unit(floats[3]),
        )
    num_decodes = worker.num_running - worker.num_moving - worker.num_partial
    if kind == DISCRETE:
        return decision_from_entry(budget, num_decodes, integers[0])
    return decision_from_levels(budget, num_decodes, integers[0], integers[1], integers[2], integers[3])


@njit
def _unit(x) -> float:
    return min(max(x, -1.0), 1.0)


@njit
def decision_from_entry(slo_budget, num_decodes, k) -> Decision:
    """The Decision of entry k of DISCRETE_TABLE. Args: slo_budget, num_decodes: as in the View."""
    entry = _TABLE[k]
    return decision_from_levels(slo_budget, num_decodes, entry[0], entry[1], entry[2], entry[3])


@njit
def decision_from_levels(slo_budget, num_decodes, budget_level, mix, chunk_level, order) -> Decision:
    """The Decision of four levels. Args: slo_budget, num_decodes: as in the View; the rest: places in the tables."""
    budget = max(1, int(slo_budget * _BUDGETS[budget_level]))
    prefill = budget
    if mix == MIX_HALF:
        prefill = max(1, budget // 2)
    elif mix == MIX_DECODE and num_decodes > 0:
        prefill = 0  # only while something decodes: a worker with prompts alone must prefill
    return decision(
        budget,
        prefill_tokens=prefill,
        chunk_tokens=_CHUNKS[chunk_level],
        packing=PREFILL_FIRST if mix == MIX_PREFILL_FIRST else DECODES_FIRST,
        order=_ORDERS[order],
    )


# ---- masks ---------------------------------------------------------------------------------------------------------
@njit
def mask_actions(state: State, out) -> None:
    """Writes which MultiDiscrete levels make a difference now into out, (MASK_LENGTH,) bool.

    With nothing to prefill only one way is left (full, no chunk limit, FCFS); with nothing that decodes the mixes
    that favour decodes fall away. Masked actions are still valid: they mean the same as an unmasked one.
    """
    system = state.system[0]
    worker = state.workers[system.worker]
    decodes = worker.num_running - worker.num_moving > worker.num_partial
    prefills = worker.num_partial > 0 or state.queues[worker.queue].num_waiting > 0
    if system.layout == PARALLEL_PREFILL and not prefills:
        prefills = next_helpable(state, system.worker, -1) >= 0
    k = 0
    for _ in range(len(BUDGET_LEVELS)):
        out[k] = prefills or k == 4
        k += 1
    for mix in range(len(MIXES)):
        out[k] = mix == MIX_FULL or (prefills and (decodes or mix == MIX_HALF))
        k += 1
    for chunk in range(len(CHUNK_LEVELS)):
        out[k] = prefills or chunk == len(CHUNK_LEVELS) - 1
        k += 1
    for order in range(len(ORDERS)):
        out[k] = prefills or order == 0
        k += 1
