"""llm_env/addresses.py: compiled code that reads a table sees the arrays themselves, whatever happens to them."""

from __future__ import annotations

import numpy as np
import pytest
from toy import toy_scenario

from llm_env.addresses import addresses, prefetch, reader, states_at
from llm_env.build import new_states, with_capacity
from llm_env.jit import IN_PLAIN_PYTHON, njit
from llm_env.records import State, row

pytestmark = pytest.mark.kernel

_extra_at = reader(0, np.float64, 2)
_flags_at = reader(1, np.bool_, 1)


@njit
def _write(table, e, out) -> None:
    """Writes lengths of the State's arrays into out and marks the e-th system."""
    state = row(states_at(table), e)
    lengths = (
        state.requests.shape[0],
        state.system.shape[0],
        state.workers.shape[0],
        state.running.shape[1],
        state.batch.shape[2],
        state.order.shape[0],
        state.rank.shape[1],
        state.queues.shape[0],
        state.sets.shape[2],
        state.levels.shape[0],
        state.buckets.shape[2],
        state.cursors.shape[0],
        state.transfers.shape[0],
        state.clients.shape[0],
        state.noise.shape[2],
        state.scratch.shape[1],
        state.batch_log.shape[0],
        state.gap_log.shape[0],
    )
    for k in range(len(lengths)):
        out[k] = lengths[k]
    last = state.requests.shape[0] - 1
    prefetch(state.requests, last, 0)
    state.requests[last].think_s = 1.5 + e
    state.system[0].epoch = 7 + e
    state.batch[state.batch.shape[0] - 1, 3, 1] = 40 + e
    state.scratch[3, 2] = 0.25 + e
    extra, flags = _extra_at(table), _flags_at(table)
    extra[e, extra.shape[1] - 1] = 9.0
    flags[e] = not flags[e]


def _checked(states: State, e: int) -> None:
    extra, flags = np.zeros((len(states.system), 3)), np.zeros(len(states.system), np.bool_)
    table = addresses((*states, extra, flags))
    before = [array.copy() for array in states]
    out = np.zeros(len(State._fields), np.int64)
    _write(table, e, out)
    axes = {"running": 1, "batch": 2, "rank": 1, "sets": 2, "buckets": 2, "noise": 2, "scratch": 1}
    assert out.tolist() == [array[e].shape[axes.get(name, 0)] for name, array in states._asdict().items()]
    assert states.requests["think_s"][e, -1] == 1.5 + e
    assert states.system["epoch"][e, 0] == 7 + e
    assert states.batch[e, -1, 3, 1] == 40 + e
    assert states.scratch[e, 3, 2] == 0.25 + e
    assert extra.tolist() == [[0.0, 0.0, 9.0] if k == e else [0.0] * 3 for k in range(len(extra))]
    assert np.flatnonzero(flags).tolist() == [e]
    changed = [
        name for name, old, new in zip(State._fields, before, states, strict=True) if old.tobytes() != new.tobytes()
    ]
    assert changed == ["requests", "system", "batch", "scratch"]


@pytest.mark.nojit
@pytest.mark.parametrize("e", [0, 1, 2])
def test_a_table_points_at_something_else_than_its_arrays(e):
    scenario = toy_scenario(workers=2, noise="exponential")
    _checked(new_states(scenario, 3, 50, record=True), e)
    _checked(with_capacity(new_states(scenario, 3, 50, record=True), 500), e)


@pytest.mark.skipif(IN_PLAIN_PYTHON, reason="in plain Python a table is the arrays")
def test_an_array_that_numpy_strides_over_is_taken():
    with pytest.raises(AssertionError, match="C-contiguous"):
        addresses([np.zeros((4, 4))[:, ::2]])
    fixed = np.zeros(3)
    fixed.flags.writeable = False
    with pytest.raises(AssertionError, match="writable"):
        addresses([fixed])
