"""Lookup tables of the exact losses' moments, for compiled loops.

A threshold is looked up in O(1): buckets of equal width over a feature's amplitudes, each with the
number of amplitudes below it, and bisection among the few inside. It finds the same index as the
binary search of `SampleMoments`.
"""

import math
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kgon.loss import EmpiricalLoss, PopulationLoss

_BUCKETS_PER_AMPLITUDE = 16, 4
"""For small samples and for large ones. Buckets that are nearly all empty leave nothing to search,
but a table of a million of them is in no cache."""
_SMALL = 2**19
"""Most buckets of a feature of a small sample."""


@dataclass(frozen=True)
class Tables:
    """Lookup tables of the data sets behind a loss; those of the population are empty.

    Attributes:
        population: whether the amplitude is U[0, 1] instead of a sample.
        batch: the axes of the data sets, n_sets of them in all.
        nodes: (n_sets, n_features, width, 4), the distinct amplitudes ascending, +inf behind the
            last, each with the moments of the amplitudes from it on: one place in memory a lookup.
        total: (n_sets, n_features, 3), moments of all amplitudes.
        start: (n_sets, n_features, n_buckets + 1), amplitudes in the buckets before a bucket.
        low: (n_sets, n_features), the least amplitude.
        high: (n_sets, n_features), the largest.
        scale: (n_sets, n_features), buckets per unit of amplitude.
        importance: (n_sets, n_features), weights of the output coordinates.
    """

    population: bool
    batch: tuple[int, ...]
    nodes: NDArray[np.float64]
    total: NDArray[np.float64]
    start: NDArray[np.int32]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    scale: NDArray[np.float64]
    importance: NDArray[np.float64]

    @property
    def arguments(self) -> tuple[Any, ...]:
        """What the compiled functions take."""
        return (
            self.nodes, self.total, self.start, self.low, self.high, self.scale,
            self.importance,
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
        nodes=np.zeros((n_sets, n_features, 1, 4)),
        total=total,
        start=np.zeros((n_sets, n_features, 2), dtype=np.int32),
        low=np.zeros((n_sets, n_features)),
        high=np.ones((n_sets, n_features)),
        scale=np.zeros((n_sets, n_features)),
        importance=weights,
    )


def _sample_tables(loss: EmpiricalLoss) -> Tables:
    moments = loss.moments
    data_batch, n_features = moments.sorted.shape[:-2], moments.sorted.shape[-2]
    n_sets = math.prod(data_batch)
    ordered = moments.sorted.double().numpy().reshape(n_sets, n_features, -1)
    prefix = torch.stack(moments._tail, -1).double().numpy()
    prefix = prefix.reshape(n_sets, n_features, -1, 3)
    width = ordered.shape[-1]
    many, few = _BUCKETS_PER_AMPLITUDE
    n_buckets = max(min(many * width, _SMALL), few * width)
    nodes = np.zeros((n_sets, n_features, width + 1, 4))
    nodes[..., 0] = np.inf
    start = np.zeros((n_sets, n_features, n_buckets + 1), dtype=np.int32)
    low, high, scale = np.zeros((3, n_sets, n_features))
    for s, j in np.ndindex(n_sets, n_features):
        present = ordered[s, j][np.isfinite(ordered[s, j])]
        # Of equal amplitudes the last counts: an index is the number of amplitudes <= t.
        last = np.flatnonzero(np.append(present[1:] > present[:-1], present.size > 0))
        distinct = present[last]
        nodes[s, j, : distinct.size, 0] = distinct
        nodes[s, j, 0, 1:] = prefix[s, j, 0]
        nodes[s, j, 1 : distinct.size + 1, 1:] = prefix[s, j, last + 1]
        if distinct.size:
            low[s, j], high[s, j] = distinct[0], distinct[-1]
            if distinct.size > 1:
                scale[s, j] = (n_buckets - 1) / (distinct[-1] - distinct[0])
            place = buckets(distinct, low[s, j], scale[s, j], n_buckets)
            start[s, j, 1:] = np.cumsum(np.bincount(place, minlength=n_buckets))
    return Tables(
        population=False,
        batch=tuple(data_batch),
        nodes=nodes,
        total=nodes[:, :, 0, 1:].copy(),
        start=start,
        low=low,
        high=high,
        scale=scale,
        importance=_weights(loss.importance, tuple(data_batch), n_features),
    )


def _weights(
    importance: Tensor | None, data_batch: tuple[int, ...], n_features: int
) -> NDArray[np.float64]:
    if importance is None:
        return np.ones((math.prod(data_batch), n_features))
    full = importance.double().expand(*data_batch, n_features)
    return np.ascontiguousarray(full.reshape(-1, n_features).numpy())


@numba.njit(nogil=True, error_model="numpy", inline="always")
def bucket(t, low, scale, n_buckets):
    """The bucket of t, the same for amplitudes and thresholds, so that it is monotone exactly."""
    place = (t - low) * scale
    # In this order a NaN (from 0 times infinity) goes to bucket 0.
    place = place if place > 0.0 else 0.0
    place = place if place < n_buckets - 1.0 else n_buckets - 1.0
    return np.int64(place)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def buckets(amplitudes, low, scale, n_buckets):
    out = np.empty(amplitudes.size, dtype=np.int64)
    for i in range(amplitudes.size):
        out[i] = bucket(amplitudes[i], low, scale, n_buckets)
    return out
