"""What may be tuned: for each policy its parameters with the range in which `python -m llm_env tune` looks for values.

Ranges reach from where a parameter hinders to where it has no effect on a GPU that serves some requests a second. What
a policy is named after stays as it is: request-level batches are of whole prompts, FastServe has its queue. A parameter
that is missing here is what the policy is (tile of RAD), a seed, or one more name for a limit that is here.
"""

from __future__ import annotations

from typing import NamedTuple

from llm_env.adaptive import PARAMETERS


class Integers(NamedTuple):
    """Integers from low to high, by their logarithm if `log`; or else the `special` value, which means no number."""

    low: int
    high: int
    log: bool = True
    special: int | str | None = None


class Numbers(NamedTuple):
    """Numbers from low to high, by their logarithm if `log`; or else the `special` value."""

    low: float
    high: float
    log: bool = False
    special: float | None = None


class Choices(NamedTuple):
    """One of some values without an order."""

    values: tuple[bool | str, ...]


Space = Integers | Numbers | Choices

BUDGET = Integers(32, 8192, special="slo")  # token budgets that may be derived from the TBT target
TOKENS = Integers(32, 16384)  # budgets that are numbers
CHUNK = Integers(32, 4096, special=0)  # of one prompt; 0: as large as the budget lets it be
SLOTS = Integers(4, 256)  # running requests; a worker has no more than system.max_running, by default 128
RESERVED = Integers(128, 8192)  # KV tokens of a request
GROUP = Integers(1, 32)  # requests that wait for one another
WAIT_MS = Numbers(5.0, 2000.0, log=True)  # the longest hold
ORDERS = Choices(("fcfs", "shortest-prefill", "earliest-deadline", "least-slack", "moore-hodgson", "response-ratio"))

_ADAPTIVE: dict[str, Space] = {
    p.name: Numbers(p.low, p.high, p.scale == "log", p.neutral if p.neutral in (p.low, p.high) else None)
    for p in PARAMETERS
    if p.name != "role"  # one wish at all times leaves a pool empty
}
_ORDERED: dict[str, Space] = {"token_budget": BUDGET, "max_running": SLOTS, "chunk_tokens": CHUNK}

SEARCH: dict[str, dict[str, Space]] = {
    "fcfs": {},
    "request-level": {"token_budget": TOKENS, "max_running": SLOTS, "reserve_tokens": RESERVED},
    "orca": {"max_running": SLOTS, "reserve_tokens": RESERVED},
    "vllm-v0": {"max_batched_tokens": TOKENS, "max_running": SLOTS},
    "vllm-v1": {"token_budget": BUDGET, "max_running": SLOTS, "long_prefill_threshold": CHUNK},
    "sglang": {
        "chunked_prefill_tokens": Integers(64, 16384, special=0),
        "max_running": SLOTS,
        "mixed_chunk": Choices((False, True)),
        "conservativeness": Numbers(0.1, 2.0),
        "decay_steps": Integers(20, 2000),
        "clip_tokens": RESERVED,
    },
    "tensorrt-llm": {
        "capacity": Choices(("guaranteed-no-evict", "max-utilization")),
        "max_num_tokens": TOKENS,
        "max_batch_size": SLOTS,
        "chunked_context": Choices((False, True)),
    },
    "distserve": {"prefill_tokens": BUDGET, "max_batch": SLOTS},
    "splitwise": {"max_tokens": TOKENS, "max_batch": SLOTS, "max_preemptions": Integers(0, 64, log=False)},
    "sarathi": _ORDERED,
    "sarathi-spf": _ORDERED,
    "decode-first": {"token_budget": BUDGET, "max_running": SLOTS, "min_decodes": Integers(1, 64)},
    "slack-fill": {"max_tokens": TOKENS, "max_running": SLOTS, "order": ORDERS},
    "moore-hodgson": _ORDERED | {"margin": Numbers(0.5, 2.0, log=True)},
    "slai": {
        "token_budget": BUDGET,
        "max_running": SLOTS,
        "max_decodes": SLOTS,
        "offset": Numbers(0.0, 10.0),
        "full_offset": Numbers(0.0, 20.0),
        "memory_limit": Numbers(0.5, 1.0),
    },
    "rad": {"token_budget": Integers(64, 8192), "max_running": SLOTS},
    "fastserve": {
        "quantum_ms": Numbers(1.0, 1000.0, log=True),
        "starve_s": Numbers(0.1, 30.0, log=True, special=0.0),
        "max_batch": SLOTS,
        "max_prefill_tokens": TOKENS,
        "max_running": SLOTS,
    },
    "vtc": {"max_batched_tokens": TOKENS, "max_running": SLOTS},
    "predicted-shortest": {"token_budget": BUDGET, "max_running": SLOTS, "starve_iterations": Integers(10, 1000)},
    "hrrn": _ORDERED,
    "priority": {"token_budget": BUDGET, "max_running": SLOTS},
    "wait": {"threshold": Integers(1, 32, special=0), "max_running": SLOTS, "timeout_ms": WAIT_MS},
    "nested-wait": {
        "threshold": GROUP,
        "gate_tokens": Integers(8, 1024, special=0),
        "gate_count": GROUP,
        "max_running": SLOTS,
        "buffer": Numbers(0.0, 0.5),
        "timeout_ms": WAIT_MS,
    },
    "fixed-batch": {
        "batch_requests": GROUP,
        "batch_tokens": Integers(64, 16384, special=0),
        "timeout_ms": WAIT_MS,
        "join": Choices((False, True)),
        "max_running": SLOTS,
    },
    "dynamic-batch": {
        "preferred_requests": GROUP,
        "max_delay_ms": Numbers(0.0, 1000.0),
        "target_ms": Numbers(50.0, 1000.0, log=True, special=0.0),
        "step_tokens": Integers(1, 256),
        "first_tokens": Integers(16, 2048),
        "max_tokens": Integers(2048, 16384),  # at least first_tokens
        "max_running": SLOTS,
    },
    "static-chunk": {"chunk_tokens": Integers(16, 4096), "batch_tokens": Integers(16, 8192), "max_running": SLOTS},
    "random": {},
    "adaptive": _ADAPTIVE,
    "role-switch": {
        "prefill_tokens": Integers(128, 4096),
        "decodes": Integers(8, 256),
        "occupancy": Numbers(0.0, 1.0),
        "backlog_s": Numbers(0.2, 20.0, log=True),
        "hysteresis": Numbers(0.0, 0.9),
        "dwell_s": Numbers(0.5, 60.0, log=True, special=0.0),
        "margin": Numbers(0.5, 2.0, log=True),
        "change": Choices((False, True)),
    },
    "kv-aware": {name: _ADAPTIVE[name] for name in ("kv_high", "kv_budget", "margin")},
}

# Of routing rules with weights, as fields of `system.routing`, in milliseconds
ROUTERS: dict[str, dict[str, Space]] = {
    "score": {
        "running_ms": Numbers(0.5, 500.0, log=True, special=0.0),
        "memory_ms": Numbers(100.0, 50_000.0, log=True, special=0.0),
        "memory_from": Numbers(0.3, 1.5),
        "long_ms_per_1k_tokens": Numbers(20.0, 10_000.0, log=True, special=0.0),
        "slow_ms": Numbers(-1000.0, 2000.0),
        "kv_ms": Numbers(50.0, 10_000.0, log=True, special=0.0),
        "miss_ms": Numbers(50.0, 20_000.0, log=True, special=0.0),
        "miss_from": Numbers(0.2, 2.0),
    }
}

# Settings that are tried after the default: what is known to be good of a policy that this one can be
STARTS: dict[str, tuple[dict[str, float], ...]] = {
    "adaptive": ({"fill": 1.0, "kv_high": 0.9, "kv_budget": 0.376},),
    "role-switch": (  # the best of 161 settings on the scenario `roles`
        {
            "prefill_tokens": 2048,
            "decodes": 106,
            "occupancy": 0.522,
            "backlog_s": 1.51,
            "hysteresis": 0.266,
            "dwell_s": 0.675,
            "margin": 0.961,
        },
    ),
}

# Trials in units of `--trials`, where it is not one: the more is tried of the strongest rival, the more a win means
TIMES = {"adaptive": 3, "role-switch": 3}
