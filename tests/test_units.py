"""llm_env/units.py: parts are compiled once and linked into each whole, which computes what numba alone would."""

from __future__ import annotations

import gc
import multiprocessing

import numba
import numpy as np
import pytest
from numba import config
from numba.core.errors import TypingError

from llm_env.jit import njit
from llm_env.units import _Files

pytestmark = pytest.mark.skipif(config.DISABLE_JIT, reason="nothing is compiled")
OPTIONS = {"cache": False}


@njit(**OPTIONS)
def leaf(x):
    if x < 0:
        raise ValueError("below zero")
    return x + 1


@njit(**OPTIONS)
def middle(x):
    return leaf(x) * 2 + leaf(7)


@njit(forceinline=True, **OPTIONS)
def inlined(x):
    return middle(x) - leaf(1)


@njit(**OPTIONS)
def left(x):
    return middle(x) + inlined(x)


@njit(**OPTIONS)
def right(x):
    return middle(x) - inlined(x)


def test_wholes_share_their_parts_and_each_part_is_compiled_once():
    assert (left(5), right(5)) == (38, 2)
    for part in (leaf, middle):
        assert list(part._parts) == [(numba.int64,)], part  # leaf(1), leaf(7) and leaf(x) alike
        assert not part.overloads, part  # no wrapper, nothing emitted
    assert middle(5) == 20  # and python may still call it
    assert list(middle.overloads) == [(numba.int64,)]


def test_an_error_in_a_part_reaches_python():
    with pytest.raises(ValueError, match="below zero"):
        left(-3)


def test_a_message_made_by_compiled_code_reaches_python(capfd):
    @njit(_nrt=True, **OPTIONS)
    def loud(x):
        print("met", x)
        return x

    @njit(_nrt=True, **OPTIONS)
    def caller(x):
        return loud(x) + 1

    assert caller(4) == 5
    assert "met 4" in capfd.readouterr().out


def test_parts_serve_callers_that_numba_compiles_by_itself():
    @numba.njit
    def outside(x):
        return left(x) + leaf(x)

    assert outside(5) == 44


def test_wholes_call_what_numba_compiled_by_itself():
    @numba.njit
    def outside(x):
        return np.zeros(x).size + leaf(x)

    @njit(_nrt=True, **OPTIONS)
    def whole(x):
        return outside(x) + leaf(x)

    assert whole(5) == 17


def test_a_recursive_function_compiles():
    @njit(**OPTIONS)
    def factorial(n):
        if n <= 1:
            return 1
        return n * factorial(n - 1)

    @njit(**OPTIONS)
    def caller(n):
        return factorial(n)

    assert factorial(5) == caller(5) == 120


def test_what_does_not_compile_says_why_and_rubbish_is_collected_again():
    @njit(**OPTIONS)
    def wrong(x):
        return x.nothing

    @njit(**OPTIONS)
    def caller(x):
        return wrong(x)

    with pytest.raises(TypingError, match="nothing"):
        caller(1)
    assert gc.isenabled()


def test_a_compiled_function_can_be_sent_to_another_process():
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        assert pool.apply(left, (5,)) == 38


def test_arrays_and_floats_are_computed_bit_for_bit_as_by_numba():
    def total(values):
        sums = 0.0
        for k in range(values.size):
            sums += values[k] * 1.1 - sums / 3.0
        return sums

    values = np.random.default_rng(0).normal(size=1001)
    assert njit(**OPTIONS)(total)(values) == numba.njit(error_model="numpy")(total)(values) == total(values)


def test_files_of_different_signatures_are_told_apart(tmp_path):
    files = _Files(tmp_path, "module.f", None)
    assert files.load(("a", 1)) is None
    files.save(("a", 1), "first")
    _Files(tmp_path, "module.f", None).save(("a", 2), "second")  # as another process does, which has not seen the first
    assert files.load(("a", 1)) == "first"
    assert files.load(("a", 2)) == "second"
    files.flush()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_vanishes_costs_no_run(tmp_path):
    files = _Files(tmp_path / "gone", "module.f", None)
    files.save("key", "content")
    assert files.load("key") is None
