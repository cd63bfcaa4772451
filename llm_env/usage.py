"""What the workers of a recorded run did: how their time was spent, how full their batches and their memory were.

Knows the records only. Shares are of worker-time, from the first arrival to the end of the run.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from llm_env.records import State


def usage(state: State, makespan_s: float) -> dict[str, Any]:
    """The measures of `llm_env.metrics.Summary` that are about workers, by name. Args: makespan_s: of the run."""
    system, workers = state.system[0], state.workers
    log = state.batch_log[: int(system["num_batches"])]
    now_s = float(system["now_s"])
    cut_off = workers[(workers["busy"] == 1) & (workers["switching"] == 0)]  # batches that the horizon cut off
    beyond_s = np.maximum(cut_off["end_s"] - now_s, 0.0).sum()
    worker_s = makespan_s * len(workers)
    prefill_s, decode_s = _split_seconds(log, cut_off, now_s)
    prefill, decode = (_ratio(seconds, worker_s) for seconds in (prefill_s, decode_s))
    return {
        "utilisation": float(np.minimum(1.0, _ratio(float(system["busy_s"] - beyond_s), worker_s))),
        "prefill_time_share": prefill,
        "decode_time_share": decode,
        "idle_time_share": float(np.maximum(0.0, 1.0 - prefill - decode)),
        **_batches(state, log),
    }


def _split_seconds(log: np.ndarray, cut_off: np.ndarray, now_s: float) -> tuple[float, float]:
    """Worker-seconds of prefill and of decode. Args: log: BATCH; cut_off: WORKERs whose batch is under way at now_s.

    A batch's time is split in proportion to its tokens: S(b) knows their sum alone, so that each of them costs S(b)/b.
    """
    seconds = np.concatenate([log["end_s"] - log["start_s"], now_s - cut_off["start_s"]])
    prefill = np.concatenate([log["prefill_tokens"], cut_off["batch_prefill"]])
    tokens = np.concatenate([log["prefill_tokens"] + log["decode_tokens"], cut_off["batch_tokens"]])
    share = prefill / np.maximum(tokens, 1)
    return float((seconds * share).sum()), float((seconds * (1.0 - share)).sum())


def _batches(state: State, log: np.ndarray) -> dict[str, Any]:
    system = state.system[0]
    tokens = log["prefill_tokens"] + log["decode_tokens"]
    prefill, total = int(log["prefill_tokens"].sum()), int(tokens.sum())
    used_mean = used_max = math.nan
    if system["kv_limited"] and len(log) > 0:
        used = log["kv_used_blocks"] / float(system["kv_blocks"])
        seconds = log["end_s"] - log["start_s"]
        used_mean, used_max = _ratio(float((used * seconds).sum()), float(seconds.sum())), float(used.max())
    return {
        "num_batches": len(log),
        "mean_batch_tokens": _ratio(total, len(log)),
        "mean_batch_requests": _ratio(int(log["num_requests"].sum()), len(log)),
        "slo_budget_share": _ratio(float((tokens / state.workers["slo_budget"][log["worker"]]).sum()), len(log)),
        "prefill_share": _ratio(prefill, total),
        "kv_used_mean": used_mean,
        "kv_used_max": used_max,
    }


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole > 0 else math.nan
