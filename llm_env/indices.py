"""Whether every number of a State that compiled code takes as a place in an array is one. For states that were read
from a file: compiled code checks no bounds, so a wrong one there would read and write anywhere in memory.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from llm_env.dtypes import NOBODY
from llm_env.errors import UserError
from llm_env.records import NUM_SETS, State
from llm_env.settings import MAX_POINTS

_BITS = 32  # members of a word of a bitmap tree
# field -> the least it may be, and what it must stay below (a key of `_limits`)
_FIELDS: Mapping[str, Mapping[str, tuple[int, str]]] = {
    "requests": {
        "worker": (NOBODY, "workers"),
        "home": (NOBODY, "workers"),
        "queue": (0, "queues"),
        "tenant": (0, "requests"),
        "previous": (NOBODY, "requests"),
        "next": (NOBODY, "requests"),
        "before": (NOBODY, "requests"),
    },
    "system": {
        "worker": (0, "workers"),
        "named": (NOBODY, "workers"),
        "first_open": (0, "after requests"),
        "num_requests": (0, "after requests"),
        "next_arrival": (0, "after requests"),
        "num_ranked": (0, "after requests"),
        "num_clients": (0, "after requests"),
        "num_users": (0, "after requests"),
        "num_thinking": (0, "after requests"),
        "script": (0, "after requests"),
        "last_client": (NOBODY, "requests"),
        "num_transfers": (0, "after transfers"),
        "num_points": (0, "after points"),
        "num_prefill_workers": (0, "after workers"),
        "prefill_turn": (0, "anything"),
        "decode_turn": (0, "anything"),
        "num_batches": (0, "logs"),
        "num_gaps": (0, "logs"),
    },
    "workers": {
        "queue": (0, "queues"),
        "iteration": (0, "anything"),
        "num_running": (0, "after running"),
        "batch_size": (0, "after running"),
        "leading_decodes": (0, "after running"),
        "swapped": (NOBODY, "requests"),
        "cache_first": (NOBODY, "requests"),
        "cache_last": (NOBODY, "requests"),
    },
    "queues": {"front": (NOBODY, "requests")},
    "transfers": {"request": (0, "requests"), "source": (0, "workers"), "target": (NOBODY, "workers")},
    "clients": {"first": (0, "after requests")},
}


def _limits(states: State) -> dict[str, int]:
    """What a place in each array stays below, and under "after ..." what a number of its places does."""
    lengths = {
        "requests": states.requests.shape[1],
        "workers": states.workers.shape[1],
        "queues": states.queues.shape[1],
        "running": states.running.shape[2],
        "transfers": states.transfers.shape[1],
        "points": MAX_POINTS,
    }
    anything = int(np.iinfo(np.int64).max)
    recording = bool(states.system["record"].any())
    logs = 1 + min(states.batch_log.shape[1], states.gap_log.shape[1]) if recording else anything
    return (
        lengths
        | {f"after {name}": length + 1 for name, length in lengths.items()}
        | {
            "anything": anything,
            "logs": logs,
        }
    )


def check_indices(states: State) -> None:
    """Checks all systems of a vectorised State.

    Raises:
        UserError: a number is no place in the array that it is used for; names it.
    """
    limits = _limits(states)
    for array, fields in _FIELDS.items():
        for field, (least, below) in fields.items():
            _check(f"{array}.{field}", getattr(states, array)[field], least, limits[below])
    for name, values in (
        ("running", states.running),
        ("batch", states.batch[..., 0]),
        ("order", states.order),
        ("rank", states.rank),
    ):
        _check(name, values, 0, limits["requests"])
    _check("cursors", states.cursors, 0, limits["after requests"])
    _check_trees(states)


def _check(name: str, values: np.ndarray, least: int, below: int) -> None:
    if values.size and not (values.min() >= least and values.max() < below):
        odd = values[(values < least) | (values >= below)].flat[0]
        raise UserError(f"{name}: expected {least} to {below - 1}, got {odd}")


def _check_trees(states: State) -> None:
    """A bit of the lowest level stands for a request, one of a higher level for a word below that is not empty."""
    levels, capacity = states.levels[0], states.requests.shape[1]
    exists = np.arange(levels[1] * _BITS) < capacity
    for k in range(len(levels) - 1):
        words = states.sets[:, :, :NUM_SETS, levels[k] : levels[k + 1]]
        _check("sets", words, 0, 1 << _BITS)
        bits = (words[..., None] >> np.arange(_BITS) & 1).astype(np.bool_).reshape(*words.shape[:3], -1)
        wrong = bits & ~exists if k == 0 else bits != exists
        if wrong.any():
            raise UserError("sets: a bit stands for nothing")
        below = words != 0
        room = np.zeros((*words.shape[:3], -(-words.shape[3] // _BITS) * _BITS), np.bool_)
        room[..., : words.shape[3]] = below
        exists = room
