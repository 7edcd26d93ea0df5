"""Plateaus: intervals of training steps on which the loss hardly moves. Model-free.

Let y_s be the loss recorded at steps t_1 < t_2 < ..., unevenly spaced as may be. An interval of
records I = [i, j] is *level* if

    max_I y - min_I y <= 2 tolerance.

Level intervals that cannot be extended overlap on slopes, so they are taken greedily: the longest
in steps first, then the longest of what is left, as long as they have MIN_RECORDS records and
t_j - t_i >= min_length (t_last - t_first). One that was taken is a plateau unless it is a piece of
a slope: the mean losses of its two halves (halves in time) differ by

    more than (max_I y - min_I y) / 3.

On a straight slope they differ by a half of max - min; on a plateau that the loss reaches fast or
leaves fast, and on one with jitter, by a small part of it. (Trained ensembles show two heaps, about
1/2 and below 1/4.) One that differs by no more than tolerance / 4 is at rest all the same, unless
it is only what a longer interval has left of a slope: unless it could be extended and stay level.

Means are over time (trapezoidal), not over records: a plateau keeps its level if the steps are
recorded more densely somewhere. The definition does not change if time is scaled, or shifted, or
the loss shifted; it scales with the loss if tolerance does.

What a plateau's level has to do with critical points is a second step, `match_plateaus`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from kgon.critical import CriticalPoint

MIN_RECORDS = 3
"""Two records are level by chance alone; the third is the first that could say otherwise."""

SAME_LEVEL = 1e-9
"""Critical points whose losses differ by less share a level: rounding is 1e-16, and families with
really different losses are at least 1e-6 apart for n_features <= 20."""


@dataclass(frozen=True)
class Plateau:
    """An interval of steps on which the loss hardly moves.

    Attributes:
        start: the first step.
        end: the last step, included.
        loss: mean over time.
    """

    start: int
    end: int
    loss: float


@dataclass(frozen=True)
class Match:
    """The critical level nearest to a plateau.

    Attributes:
        label: of the critical point; of several that share the level, the first.
        distance: |plateau's loss - critical loss|.
        ties: labels of all points at that level, `label` included.
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
) -> list:
    """The plateaus of one curve or of many (module docstring).

    Args:
        step: (n_records,), strictly increasing.
        loss: (*batch, n_records). A value that is not finite ends its curve: nothing from there on
            belongs to a plateau.
        tolerance: half the range of the loss within a plateau. The default is twice the jitter that
            SGD with lr 0.005 and batches of 20 leaves on the population loss, and a seventh of the
            least distance of critical levels at n_features = 6, 1 / (4 n_features^2).
        min_length: least length, as a share of the steps recorded. The default is 2,250 of the
            paper's 225,000 steps, 45 epochs.
        window: records in the running median that is applied first, odd; 1 for none. For losses of
            minibatches, whose noise is wider than `tolerance`. A median keeps sharp edges in place,
            between levels longer than half of it.

    Returns:
        Plateaus in order of time: a list of `Plateau` for one curve, nested lists for a batch.
    """
    step = torch.as_tensor(step).contiguous()
    loss = torch.as_tensor(loss).detach()
    _check(step, loss, tolerance, min_length, window)
    curves = loss.reshape(-1, step.numel()).to("cpu", torch.float64)
    ended = (~curves.isfinite()).cummax(-1).values
    curves = _running_median(curves.masked_fill(ended, torch.nan), window)
    found: list = _find(step.to("cpu"), curves, ended, tolerance, min_length)
    for size in reversed(loss.shape[1:-1]):
        found = [found[i : i + size] for i in range(0, len(found), size)]
    return found if loss.ndim > 1 else found[0]


def match_plateaus(plateaus: Sequence[Plateau], points: Sequence[CriticalPoint]) -> list[Match]:
    """The critical level nearest to each plateau, however far it is: `distance` says.

    Args:
        plateaus: of one curve.
        points: critical points, of `critical_points(n_features)` for instance.
    """
    if not points:
        raise ValueError("points is empty: there is no critical level to match with")
    matches = []
    for plateau in plateaus:
        nearest = min(points, key=lambda point: abs(plateau.loss - point.loss))
        ties = tuple(p.label for p in points if abs(p.loss - nearest.loss) <= SAME_LEVEL)
        matches.append(Match(ties[0], abs(plateau.loss - nearest.loss), ties))
    return matches


def transitions(matches: Sequence[Match]) -> list[tuple[str, str]]:
    """The passages from one critical level to another, in order: (from, to).

    Consecutive matches with the same label are one stay at that level.
    """
    labels = [match.label for match in matches]
    return [(a, b) for a, b in pairwise(labels) if a != b]


def _check(step: Tensor, loss: Tensor, tolerance: float, min_length: float, window: int) -> None:
    if step.ndim != 1 or step.numel() < 1 or loss.shape[-1:] != step.shape:
        raise ValueError(
            "step must be (n_records >= 1,) and loss (*batch, n_records), "
            f"got {tuple(step.shape)} and {tuple(loss.shape)}"
        )
    if not bool((step[1:] > step[:-1]).all()):
        raise ValueError("step must be strictly increasing")
    if not tolerance > 0:
        raise ValueError(f"tolerance must be > 0, got {tolerance}")
    if not 0 < min_length <= 1:
        raise ValueError(f"min_length is a share of the steps, in (0, 1], got {min_length}")
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window must be odd and >= 1, got {window}")


def _running_median(curves: Tensor, window: int) -> Tensor:
    """Of the records within window // 2 on both sides, fewer at a curve's ends."""
    if window == 1:
        return curves
    padded = torch.nn.functional.pad(curves, (window // 2, window // 2), value=torch.nan)
    median = padded.unfold(-1, window, 1).nanmedian(-1).values
    return torch.where(curves.isnan(), torch.nan, median)


def _find(
    step: Tensor, curves: Tensor, ended: Tensor, tolerance: float, min_length: float
) -> list[list[Plateau]]:
    n_curves, n = curves.shape
    shortest = min_length * float(step[-1] - step[0])
    times = step.double()
    index = torch.arange(n)
    found: list[list[Plateau]] = [[] for _ in range(n_curves)]
    # Curves leave as soon as they have no candidate left.
    open_curves = torch.arange(n_curves)
    furthest, taken = _furthest(curves, 2 * tolerance), ended
    while True:
        # An interval ends before the next record that is taken.
        blocked = torch.where(taken, index, n).flip(-1).cummin(-1).values.flip(-1)
        last = torch.minimum(furthest, blocked - 1)
        length = step[last.clamp(min=0)] - step
        enough = ~taken & (last - index + 1 >= MIN_RECORDS) & (length >= shortest)
        longest, first = torch.where(enough, length, -1).max(-1)
        left = (longest >= 0).nonzero().flatten()
        if left.numel() == 0:
            break
        open_curves, curves, furthest, taken, first, last = (
            x[left] for x in (open_curves, curves, furthest, taken, first, last)
        )
        final = last.gather(-1, first[:, None]).squeeze(-1)
        mean, moving = _mean_and_moving(times, curves, first, final, tolerance)
        rows = (open_curves, moving, step[first], step[final], mean)
        for m, slope, start, end, level in zip(*(r.tolist() for r in rows), strict=True):
            if not slope:
                found[m].append(Plateau(start, end, level))
        taken = taken | (index >= first[:, None]) & (index <= final[:, None])
    return [sorted(plateaus, key=lambda plateau: plateau.start) for plateaus in found]


def _furthest(y: Tensor, width: float) -> Tensor:
    """For each record i the largest j with max - min <= width over [i, j]; (n_curves, n).

    Doubling: with the extrema of all stretches of 2^p records at hand, an interval grows by the
    longest stretch that fits, for p from large to small. NaN fits nowhere.
    """
    n = y.shape[-1]
    highs, lows = [y], [y]
    while (size := 2 ** len(highs)) <= n:
        half = size // 2
        highs.append(torch.maximum(highs[-1][:, :-half], highs[-1][:, half:]))
        lows.append(torch.minimum(lows[-1][:, :-half], lows[-1][:, half:]))
    after = torch.arange(n).repeat(y.shape[0], 1)  # one behind the interval's end
    high, low = torch.full_like(y, -torch.inf), torch.full_like(y, torch.inf)
    for p in reversed(range(len(highs))):
        inside = after + 2**p <= n
        at = torch.where(inside, after, 0).clamp(max=highs[p].shape[-1] - 1)
        high_new = torch.maximum(high, highs[p].gather(-1, at))
        low_new = torch.minimum(low, lows[p].gather(-1, at))
        fits = inside & (high_new - low_new <= width)
        high, low = torch.where(fits, high_new, high), torch.where(fits, low_new, low)
        after = torch.where(fits, after + 2**p, after)
    return after - 1


def _mean_and_moving(
    t: Tensor, y: Tensor, first: Tensor, last: Tensor, tolerance: float
) -> tuple[Tensor, Tensor]:
    """Mean over time, and whether it is a piece of a slope, for one interval of each curve.

    t (n,), y (n_curves, n), first and last (n_curves,).
    """
    index = torch.arange(t.numel())
    inside = (index >= first[:, None]) & (index <= last[:, None])
    # Relative to the interval's first loss: a constant has its own mean, to the last digit.
    origin = y.gather(-1, first[:, None])
    all_y, y = y - origin, torch.where(inside, y - origin, 0.0)
    area = torch.nn.functional.pad(torch.cumulative_trapezoid(y, t), (1, 0))
    area = area - area.gather(-1, first[:, None])  # from the interval's first step on

    middle = ((t[first] + t[last]) / 2)[:, None]
    after = torch.searchsorted(t, middle)  # t[after - 1] < middle <= t[after]
    since = middle - t[after - 1]
    before_y, after_y = y.gather(-1, after - 1), y.gather(-1, after)
    middle_y = before_y + (after_y - before_y) * since / (t[after] - t[after - 1])
    first_half = area.gather(-1, after - 1) + since * (before_y + middle_y) / 2
    whole = area.gather(-1, last[:, None])

    length = (t[last] - t[first])[:, None]
    drift = (whole - 2 * first_half).abs() * 2 / length
    low, high = y.amin(-1, keepdim=True), y.amax(-1, keepdim=True)  # y is 0 inside and outside
    cut = torch.zeros_like(drift, dtype=torch.bool)
    for there, neighbour in ((first > 0, first - 1), (last + 1 < t.numel(), last + 1)):
        beside = all_y.gather(-1, neighbour.clamp(0, t.numel() - 1)[:, None])
        level = torch.maximum(high, beside) - torch.minimum(low, beside) <= 2 * tolerance
        cut |= there[:, None] & level
    moving = (drift > (high - low) / 3) & (cut | (drift > tolerance / 4))
    return (origin + whole / length).squeeze(-1), moving.squeeze(-1)
