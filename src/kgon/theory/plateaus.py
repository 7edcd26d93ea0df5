"""Plateaus: intervals of training steps on which the loss hardly moves.

Let y_i be the loss recorded at steps t_1 < t_2 < ..., at any spacing. An interval of records
I = [i, j] is *level* if

    max_I y - min_I y <= 2 tolerance.

Maximal level intervals overlap on slopes, so they are chosen greedily: the longest in steps first,
then the longest among the remaining records, while there is one of at least MIN_RECORDS records and
t_j - t_i >= min_length (t_last - t_first). A chosen interval is a plateau unless it is part of a
slope. Let d be the difference of the mean losses of its two halves (halves in time). It is part of
a slope if

    d > (max_I y - min_I y) / 3,

and, unless one more record on either side would leave it level, also d > tolerance / 4.

On a straight slope d is 1/2 of max - min; in trained ensembles the ratio has two peaks, at about
1/2 and below 1/4. The second condition keeps flat plateaus whose small range is all drift. It does
not apply to an interval that could be extended: such an interval is the rest of a slope, of which a
longer interval took the other part.

Means are over time (trapezoidal), not over records, so the loss of a plateau does not change if
some steps are recorded more densely.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kgon.jit import jit
from kgon.theory.critical import CriticalPoint

MIN_RECORDS = 3
"""Least number of records of a plateau. Two neighbouring ones are often level by chance."""

SAME_LEVEL = 1e-9
"""Largest difference in loss of critical points at one level. Rounding is 1e-16, and different
levels are at least 1e-6 apart for n_features <= 20."""


@dataclass(frozen=True)
class Plateau:
    """Steps `start` to `end`, both included, on which the loss hardly moves; its mean over time."""

    start: int
    end: int
    loss: float


@dataclass(frozen=True)
class Match:
    """The critical level nearest to a plateau.

    Attributes:
        label: the critical point's label; of several at this level, the first.
        distance: |plateau's loss - critical loss|.
        ties: the labels of all critical points at this level, `label` included.
    """

    label: str
    distance: float
    ties: tuple[str, ...]


def find_plateaus(
    step: Tensor,
    loss: Tensor,
    *,
    tolerance: float = 1e-3,
    min_length: float = 0.01,
    window: int = 1,
) -> list[Plateau]:
    """The plateaus of one loss curve, in order of time (see the module docstring).

    Args:
        step: (n_records,), strictly increasing.
        loss: (n_records,). The curve ends at the first value that is not finite.
        tolerance: half the largest range of the loss within a plateau. The default is twice the
            jitter of the population loss under SGD with lr 0.005 and batches of 20, and a seventh
            of the least distance between critical levels at n_features = 6, 1 / (4 n_features^2),
            on single-feature data. Both are proportional to E |x|^2, there 1/3.
        min_length: the least length of a plateau, as a share of the recorded steps. The default is
            2,250 of the paper's 225,000 steps, 45 epochs.
        window: records in the running median that is applied first, odd; 1 for none. For minibatch
            losses, whose noise exceeds `tolerance`. A median keeps sharp edges in place between
            levels that are longer than half the window.

    Raises:
        ValueError: loss is not one curve, step does not increase, or an argument is out of range.
    """
    loss = torch.as_tensor(loss)
    if loss.ndim != 1:
        raise ValueError(
            f"loss must be one curve (n_records,), got {tuple(loss.shape)}; use "
            "find_plateaus_of_each for several"
        )
    return find_plateaus_of_each(step, loss, tolerance, min_length, window)[0]


def find_plateaus_of_each(
    step: Tensor,
    loss: Tensor,
    tolerance: float | Tensor = 1e-3,
    min_length: float = 0.01,
    window: int = 1,
) -> list[list[Plateau]]:
    """The plateaus of each of many curves, loss (*batch, n_records), in row-major order.

    The tolerance is one for all curves, or (*batch); the rest is as in `find_plateaus`.
    """
    step, loss = torch.as_tensor(step).contiguous(), torch.as_tensor(loss).detach()
    if step.ndim != 1 or step.numel() < 1 or loss.shape[-1:] != step.shape:
        raise ValueError(
            "step must be (n_records >= 1,) and loss (*batch, n_records), "
            f"got {tuple(step.shape)} and {tuple(loss.shape)}"
        )
    if not bool((step[1:] > step[:-1]).all()):
        raise ValueError("step must be strictly increasing")
    each = torch.as_tensor(tolerance, dtype=torch.float64).broadcast_to(loss.shape[:-1]).flatten()
    if not bool((each > 0).all()):
        raise ValueError(f"tolerance must be > 0, got {tolerance}")
    if not 0 < min_length <= 1:
        raise ValueError(f"min_length must be a share of the steps, in (0, 1], got {min_length}")
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window must be odd and >= 1, got {window}")
    curves = loss.reshape(-1, step.numel()).to("cpu", torch.float64)
    alive = curves.isfinite().cumprod(-1)
    curves = _running_median(curves.where(alive > 0, torch.nan), window)
    times = step.to("cpu", torch.float64).numpy()
    shortest = min_length * (times[-1] - times[0])
    found = _find_all(times, curves.numpy(), alive.sum(-1).numpy(), each.numpy(), shortest)
    steps, plateaus = step.tolist(), []
    for count, records, means in zip(*found, strict=True):
        own = zip(records[:count].tolist(), means[:count].tolist(), strict=True)
        plateaus.append([Plateau(steps[i], steps[j], mean) for (i, j), mean in sorted(own)])
    return plateaus


def match_plateaus(plateaus: Sequence[Plateau], points: Sequence[CriticalPoint]) -> list[Match]:
    """The critical level nearest to each plateau, at any distance; `points` must not be empty."""
    if not points:
        raise ValueError("points is empty: there are no critical levels to match plateaus with")
    matches = []
    for plateau in plateaus:
        nearest = min(points, key=lambda point: abs(plateau.loss - point.loss))
        ties = tuple(p.label for p in points if abs(p.loss - nearest.loss) <= SAME_LEVEL)
        matches.append(Match(ties[0], abs(plateau.loss - nearest.loss), ties))
    return matches


def _running_median(curves: Tensor, window: int) -> Tensor:
    """The median over window // 2 records on either side, fewer at a curve's ends."""
    if window == 1:
        return curves
    padded = torch.nn.functional.pad(curves, (window // 2, window // 2), value=torch.nan)
    median = padded.unfold(-1, window, 1).nanmedian(-1).values
    return torch.where(curves.isnan(), torch.nan, median)


@jit(error_model="numpy")
def _furthest(y, width):
    """For each record i the largest j with max - min <= width over [i, j], (n,).

    The queues high[up:high_end] and low[down:low_end] hold the records that are, or can still
    become, the maximum and the minimum of [i, j]; the current one is first.
    """
    n = y.size
    last = np.empty(n, np.int64)
    high, low = np.empty(n, np.int64), np.empty(n, np.int64)
    up = down = high_end = low_end = 0
    j = 0  # one past the interval's end
    for i in range(n):
        while j < n:
            top = y[high[up]] if up < high_end else y[j]
            bottom = y[low[down]] if down < low_end else y[j]
            if max(top, y[j]) - min(bottom, y[j]) > width:
                break
            while high_end > up and y[high[high_end - 1]] <= y[j]:
                high_end -= 1
            while low_end > down and y[low[low_end - 1]] >= y[j]:
                low_end -= 1
            high[high_end] = low[low_end] = j
            high_end += 1
            low_end += 1
            j += 1
        last[i] = j - 1
        if high[up] == i:
            up += 1
        if low[down] == i:
            down += 1
    return last


@jit(error_model="numpy")
def _mean_and_moving(t, y, first, last, tolerance):
    """The mean over time of records first, ..., last, and whether they are part of a slope."""
    origin = y[first]  # so that the mean of a constant is exact
    length = t[last] - t[first]
    middle = (t[first] + t[last]) / 2
    whole = first_half = high = low = 0.0
    for i in range(first, last):
        here, there = y[i] - origin, y[i + 1] - origin
        area = (t[i + 1] - t[i]) * (here + there) / 2
        if t[i] < middle <= t[i + 1]:
            since = middle - t[i]
            at = here + (there - here) * since / (t[i + 1] - t[i])
            first_half = whole + since * (here + at) / 2
        whole += area
        high, low = max(high, there), min(low, there)
    drift = abs(whole - 2 * first_half) * 2 / length
    cut = False
    for beside in (first - 1, last + 1):
        if 0 <= beside < y.size:
            neighbour = y[beside] - origin
            cut |= max(high, neighbour) - min(low, neighbour) <= 2 * tolerance
    moving = drift > (high - low) / 3 and (cut or drift > tolerance / 4)
    return origin + whole / length, moving


@jit(error_model="numpy")
def _find(t, y, tolerance, shortest, records, means):
    """Find the plateaus of one curve, in any order, and return their number.

    Their first and last records are written to `records` (n // MIN_RECORDS, 2), their means to
    `means`.
    """
    furthest = _furthest(y, 2 * tolerance)
    # Stretches of records that are still to be searched, independent of each other.
    starts, ends = np.empty(y.size + 2, np.int64), np.empty(y.size + 2, np.int64)
    starts[0], ends[0] = 0, y.size
    found, left = 0, 1
    while left > 0:
        left -= 1
        start, end = starts[left], ends[left]
        first, last, longest = -1, -1, -1.0
        for i in range(start, end):
            j = min(furthest[i], end - 1)
            length = t[j] - t[i]
            if j - i + 1 >= MIN_RECORDS and length >= shortest and length > longest:
                first, last, longest = i, j, length
        if first < 0:
            continue
        means[found], moving = _mean_and_moving(t, y, first, last, tolerance)
        if not moving:
            records[found, 0], records[found, 1] = first, last
            found += 1
        starts[left], ends[left] = start, first
        starts[left + 1], ends[left + 1] = last + 1, end
        left += 2
    return found


@jit(error_model="numpy")
def _find_all(t, curves, lengths, tolerance, shortest):
    """`_find` for every curve c, up to record lengths[c], within tolerance[c].

    Returns the number of plateaus (n_curves), their first and last records (n_curves, most, 2) and
    their means (n_curves, most), in any order, with most = n_records // MIN_RECORDS.
    """
    n_curves, most = len(curves), t.size // MIN_RECORDS
    counts = np.empty(n_curves, np.int64)
    records, means = np.empty((n_curves, most, 2), np.int64), np.empty((n_curves, most))
    for c in range(n_curves):
        n = lengths[c]
        counts[c] = _find(t[:n], curves[c, :n], tolerance[c], shortest, records[c], means[c])
    return counts, records, means
