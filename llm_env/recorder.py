"""A run decision by decision, with what every batch held. It only reads the State between two decisions.

Every layout can be told apart. A decision begins at most one batch, of the worker that was asked, whose entries stay
in `State.batch` until that worker decides again. A worker ends its batches in the order in which it began them, so its
k-th row in the batch log is the k-th that was seen to begin. An entry of a batch prefills if, before the batch, less
was computed of its request than had to be prefilled. That holds for migrated and swapped requests, and for chunks of
prompts of other workers, too. What is not recorded is when KV moves: over the link, or to the host and back.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from llm_env.build import load, new_states
from llm_env.config import Scenario, refuse_varying
from llm_env.dtypes import ACTIVE
from llm_env.errors import UserError
from llm_env.records import State
from llm_env.rollout import Decide, continue_rollout, refuse_agent

ENTRY = np.dtype([("batch", "i8"), ("row", "i8"), ("prefill", "i8"), ("decode", "i8")])  # row: REQUEST "row"
SAMPLE = np.dtype([("time_s", "f8"), ("num_waiting", "i8"), ("num_running", "i8"), ("kv_used", "f8")])


class Recording(NamedTuple):
    """What happened in a run."""

    batches: np.ndarray  # (n,) BATCH in order of their ends; a batch that the end of the run cut off is not there
    entries: np.ndarray  # (m,) ENTRY by batch, an index into `batches`; within one in the order of being placed
    samples: np.ndarray  # (k,) SAMPLE: at each decision; kv_used: share of all workers' blocks, 0 if unlimited
    requests: np.ndarray  # (r,) REQUEST at the end, by row
    end_s: float  # where the clock stood


def record_run(
    scenario: Scenario, decide: Decide, requests: np.ndarray, seed: int, until_s: float = math.inf
) -> Recording:
    """Runs a policy over a workload and records it. The run is that of `llm_env.rollout.rollout`, bit for bit.

    A decision takes some 100 µs, an entry of a batch 32 bytes.

    Args:
        decide: a compiled policy (`llm_env.records.policy`).
        requests: (r,) REQUEST, not changed.
        seed: of the service noise.
        until_s: the run ends before the first decision at or after this time.

    Raises:
        UserError: `llm_env.rollout.refuse_agent`; the scenario varies: take that of the seed
            (`llm_env.workload.concrete`); until_s is not above 0.
    """
    refuse_agent(scenario)
    refuse_varying(scenario, "record_run")
    if not until_s > 0:
        raise UserError(f"until_s: expected seconds above 0, got {until_s!r}")
    states = load(new_states(scenario, 1, max(1, len(requests)), record=True), 0, requests, seed)
    begun: list[list[np.ndarray]] = [[] for _ in range(states.workers.shape[1])]  # by worker: (entries, 3) int64
    samples: list[tuple[float, int, int, float]] = []
    while True:
        system = states.system[0, 0]
        if system["phase"] != ACTIVE or not system["now_s"] < until_s:
            break
        samples.append(_sample(states))
        w, iterations = int(system["worker"]), states.workers["iteration"][0]
        before = int(iterations[w])
        states = continue_rollout(states, decide, seed, max_steps=1)
        if states.workers["iteration"][0, w] > before:
            begun[w].append(_entries(states, w))
    return _recording(states, begun, samples)


def _sample(states: State) -> tuple[float, int, int, float]:
    """A row of SAMPLE."""
    system, workers = states.system[0, 0], states.workers[0]
    kv_used = 0.0
    if system["kv_limited"] == 1:
        free = int(workers["free_blocks"].sum() + workers["cached_blocks"].sum())
        kv_used = 1.0 - free / (int(system["kv_blocks"]) * len(workers))
    return float(system["now_s"]), int(system["num_waiting"]), int(workers["num_running"].sum()), kv_used


def _entries(states: State, w: int) -> np.ndarray:
    """Row, prefill and decode tokens of each entry of the batch that worker w has begun, and may have ended, in the
    last step: (entries, 3) int64.
    """
    worker = states.workers[0, w]
    batch, requests = states.batch[0, w, : int(worker["batch_size"])], states.requests[0]
    who, tokens = batch[:, 0], batch[:, 1]
    computed = requests["computed_tokens"][who]
    if worker["busy"] == 0:  # the batch has ended: its tokens are counted, but for what goes to other workers
        computed = computed - tokens
    prefills = computed < requests["prefill_tokens"][who]
    return np.stack([requests["row"][who], np.where(prefills, tokens, 0), np.where(prefills, 0, tokens)], axis=1)


def _recording(states: State, begun: list[list[np.ndarray]], samples: list[tuple[float, int, int, float]]) -> Recording:
    system = states.system[0, 0]
    batches = np.array(states.batch_log[0, : int(system["num_batches"])])
    ended = [iter(of_worker) for of_worker in begun]
    held = [next(ended[w]) for w in batches["worker"].tolist()]
    entries = np.zeros(sum(map(len, held)), ENTRY)
    if held:
        entries["batch"] = np.repeat(np.arange(len(held)), [len(rows) for rows in held])
        for column, name in enumerate(("row", "prefill", "decode")):
            entries[name] = np.concatenate([rows[:, column] for rows in held])
    requests = np.array(states.requests[0, : int(system["num_requests"])])
    requests = requests[np.argsort(requests["row"], kind="stable")]
    return Recording(batches, entries, np.array(samples, SAMPLE), requests, float(system["now_s"]))
