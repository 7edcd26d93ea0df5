"""Vectors of compiled loops against the same by numpy."""

import numba
import numpy as np

from kgon.compiled.vectors import (
    all_at_most,
    beside,
    columns,
    load,
    parts,
    store,
    where_at_most,
    with_sign_of,
)

NUMBERS = np.array([1.5, -2.0, 0.0, -0.0, np.inf, -np.inf, np.nan, 3.0])


@numba.njit
def _columns(array, one, two, three, four, out):
    places = one, two, three, four
    for k, column in enumerate(columns(array, places, 2)):
        store(out, 4 * k, column)


def test_columns_are_the_transpose_of_rows_that_may_overlap():
    array, places, out = np.arange(40.0), np.array([17, 0, 2, 30], dtype=np.uint64), np.empty(16)
    _columns(array, *places, out)
    rows = np.stack([array[int(place) + 2 :][:4] for place in places])
    assert (out.reshape(4, 4) == rows.T).all()


@numba.njit
def _signed(a, b, out):
    store(out, 0, with_sign_of(load(a, 0, 8), load(b, 0, 8)))


def test_signs_are_those_of_numpy_zeros_included():
    for a in (NUMBERS, -NUMBERS):
        for b in (NUMBERS[::-1].copy(), np.full(8, -0.0)):
            out = np.empty(8)
            _signed(a, b, out)
            expected = np.copysign(np.abs(a), b)
            assert (np.signbit(out) == np.signbit(expected)).all()
            np.testing.assert_array_equal(out, expected)


@numba.njit
def _reversed(a, out):
    one, two, three, four = parts(load(a, 0, 4))
    store(out, 0, beside(four, three, two, one))


def test_a_vector_taken_apart_and_put_together():
    out = np.empty(4)
    _reversed(NUMBERS, out)
    np.testing.assert_array_equal(out, NUMBERS[3::-1])


@numba.njit
def _quotient(a, b, out):
    store(out, 0, load(a, 0, 8) / load(b, 0, 8))


def test_a_quotient_is_rounded_as_numpys():
    a, b, out = np.arange(1.0, 9.0), np.arange(3.0, 11.0), np.empty(8)
    _quotient(a, b, out)
    assert (out == a / b).all()


@numba.njit
def _compared(a, b, out):
    store(out, 0, where_at_most(load(a, 0, 8), load(b, 0, 8), load(a, 0, 8)))
    return all_at_most(load(a, 0, 8), load(b, 0, 8))


def test_comparisons_and_what_a_nan_does():
    out = np.empty(8)
    assert not _compared(NUMBERS, NUMBERS, out)  # NaN <= NaN is false
    np.testing.assert_array_equal(out, np.where(np.isnan(NUMBERS), 0.0, NUMBERS))
    numbers = np.arange(8.0)
    assert _compared(numbers, numbers, out)
    assert _compared(numbers, numbers + 1, out)
    for k in range(8):
        above = numbers.copy()
        above[k] += 0.5
        assert not _compared(above, numbers, out)
        np.testing.assert_array_equal(out, np.where(above == numbers, numbers, 0.0))
