"""Arrays by address: one int64 table instead of many arguments of a compiled call. Knows the State and no rules.

To take an array from Python compiled code looks up its address and its shape, which costs about 0.1 us. A State is 18
arrays: that was longer than the step that was to be made. A table is looked up once, when the arrays are made.
Whoever keeps a table keeps its arrays too, or it points to nowhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import get_itemsize, make_array, populate_array

from llm_env.jit import IN_PLAIN_PYTHON
from llm_env.records import STATES_TYPE, State

_MAX_NDIM = 4
_COLUMNS = 1 + _MAX_NDIM


def addresses(arrays: Iterable[np.ndarray]) -> Any:
    """The table of some arrays, (number of arrays, 1 + 4) int64: address and lengths of each.

    In plain Python it is the arrays themselves.

    Args:
        arrays: C-contiguous, aligned and writable, of at most 4 axes.
    """
    arrays = tuple(arrays)
    if IN_PLAIN_PYTHON:
        return arrays
    table = np.zeros((len(arrays), _COLUMNS), np.int64)
    for k, array in enumerate(arrays):
        assert array.flags.carray, "not C-contiguous, aligned and writable"
        table[k, 0] = array.ctypes.data  # __array_interface__ would describe every field of a record: six times as long
        table[k, 1 : 1 + array.ndim] = array.shape
    return table


def _array_at(context: Any, builder: Any, table: Any, k: int, array_type: types.Array) -> Any:
    """Generates the k-th array of a table. Args: table: LLVM pointer to its numbers."""
    numbers = [
        builder.load(builder.gep(table, [context.get_constant(types.intp, k * _COLUMNS + column)]))
        for column in range(1 + array_type.ndim)
    ]
    item_bytes = get_itemsize(context, array_type)
    strides = [context.get_constant(types.intp, item_bytes)]
    for length in reversed(numbers[2:]):
        strides.insert(0, builder.mul(strides[0], length))
    array = make_array(array_type)(context, builder)
    populate_array(
        array,
        data=builder.inttoptr(numbers[0], array.data.type),
        shape=cgutils.pack_array(builder, numbers[1:]),
        strides=cgutils.pack_array(builder, strides),
        itemsize=context.get_constant(types.intp, item_bytes),
        meminfo=None,
    )
    return array._getvalue()


def _numbers(context: Any, builder: Any, table_type: types.Array, table: Any) -> Any:
    return make_array(table_type)(context, builder, table).data


@intrinsic
def _states_at(typing_context: Any, table: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        numbers = _numbers(context, builder, signature.args[0], arguments[0])
        arrays = [_array_at(context, builder, numbers, k, array) for k, array in enumerate(STATES_TYPE.types)]
        return context.make_tuple(builder, STATES_TYPE, arrays)

    return STATES_TYPE(table), generate


def _reader(place: int, array_type: types.Array) -> Any:
    """table -> its array number `place`, in compiled code."""

    @intrinsic
    def read(typing_context: Any, table: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            numbers = _numbers(context, builder, signature.args[0], arguments[0])
            return _array_at(context, builder, numbers, place, array_type)

        return array_type(table), generate

    return read


def reader(behind: int, dtype: Any, ndim: int) -> Callable[[Any], Any]:
    """A function table -> array, for compiled code, of the array that stands `behind` places behind the State's.

    Args:
        dtype, ndim: of that array.
    """
    place = len(State._fields) + behind
    if IN_PLAIN_PYTHON:
        return lambda arrays: arrays[place]
    return _reader(place, types.Array(numba.from_dtype(np.dtype(dtype)), ndim, "C"))


def _states_of(arrays: tuple[Any, ...]) -> State:
    return State(*arrays[: len(State._fields)])


# table -> the vectorised State that its first arrays are
states_at: Any = _states_of if IN_PLAIN_PYTHON else _states_at


@intrinsic
def _prefetch(typing_context: Any, array: Any, item: Any, byte: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array_type, byte_pointer, number = signature.args[0], cgutils.voidptr_t, ir.IntType(32)
        data = builder.bitcast(make_array(array_type)(context, builder, arguments[0]).data, byte_pointer)
        start = builder.mul(arguments[1], context.get_constant(types.intp, get_itemsize(context, array_type)))
        address = builder.gep(data, [builder.add(start, arguments[2])])
        signature_ = ir.FunctionType(ir.VoidType(), [byte_pointer, number, number, number])
        fetch = builder.module.declare_intrinsic("llvm.prefetch", [byte_pointer], signature_)
        builder.call(fetch, [address, number(0), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp), generate


def _no_prefetch(array: np.ndarray, item: int, byte: int) -> None:
    """Plain Python has no say in what is cached."""


# array, item, byte: fetches the cache line with that byte of an item of a one-dimensional array; changes nothing
prefetch: Any = _no_prefetch if IN_PLAIN_PYTHON else _prefetch
