"""Models whose nbeta (E[L] - L(w*)) is known, to hold estimates of learning coefficients against.

The truth at a model's nbeta and localization comes from a closed form, from quadrature, or from
long chains of Hamiltonian Monte Carlo, which the first two kinds check.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from kgon.theory.critical import critical_point
from kgon.theory.loss import PopulationLoss


@dataclass(frozen=True)
class Model:
    """A loss and a w* of it.

    Attributes:
        name: as in the tables.
        group: "k-gons" or "other".
        loss: as `estimate_llc` takes it.
        params: w*, without batch axes.
        curvature: largest curvature of the loss at w*, which sets the scale of step sizes.
        closed: maps (nbeta, localization) to the truth, or None.
        held_out: whether the rules were chosen without this model.
    """

    name: str
    group: str
    loss: Callable[..., Any]
    params: tuple[torch.Tensor, ...]
    curvature: float
    closed: Callable[[float, float], float] | None = None
    held_out: bool = False


def quadratic(curvatures: list[float], held_out: bool = False) -> Model:
    """sum h_i w_i^2 / 2."""
    h = torch.tensor(curvatures).double()

    def closed(nbeta: float, localization: float) -> float:
        return float((nbeta * h / (nbeta * h + localization)).sum() / 2)

    return Model(
        f"quadratic, d = {len(curvatures)}, h = {min(curvatures):g}..{max(curvatures):g}", "other",
        lambda w: (h * w.square()).sum(-1) / 2, (torch.zeros(len(h)).double(),),
        float(h.max()), closed, held_out,
    )  # fmt: skip


def monomial(*exponents: int, held_out: bool = False) -> Model:
    """prod w_i^k_i with even k_i; up to three variables by quadrature."""
    k = torch.tensor(exponents)

    def loss(w: torch.Tensor) -> torch.Tensor:
        return (w**k).prod(-1)

    def closed(nbeta: float, localization: float) -> float:
        # The last variable is the finest: sinh spaces the grid densely near zero.
        n_points = {1: 20001, 2: 3001, 3: 301}[len(exponents)]
        u = torch.linspace(0, 9, n_points).double()
        x = torch.sinh(u) / math.sinh(9) * 8 / math.sqrt(localization)
        weight = torch.cosh(u)
        value, total = torch.ones(()).double(), torch.ones(()).double()
        square = torch.zeros(()).double()
        for i, power in enumerate(exponents):
            shape = [-1 if j == i else 1 for j in range(len(exponents))]
            value = value * (x**power).reshape(shape)
            total = total * weight.reshape(shape)
            square = square + (x**2).reshape(shape)
        density = total * torch.exp(-nbeta * value - localization / 2 * square)
        return float(nbeta * (value * density).sum() / density.sum())

    name = " ".join(f"{v}^{p}" for v, p in zip("xyz", exponents, strict=False))
    start = torch.zeros(len(exponents)).double()
    return Model(name, "other", loss, (start,), 1.0, closed, held_out)


def reduced_rank(
    outputs: int, hidden: int, inputs: int, rank: int, held_out: bool = False
) -> Model:
    """|B A - C|^2 / 2 for C of this rank, w* = factors of C."""
    A, B = torch.zeros(hidden, inputs).double(), torch.zeros(outputs, hidden).double()
    for r in range(rank):
        A[r, r] = B[r, r] = 1.0
    truth = B @ A

    def loss(A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
        return (B @ A - truth).square().sum((-1, -2)) / 2

    name = f"reduced rank {outputs}-{hidden}-{inputs}, rank {rank}"
    return Model(name, "other", loss, (A, B), 2.0, held_out=held_out)


def deep_linear(depth: int, width: int, held_out: bool = False) -> Model:
    """|W_depth ... W_1 - E|^2 / 2 with E = diag(1, 0, ...), at W_i = E."""
    E = torch.zeros(width, width).double()
    E[0, 0] = 1.0

    def loss(w: torch.Tensor) -> torch.Tensor:
        product = w[..., 0, :, :]
        for layer in range(1, depth):
            product = w[..., layer, :, :] @ product
        return (product - E).square().sum((-1, -2)) / 2

    w = E.expand(depth, width, width).clone()
    return Model(f"deep linear, {depth} layers of {width}", "other", loss, (w,), float(depth),
                 held_out=held_out)  # fmt: skip


def tanh_unit(scale: float, held_out: bool = False) -> Model:
    """E_x (a tanh(b x) - s tanh(x))^2 over a grid of inputs x, at (s, 1)."""
    x = torch.linspace(-2, 2, 21).double()

    def loss(w: torch.Tensor) -> torch.Tensor:
        a, b = w[..., :1], w[..., 1:]
        return (a * torch.tanh(b * x) - scale * torch.tanh(x)).square().mean(-1)

    start = torch.tensor([scale, 1.0 if scale else 0.0]).double()
    return Model(f"tanh, amplitude {scale:g}", "other", loss, (start,), 1.5, held_out=held_out)


def k_gon(label: str, n_features: int, held_out: bool = False) -> Model:
    """A critical point under the population loss."""
    point = critical_point(label, n_features)
    return Model(f"{label} of {n_features}", "k-gons", PopulationLoss(), (point.W, point.b), 1.0,
                 held_out=held_out)  # fmt: skip


MODELS = [
    quadratic([1.0]),
    quadratic([1.0] * 4),
    quadratic([0.01, 0.1, 1.0, 1.0]),
    quadratic([1.0] * 20),
    quadratic([0.05 * (i + 1) for i in range(20)]),
    monomial(4),
    monomial(2, 2),
    monomial(2, 4),
    monomial(4, 4),
    monomial(2, 2, 2),
    reduced_rank(3, 2, 2, 1),
    reduced_rank(4, 3, 3, 1),
    reduced_rank(3, 2, 3, 0),
    deep_linear(2, 2),
    deep_linear(3, 2),
    tanh_unit(1.0),
    tanh_unit(0.0),
    k_gon("5", 5),
    k_gon("5", 6),
    k_gon("5+", 6),
    k_gon("6", 6),
    k_gon("6", 7),
    k_gon("7", 7),
    k_gon("5++", 7),
    k_gon("7+", 8),
    k_gon("6", 8),
    k_gon("6+++", 9),
    k_gon("7", 9),
    k_gon("8++", 10),
    k_gon("7+++++", 12),
    quadratic([1.0, 0.001], held_out=True),
    quadratic([3.0, 1.0, 0.3, 0.1, 0.03], held_out=True),
    monomial(6, held_out=True),
    monomial(2, 6, held_out=True),
    monomial(2, 2, 4, held_out=True),
    reduced_rank(2, 2, 2, 0, held_out=True),
    deep_linear(3, 3, held_out=True),
    tanh_unit(0.3, held_out=True),
    k_gon("6+", 7, held_out=True),
    k_gon("8", 8, held_out=True),
    k_gon("7++", 9, held_out=True),
    k_gon("6++++", 10, held_out=True),
]
