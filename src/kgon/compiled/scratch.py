"""Scratch arrays of compiled loops, on the stack.

The compiler knows that an array on the stack overlaps no other array, so it can keep values in
registers and vectorise. It must assume that arrays from `np.empty` overlap; with those a training
step takes 1.5 times as long.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array
from numba.np.numpy_support import as_dtype

LARGEST = 2**17
"""Most bytes of an array on the stack. A thread's stack has a few megabytes, and a loop has about
twenty arrays."""

_ALIGNMENT = 64


@intrinsic(prefer_literal=True)
def arrays(typing, count, size, dtype):
    """A tuple of `count` uninitialised arrays (size,): on the stack if `size` is a constant of the
    compiled code and each array has at most LARGEST bytes, else on the heap."""
    if not isinstance(count, types.IntegerLiteral):
        return None
    array_type = types.Array(dtype.dtype, 1, "C")
    scalar = as_dtype(dtype.dtype).type
    result = types.UniTuple(array_type, count.literal_value)

    def empty(n: int) -> Any:
        return np.empty(n, scalar)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        element = context.get_data_type(dtype.dtype)
        bytes_each = context.get_abi_sizeof(element)
        fits = (
            isinstance(size, types.IntegerLiteral)
            and 0 < size.literal_value * bytes_each <= LARGEST
        )

        def on_stack() -> Any:
            with builder.goto_entry_block():
                data = builder.alloca(ir.ArrayType(element, size.literal_value))
                data.align = _ALIGNMENT
            array = context.make_array(array_type)(context, builder)
            step = context.get_constant(types.intp, bytes_each)
            populate_array(
                array,
                data=builder.bitcast(data, element.as_pointer()),
                shape=(context.get_constant(types.intp, size.literal_value),),
                strides=(step,),
                itemsize=step,
                meminfo=None,
            )
            return array._getvalue()

        def on_heap() -> Any:
            number = context.cast(builder, arguments[1], size, types.intp)
            return context.compile_internal(builder, empty, array_type(types.intp), [number])

        one = on_stack if fits else on_heap
        return context.make_tuple(builder, result, [one() for _ in range(count.literal_value)])

    return result(count, size, dtype), generate
