"""Laplace's approximation of the evidence, to hold sampled evidence against."""

import math

import torch

from kgon.theory.critical import hessian
from kgon.theory.loss import PopulationLoss


def laplace_log_evidence(
    W,
    b,
    *,
    n_samples,
    loss=None,
    noise_std=1.0,
    prior_std=1.0,
    permutations=True,
):
    """Laplace's approximation of log Z near a critical point, in nats.

    The critical point must be regular except for rotations, such as a k-gon with k = n_features.

    Z = integral of exp(-n_samples L(w) / (2 noise_std^2)) N(w; 0, prior_std^2 I) over the
    neighbourhoods of the critical point and its images. It is the product of a Gaussian integral
    across the orbit of O(n_hidden), about the posterior's mode that Newton's method finds from
    (W, b), the orbit's volume, and the number of images under permutations of the features. The
    relative error of Z is of order 1 / n_samples.
    """
    loss = loss or PopulationLoss()
    m, n = W.shape
    strength, precision = n_samples / (2 * noise_std**2), prior_std**-2

    def unflat(w):
        return w[: m * n].view(m, n), w[m * n :]

    def across_and_hessian(w):
        """The basis of the directions across the orbit, and the posterior's Hessian in them."""
        across = _across(unflat(w)[0], n)
        H = across.mT @ (strength * hessian(loss, *unflat(w))) @ across
        return across, H + precision * torch.eye(len(H))

    w = torch.cat([W.flatten(), b]).double()
    for _ in range(50):
        across, H = across_and_hessian(w)
        dW, db = loss.grad(*unflat(w))
        gradient = strength * torch.cat([dW.flatten(), db]) + precision * w
        step = across @ torch.linalg.solve(H, across.mT @ gradient)
        w = w - step
        if step.norm() < 1e-12 * w.norm():
            break
    assert step.norm() < 1e-12 * w.norm()
    mode_W, mode_b = unflat(w)
    _, H = across_and_hessian(w)
    assert torch.linalg.eigvalsh(H)[0] > 0  # a mode, not a saddle
    energy = strength * loss(mode_W, mode_b) + precision * w.square().sum() / 2
    prior = -0.5 * len(w) * math.log(2 * math.pi * prior_std**2)
    gaussian = 0.5 * (len(H) * math.log(2 * math.pi) - torch.logdet(H))
    copies = math.log(permuted_copies(mode_W, mode_b)) if permutations else 0.0
    return float(-energy + prior + gaussian + log_orbit_volume(mode_W)) + copies


def _generators(W):
    """Tangents E_ab W of the orbit of SO(n_hidden) at W, (n_generators, n_hidden, n_features)."""
    m = len(W)
    tangents = [W.new_zeros(0, *W.shape)]
    for a in range(m):
        for z in range(a):
            tangent = torch.zeros_like(W)
            tangent[a], tangent[z] = W[z], -W[a]
            tangents.append(tangent.unsqueeze(0))
    return torch.cat(tangents)


def _across(W, n_biases):
    """An orthonormal basis of the directions across the orbit, (n_parameters, n_directions)."""
    along = _generators(W).flatten(1)
    along = torch.cat([along, along.new_zeros(len(along), n_biases)], 1).mT
    return torch.linalg.qr(along, mode="complete").Q[:, along.shape[1] :]


def log_orbit_volume(W):
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


def permuted_copies(W, b, tolerance=1e-6):
    """The number of images of (W, b) under permutations of the features, up to O(n_hidden).

    This is n_features! over the number of permutations that leave W^T W and b unchanged: k! / (2k)
    for a k-gon with k = n_features.
    """
    A = (W.mT @ W).tolist()
    bias = b.tolist()
    n = len(bias)

    def extensions(image):
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
