"""The adaptive rule: a strong hand-made scheduler with a dozen numbers, which tuning and learning have in common.

A policy with fixed numbers is the baseline `adaptive`; the action form "adaptive" chooses them at every decision. All
are relative to tau* and to the promises, so that one setting means the same on every system. At the neutral numbers the
rule is Moore-Hodgson at tau*. Knows Views and Decisions only.

Sources: Moore-Hodgson order: Moore (Management Science 15(1), 1968); weights in it as the ratios of a knapsack
(Dantzig, Operations Research 5(2), 1957). Slack filling: Goel et al., "Niyama" (arXiv:2503.22562, 2025). The short
budget while memory is full, and the combination: trials of this project with a planner that looks ahead.
"""

from __future__ import annotations

from llm_env.boxes import Box, Parameter, natural_number
from llm_env.dtypes import FAR, ROLE_DECODE, ROLE_PREFILL
from llm_env.jit import njit
from llm_env.records import (
    DROPPED_LAST,
    KV_CHUNK,
    KV_ESTIMATE,
    MOORE_HODGSON,
    VICTIM_LAST,
    VICTIM_PRIORITY,
    Decision,
    View,
    decision,
)
from llm_env.service import largest_batch, linear_seconds

PARAMETERS = (
    Parameter("budget", 0.2, 4.0, 1.0, "log", "static token budget, times tau*"),
    Parameter("fill", 0.0, 1.0, 0.0, "linear", "share of slack filling: static^(1 - fill) x slack tokens^fill"),
    Parameter("kv_high", 0.5, 1.0, 1.0, "linear", "share of KV in use from which on kv_budget holds, 1 for never"),
    Parameter("kv_budget", 0.05, 1.0, 0.4, "log", "most tokens in a batch from there on, times tau*"),
    Parameter("margin", 0.5, 2.0, 1.0, "log", "factor on the time that a prompt is thought to need"),
    Parameter("slack_weight", 0.0, 1.0, 1.0, "linear", "1 sorts by deadline, 0 by remaining prefill time"),
    Parameter(
        "drop", 0.25, 16384.0, 16384.0, "log", "TTFT targets that the dropped stand behind; the most: behind all"
    ),
    Parameter(
        "class_weight", 0.0, 1.0, 0.0, "linear", "exponent of SLO weights in who is dropped; above 0 in evictions"
    ),
    Parameter("reserve", 0.0, 1.0, 0.0, "linear", "share of declared output that admission reserves; 0: none"),
    Parameter("urgency", 0.25, 4.0, 4.0, "log", "TBT targets within which a decode must be due; the most: all go"),
    Parameter("slack_share", 0.25, 1.5, 1.0, "log", "share of the decodes' slack that a filled batch may take"),
    Parameter("watermark", 0.0, 0.3, 0.0, "linear", "share of KV that an admission must leave free"),
    Parameter("role", -1.0, 1.0, 0.0, "linear", "above 1/3 asks to prefill, below -1/3 to decode, between: to stay"),
)
BOX = Box(PARAMETERS)
NAMES, NEUTRAL, from_unit, to_unit = BOX.names, BOX.neutral, BOX.from_unit, BOX.to_unit
(
    BUDGET,
    FILL,
    KV_HIGH,
    KV_BUDGET,
    MARGIN,
    SLACK_WEIGHT,
    DROP,
    CLASS_WEIGHT,
    RESERVE,
    URGENCY,
    SLACK_SHARE,
    WATERMARK,
    ROLE,
) = range(len(PARAMETERS))

_LOW, _HIGH, _SPAN, _IS_LOG = BOX.low, BOX.high, BOX.span, BOX.is_log
_MOST_TOKENS = 1 << 20  # of a filled batch, where tokens cost no time
_SHARE_OF_TTFT = 0.5  # of the TTFT target: the longest batch while nothing decodes, for whoever arrives meanwhile


# ---- the box -------------------------------------------------------------------------------------------------------
@njit
def _natural(k, x) -> float:
    return natural_number(_LOW[k], _SPAN[k], _IS_LOG[k], x)


@njit
def parameters_of(x) -> tuple[float, ...]:
    """All parameters of an action. Args: x: (len(PARAMETERS),) floats, as `from_unit`."""
    return (
        _natural(BUDGET, x[BUDGET]),
        _natural(FILL, x[FILL]),
        _natural(KV_HIGH, x[KV_HIGH]),
        _natural(KV_BUDGET, x[KV_BUDGET]),
        _natural(MARGIN, x[MARGIN]),
        _natural(SLACK_WEIGHT, x[SLACK_WEIGHT]),
        _natural(DROP, x[DROP]),
        _natural(CLASS_WEIGHT, x[CLASS_WEIGHT]),
        _natural(RESERVE, x[RESERVE]),
        _natural(URGENCY, x[URGENCY]),
        _natural(SLACK_SHARE, x[SLACK_SHARE]),
        _natural(WATERMARK, x[WATERMARK]),
        _natural(ROLE, x[ROLE]),
    )


# ---- the rule ------------------------------------------------------------------------------------------------------
@njit
def adaptive_decision(view: View, p, ranked=0) -> Decision:
    """Moore-Hodgson order with a budget that follows slack and memory.

    Args:
        view: what the worker at hand sees.
        p: the parameters in natural units, in the order of PARAMETERS; a tuple or an array.
        ranked: of the Decision.
    """
    static = max(1.0, p[BUDGET] * view.slo_budget)
    tokens = static
    if p[FILL] > 0.0:
        tokens = static ** (1.0 - p[FILL]) * _slack_tokens(view, static, p[SLACK_SHARE]) ** p[FILL]
    if p[KV_HIGH] < 1.0 and view.kv_used >= p[KV_HIGH]:
        tokens = min(tokens, p[KV_BUDGET] * view.slo_budget)
    return decision(
        max(1, int(tokens)),
        order=MOORE_HODGSON,
        margin=p[MARGIN],
        slack_weight=p[SLACK_WEIGHT],
        drop_weight=p[DROP] if p[DROP] < _HIGH[DROP] else DROPPED_LAST,
        kv_rule=KV_ESTIMATE if p[RESERVE] > 0.0 else KV_CHUNK,
        reserve_ratio=p[RESERVE] if p[RESERVE] > 0.0 else 1.0,
        watermark=p[WATERMARK],
        victim=VICTIM_PRIORITY if p[CLASS_WEIGHT] > 0.0 else VICTIM_LAST,
        decode_within_s=p[URGENCY] * view.tbt_target_s if p[URGENCY] < _HIGH[URGENCY] else FAR,
        fill_decodes=1 if p[URGENCY] < _HIGH[URGENCY] else 0,
        class_weight=p[CLASS_WEIGHT],
        role=ROLE_PREFILL if p[ROLE] > 1.0 / 3.0 else (ROLE_DECODE if p[ROLE] < -1.0 / 3.0 else 0),
        ranked=ranked,
    )


@njit
def _slack_tokens(view: View, static, share) -> float:
    """The largest batch within `share` of the most urgent decode's slack, what decoding adds to its time included.

    While nothing decodes, within a share of the TTFT target. A decode that no batch can save any more does not count:
    then the static budget holds. Beyond the static budget, a batch is not filled so far that the most urgent feasible
    prompt is late when it ends.
    """
    limit_s = _SHARE_OF_TTFT * view.ttft_target_s
    if view.num_decodes > 0:
        if view.min_decode_slack_s < view.setup_s + view.decode_extra_s:
            return static
        limit_s = max(view.setup_s, share * view.min_decode_slack_s - view.decode_extra_s)
    tokens = largest_batch(view.setup_s, view.per_token_s, view.free_tokens, limit_s, _MOST_TOKENS)
    if tokens > static and view.urgent_slack_s < FAR:
        chunk = min(view.urgent_tokens, int(view.slo_budget))
        due_s = view.urgent_slack_s + linear_seconds(view.setup_s, view.per_token_s, view.free_tokens, chunk, 1.0, 1.0)
        in_time = largest_batch(view.setup_s, view.per_token_s, view.free_tokens, due_s, _MOST_TOKENS)
        tokens = min(tokens, max(static, in_time))
    return max(1.0, tokens)
