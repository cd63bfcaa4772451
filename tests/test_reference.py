"""Tuples that compiled code gets by address: it reads and writes the arrays that Python sees."""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np
import pytest
from numba import types
from toy import toy_state

from llm_env.core import advance
from llm_env.jit import IN_PLAIN_PYTHON, njit
from llm_env.records import STATE_TYPE
from llm_env.reference import Reference, pass_by_address, refer

pytestmark = [pytest.mark.kernel, pytest.mark.nojit]
compiled_only = pytest.mark.skipif(IN_PLAIN_PYTHON, reason="there are no addresses in plain Python")


class Pair(NamedTuple):
    """Something to pass."""

    counts: Any
    times_s: Any


PAIR = types.NamedTuple((types.Array(types.int64, 1, "C"), types.Array(types.float64, 2, "C")), Pair)
PAIR_ADDRESS = pass_by_address(PAIR)


@njit
def _first(pair):
    return pair.counts[0] + pair.times_s[0, 1]


@njit
def _write(pair, k, value):
    pair.counts[k] = value
    pair.times_s[0, k] = value / 2


@njit
def _sum_of_rows(counts, times_s):
    total = 0.0
    for e in range(counts.shape[0]):
        pair = refer(Pair(counts[e], times_s[e]))
        _write(pair, 0, 10 * e)
        total += _first(pair)
    return total


def pair() -> Pair:
    return Pair(np.arange(3), np.arange(6.0).reshape(2, 3))


def test_fields_are_those_of_the_tuple():
    given = pair()
    _write(given, 2, 7)
    assert given.counts.tolist() == [0, 1, 7]
    assert given.times_s.tolist() == [[0.0, 1.0, 3.5], [3.0, 4.0, 5.0]]
    assert _first(given) == 1.0


def test_each_turn_of_a_loop_refers_to_its_own_arrays():
    counts, times_s = np.ones((4, 2), np.int64), np.ones((4, 1, 2))
    assert _sum_of_rows(counts, times_s) == 60 + 4
    assert counts[:, 0].tolist() == [0, 10, 20, 30]


@compiled_only
def test_the_address_is_what_is_passed():
    assert numba.typeof(pair()) == PAIR_ADDRESS
    assert isinstance(PAIR_ADDRESS, Reference)


@compiled_only
def test_a_tuple_of_other_types_is_no_such_tuple():
    """Its fields would be read as what they are not."""
    narrow = Pair(np.arange(3, dtype=np.int32), pair().times_s)
    strided = Pair(np.arange(6)[::2], pair().times_s)
    _write(narrow, 2, 7)
    _write(strided, 2, 7)
    assert narrow.counts.tolist() == [0, 1, 7]
    assert strided.counts.tolist() == [0, 2, 7]
    assert not isinstance(numba.typeof(narrow), Reference)
    assert not isinstance(numba.typeof(strided), Reference)


@compiled_only
def test_a_field_that_there_is_not_is_an_error():
    with pytest.raises(numba.TypingError, match="Unknown attribute 'lengths'"):
        njit(lambda pair: pair.lengths)(pair())


@compiled_only
def test_the_kernel_gets_a_state_by_address():
    """By value each call would store some 150 numbers."""
    state = toy_state([(0.0, 10, 2)])
    advance(state)
    compiled: Any = advance
    assert compiled.signatures == [(STATE_TYPE,)]
    assert numba.typeof(state) == STATE_TYPE
