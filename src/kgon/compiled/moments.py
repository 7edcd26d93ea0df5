"""Lookup tables of the exact losses' moments, for compiled loops.

A threshold is looked up in O(1), nearly always from one line of a cache: buckets of equal width
over a feature's amplitudes, each with the moments of the amplitudes from it on and the amplitudes
in it, to be compared one by one. Where they do not fit, the sorted sample is bisected. It finds
what the binary search of `SampleMoments` finds.
"""

import math
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numba
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from kgon.theory.loss import EmpiricalLoss, PopulationLoss

MOMENTS = 3
"""Truncated moments of the amplitude, of orders 0, 1 and 2, at the start of a line."""
COUNT = 3
"""Place in a line of the number of amplitudes in the bucket."""
SLOTS = 4, 8
"""Places in a line of the amplitudes themselves: 64 bytes in all. If there are more, the first of
these places has the index of the first of them."""
AT_ONCE = SLOTS[1] - SLOTS[0]
"""As many thresholds as a bucket has slots are looked up at once: their lines are transposed."""


@dataclass(frozen=True)
class Tables:
    """Lookup tables of the data sets behind a loss; those of the population are empty.

    Attributes:
        population: whether the amplitude is U[0, 1] instead of a sample.
        batch: the axes of the data sets, n_sets of them in all.
        lines: (n_sets, n_features, width, 8), see `MOMENTS`, `COUNT`, `SLOTS`; the largest of
            numbers in slots behind the last amplitude, zeros behind the last bucket.
        ordered: (n_sets, n_features, width), the amplitudes ascending, +inf behind the last.
        tails: the moments of the amplitudes from each on, each (n_sets, n_features, width + 1).
        total: (n_sets, n_features, 3), moments of all amplitudes.
        low: (n_sets, n_features), the least amplitude.
        high: (n_sets, n_features), the largest.
        scale: (n_sets, n_features), buckets per unit of amplitude.
        last: (n_sets, n_features), the number of the last bucket. A feature of a data set has a
            bucket for each of its own amplitudes, so that its moments do not depend on the others,
            not even in their rounding.
        weight: an amplitude's share of moment 0, 1 / n_samples.
        importance: (n_sets, n_features), weights of the output coordinates.
    """

    population: bool
    batch: tuple[int, ...]
    lines: NDArray[np.float64]
    ordered: NDArray[np.float64]
    tails: tuple[NDArray[np.float64], ...]
    total: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    scale: NDArray[np.float64]
    last: NDArray[np.float64]
    weight: float
    importance: NDArray[np.float64]

    @property
    def arguments(self) -> tuple[Any, ...]:
        """What the compiled functions take."""
        return (
            self.lines.reshape(-1), self.ordered.reshape(-1),
            tuple(tail.reshape(-1) for tail in self.tails), self.weight, self.lines.shape[2],
            self.total, self.low, self.high, self.scale, self.last, self.importance,
        )  # fmt: skip


def tables(loss: Any, n_features: int) -> Tables | None:
    """The tables of a loss, or None if it has no compiled form: only the exact losses have."""
    if type(loss) is PopulationLoss:
        return _population_tables(n_features, loss.importance)
    if type(loss) is EmpiricalLoss and loss.moments.sorted.device.type == "cpu":
        if loss not in _MADE:
            _MADE[loss] = _sample_tables(loss)
        return _MADE[loss]
    return None


_MADE: WeakKeyDictionary[EmpiricalLoss, Tables] = WeakKeyDictionary()
"""Tables of losses still in use: they take seconds at ten million samples."""


def _population_tables(n_features: int, importance: Tensor | None) -> Tables:
    batch = tuple(importance.shape[:-1]) if importance is not None else ()
    weights = _weights(importance, batch, n_features)
    n_sets = len(weights)
    total = np.broadcast_to(1 / (np.arange(1, 4) * n_features), (n_sets, n_features, 3)).copy()
    return Tables(
        population=True,
        batch=batch,
        lines=_lines(n_sets, n_features, 1),
        ordered=np.zeros((n_sets, n_features, 1)),
        tails=(np.zeros((n_sets, n_features, 2)),) * MOMENTS,
        total=total,
        low=np.zeros((n_sets, n_features)),
        high=np.ones((n_sets, n_features)),
        scale=np.zeros((n_sets, n_features)),
        last=np.zeros((n_sets, n_features)),
        weight=0.0,
        importance=weights,
    )


def _sample_tables(loss: EmpiricalLoss) -> Tables:
    moments = loss.moments
    data_batch, n_features = moments.sorted.shape[:-2], moments.sorted.shape[-2]
    n_sets = math.prod(data_batch)
    ordered = moments.sorted.double().numpy().reshape(n_sets, n_features, -1)
    tails = tuple(tail.double().numpy().reshape(n_sets, n_features, -1) for tail in moments.tails)
    lines = _lines(n_sets, n_features, ordered.shape[-1])
    low, high, scale, last = (np.zeros((n_sets, n_features)) for _ in range(4))
    for s, j in np.ndindex(n_sets, n_features):
        present = ordered[s, j][np.isfinite(ordered[s, j])]
        # One amplitude a bucket: of a uniform sample's, one in 270 then has more than `SLOTS`.
        n_buckets = max(present.size, 1)
        if present.size:
            low[s, j], high[s, j], last[s, j] = present[0], present[-1], n_buckets - 1
            if high[s, j] > low[s, j]:
                scale[s, j] = last[s, j] / (high[s, j] - low[s, j])
        place = buckets(present, low[s, j], scale[s, j], last[s, j])
        _fill(lines[s, j, :n_buckets], place, present, [tail[s, j] for tail in tails])
        lines[s, j, n_buckets:] = 0.0
    return Tables(
        population=False,
        batch=tuple(data_batch),
        lines=lines,
        ordered=ordered,
        tails=tails,
        total=np.stack([tail[..., 0] for tail in tails], -1),
        low=low,
        high=high,
        scale=scale,
        last=last,
        weight=1 / loss.n_samples,
        importance=_weights(loss.importance, tuple(data_batch), n_features),
    )


def _lines(n_sets: int, n_features: int, width: int) -> NDArray[np.float64]:
    """Room for the lines, each of which is one line of the cache."""
    shape = (n_sets, n_features, width, SLOTS[1])
    room = np.empty(math.prod(shape) + SLOTS[1])
    first = -room.ctypes.data % 64 // 8
    return room[first : first + math.prod(shape)].reshape(shape)


def _fill(
    lines: NDArray[np.float64],
    place: NDArray[np.int32],
    amplitudes: NDArray[np.float64],
    tails: list[NDArray[np.float64]],
) -> None:
    count = np.bincount(place, minlength=len(lines))
    first = np.cumsum(count) - count
    for k, tail in enumerate(tails):
        lines[:, k] = tail[first]
    lines[:, COUNT] = count
    slots = lines[:, SLOTS[0] :]
    fits = count <= slots.shape[1]
    for r in range(slots.shape[1]):
        (here,) = np.nonzero(fits & (r < count))
        slots[:, r] = np.finfo(np.float64).max  # finite, for zero times it is zero
        slots[here, r] = amplitudes[first[here] + r]
    slots[~fits, 0] = first[~fits]


def _weights(
    importance: Tensor | None, data_batch: tuple[int, ...], n_features: int
) -> NDArray[np.float64]:
    if importance is None:
        return np.ones((math.prod(data_batch), n_features))
    full = importance.double().expand(*data_batch, n_features)
    return np.ascontiguousarray(full.reshape(-1, n_features).numpy())


@numba.njit(nogil=True, error_model="numpy", inline="always")
def bucket(t, low, scale, last):
    """The bucket of t, the same for amplitudes and thresholds, so that it is monotone exactly."""
    place = (t - low) * scale
    # In this order a NaN (from 0 times infinity) goes to bucket 0.
    place = place if place > 0.0 else 0.0
    place = place if place < last else last
    return np.int32(place)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def buckets(amplitudes, low, scale, last):
    out = np.empty(amplitudes.size, dtype=np.int32)
    for i in range(amplitudes.size):
        out[i] = bucket(amplitudes[i], low, scale, last)
    return out
