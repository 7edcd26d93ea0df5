"""Critical points of the population loss, and those that theory solves: k-gons, n_hidden = 2
(Chen et al. 2023, Sec. 3).

A k-gon has k live columns of length l and bias b at angles 2 pi j / k; the other columns are dead,
W_i = 0. In a label k^{sigma+, phi-}, written "4++-", sigma is the number of dead columns with the
bias 1 / (2 n_features) (the other dead columns have a negative bias), and phi the number of live
columns of a 4-gon that are switched off.

**Solving for (l, b).** Let c_j = cos(2 pi j / k) and u = b / l^2. Output i is active on input
a e_{i+j} for a > -u / c_j, a threshold that does not depend on l: for a fixed u <= 0 the loss of a
live output (times 3 n_features, Lemma 3.1) is a quadratic in q = l^2,

    H(q, u) = q^2 P(u) - 2 q Q(u) + 1,   P = sum_{|j| <= s} (c_j + u)^3 / c_j,
                                         Q = (1 + u)^2 (2 - u) / 2,

if s neighbours on each side are active. So q = Q / P, and Q^2 / P is stationary where

    g(u) = -u (1 + u)^3 + sum_{j=1..s} 2 (c_j + u)^2 / c_j [2 (1-u) (c_j+u) - (1+u) (2-u)] = 0.

The standard k-gon has s = ceil(k / 4) - 1, all neighbours at an acute angle active: -c_s < u <= 0,
which is the admissibility -l^2 cos(s alpha) < b of App. E.1. In this interval g has one root or
none: of all k up to 32, those up to 8 and 12 have one. (If only the neighbours with c_j > -u are
active, every k has a symmetric zero of the gradient, at u of about -0.49 for large k. These other
polygons are not in the paper and not in this catalogue.)

The gradient vanishes in all directions, not only in l and b: the loss is invariant under the
polygon's symmetry group, whose fixed points are the (l, b), and C^1 except for a kink at dead
columns with b_i = 0.
"""

import math
import re
from dataclasses import dataclass
from functools import cache, cached_property

import torch
from torch import Tensor

from kgon.theory.loss import PopulationLoss, population_loss

DEAD_BIAS = -1.0
"""Bias of dead columns without a `+`. The loss is the same for every negative value. At 0 it has a
kink and falls towards positive biases, so sampling chains escape."""

OFF_BIAS = -2.0
"""Bias of the live columns of a 4-gon that are switched off. A column is off if b_i < -l_i^2 = -1,
and the loss does not depend on the value. This one is far enough from -1 that the noise of initial
parameters does not switch the column on."""

ZERO_MODE = 1e-9
"""Hessian eigenvalues smaller than this, relative to the largest, count as zero. Rounding leaves
1e-16; the smallest true ones of k-gons are 3e-5 for n_features = 20, 5e-6 for 60."""

_SHAPE = r"[1-9]\d*(?:d[1-9]\d*[a-ce-wyz]+)?"
_LABEL = re.compile(rf"({_SHAPE}(?:x{_SHAPE})*)(\+*)(-*)")


def parse_label(label: str | int) -> tuple[int, int, int]:
    """(k, sigma, phi) of a label: "4++-" -> (4, 2, 1). ValueError if it is not a label.

    For several shapes (see `theory.atlas`), k counts the columns of all: "5x2-" -> (7, 0, 1).
    """
    match = _LABEL.fullmatch(str(label))
    if match is None:
        raise ValueError(
            "label must be k, then one + for each sigma, then one - for each phi, such as 4, 5+ "
            f"or 4++- (or shapes such as 7d3a or 5x2 in place of k); got {label!r}"
        )
    k = sum(int(shape.split("d")[0]) for shape in match[1].split("x"))
    return k, len(match[2]), len(match[3])


def format_label(k: int, sigma: int = 0, phi: int = 0) -> str:
    """The label of (k, sigma, phi): (4, 2, 1) -> "4++-"."""
    return f"{k}{'+' * sigma}{'-' * phi}"


@dataclass(frozen=True, eq=False)
class CriticalPoint:
    """A zero of the population loss's gradient.

    Attributes:
        label: for a k-gon, k and then one + for each sigma, one - for each phi (see the module
            docstring); for others see `theory.atlas`.
        W: (n_hidden, n_features), float64: the live columns first, the dead ones last.
        b: (n_features,), float64. Of a k-gon the last phi live columns are switched off; the first
            sigma of the dead columns have a positive bias.
        loss: the population loss there.
        unstable: whether one of its shapes is a saddle by itself (see `theory.atlas`). This decides
            the `kind` of a point with a kink, which has no Hessian.
    """

    label: str
    W: Tensor
    b: Tensor
    loss: float
    unstable: bool = False

    @property
    def n_features(self) -> int:
        return self.W.shape[-1]

    @property
    def n_hidden(self) -> int:
        return self.W.shape[-2]

    @property
    def k(self) -> int:
        return parse_label(self.label)[0]

    @property
    def sigma(self) -> int:
        return self.label.count("+")

    @property
    def phi(self) -> int:
        return self.label.count("-")

    @cached_property
    def kind(self) -> str:
        """The type of the critical point: "minimum", "saddle" or "non-smooth".

        "non-smooth": some output has b_i = 0 and A_ij = 0 (4-gons), so that second derivatives
        depend on the direction and there is no Hessian. Such a point is still a "saddle" if columns
        are switched off (phi >= 1) and biases positive (sigma >= 1): the loss falls to second order
        where a column with a positive bias grows in place of one that is off. Elsewhere the loss is
        twice continuously differentiable; the point is a "saddle" if the Hessian has a negative
        eigenvalue, else a "minimum". Minima are not isolated: the loss does not change under
        rotations, nor with the W and b of dead columns with a negative bias.
        """
        if bool(has_kink(self.W, self.b)):
            falls = self.unstable or (self.sigma and self.phi)
            return "saddle" if falls else "non-smooth"
        return "saddle" if self.index else "minimum"

    @cached_property
    def eigenvalues(self) -> Tensor:
        """The Hessian's eigenvalues; exactly 0 where they are zero up to rounding."""
        h = torch.linalg.eigvalsh(hessian(PopulationLoss(), self.W, self.b))
        return torch.where(h.abs() <= ZERO_MODE * h.abs().amax(), 0, h)

    @property
    def index(self) -> int | None:
        """The number of negative eigenvalues of the Hessian; None where there is a kink."""
        return None if has_kink(self.W, self.b) else int((self.eigenvalues < 0).sum())

    @property
    def rank(self) -> int | None:
        """The rank of the Hessian; None where there is a kink."""
        return None if has_kink(self.W, self.b) else int((self.eigenvalues != 0).sum())

    @cached_property
    def gradient_norm(self) -> float:
        return float(gradient(self.W, self.b).norm())

    @property
    def n_flat(self) -> int:
        """The dimension of the set of equivalent points: rotations of the span of the columns, W
        and b of inert columns, and biases of outputs that are off."""
        m, d = self.n_hidden, int(torch.linalg.matrix_rank(self.W, rtol=1e-9))
        rotations = m * (m - 1) // 2 - (m - d) * (m - d - 1) // 2
        off = ~active(self.W, self.b).any(-1)
        return rotations + m * int(inert(self.W, self.b).sum()) + int(off.sum())

    @cached_property
    def llc(self) -> float | None:
        """The local learning coefficient, or None where theory does not give one.

        Minima: half the rank of the Hessian, if it has `n_flat` zero modes, so that the loss is
        Morse-Bott ("minimally singular"). For a k-gon with k >= 5 this is (3k - 1 + 3 sigma) / 2
        (Chen et al. 2023, Sec. 3; with sigma: the same count of directions, derived for this
        package).

        Cross-polytopes (`2` for n_hidden = 1, the 4-gon, the octahedron `2x2x2`) with phi = 0: the
        volume exponent, with n_hidden = m and d = n_features - 2m dead columns,

            [2m (m + 1) - m (m - 1) / 2 + m d + sigma] / 2

        (derived for this package, confirmed by sampling). To second order the excess loss is
        homogeneous of degree two in the displacement. It is positive except along rotations and
        biases of dead columns: two columns that are not opposite may not come closer, which leaves
        only rotations. So each other direction counts one half. For 4-gons the paper lists values
        that depend on the direction, {4, 4.5, 5, 5.5}, and estimates at finite n lie near those.
        """
        m = self.n_hidden
        if self.label.rstrip("+") == cross_polytope(m):
            dead = self.n_features - 2 * m
            return (2 * m * (m + 1) - m * (m - 1) // 2 + m * dead + self.sigma) / 2
        if self.kind != "minimum" or self.rank is None:
            return None
        isolated = self.rank + self.n_flat == self.W.numel() + self.b.numel()
        return self.rank / 2 if self.rank and isolated else None


def cross_polytope(n_hidden: int) -> str:
    """The label of the cross-polytope in n_hidden dimensions, without positive biases."""
    return "4" if n_hidden == 2 else "x".join(["2"] * n_hidden)


def has_kink(W: Tensor, b: Tensor) -> Tensor:
    """Whether some output has b_i = 0 and A_ij = 0, so that there is no Hessian, (*batch)."""
    A = W.mT @ W
    return ((b.abs() < 1e-12).unsqueeze(-1) & (A.abs() < 1e-12)).flatten(-2).any(-1)


def active(W: Tensor, b: Tensor, tolerance: float = 1e-12) -> Tensor:
    """Whether output i is active on some a e_j with a in [0, 1], (*batch, i, j)."""
    bias = b.unsqueeze(-1)
    return torch.maximum(W.mT @ W + bias, bias) > tolerance


def inert(W: Tensor, b: Tensor, tolerance: float = 1e-12) -> Tensor:
    """Whether the loss does not depend on a column, (*batch, n_features): output i is off on all
    inputs, and no other output is active on input i."""
    on = active(W, b, tolerance)
    own = torch.eye(b.shape[-1], dtype=torch.bool, device=b.device)
    return ~on.any(-1) & ~(on & ~own).any(-2)


def critical_point(label: str | int, n_features: int) -> CriticalPoint:
    """The critical point with this label, to rounding error (see the module docstring).

    The gradient vanishes for any negative bias of a dead column. It also vanishes for the bias
    1 / (2 n_features), the minimum of 1 - 3b + 3 n_features b^2 (Cor. D.2), if the live columns sum
    to zero, so that their forces on the dead column cancel.

    Args:
        label: k^{sigma+, phi-}, such as "4", "5+" or "4++-", or the integer k. sigma is at most
            n_features - k; phi is at most 4 for k = 4, and 0 for other k.
        n_features: the number of columns.

    Raises:
        ValueError: the label names no critical point; the message says why.
    """
    k, sigma, phi = parse_label(label)
    if str(label) != format_label(k, sigma, phi):
        raise ValueError(
            f"label {label!r} is no k-gon: look it up in kgon.atlas(n_features, n_hidden)"
        )
    label = str(label)
    _check_n_features(n_features)
    solved = polygon(k)
    fault = _fault(k, sigma, phi, n_features)
    if fault or solved is None:
        fault = fault or f"names no critical point: there is no standard {k}-gon (App. E.1)"
        raise ValueError(f"label {label!r} {fault}")
    W = torch.zeros(2, n_features, dtype=torch.float64)
    b = torch.full((n_features,), DEAD_BIAS, dtype=torch.float64)
    W[:, :k], b[:k] = solved
    b[k - phi : k] = OFF_BIAS
    b[k : k + sigma] = 1 / (2 * n_features)
    return CriticalPoint(label, W, b, float(population_loss(W, b)))


def polygon(k: int) -> tuple[Tensor, Tensor] | None:
    """W (2, k) and b (k,) of the standard k-gon, or None if there is none."""
    solved = _solve(k)
    if solved is None:
        return None
    length, bias = solved
    angle = 2 * math.pi / k * torch.arange(k, dtype=torch.float64)
    W = length * torch.stack([angle.cos(), angle.sin()])
    # The right angles of a 4-gon are exact zeros, not 6e-17.
    return torch.where(W.abs() < 1e-15, 0.0, W), torch.full((k,), bias, dtype=torch.float64)


def _fault(k: int, sigma: int, phi: int, n_features: int) -> str:
    """What is wrong with (k, sigma, phi), given that there is a k-gon; empty if nothing is."""
    if k > n_features:
        return f"has {k} live columns and needs n_features >= {k}, got {n_features}"
    if sigma > n_features - k:
        return (
            f"has {sigma} dead columns with a positive bias (+), but n_features={n_features} "
            f"leaves {n_features - k} dead columns"
        )
    if phi > 0 and k != 4:
        return "has live columns switched off (-), which gives a critical point only for k = 4"
    if phi > 4:
        return f"switches off {phi} live columns (-) of 4"
    if k == 1 and sigma > 0:
        return "has a dead column (+), on which the sum of the live columns acts for k = 1"
    return ""


def critical_points(n_features: int) -> list[CriticalPoint]:
    """All k-gons, in order of loss: every k >= 4 with a solution, every sigma and phi.

    For n_features = 6 these are the paper's 18. k < 4 is listed only if n_features < 4: otherwise a
    path of critical points of equal loss leads from k to 4^{(4-k)-}, so these are not separate
    families.

    The critical points are cached and shared: do not modify their tensors.
    """
    return list(_families(n_features))


@cache
def _families(n_features: int) -> tuple[CriticalPoint, ...]:
    _check_n_features(n_features)
    labels = [
        format_label(k, sigma, phi)
        for k in range(4 if n_features >= 4 else 1, n_features + 1)
        if _solve(k) is not None
        for sigma in range(n_features - k + 1 if k > 1 else 1)
        for phi in range(5 if k == 4 else 1)
    ]
    points = [critical_point(label, n_features) for label in labels]
    return tuple(sorted(points, key=lambda point: (point.loss, point.label)))


def _check_n_features(n_features: int) -> None:
    if not isinstance(n_features, int) or isinstance(n_features, bool) or n_features < 1:
        raise ValueError(f"n_features must be an integer >= 1, got {n_features!r}")


@cache
def _solve(k: int) -> tuple[float, float] | None:
    """(l, b) of the standard k-gon, or None if there is none."""
    s = math.ceil(k / 4) - 1
    if s <= 0:  # no neighbour at an acute angle: g(u) = -u (1 + u)^3, and P = Q = 1 at u = 0
        return 1.0, 0.0
    c = [math.cos(2 * math.pi * j / k) for j in range(1, s + 1)]

    def g(u: float) -> float:
        neighbours = (2 * (x + u) ** 2 / x * (2 * (1 - u) * (x + u) - (1 + u) * (2 - u)) for x in c)
        return -u * (1 + u) ** 3 + math.fsum(neighbours)

    # g(0) = 4 sum (c_j^2 - c_j) < 0, and g has at most one zero between -1 and 0 (as the tests
    # check), so the sign at the other end of the admissible interval decides.
    low, high = -c[-1], 0.0
    if g(low) <= 0:
        return None
    while low < (u := (low + high) / 2) < high:  # until they are adjacent floats
        low, high = (u, high) if g(u) > 0 else (low, u)
    Q = (1 + u) ** 2 * (2 - u) / 2
    P = (1 + u) ** 3 + 2 * math.fsum((x + u) ** 3 / x for x in c)
    return math.sqrt(Q / P), u * Q / P


def gradient(W: Tensor, b: Tensor) -> Tensor:
    """The population loss's gradient in (W, b), flattened: (*batch, (n_hidden + 1) n_features)."""
    dW, db = PopulationLoss().grad(W, b)
    return torch.cat([dW.flatten(-2), db], -1)


def hessian(loss: PopulationLoss, W: Tensor, b: Tensor) -> Tensor:
    """The Hessian of a loss in (W, b), flattened: (*batch, n, n), n = (n_hidden + 1) n_features."""
    n_features = W.shape[-1]
    w = torch.cat([W.flatten(-2), b], -1).detach().requires_grad_()
    with torch.enable_grad():
        dW, db = loss.grad(w[..., :-n_features].reshape(W.shape), w[..., -n_features:])
        gradient = torch.cat([dW.flatten(-2), db], -1)
        rows = [
            torch.autograd.grad(gradient[..., i].sum(), w, retain_graph=True)[0]
            for i in range(gradient.shape[-1])
        ]
    H = torch.stack(rows, -2)
    return (H + H.mT) / 2


def negative_eigenvalues(W: Tensor, b: Tensor) -> Tensor:
    """The number of negative eigenvalues of the population loss's Hessian, (*batch)."""
    h = torch.linalg.eigvalsh(hessian(PopulationLoss(), W, b))
    negative: Tensor = h < -ZERO_MODE * h.abs().amax(-1, keepdim=True)
    return negative.sum(-1)
