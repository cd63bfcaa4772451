"""Kinds of requests, whose shares may follow the state of the arrivals: of which kind each is, and how long it is.

Kinds are drawn from a stream of their own and every length from a stream of its kind, request by request: request k has
the same lengths at every load, if it is of the same kind. Knows arrivals and lengths.
"""

from __future__ import annotations

import numpy as np

from llm_env.arrival_settings import MMPPArrivals
from llm_env.workload.arrivals import states_at
from llm_env.workload.lengths import draw_lengths
from llm_env.workload.modulated import state_shares
from llm_env.workload.seeds import KIND, Streams, stream_bits, streams
from llm_env.workload_settings import KindSettings, WorkloadSettings


def shares_by_state(workload: WorkloadSettings) -> np.ndarray:
    """(num_states, num_kinds): the share of each kind in each state of the arrivals, which is one if they have none."""
    kinds = workload.kinds or ()
    num_states = max(len(kind.shares) for kind in kinds)
    return np.array([np.resize(kind.shares, num_states) for kind in kinds]).T


def kind_shares(workload: WorkloadSettings) -> np.ndarray:
    """(num_kinds,): the share of each kind of all requests; states count by their arrivals, time x rate."""
    shares = shares_by_state(workload)
    if len(shares) == 1:
        return shares[0]
    assert isinstance(workload.arrivals, MMPPArrivals)
    weights = state_shares(workload.arrivals) * workload.arrivals.rates
    return weights @ shares / weights.sum()


def draw_kinds(workload: WorkloadSettings, times_s: np.ndarray, duration_s: float, seed: int) -> np.ndarray:
    """(n,) int64: the kind of each request.

    Args:
        workload: its kinds and arrivals.
        times_s: (n,) the arrivals that were drawn for this seed.
        duration_s: of the interval that they were drawn for.
        seed: of the episode.
    """
    shares = shares_by_state(workload)
    state = np.zeros(times_s.size, np.int64)
    if len(shares) > 1:
        assert isinstance(workload.arrivals, MMPPArrivals)
        state = states_at(workload.arrivals, times_s, duration_s, streams(seed).modulation)
    steps = np.cumsum(shares, axis=1)
    uniforms = np.random.Generator(stream_bits(seed, KIND)).random(times_s.size)
    return (steps[state] / steps[state, -1:] <= uniforms[:, None]).sum(axis=1)


def draw_kind_lengths(
    kinds: tuple[KindSettings, ...], kind: np.ndarray, rngs: Streams
) -> tuple[np.ndarray, np.ndarray]:
    """Prompt and output tokens, int64[n] each. Args: kind: (n,) from `draw_kinds`; rngs: of the episode."""
    prompt, output = np.zeros((2, kind.size), np.int64)
    children = zip(rngs.prompt.spawn(len(kinds)), rngs.output.spawn(len(kinds)), strict=True)
    for k, (settings, (of_prompt, of_output)) in enumerate(zip(kinds, children, strict=True)):
        mine = kind == k
        prompt[mine] = draw_lengths(settings.prompt, kind.size, of_prompt)[mine]
        output[mine] = draw_lengths(settings.output, kind.size, of_output)[mine]
    return prompt, output
