"""What serving costs at a price per GPU-hour: the only place where money is computed. Knows the errors only.

All workers are paid for all the time, busy or not. The currency is that of the price.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from llm_env.errors import UserError

MOST_PRICE, MOST_GPUS = 1e6, 10_000

COSTS = ("cost_per_hour", "cost_per_million_output_tokens", "cost_per_million_tokens", "cost_per_thousand_good")


@dataclass(frozen=True)
class Price:
    """What a worker costs.

    Attributes:
        per_gpu_hour: from 0 to MOST_PRICE.
        gpus_per_worker: from 1 to MOST_GPUS.

    Raises:
        UserError: one of them is out of range.
    """

    per_gpu_hour: float
    gpus_per_worker: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.per_gpu_hour <= MOST_PRICE:
            raise UserError(f"price: expected 0 to {MOST_PRICE:g}, got {self.per_gpu_hour:g}")
        if not 1 <= self.gpus_per_worker <= MOST_GPUS:
            raise UserError(f"gpus-per-worker: expected 1 to {MOST_GPUS}, got {self.gpus_per_worker}")

    def per_hour(self, workers: float) -> float:
        """Of so many workers."""
        return workers * self.gpus_per_worker * self.per_gpu_hour


def costs(per_hour: float, measures: Mapping[str, float]) -> dict[str, float]:
    """What is paid for a million output tokens, a million tokens (prompt and output), a thousand good requests.

    Args:
        per_hour: of all workers.
        measures: rates per second: output_tokens_per_s, tokens_per_s, goodput_per_s.

    Returns:
        By the names of COSTS; NaN where the rate is 0: there is nothing that it could be the price of.
    """
    amounts = {
        "cost_per_million_output_tokens": (1e6, "output_tokens_per_s"),
        "cost_per_million_tokens": (1e6, "tokens_per_s"),
        "cost_per_thousand_good": (1e3, "goodput_per_s"),
    }
    found = {"cost_per_hour": per_hour}
    for name, (amount, rate) in amounts.items():
        per_s = measures[rate]
        found[name] = per_hour / (per_s * 3600) * amount if per_s > 0 else math.nan
    return found
