"""How a trace is read: what may be changed on the way from a file to `Traffic`. By default nothing is.

Knows nothing of files and formats; `llm_env.workload.trace_changes` carries the options out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from llm_env.errors import UserError

UNITS = ("s", "ms")
OVER_LENGTH = ("error", "drop", "clip")
ZERO_OUTPUT = ("drop", "error")


@dataclass(frozen=True)
class ReadOptions:
    """What is done to a trace, in this order; the defaults leave it as it is, but for requests without output.

    `timestamp_unit`: of `timestamp` in JSON lines: None is the format's own (Mooncake: whole milliseconds, Bailian:
    seconds), "s" or "ms" say otherwise. vLLM's timed traces have Mooncake's keys and may be in either.
    `zero_output`: requests without output (failed or cancelled ones) are dropped and counted, or are an error.
    `max_prompt_tokens`, `max_output_tokens`, `max_total_tokens`: the longest prompt, output and sum of both.
    `over_length`: what becomes of longer ones. "clip" cuts prompt and output to their limits, then the prompt to what
    the sum leaves it, then the output.
    `tick_s`: arrivals of one tick [k * tick_s, (k + 1) * tick_s) are spread uniformly over it, in their order. Those up
    to 1 % of a tick before it belong to it: clocks are not exact.
    `start_s`, `end_s`: keeps arrivals in [start_s, end_s), in seconds of the trace; `start_s` becomes 0.
    `keep`: each request is kept with this probability, independently of all others. That smooths bursts: it moves the
    index of dispersion I to 1 + keep * (I - 1), and tears sessions apart.
    `keep_clients`, `keep_sessions`: this share of the clients or sessions is kept whole, by a hash of their number and
    the seed. Each of them keeps its bursts and its turns. A request without one counts as one of its own.
    `time_scale`: multiplies arrival times: 2 halves the rate, and makes everything slower alike.
    `seed`: of `tick_s`, `keep`, `keep_clients` and `keep_sessions`.

    Source: thinning: Cox and Isham, "Point Processes" (1980), section 4.3.
    """

    timestamp_unit: str | None = None
    zero_output: str = "drop"
    max_prompt_tokens: int | None = None
    max_output_tokens: int | None = None
    max_total_tokens: int | None = None
    over_length: str = "error"
    tick_s: float | None = None
    start_s: float | None = None
    end_s: float | None = None
    keep: float = 1.0
    keep_clients: float = 1.0
    keep_sessions: float = 1.0
    time_scale: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        _check_choice("timestamp_unit", self.timestamp_unit, (None, *UNITS))
        _check_choice("zero_output", self.zero_output, ZERO_OUTPUT)
        _check_choice("over_length", self.over_length, OVER_LENGTH)
        for name, least in (("max_prompt_tokens", 1), ("max_output_tokens", 1), ("max_total_tokens", 2)):
            value = getattr(self, name)
            if value is not None and not (_is_integer(value) and value >= least):
                raise UserError(f"{name}: expected an integer of at least {least}, got {value!r}")
        for name in ("time_scale", "tick_s"):
            value = getattr(self, name)
            if value is not None and not (_is_finite(value) and value > 0):
                raise UserError(f"{name}: expected a finite number above 0, got {value!r}")
        for name in ("start_s", "end_s"):
            value = getattr(self, name)
            if value is not None and not (_is_finite(value) and value >= 0):
                raise UserError(f"{name}: expected a finite number of at least 0, got {value!r}")
        if self.end_s is not None and self.end_s <= (self.start_s or 0.0):
            raise UserError(f"end_s: expected more than start_s, {self.start_s or 0.0:g}, got {self.end_s:g}")
        for name in ("keep", "keep_clients", "keep_sessions"):
            value = getattr(self, name)
            if not (_is_finite(value) and 0 < value <= 1):
                raise UserError(f"{name}: expected a number above 0 and at most 1, got {value!r}")
        if not (_is_integer(self.seed) and self.seed >= 0):
            raise UserError(f"seed: expected an integer of at least 0, got {self.seed!r}")


def _check_choice(name: str, value: str | None, allowed: tuple[str | None, ...]) -> None:
    if value not in allowed:
        words = " or ".join("nothing" if choice is None else f'"{choice}"' for choice in allowed)
        raise UserError(f"{name}: expected {words}, got {value!r}")


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
