"""NamedTuples of arrays that compiled code passes by address. Knows nothing of the system.

numba passes a NamedTuple by value: of a State's 18 arrays each call would store some 150 numbers on the stack, which
took as long as the simulation of a small batch. Compiled code that is given a tuple of a class named here gets the
address of a table of its arrays instead. It reads fields as before, and cannot tell the difference.
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.core import cgutils
from numba.core.imputils import impl_ret_borrowed
from numba.core.typing.templates import AttributeTemplate
from numba.extending import (
    NativeValue,
    infer_getattr,
    intrinsic,
    lower_getattr_generic,
    models,
    register_model,
    typeof_impl,
    unbox,
)

from llm_env.jit import IN_PLAIN_PYTHON


class Reference(types.Type):
    """The address of a NamedTuple's fields. Args: fields: the type of the tuple."""

    def __init__(self, fields: types.NamedTuple) -> None:
        self.fields = fields
        dimensions = "".join(str(field.ndim) for field in fields.types)
        super().__init__(f"Reference({fields.instance_class.__name__}, {dimensions})")


@register_model(Reference)
class _ReferenceModel(models.PrimitiveModel):
    def __init__(self, manager, reference) -> None:
        super().__init__(manager, reference, manager.lookup(reference.fields).get_value_type().as_pointer())


@infer_getattr
class _ReferenceFields(AttributeTemplate):
    key = Reference

    def generic_resolve(self, reference, name):
        names = reference.fields.fields
        return reference.fields.types[names.index(name)] if name in names else None


@lower_getattr_generic(Reference)
def _field(context, builder, reference, address, name):
    place = reference.fields.fields.index(name)
    value = builder.load(cgutils.gep_inbounds(builder, address, 0, place))
    return impl_ret_borrowed(context, builder, reference.fields.types[place], value)


@unbox(Reference)
def _unbox(reference, given, c):
    native = c.unbox(reference.fields, given)
    address = cgutils.alloca_once_value(c.builder, native.value)
    return NativeValue(address, is_error=native.is_error, cleanup=native.cleanup)


def pass_by_address(fields: types.NamedTuple) -> Reference:
    """From now on compiled code gets tuples of this type by address; returns the type that it sees.

    Tuples of the same class whose fields are of other types are passed by value.
    """
    reference = Reference(fields)

    @typeof_impl.register(fields.instance_class)
    def _typeof(value: Any, c: Any) -> types.Type:
        found = types.NamedTuple(tuple(typeof_impl(field, c) for field in value), type(value))
        return reference if found == fields else found

    return reference


@intrinsic
def _refer(_, fields):
    reference = Reference(fields)

    def generate(context, builder, signature, arguments):
        return cgutils.alloca_once_value(builder, arguments[0])

    return reference(fields), generate


def _itself(fields):
    return fields


# the address of a tuple that compiled code has made; it holds until the function returns in which this is called, so
# that a function which returns it must be compiled with inline="always"
refer: Any = _itself if IN_PLAIN_PYTHON else _refer
