"""How long a batch takes: S(b) = c + a * max(0, b - b0), and what follows from it. Knows the settings record only.

Source: the piecewise-linear fit is the model of Agrawal et al., "Vidur" (MLSys 2024) and of DESIGN section 1, reduced
to the token sum b of an iteration.
"""

from __future__ import annotations

from llm_env.jit import njit


@njit(forceinline=True)
def batch_seconds(setup_s, per_token_s, free_tokens, tokens, setup_factor, per_token_factor) -> float:
    """S(b) in seconds for b = `tokens`; the factors are the noise of this iteration, 1 without noise."""
    return setup_s * setup_factor + per_token_s * max(0, tokens - free_tokens) * per_token_factor


@njit(forceinline=True)
def mean_seconds(system, tokens) -> float:
    """S(b) in seconds without noise. Args: system: a SYSTEM record; tokens: b."""
    return batch_seconds(system.setup_s, system.per_token_s, system.free_tokens, tokens, 1.0, 1.0)


@njit
def largest_batch(setup_s, per_token_s, free_tokens, limit_s, cap_tokens) -> float:
    """The largest b (tokens, not rounded) with S(b) <= limit_s; at least 1, at most cap_tokens.

    tau = b0 + (limit - c) / a. Where even an empty batch is too slow it is 1: somebody must be served.
    """
    if limit_s < setup_s:
        return 1.0
    if per_token_s * cap_tokens <= limit_s - setup_s:
        return float(cap_tokens)
    return max(1.0, min(float(cap_tokens), free_tokens + (limit_s - setup_s) / per_token_s))


@njit
def prefill_seconds(system, tokens) -> float:
    """Seconds to prefill a prompt alone, in chunks of the SLO budget: what a request needs before its first token."""
    chunk = int(system.slo_budget)
    if tokens <= chunk:
        return mean_seconds(system, tokens)
    rest = tokens % chunk
    seconds = (tokens // chunk) * mean_seconds(system, chunk)
    if rest > 0:
        seconds += mean_seconds(system, rest)
    return seconds


@njit
def prefill_times(systems, tokens, out):
    """`prefill_seconds` of many prompts. Args: systems: (1,) SYSTEM; tokens: (n,) int64; out: (n,) float64."""
    for k in range(tokens.shape[0]):
        out[k] = prefill_seconds(systems[0], tokens[k])
    return out
