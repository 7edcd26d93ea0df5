"""Vectors of compiled loops: a few numbers side by side that the processor's vector instructions
work on at once.

The compiler unrolls a short loop before it looks for vectors, and then finds none. These say what
they are. A vector lives in registers; its numbers stand side by side in an array when it is loaded
or stored. +, - and * work number by number on two vectors.
"""

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.cgutils import get_item_pointer, get_or_insert_function
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
    """Put a vector's numbers into array[place] and those that follow."""

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
    """The vector that has the same number `count` times; `count` is a constant."""
    vector = Vector(number, count.literal_value)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        nothing = ir.Constant(context.get_value_type(vector), ir.Undefined)
        first = builder.insert_element(nothing, arguments[0], ir.IntType(32)(0))
        return _picked(builder, first, [0] * vector.count)

    return vector(number, count), generate


@intrinsic
def beside(typing, one, two, three, four):
    """The vector of four numbers."""
    vector = Vector(one, 4)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        numbers = ir.Constant(context.get_value_type(vector), ir.Undefined)
        for k, number in enumerate(arguments):
            numbers = builder.insert_element(numbers, number, ir.IntType(32)(k))
        return numbers

    return vector(one, two, three, four), generate


@intrinsic
def parts(typing, vector):
    """A vector's numbers, as a tuple."""
    numbers = types.UniTuple(vector.dtype, vector.count)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        places = (ir.IntType(32)(k) for k in range(vector.count))
        each = [builder.extract_element(arguments[0], place) for place in places]
        return context.make_tuple(builder, numbers, each)

    return numbers(vector), generate


@intrinsic(prefer_literal=True)
def columns(typing, array, rows, first):
    """The transpose of four rows of four numbers, as four vectors: the row of place r is array[r +
    first], ..., array[r + first + 3]. `rows` is a tuple, `first` a constant."""
    vector, half = Vector(array.dtype, 4), Vector(array.dtype, 2)
    out = types.UniTuple(vector, 4)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def mixed(a: Any, b: Any, places: list[int]) -> Any:
            mask = ir.Constant(ir.VectorType(ir.IntType(32), 4), places)
            return builder.shuffle_vector(a, b, mask)

        def halves(column: int) -> list[Any]:
            loaded = []
            for k in range(4):
                row = builder.extract_value(arguments[1], k)
                place = builder.add(row, row.type(first.literal_value + column))
                pointer = _pointer(context, builder, array, arguments[0], place, half)
                loaded.append(builder.load(pointer, align=array.dtype.bitwidth // 8))
            return loaded

        each = []
        for column in (0, 2):
            one, two, three, four = halves(column)
            # Halves come from memory to where they belong, so that only neighbours change places.
            a, b = mixed(one, three, [0, 1, 2, 3]), mixed(two, four, [0, 1, 2, 3])
            each += [mixed(a, b, [0, 4, 2, 6]), mixed(a, b, [1, 5, 3, 7])]
        return context.make_tuple(builder, out, each)

    return out(array, rows, first), generate


@intrinsic
def with_sign_of(typing, vector, other):
    """A vector's absolute values with another's signs."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = context.get_value_type(vector)
        name = f"llvm.copysign.v{vector.count}f{vector.dtype.bitwidth}"
        copy = get_or_insert_function(builder.module, ir.FunctionType(kind, [kind, kind]), name)
        return builder.call(copy, arguments)

    return vector(vector, other), generate


@intrinsic
def all_at_most(typing, a, b):
    """Whether every number of a is at most that of b."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits = builder.fcmp_ordered("<=", *arguments)
        bits = builder.bitcast(bits, ir.IntType(a.count))
        return builder.icmp_unsigned("==", bits, ir.IntType(a.count)(2**a.count - 1))

    return types.boolean(a, b), generate


@intrinsic
def total(typing, vector):
    """The sum of a vector's numbers, a power of two of them: halves are added until one is left."""

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
    """A vector's numbers, and 0 where `condition` is not positive; a NaN there goes through."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        zero = ir.Constant(context.get_value_type(vector), [0.0] * vector.count)
        off = builder.fcmp_ordered("<=", arguments[0], zero)
        return builder.select(off, zero, arguments[1])

    return vector(condition, vector), generate


@intrinsic
def where_at_most(typing, a, b, vector):
    """A vector's numbers where a <= b, and 0 elsewhere."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        zero = ir.Constant(context.get_value_type(vector), [0.0] * vector.count)
        counts = builder.fcmp_ordered("<=", arguments[0], arguments[1])
        return builder.select(counts, arguments[2], zero)

    return vector(a, b, vector), generate


@intrinsic
def signs_differ(typing, a, b):
    """An integer whose bit l says that one of a[l] and b[l] is positive and the other is not; a NaN
    counts as positive."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        zero = ir.Constant(context.get_value_type(a), [0.0] * a.count)
        off = [builder.fcmp_ordered("<=", each, zero) for each in arguments]
        bits = builder.bitcast(builder.xor(*off), ir.IntType(a.count))
        return builder.zext(bits, ir.IntType(64))

    return types.uint64(a, b), generate


def _operation(symbol: Callable[..., Any], instruction: str) -> None:
    @intrinsic
    def both(typing, a, b):
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            prefix = "f" if isinstance(a.dtype, types.Float) else ""
            return getattr(builder, prefix + instruction)(*arguments)

        return a(a, b), generate

    @overload(symbol)
    def operation(a, b):
        if isinstance(a, Vector) and a == b:
            return lambda a, b: both(a, b)
        return None


_operation(operator.add, "add")
_operation(operator.sub, "sub")
_operation(operator.mul, "mul")
_operation(operator.truediv, "div")
