"""Explicit vectors for the compiled training step.

The compiler unrolls short loops before it vectorises, and then finds nothing left to vectorise. A
vector holds a few numbers in registers; `load` and `store` copy them from and to consecutive
elements of an array. +, - and * act elementwise on two vectors.
"""

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.cgutils import get_item_pointer
from numba.core.datamodel import PrimitiveModel, register_default
from numba.extending import intrinsic, overload


class Vector(types.Type):
    """`count` numbers of type `dtype`."""

    def __init__(self, dtype: types.Number, count: int):
        self.dtype, self.count = dtype, count
        super().__init__(name=f"vector({dtype}, {count})")


@register_default(Vector)
class _Model(PrimitiveModel):
    def __init__(self, manager: Any, vector: Vector):
        number = manager.lookup(vector.dtype).get_value_type()
        super().__init__(manager, vector, ir.VectorType(number, vector.count))


def _pointer(context, builder, array_type, array, place, vector):
    array = context.make_array(array_type)(context, builder, array)
    first = get_item_pointer(context, builder, array_type, array, [place])
    return builder.bitcast(first, context.get_value_type(vector).as_pointer())


@intrinsic(prefer_literal=True)
def load(typing, array, place, count):
    """The vector of array[place], ..., array[place + count - 1]; `count` is a constant."""
    vector = Vector(array.dtype, count.literal_value)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _pointer(context, builder, array, arguments[0], arguments[1], vector)
        return builder.load(pointer, align=array.dtype.bitwidth // 8)

    return vector(array, types.intp, count), generate


@intrinsic
def store(typing, array, place, vector):
    """Copy a vector to array[place] and the elements after it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _pointer(context, builder, array, arguments[0], arguments[1], vector)
        builder.store(arguments[2], pointer, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), generate


def _picked(builder: Any, vector: Any, places: list[int]) -> Any:
    mask = ir.Constant(ir.VectorType(ir.IntType(32), len(places)), places)
    return builder.shuffle_vector(vector, vector, mask)


@intrinsic(prefer_literal=True)
def broadcast(typing, number, count):
    """The vector that repeats a number `count` times; `count` is a constant."""
    vector = Vector(number, count.literal_value)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        nothing = ir.Constant(context.get_value_type(vector), ir.Undefined)
        first = builder.insert_element(nothing, arguments[0], ir.IntType(32)(0))
        return _picked(builder, first, [0] * vector.count)

    return vector(number, count), generate


@intrinsic
def total(typing, vector):
    """The sum of 2^k numbers: the two halves of the vector are added until one number is left."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        (left,), n = arguments, vector.count
        while n > 1:
            n //= 2
            halves = (list(range(n)), list(range(n, 2 * n)))
            left = builder.fadd(*(_picked(builder, left, half) for half in halves))
        return builder.extract_element(left, ir.IntType(32)(0))

    return vector.dtype(vector), generate


@intrinsic
def where_positive(typing, condition, vector):
    """The vector with zeros where `condition` <= 0 (but not where it is NaN)."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        zero = ir.Constant(context.get_value_type(vector), [0.0] * vector.count)
        off = builder.fcmp_ordered("<=", arguments[0], zero)
        return builder.select(off, zero, arguments[1])

    return vector(condition, vector), generate


def _operation(symbol: Callable[..., Any], instruction: str) -> None:
    @intrinsic
    def both(typing, a, b):
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return getattr(builder, instruction)(*arguments)

        return a(a, b), generate

    @overload(symbol)
    def operation(a, b):
        if isinstance(a, Vector) and a == b:
            return lambda a, b: both(a, b)
        return None


_operation(operator.add, "fadd")
_operation(operator.sub, "fsub")
_operation(operator.mul, "fmul")
