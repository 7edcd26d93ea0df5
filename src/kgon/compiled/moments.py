"""Lookup tables for the truncated moments of the exact losses, for compiled loops.

A threshold t is looked up in O(1): the time does not depend on n_samples, and the result is that of
the binary search of `SampleMoments`. The range of a feature's amplitudes is divided into as many
buckets of equal width as there are amplitudes. A bucket is a line of 64 bytes: the moments of the
amplitudes from this bucket on, and its first `SLOTS` amplitudes, which are compared with t one by
one. If it has more, the sorted sample is bisected.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numba
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from kgon.jit import jit
from kgon.theory.loss import EmpiricalLoss, PopulationLoss

SLOTS = 3
"""Amplitudes that a line holds. In a uniform sample one bucket in fifty has more."""

FEATURE = np.dtype(
    [
        ("low", np.float64),  # smallest amplitude
        ("high", np.float64),  # largest amplitude
        ("total_0", np.float64),  # moments of all amplitudes: E[a^k ; feature]
        ("total_1", np.float64),
        ("total_2", np.float64),
        ("weight", np.float64),  # of an amplitude: 1 / n_samples
        ("importance", np.float64),  # weight of the output coordinate
        ("buckets_per_unit", np.float64),
        ("last_bucket", np.float64),
        ("first_line", np.int64),  # where this feature begins in Lookup.lines
        ("first_amplitude", np.int64),  # where it begins in Lookup.amplitudes
        ("is_uniform", np.bool_),  # the population's U[0, 1] instead of a sample
    ],
    align=True,
)
"""One feature of one data set. Its buckets do not depend on other data sets, and so neither does
the rounding of its moments."""

LINE = np.dtype(
    [
        ("moment_0", np.float64),  # moments of the amplitudes from this bucket on
        ("moment_1", np.float64),
        ("moment_2", np.float64),
        ("count", np.int64),  # amplitudes in this bucket
        ("first", np.int64),  # amplitudes below it
        # Its first amplitudes, padded with the largest float.
        *((f"slot_{k}", np.float64) for k in range(SLOTS)),
    ]
)

AMPLITUDE = np.dtype(
    [
        ("value", np.float64),
        ("moment_0", np.float64),  # moments of the amplitudes from this one on
        ("moment_1", np.float64),
        ("moment_2", np.float64),
    ]
)


class Lookup(NamedTuple):
    """The lookup table as arrays, for compiled functions.

    Attributes:
        features: `FEATURE` records, (n_sets, n_features).
        lines: `LINE` records, feature by feature.
        amplitudes: `AMPLITUDE` records, feature by feature: in ascending order, then one record of
            zero moments.
    """

    features: NDArray[np.void]
    lines: NDArray[np.void]
    amplitudes: NDArray[np.void]


@dataclass(frozen=True)
class Tables:
    """The lookup table of a loss and the batch axes of its data sets."""

    lookup: Lookup
    batch: tuple[int, ...]

    @property
    def population(self) -> bool:
        """Whether this is the table of a population loss."""
        return bool(self.lookup.features["is_uniform"].all())

    @property
    def n_sets(self) -> int:
        return len(self.lookup.features)

    @property
    def n_features(self) -> int:
        return int(self.lookup.features.shape[1])


def tables(loss: Any, n_features: int) -> Tables | None:
    """The tables of an exact loss on a CPU; None for losses without a compiled form."""
    if type(loss) is PopulationLoss:
        return _population_tables(n_features, loss.importance)
    if type(loss) is EmpiricalLoss and loss.moments.sorted.device.type == "cpu":
        if loss not in _MADE:
            _MADE[loss] = _sample_tables(loss)
        return _MADE[loss]
    return None


_MADE: WeakKeyDictionary[EmpiricalLoss, Tables] = WeakKeyDictionary()
"""Tables of the losses in use. Making one takes seconds for ten million samples."""


def _population_tables(n_features: int, importance: Tensor | None) -> Tables:
    batch = tuple(importance.shape[:-1]) if importance is not None else ()
    features = np.zeros((math.prod(batch), n_features), FEATURE)
    features["is_uniform"], features["high"] = True, 1.0
    for k in range(3):
        features[f"total_{k}"] = 1 / ((k + 1) * n_features)
    features["importance"] = _weights(importance, batch, n_features)
    return Tables(Lookup(features, np.zeros(1, LINE), np.zeros(1, AMPLITUDE)), batch)


def _sample_tables(loss: EmpiricalLoss) -> Tables:
    moments = loss.moments
    *batch, n_features, width = moments.sorted.shape
    ordered = moments.sorted.double().numpy().reshape(-1, n_features, width)
    tails = [tail.double().numpy().reshape(-1, n_features, width + 1) for tail in moments.tails]
    counts = np.isfinite(ordered).sum(-1)
    features = np.zeros(counts.shape, FEATURE)
    features["importance"] = _weights(loss.importance, tuple(batch), n_features)
    features["weight"] = 1 / loss.n_samples
    # One more line and amplitude each, for thresholds above the last amplitude and for features
    # without any.
    ends = np.cumsum(counts + 1).reshape(counts.shape)
    features["first_line"] = features["first_amplitude"] = ends - counts - 1
    lines = _aligned(ends[-1, -1])
    amplitudes = np.empty(ends[-1, -1], AMPLITUDE)
    for place in np.ndindex(counts.shape):
        own = slice(ends[place] - counts[place] - 1, ends[place])
        amplitudes[own]["value"] = np.append(ordered[place][: counts[place]], np.inf)
        for k, tail in enumerate(tails):
            amplitudes[own][f"moment_{k}"] = tail[place][: counts[place] + 1]
            features[place][f"total_{k}"] = tail[place][0]
        _fill(features[place], lines[own], amplitudes[own])
    return Tables(Lookup(features, lines, amplitudes), tuple(batch))


def _aligned(n_lines: int) -> NDArray[np.void]:
    """An uninitialised array of `LINE` records, aligned with the lines of the processor's cache."""
    room = np.empty(n_lines + 1, LINE)
    gap = -room.ctypes.data % LINE.itemsize
    return room.view(np.uint8)[gap : gap + n_lines * LINE.itemsize].view(LINE)


def _fill(feature: Any, lines: NDArray[np.void], amplitudes: NDArray[np.void]) -> None:
    """Fill in a feature's lines, and the fields of its record that locate them."""
    values = amplitudes["value"][:-1]
    if values.size:
        feature["low"], feature["high"] = values[0], values[-1]
        feature["last_bucket"] = values.size - 1
    if feature["high"] > feature["low"]:
        feature["buckets_per_unit"] = feature["last_bucket"] / (feature["high"] - feature["low"])
    count = np.bincount(buckets(values, feature), minlength=lines.size)
    first = np.cumsum(count) - count
    lines["count"], lines["first"] = count, first
    for k in range(3):
        lines[f"moment_{k}"] = amplitudes[f"moment_{k}"][first]
    for k in range(SLOTS):
        in_bucket = amplitudes["value"][np.minimum(first + k, values.size)]
        lines[f"slot_{k}"] = np.where(k < count, in_bucket, np.finfo(np.float64).max)


def _weights(
    importance: Tensor | None, batch: tuple[int, ...], n_features: int
) -> NDArray[np.float64]:
    if importance is None:
        return np.ones((math.prod(batch), n_features))
    full = importance.double().expand(*batch, n_features)
    return np.ascontiguousarray(full.reshape(-1, n_features).numpy())


@numba.njit(nogil=True, error_model="numpy", inline="always")
def bucket(t, feature):
    """The bucket of t; beyond the amplitudes, the first or the last bucket.

    Amplitudes and thresholds use the same arithmetic, which is monotone in t even when rounded.
    """
    place = (t - feature.low) * feature.buckets_per_unit
    # These comparisons put a NaN into bucket 0.
    place = place if place > 0.0 else 0.0
    place = place if place < feature.last_bucket else feature.last_bucket
    return np.int64(place)


@jit(nogil=True, error_model="numpy")
def buckets(amplitudes, feature):
    out = np.empty(amplitudes.size, dtype=np.int32)
    for i in range(amplitudes.size):
        out[i] = bucket(amplitudes[i], feature)
    return out
