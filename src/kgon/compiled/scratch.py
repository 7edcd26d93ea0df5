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
def array(typing, size, dtype):
    """An uninitialised array (size,): on the stack if `size` is a constant (a literal or a variable
    of an outer function, but no expression) and takes at most LARGEST bytes, else on the heap."""
    array_type = types.Array(dtype.dtype, 1, "C")
    scalar = as_dtype(dtype.dtype).type

    def empty(n: int) -> Any:
        return np.empty(n, scalar)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        element = context.get_data_type(dtype.dtype)
        bytes_each = context.get_abi_sizeof(element)
        n = size.literal_value if isinstance(size, types.IntegerLiteral) else 0
        if not 0 < n * bytes_each <= LARGEST:
            number = context.cast(builder, arguments[0], size, types.intp)
            return context.compile_internal(builder, empty, array_type(types.intp), [number])
        with builder.goto_entry_block():
            data = builder.alloca(ir.ArrayType(element, n))
            data.align = _ALIGNMENT
        made = context.make_array(array_type)(context, builder)
        step = context.get_constant(types.intp, bytes_each)
        populate_array(
            made,
            data=builder.bitcast(data, element.as_pointer()),
            shape=(context.get_constant(types.intp, n),),
            strides=(step,),
            itemsize=step,
            meminfo=None,
        )
        return made._getvalue()

    return array_type(size, dtype), generate
