"""Scratch arrays of compiled loops."""

import numba
import numpy as np
import pytest

from kgon.compiled import scratch


def sums(size):
    """Two arrays of a size that is a constant of the compiled code, one of a size that is not."""

    @numba.njit
    def run(x):
        a, b = scratch.array(size, x.dtype), scratch.array(size, x.dtype)
        c = scratch.array(x.size, np.int64)
        for i in range(size):
            a[i], b[i] = x[i], 2 * i
        for i in range(x.size):
            c[i] = i + 1
        return a[:] - x, b.sum(), c.sum()

    return run


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("size", [5, scratch.LARGEST // 8, scratch.LARGEST])
def test_arrays_are_apart_on_the_stack_and_on_the_heap(size, dtype):
    x = np.arange(size, dtype=dtype) % 7
    difference, even, counted = sums(size)(x)
    assert difference.dtype == dtype and not difference.any()
    assert counted == size * (size + 1) // 2
    # A sum of even numbers in order is exact as long as it has a place for its last digit.
    assert even == pytest.approx(size * (size - 1), rel=size * float(np.finfo(dtype).eps))
