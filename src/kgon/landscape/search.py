"""Searching for all critical points of the population loss, for any n_features and n_hidden.

Starts of several kinds give candidates, which a second-order method polishes:

- `random`: the ends of gradient descents from random parameters;
- `slow`: the slowest points on the way, which are near saddles;
- `gradient`: random parameters, polished at once, which finds saddles that descent avoids;
- `embedded`: the points that follow from smaller searches (their solutions with dead columns, with
  positive biases and in orthogonal subspaces), displaced a little;
- `edge`: a straight path joins the ends of two descents at random levels of loss, the second
  rotated and permuted to fit the first. Descent from where this path leaves the first one's basin
  comes close to a pass on the basin's edge; its slowest points are taken.

**Polishing.** With g the gradient and H = V diag(h) V^T the Hessian, the Levenberg-Marquardt step
on |g|^2 is -V h / (h^2 + mu) V^T g: it converges to critical points of any index, and does not move
along flat directions. A point counts if |g| < POLISHED.

Points with a kink (`critical.has_kink`) have no Hessian and cannot be polished. `theory.atlas`
builds them, and descents that end at one are matched to it.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from kgon.compiled.exact_loss import descent
from kgon.theory.atlas import MAX_INDEX, SHIPPED, Atlas, Found, build, indices
from kgon.theory.critical import (
    DEAD_BIAS,
    ZERO_MODE,
    gradient,
    has_kink,
    hessian,
    negative_eigenvalues,
)
from kgon.theory.loss import PopulationLoss
from kgon.theory.shapes import SAME, dimension, invariants, parts, without_inert

POLISHED = 1e-12
"""Largest norm of the gradient of a critical point."""

POLISHING_STEPS = 60
DESCENT_SLOPE = 1e-8
"""Norm of the gradient at which a descent has ended."""
DESCENT_STEPS = 100_000
STRETCHES = (10,) * 10 + (20,) * 20 + (50,) * 20
"""Numbers of descent steps from one point to the next at which `slow_points` compares gradients."""

EDGE_STRETCHES = (50,) * 100
BISECTIONS = 25
SAME_BASIN = 1e-4
"""Largest difference in loss of the ends of two descents in one basin."""

SAME_POINT = 1e-5
"""Largest difference of the invariants of equal critical points. With |g| < 1e-12 and eigenvalues
of 1e-5 or more, the error of a polished point is at most 1e-7."""
SAME_END = 0.02
"""The same for ends of descents, which stop early along directions in which the loss is flat to
second order."""

SAME_LEVEL = 1e-7
"""Largest difference of the losses of points in one family."""

Points = tuple[Tensor, Tensor]


def search(
    n_features: int,
    n_hidden: int,
    *,
    n_starts: int = 1000,
    seed: int = 0,
    folder: Path = SHIPPED,
    progress: Callable[[str], None] = lambda _: None,
) -> Found:
    """Search for the critical points of one size, given the files of smaller ones in `folder`.

    Args:
        n_starts: descents from random starts; there are about half as many starts of other kinds.
        progress: called with a line for each stage.
    """
    rng = torch.Generator().manual_seed(seed)
    progress(f"descending from {n_starts} starts")
    start = random_points(n_starts, n_features, n_hidden, rng)
    slow, (W, b) = slow_points(*start, STRETCHES)
    ends = descent(W, b, DESCENT_SLOPE, DESCENT_STEPS)[:2]
    known = build(n_features, n_hidden, None, folder)
    candidates = {
        "random": ends,
        "slow": slow,
        "gradient": random_points(n_starts // 2, n_features, n_hidden, rng),
        "embedded": _displaced(known, n_starts // 2, rng),
        "edge": slow_points(*_edges(*ends, n_starts // 2, rng), EDGE_STRETCHES)[0],
    }
    polished = {}
    for kind, points in candidates.items():
        progress(f"polishing {len(points[1])} points ({kind})")
        polished[kind] = polish(*points)
    W, b, slope = (torch.cat(column) for column in zip(*polished.values(), strict=True))
    shapes, coupled = _new(W[slope < POLISHED], b[slope < POLISHED], known)
    found = Found(seed, {kind: len(b) for kind, (_, b) in candidates.items()}, shapes, coupled)
    atlas = build(n_features, n_hidden, found, folder)
    met = {
        kind: dict(Counter(match(W, b, ~slope.isnan(), atlas)).most_common())
        for kind, (W, b, slope) in polished.items()
    }
    return replace(found, met=met, index=indices(atlas.points))


def random_points(n: int, n_features: int, n_hidden: int, rng: torch.Generator) -> Points:
    """Columns of random directions and uniform lengths in [0.3, 1.3], biases from N(0, 0.3^2)."""
    direction = torch.randn(n, n_hidden, n_features, generator=rng, dtype=torch.float64)
    length = 0.3 + torch.rand(n, 1, n_features, generator=rng, dtype=torch.float64)
    W = direction / direction.norm(dim=-2, keepdim=True) * length
    return W, 0.3 * torch.randn(n, n_features, generator=rng, dtype=torch.float64)


def slow_points(W: Tensor, b: Tensor, stretches: Sequence[int]) -> tuple[Points, Points]:
    """Gradient descent: the slow points of all paths, and the paths' ends.

    A point is slow if the gradient there is smaller than one stretch earlier and one later.
    """
    slow: list[Points] = []
    before = here = torch.full(b.shape[:1], math.nan, dtype=torch.float64)
    for stretch in stretches:
        was = W, b
        W, b, _, after = descent(W, b, 0.0, stretch)
        least = (here < before) & (here < after) & (here > DESCENT_SLOPE)
        slow.append((was[0][least], was[1][least]))
        before, here = here, after
    return (torch.cat([W for W, _ in slow]), torch.cat([b for _, b in slow])), (W, b)


def polish(W: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Critical points near these, with inert columns at zero, and the gradient's norms there.

    A point that does not reach a norm below POLISHED is returned unchanged, with the norm NaN.
    """
    shape = W.shape[-2:]
    came, (W, b) = (W, b), without_inert(W, b)

    def split(w: Tensor) -> Points:
        return w[:, : -shape[1]].reshape(-1, *shape), w[:, -shape[1] :]

    w = torch.cat([W.flatten(-2), b], -1)
    g = gradient(*split(w))
    norm = g.norm(dim=-1)
    damping = torch.full_like(norm, 1e-3)
    for _ in range(POLISHING_STEPS):
        at = torch.nonzero((norm > POLISHED / 100) & (damping < 1e8)).flatten()
        if not len(at):
            break
        h, V = torch.linalg.eigh(hessian(PopulationLoss(), *split(w[at])))
        largest = h.abs().amax(-1, keepdim=True)
        mu = (damping * norm).unsqueeze(-1)[at] * largest**2 + (ZERO_MODE * largest) ** 2
        along = (V.mT @ g[at].unsqueeze(-1)).squeeze(-1)
        moved = w[at] - (V @ (h / (h**2 + mu) * along).unsqueeze(-1)).squeeze(-1)
        g_moved = gradient(*split(moved))
        better = g_moved.norm(dim=-1) < norm[at]
        taken = at[better]
        w[taken], g[taken] = moved[better], g_moved[better]
        norm[taken] = g[taken].norm(dim=-1)
        damping[taken] = (damping[taken] / 5).clamp(min=1e-12)
        damping[at[~better]] *= 4
    W, b = without_inert(*split(w))
    norm = gradient(W, b).norm(dim=-1)
    done = norm < POLISHED
    W = torch.where(done[:, None, None], W, came[0])
    return W, torch.where(done.unsqueeze(-1), b, came[1]), torch.where(done, norm, math.nan)


def _displaced(atlas: Atlas, at_least: int, rng: torch.Generator) -> Points:
    """Equally many copies of every point of an atlas, `at_least` in total, plus N(0, 0.1^2)."""
    copies = -(-at_least // len(atlas))
    W = torch.stack([p.W for p in atlas]).repeat(copies, 1, 1)
    b = torch.stack([p.b for p in atlas]).repeat(copies, 1)
    # Some dead columns get a positive bias.
    b = torch.where(b == DEAD_BIAS, 0.1 * torch.randn(b.shape, generator=rng).double(), b)
    noise = 0.1 * torch.randn(W.shape, generator=rng, dtype=torch.float64)
    return W + noise, b + 0.1 * torch.randn(b.shape, generator=rng, dtype=torch.float64)


def _edges(W: Tensor, b: Tensor, n: int, rng: torch.Generator) -> Points:
    """Points just inside the edge of a basin, each on the path between two ends of descents."""
    levels = torch.unique((PopulationLoss()(W, b) / SAME_BASIN).round(), return_inverse=True)[1]
    # All pairs of levels are equally likely, however rare a level is.
    weight = 1.0 / torch.bincount(levels)[levels].double()
    first, second = torch.multinomial(weight, 2 * n, replacement=True, generator=rng).view(2, n)
    V, c = W[second], b[second]
    W, b = W[first], b[first]
    for i in range(n):
        turn, order = alignment((W[i], b[i]), (V[i], c[i]))
        V[i], c[i] = turn @ V[i][:, order], c[i][order]
    level = PopulationLoss()(W, b)
    inside, outside = torch.zeros(n, dtype=torch.float64), torch.ones(n, dtype=torch.float64)
    for _ in range(BISECTIONS):
        t = (inside + outside) / 2
        between = torch.lerp(W, V, t[:, None, None]), torch.lerp(b, c, t[:, None])
        same = (descent(*between, 1e-5, 5000).loss - level).abs() < SAME_BASIN
        inside, outside = torch.where(same, t, inside), torch.where(same, outside, t)
    edge = outside < 1
    t = inside[edge]
    return (
        torch.lerp(W[edge], V[edge], t[:, None, None]),
        torch.lerp(b[edge], c[edge], t[:, None]),
    )


def alignment(one: Points, other: Points, n_starts: int = 1) -> Points:
    """The rotation Q and permutation of columns with which the second point fits the first.

    Permutation and rotation are fitted in turn until neither changes, a local optimum. The best of
    n_starts is returned: the first starts from the identity, others from random rotations and
    reflections.
    """
    (W, b), (V, c) = one, other
    rng = torch.Generator().manual_seed(0)
    columns = torch.arange(len(c))
    best, least = (torch.eye(len(V), dtype=V.dtype), columns), math.inf
    for start in range(n_starts):
        turn, order = torch.eye(len(V), dtype=V.dtype), columns
        if start:
            random = torch.randn(len(V), len(V) + 1, generator=rng, dtype=torch.float64)
            # Without the signs all have the same determinant.
            turn = torch.linalg.qr(random[:, 1:])[0] * random[:, 0].sign()
        for i in range(10):
            # The best permutation for this rotation, then the best rotation for it (Procrustes).
            cost = (W.mT.unsqueeze(1) - (turn @ V[:, order]).mT).square().sum(-1)
            cost = cost + (b.unsqueeze(1) - c[order]).square()
            step = torch.from_numpy(linear_sum_assignment(cost.numpy())[1])
            if i and torch.equal(step, columns):
                break  # the rotation is the best for this permutation already
            order = order[step]
            left, _, right = torch.linalg.svd(W @ V[:, order].mT)
            turn = left @ right
        distance = float((W - turn @ V[:, order]).square().sum() + (b - c[order]).square().sum())
        if distance < least:
            best, least = (turn, order), distance
    return best


def _new(W: Tensor, b: Tensor, known: Atlas) -> tuple[list[Points], list[Points]]:
    """The new points, smooth, distinct and of index <= MAX_INDEX: shapes, and coupled points."""
    n_hidden, n_features = W.shape[-2:]
    smooth = ~has_kink(W, b)
    W, b = W[smooth], b[smooth]
    low = negative_eigenvalues(W, b) <= MAX_INDEX
    W, b = W[low], b[low]
    shapes: list[Points] = []
    coupled: list[Points] = []
    for i in _distinct(W, b, known):
        columns = parts(W[i], b[i])
        whole = [len(shape) for shape in columns.shapes] == [n_features]
        if whole and dimension(W[i]) == n_hidden:
            # Without biases the outputs are linear and W^T W is a projection: a path of equal loss
            # leads to single columns.
            if float(b[i].abs().amax()) > SAME:
                shapes.append((W[i], b[i]))
        elif columns.coupled:
            order = [*(j for shape in columns.shapes for j in shape), *columns.singles,
                     *columns.positive, *columns.off]  # fmt: skip
            coupled.append((W[i][:, order], b[i][order]))
    return shapes, coupled


def _features(W: Tensor, b: Tensor) -> Tensor:
    return torch.cat([PopulationLoss()(W, b).unsqueeze(-1), invariants(W, b)], -1)


def _distinct(W: Tensor, b: Tensor, known: Atlas) -> list[int]:
    """Indices of the points that are not in `known`, one for each of several equal points."""
    features = _features(W, b)
    seen = _features(*_stacked(known))
    chosen = []
    for i, row in enumerate(features):
        if bool(((seen - row).abs().amax(-1) > SAME_POINT).all()):
            seen = torch.cat([seen, row.unsqueeze(0)])
            chosen.append(i)
    return chosen


def _stacked(atlas: Atlas) -> Points:
    """All points of an atlas, with inert columns at zero."""
    return without_inert(torch.stack([p.W for p in atlas]), torch.stack([p.b for p in atlas]))


def match(W: Tensor, b: Tensor, polished: Tensor, atlas: Atlas) -> list[str]:
    """The label of each point in the atlas, "" for those that are not in it.

    Args:
        polished: (n_points,), whether a point is polished; else it is the end of a descent.
    """
    stacked = _stacked(atlas)
    known, these = _features(*stacked), _features(*without_inert(W, b))
    least, nearest = torch.cdist(these, known, p=math.inf).min(-1)
    near = least <= torch.where(polished, SAME_POINT, SAME_END)
    # Without biases, a path of equal loss leads from single columns to parallel ones: points at the
    # loss of a point with a kink belong to its family.
    level = (these[:, :1] - torch.where(has_kink(*stacked), known[:, 0], math.inf)).abs().min(-1)
    nearest = torch.where(near, nearest, level.indices)
    near |= level.values < SAME_LEVEL
    labels = [p.label for p in atlas]
    return [labels[j] if ok else "" for j, ok in zip(nearest, near.tolist(), strict=True)]
