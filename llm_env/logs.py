"""Logs of batches and of gaps between tokens, which metrics and plots read, written only where they are asked for; and
whether there is room for what a step may write.
"""

from __future__ import annotations

from llm_env.jit import njit
from llm_env.records import State


@njit(forceinline=True)
def has_room(state: State) -> bool:
    """True if noise and logs have room for whatever one step can do."""
    system, num_workers = state.system[0], state.workers.shape[0]
    if system.setup_noise > 0 or system.per_token_noise > 0:
        if state.workers[system.worker].iteration >= state.noise.shape[1]:
            return False
    if system.record == 0:
        return True
    return (
        system.num_batches + num_workers <= state.batch_log.shape[0]
        and system.num_gaps + num_workers * state.running.shape[1] <= state.gap_log.shape[0]
    )


@njit(forceinline=True)
def log_gaps(system, gap_log, gap_s, count) -> None:
    if count > 0:
        gap_log[system.num_gaps].gap_s = gap_s
        gap_log[system.num_gaps].count = count
        system.num_gaps += 1


@njit
def log_batch(state: State, w, num_decodes, held_blocks) -> None:
    system, worker = state.system[0], state.workers[w]
    b = state.batch_log[system.num_batches]
    b.worker = w
    b.start_s = worker.start_s
    b.end_s = worker.end_s
    b.num_requests = worker.batch_size
    b.prefill_tokens = worker.batch_prefill
    b.decode_tokens = num_decodes
    b.num_waiting = system.num_waiting
    b.num_running = worker.num_running
    b.kv_used_blocks = held_blocks
    system.num_batches += 1


@njit
def used_blocks(state: State, w) -> int:
    """KV blocks that the requests hold that run on worker w."""
    worker, blocks = state.workers[w], 0
    if state.system[0].num_transfers == 0:  # nothing is on its way, so that what is not free or cached is theirs
        return state.system[0].kv_blocks - worker.free_blocks - worker.cached_blocks
    for position in range(worker.num_running):
        blocks += state.requests[state.running[w, position]].blocks
    return blocks
