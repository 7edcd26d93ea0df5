r"""Free energies of critical points, where they cross, and Laplace's evidence.

Asymptotically the free energy -log Z of the neighbourhood of a critical point w* is (Chen et al.
2023, eq. (9))

    F_n = s n L(w*) + llc log n + c,   c = ||w*||^2 / (2 prior_std^2),

with s = 1 in the paper, which gives the published crossings. The posterior that the paper samples,
with observation noise of variance 1, has s = 1/2 (`halved`): compare sampled posteriors with that.
Other terms of order 1, such as the prior's constants, are left out. At a few hundred samples they
are several nats, so this formula does not reliably predict which phase is preferred.
`laplace_log_evidence` has all terms of order 1, for critical points that are regular except for
their symmetry.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from kgon.theory.critical import CriticalPoint, critical_points, hessian
from kgon.theory.loss import EmpiricalLoss, PopulationLoss

_NEWTON_STEPS = 50


def prior_constant(point: CriticalPoint, *, prior_std: float = 1.0) -> float:
    """c = ||w*||^2 / (2 prior_std^2) of eq. (9).

    The loss does not depend on the exact bias of a column that is dead or switched off. This takes
    the value nearest to the prior's centre: 0 for a dead column, -l^2 for a live one.
    """
    square = point.W.square().sum()
    length = point.W.square().sum(0)
    off = point.b < -length
    bias = torch.where(off, -length, point.b)
    return float(square + bias.square().sum()) / (2 * prior_std**2)


def free_energy(
    point: CriticalPoint,
    n_samples: float,
    *,
    halved: bool = False,
    prior_std: float = 1.0,
    llc: Mapping[str, float] | None = None,
) -> float:
    """F_n of eq. (9), in nats (see the module docstring).

    Args:
        point: a critical point.
        n_samples: n.
        halved: the likelihood is exp(-n L_n / 2) instead of exp(-n L_n).
        prior_std: standard deviation of the prior.
        llc: learning coefficients by label, in place of `point.llc`. The paper's crossing of 4+ and
            5 uses {"4+": 5}.

    Raises:
        ValueError: n_samples is not positive, or the learning coefficient is not known.
    """
    if not 0 < n_samples < math.inf:
        raise ValueError(f"n_samples must be positive and finite, got {n_samples}")
    constant = prior_constant(point, prior_std=prior_std)
    likelihood = n_samples * point.loss * (0.5 if halved else 1.0)
    return likelihood + _llc(point, llc) * math.log(n_samples) + constant


def _llc(point: CriticalPoint, llc: Mapping[str, float] | None) -> float:
    value = (llc or {}).get(point.label, point.llc)
    if value is None:
        raise ValueError(
            f"theory gives no learning coefficient of {point.label!r}: pass "
            f"llc={{{point.label!r}: ...}}"
        )
    return float(value)


def free_energy_order(
    n_features: int,
    n_samples: float,
    *,
    halved: bool = False,
    prior_std: float = 1.0,
    llc: Mapping[str, float] | None = None,
) -> list[tuple[str, float]]:
    """The critical points in order of F_n, as (label, F_n); the first is the predicted phase.

    Critical points without a known learning coefficient (saddles) are left out.
    """
    order = [
        (point.label, free_energy(point, n_samples, halved=halved, prior_std=prior_std, llc=llc))
        for point in critical_points(n_features)
        if point.label in (llc or {}) or point.llc is not None
    ]
    return sorted(order, key=lambda entry: entry[1])


def critical_sample_size(
    alpha: CriticalPoint,
    beta: CriticalPoint,
    *,
    halved: bool = False,
    prior_std: float = 1.0,
    llc: Mapping[str, float] | None = None,
) -> float:
    """The n at which the free energies of two critical points cross, F_n(alpha) = F_n(beta).

    The critical point of smaller loss is preferred beyond this n. If it also has the larger
    learning coefficient, F_n(beta) - F_n(alpha) first rises and then falls with n; the result is
    the last crossing, on the falling branch. Published crossings (n_features = 6): 5 -> 6 at 601,
    4+ -> 5 at 381 with llc={"4+": 5}; halved, 5 -> 6 at 1316. The module docstring says why a
    sampled posterior can differ.

    Args:
        alpha, beta: two critical points of the same n_features, in any order.
        halved, prior_std, llc: as in `free_energy`.

    Returns:
        The crossing, not rounded; NaN if one critical point is preferred for all n >= 1.

    Raises:
        ValueError: n_features differ, or a learning coefficient is not known.
    """
    if alpha.n_features != beta.n_features:
        raise ValueError(
            f"alpha and beta must have the same n_features, got {alpha.n_features} and "
            f"{beta.n_features}"
        )
    if alpha.loss < beta.loss:
        alpha, beta = beta, alpha
    fall = (alpha.loss - beta.loss) * (0.5 if halved else 1.0)
    rise = _llc(beta, llc) - _llc(alpha, llc)
    constant = prior_constant(beta, prior_std=prior_std) - prior_constant(
        alpha, prior_std=prior_std
    )

    def excess(log_n: float) -> float:
        """F_n(beta) - F_n(alpha)."""
        return constant + rise * log_n - fall * math.exp(log_n)

    if fall == 0:
        log_n = -constant / rise if rise else math.nan
        return math.exp(log_n) if log_n >= 0 else math.nan
    # The excess is concave in log n: it falls beyond its maximum.
    top = max(math.log(rise / fall), 0.0) if rise > 0 else 0.0
    if excess(top) < 0:
        return math.nan
    low, high = top, top + 1.0
    while excess(high) > 0:
        low, high = high, high + 1.0
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return math.exp(low)


def laplace_log_evidence(
    W: Tensor,
    b: Tensor,
    *,
    n_samples: float,
    loss: PopulationLoss | None = None,
    noise_std: float = 1.0,
    prior_std: float = 1.0,
    permutations: bool = True,
) -> float:
    """Laplace's approximation of log Z near a critical point, in nats.

    The critical point must be regular except for rotations, such as a k-gon with k = n_features.

    Z = integral of exp(-n_samples L(w) / (2 noise_std^2)) N(w; 0, prior_std^2 I) over the
    neighbourhoods of the critical point and its images. It is the product of a Gaussian integral
    across the orbit of O(n_hidden), about the posterior's mode that Newton's method finds from
    (W, b), the orbit's volume, and the number of images under permutations of the features. The
    relative error of Z is of order 1 / n_samples.

    Args:
        W: (n_hidden, n_features), of rank n_hidden.
        b: (n_features,).
        n_samples: the factor of the loss.
        loss: a loss with a differentiable `grad`; None for the population loss. An `EmpiricalLoss`
            is refused: its gradient jumps where an output turns on, and the Hessian between the
            jumps misses their contribution.
        noise_std, prior_std: standard deviations of the observation noise and of the prior.
        permutations: count the images under permutations; only for a loss that is invariant.

    Raises:
        ValueError: W is rank deficient, the loss is flat or decreases in a direction across the
            orbit, Newton's method finds no mode, or the loss is an `EmpiricalLoss`.
    """
    if isinstance(loss, EmpiricalLoss):
        raise ValueError("Laplace's approximation needs a Hessian, and the gradient of an "
                         "EmpiricalLoss jumps; pass a PopulationLoss")  # fmt: skip
    loss = loss or PopulationLoss()
    m, n = W.shape
    strength, precision = n_samples / (2 * noise_std**2), prior_std**-2

    def unflat(w: Tensor) -> tuple[Tensor, Tensor]:
        return w[: m * n].view(m, n), w[m * n :]

    w = torch.cat([W.flatten(), b]).double()
    across = _across(unflat(w)[0], n)
    curvature = torch.linalg.eigvalsh(across.mT @ hessian(loss, *unflat(w)) @ across)
    if curvature[0] < 1e-8 * curvature[-1]:
        raise ValueError(
            "the critical point is not regular: the loss is flat or decreases in a direction "
            f"across its orbit (smallest eigenvalue of the Hessian {float(curvature[0]):.3g})"
        )
    for _ in range(_NEWTON_STEPS):
        across = _across(unflat(w)[0], n)
        full = strength * hessian(loss, *unflat(w))
        H = across.mT @ full @ across + precision * torch.eye(across.shape[1])
        dW, db = loss.grad(*unflat(w))
        gradient = strength * torch.cat([dW.flatten(), db]) + precision * w
        step = across @ torch.linalg.solve(H, across.mT @ gradient)
        w = w - step
        if step.norm() < 1e-12 * w.norm():
            break
    else:
        raise ValueError("Newton's method does not converge to a mode of the posterior")
    mode_W, mode_b = unflat(w)
    across = _across(mode_W, n)
    full = strength * hessian(loss, mode_W, mode_b)
    H = across.mT @ full @ across + precision * torch.eye(across.shape[1])
    if torch.linalg.eigvalsh(H)[0] <= 0:
        raise ValueError("Newton's method ended at a saddle of the posterior, not at a mode")
    energy = strength * loss(mode_W, mode_b) + precision * w.square().sum() / 2
    prior = -0.5 * len(w) * math.log(2 * math.pi * prior_std**2)
    gaussian = 0.5 * (len(H) * math.log(2 * math.pi) - torch.logdet(H))
    copies = math.log(permuted_copies(mode_W, mode_b)) if permutations else 0.0
    return float(-energy + prior + gaussian + _log_orbit_volume(mode_W)) + copies


def _generators(W: Tensor) -> Tensor:
    """Tangents E_ab W of the orbit of SO(n_hidden) at W, (n_generators, n_hidden, n_features)."""
    m = len(W)
    tangents = [W.new_zeros(0, *W.shape)]
    for a in range(m):
        for z in range(a):
            tangent = torch.zeros_like(W)
            tangent[a], tangent[z] = W[z], -W[a]
            tangents.append(tangent.unsqueeze(0))
    return torch.cat(tangents)


def _across(W: Tensor, n_biases: int) -> Tensor:
    """An orthonormal basis of the directions across the orbit, (n_parameters, n_directions)."""
    along = _generators(W).flatten(1)
    along = torch.cat([along, along.new_zeros(len(along), n_biases)], 1).mT
    if torch.linalg.matrix_rank(W) < len(W):
        raise ValueError(f"W must have rank n_hidden={len(W)}: else its orbit is a smaller one")
    q: Tensor = torch.linalg.qr(along, mode="complete").Q
    return q[:, along.shape[1] :]


def _log_orbit_volume(W: Tensor) -> Tensor:
    """Log of the volume of {R W : R in O(n_hidden)}, in the metric of the parameters.

    The volume of SO(m), with the E_ab as unit vectors, is the product of the volumes of the spheres
    S^1, ..., S^(m-1), and that of O(m) is twice as large. The map R -> R W multiplies volumes by
    sqrt det <E_ab W, E_cd W>.
    """
    tangents = _generators(W).flatten(1)
    spheres = sum(
        math.log(2) + (d / 2) * math.log(math.pi) - math.lgamma(d / 2) for d in range(2, len(W) + 1)
    )
    return math.log(2) + spheres + 0.5 * torch.logdet(tangents @ tangents.mT)


def permuted_copies(W: Tensor, b: Tensor, tolerance: float = 1e-6) -> int:
    """The number of images of (W, b) under permutations of the features, up to O(n_hidden).

    This is n_features! over the number of permutations that leave W^T W and b unchanged: k! / (2k)
    for a k-gon with k = n_features.
    """
    A = (W.mT @ W).tolist()
    bias = b.tolist()
    n = len(bias)

    def extensions(image: list[int]) -> int:
        i = len(image)
        if i == n:
            return 1
        return sum(
            extensions([*image, j])
            for j in range(n)
            if j not in image
            and abs(bias[i] - bias[j]) < tolerance
            and abs(A[i][i] - A[j][j]) < tolerance
            and all(abs(A[i][h] - A[j][image[h]]) < tolerance for h in range(i))
        )

    return math.factorial(n) // extensions([])
