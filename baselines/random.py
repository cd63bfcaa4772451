"""Random: every decision drawn uniformly from a few budgets, mixes, chunk sizes and queue orders.

Rule: a hash of (seed, decision number, worker) picks one of 6 budgets (1/4 to 4 times the SLO budget), whether decodes
or prefill go first, one of 3 chunk sizes and one of the first 5 queue orders. No state: the same seed gives the same
run. What any scheduler must beat. Hash: the multiplicative generator of Park and Miller, "Random number generators:
good ones are hard to find" (CACM 31(10), 1988).
"""

from __future__ import annotations

from baselines.parameters import whole
from llm_env.records import DECODES_FIRST, PREFILL_FIRST, Decision, View, decision, policy

_MODULUS, _FACTOR = 2147483647, 48271


def make(seed: int = 0):
    """Random decisions.

    Args:
        seed: which random run.
    """
    whole("seed", seed, 0)

    @policy
    def decide(view: View) -> Decision:
        x = (seed % _MODULUS + 1) * _FACTOR % _MODULUS
        x = (x + view.epoch % _MODULUS) * _FACTOR % _MODULUS
        x = (x + view.worker + 1) * _FACTOR % _MODULUS
        x = x * _FACTOR % _MODULUS
        budget = max(1, int(view.slo_budget * 0.25 * 2.0 ** (x % 6 * 0.8)))
        x = x * _FACTOR % _MODULUS
        packing = PREFILL_FIRST if x % 4 == 0 else DECODES_FIRST
        x = x * _FACTOR % _MODULUS
        chunk = 64 << (2 * (x % 3))
        x = x * _FACTOR % _MODULUS
        return decision(budget, chunk_tokens=chunk, packing=packing, order=x % 5)

    return decide
