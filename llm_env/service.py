"""How long a batch takes: S, its terms, and what follows from them. Knows the settings and the settings record only.

S = the curve of the token sum b, that is c + a * max(0, b - b0), a staircase or a measured table,
    + decode_fixed if the batch holds a decode + kv * cached tokens of its decodes
    + prefill_attention * the sum over its prefill entries of chunk tokens * context.

Source: the terms are those of the operators that Agrawal et al., "Vidur" (MLSys 2024), profile: token-wise layers,
decode attention, prefill attention. The default is the curve alone, as DESIGN section 1 has it.
"""

from __future__ import annotations

from math import floor
from typing import NamedTuple

import numpy as np

from llm_env.config import ServiceSettings
from llm_env.jit import njit


# ---- the curve of the token sum ------------------------------------------------------------------------------------
class Curve(NamedTuple):
    """The part of S that b alone decides. The fields are those of SYSTEM, so functions take either.

    For a staircase the line setup + per_token * b touches every step where it begins, from below; for a table it is
    the chord from the first point to the last. Only a View shows these lines: S, budget and load use the steps and
    points themselves.
    """

    setup_s: float
    per_token_s: float
    free_tokens: int
    step_tokens: int  # b is rounded up to a multiple of it
    num_points: int  # above 0: a table
    points: np.ndarray  # (num_points, 2) float64: tokens, seconds


def service_curve(service: ServiceSettings, unit_ms: float = 1.0) -> Curve:
    """The curve of the settings, with times in units of `unit_ms` milliseconds: 1e3 for seconds."""
    points = np.array(service.points or np.empty((0, 2)), np.float64)
    points[:, 1] /= unit_ms
    setup, per_token, free_tokens, step = service.setup_ms / unit_ms, service.per_token_ms / unit_ms, 0, 1
    if service.form == "linear":
        free_tokens = service.free_tokens
    elif service.form == "staircase":
        assert service.step_ms is not None
        assert service.step_tokens is not None
        step = service.step_tokens
        per_token = service.step_ms / unit_ms / step
    else:
        (first, setup), (last, most) = points[0], points[-1]
        free_tokens = int(first)
        per_token = (most - setup) / (last - first)
    return Curve(float(setup), float(per_token), free_tokens, step, len(points), points)


@njit(forceinline=True)
def linear_seconds(setup_s, per_token_s, free_tokens, tokens, setup_factor, per_token_factor) -> float:
    """c + a * max(0, b - b0) in seconds for b = `tokens`; the factors are the noise of the iteration, 1 without."""
    return setup_s * setup_factor + per_token_s * max(0, tokens - free_tokens) * per_token_factor


@njit
def table_seconds(points, num_points, tokens, setup_factor, per_token_factor) -> float:
    """Piecewise linear through the points, hence monotone as they are.

    Below the first point constant, beyond the last along the last segment. Noise: the first point's time is the
    setup, what comes on top of it the per-token term.
    """
    setup_s = points[0, 1]
    if tokens <= points[0, 0]:
        return setup_s * setup_factor
    low, high = 0, num_points - 1
    while high - low > 1:
        middle = (low + high) // 2
        if points[middle, 0] <= tokens:
            low = middle
        else:
            high = middle
    slope = (points[high, 1] - points[low, 1]) / (points[high, 0] - points[low, 0])
    seconds = points[low, 1] + slope * (tokens - points[low, 0])
    return setup_s * setup_factor + (seconds - setup_s) * per_token_factor


@njit(forceinline=True)
def curve_seconds(curve, tokens, setup_factor, per_token_factor) -> float:
    """The curve at b = `tokens`, with noise. Args: curve: a Curve or a SYSTEM record."""
    if curve.num_points > 0:
        return table_seconds(curve.points, curve.num_points, tokens, setup_factor, per_token_factor)
    whole = tokens
    if curve.step_tokens > 1:
        whole = -(-tokens // curve.step_tokens) * curve.step_tokens
    return linear_seconds(curve.setup_s, curve.per_token_s, curve.free_tokens, whole, setup_factor, per_token_factor)


@njit(forceinline=True)
def mean_seconds(curve, tokens) -> float:
    """The curve at b = `tokens` without noise. Args: curve: a Curve or a SYSTEM record."""
    return curve_seconds(curve, tokens, 1.0, 1.0)


@njit
def largest_batch(setup_s, per_token_s, free_tokens, limit_s, cap_tokens) -> float:
    """The largest b (tokens, not rounded) with c + a * max(0, b - b0) <= limit_s; from 1 to cap_tokens.

    tau = b0 + (limit - c) / a. Where even an empty batch is too slow it is 1: somebody must be served.
    """
    if limit_s < setup_s:
        return 1.0
    if per_token_s * cap_tokens <= limit_s - setup_s:
        return float(cap_tokens)
    return max(1.0, min(float(cap_tokens), free_tokens + (limit_s - setup_s) / per_token_s))


def curve_budget(curve: Curve, limit_s: float, cap_tokens: int) -> float:
    """`largest_batch` for any curve: the largest b whose time by the curve is within the limit."""
    if curve.num_points > 0:
        return _table_budget(curve.points, limit_s, cap_tokens)
    if curve.step_tokens > 1:
        if curve.per_token_s == 0.0:
            return float(cap_tokens) if limit_s >= curve.setup_s else 1.0
        steps = floor((limit_s - curve.setup_s) / (curve.per_token_s * curve.step_tokens) + 1e-9)
        return float(max(1, min(cap_tokens, steps * curve.step_tokens)))
    return largest_batch(curve.setup_s, curve.per_token_s, curve.free_tokens, limit_s, cap_tokens)


def _table_budget(points: np.ndarray, limit_s: float, cap_tokens: int) -> float:
    if limit_s < points[0, 1]:
        return 1.0
    within = int(np.searchsorted(points[:, 1], limit_s, side="right")) - 1  # the last point that is fast enough
    low = min(within, len(points) - 2)
    (tokens, seconds), (next_tokens, next_seconds) = points[low], points[low + 1]
    if next_seconds == seconds:  # the end of a table that ends flat
        return float(cap_tokens)
    tokens += (limit_s - seconds) * (next_tokens - tokens) / (next_seconds - seconds)
    return float(max(1.0, min(cap_tokens, tokens)))


# ---- S in full -----------------------------------------------------------------------------------------------------
@njit(forceinline=True)
def batch_seconds(system, tokens, num_decodes, cached_tokens, token_context, setup_factor, per_token_factor) -> float:
    """S in seconds: how long a batch takes.

    Args:
        system: a SYSTEM record.
        tokens: in the batch, decodes and prefill.
        num_decodes: of them.
        cached_tokens: tokens with KV of these decodes, before the batch.
        token_context: sum of chunk tokens x context over the prefill entries.
        setup_factor: noise of the setup, 1 without; the terms beside the curve have none.
        per_token_factor: noise of the per-token term.
    """
    seconds = curve_seconds(system, tokens, setup_factor, per_token_factor)
    if num_decodes > 0:
        seconds += system.decode_fixed_s
    return seconds + system.cached_token_s * cached_tokens + system.token_context_s * token_context


@njit
def prefill_seconds(system, tokens) -> float:
    """Seconds to prefill a prompt alone, in chunks of the SLO budget: what a request needs before its first token.

    By the curve, on the fastest worker: prefill attention is not in it.
    """
    chunk = int(system.slo_budget)
    if tokens <= chunk:
        return mean_seconds(system, tokens) / system.fastest
    rest = tokens % chunk
    seconds = (tokens // chunk) * mean_seconds(system, chunk)
    if rest > 0:
        seconds += mean_seconds(system, rest)
    return seconds / system.fastest


@njit
def prefill_times(systems, tokens, out):
    """`prefill_seconds` of many prompts. Args: systems: (1,) SYSTEM; tokens: (n,) int64; out: (n,) float64."""
    for k in range(tokens.shape[0]):
        out[k] = prefill_seconds(systems[0], tokens[k])
    return out
