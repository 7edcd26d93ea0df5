"""The length l and bias b of a k-gon, and the two equations of App. E.1 that they solve."""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kgon.theory.critical import CriticalPoint
from kgon.theory.loss import PopulationLoss


def length_and_bias(point: CriticalPoint) -> tuple[float, float]:
    """(l*, b*) of the live columns of a critical point."""
    return float(point.W[:, 0].norm()), float(point.b[0])


def polygon(k: int, length: float, angle: float | None = None) -> Tensor:
    """k columns of equal length, (2, k), with `angle` (default 2 pi / k) from one to the next."""
    turn = (2 * math.pi / k if angle is None else angle) * torch.arange(k, dtype=torch.float64)
    return length * torch.stack([turn.cos(), turn.sin()])


def gradient_norm(W: Tensor, b: Tensor) -> float:
    """Norm of the population loss's gradient."""
    dW, db = PopulationLoss().grad(W, b)
    return float(torch.cat([dW.flatten(), db]).norm())


class Sums(NamedTuple):
    """The sums over cosines of App. E.1."""

    F: float
    G: float
    K: float
    M: int


def sums(k: int) -> Sums:
    """F, G, K and M of App. E.1, with s = ceil(k / 4) - 1 neighbours on each side."""
    s = math.ceil(k / 4) - 1
    cosines = [math.cos(2 * math.pi * j / k) for j in range(1, s + 1)]
    return Sums(
        F=1 + 2 * math.fsum(x * x for x in cosines),
        G=1 + 2 * math.fsum(cosines),
        K=1 + 2 * math.fsum(1 / x for x in cosines),
        M=1 + 2 * s,
    )


def polynomials(k: int, x: float, y: float) -> tuple[float, float]:
    """The two equations of App. E.1 for (l, b) = (x, y)."""
    F, G, K, M = sums(k)
    return (
        x**6 * G + x**2 * y**2 * K + 2 * x**4 * y * M + y**2 - x**4,
        2 * x**8 * F + 3 * x**6 * y * G - x**2 * y**3 * K - 2 * x**6 - 2 * y**3,
    )


class Root(NamedTuple):
    """A solution (l, b) of App. E.1; a k-gon needs an admissible one, -l^2 cos(s alpha) < b."""

    length: float
    bias: float
    admissible: bool


def polynomial_roots(k: int) -> list[Root]:
    """All roots with l > 0 > b, by l.

    With u = b / l^2 the first equation, divided by l^4, gives
    l^2 = (1 - u^2) / (G + K u^2 + 2 M u), and the second, divided by l^6,
    l^2 = (2 + 2 u^3) / (2 F + 3 G u - K u^3).
    """
    F, G, K, M = sums(k)
    first = np.polynomial.Polynomial([G, 2 * M, K])
    second = np.polynomial.Polynomial([2 * F, 3 * G, 0, -K])
    one, two = np.polynomial.Polynomial([1, 0, -1]), np.polynomial.Polynomial([2, 0, 0, 2])
    edge = -math.cos(2 * math.pi * (math.ceil(k / 4) - 1) / k)
    found = []
    for root in (one * second - two * first).roots():
        u = float(root.real)
        if abs(root.imag) > 1e-9 or u >= -1e-9 or first(u) == 0:
            continue
        square = float(one(u) / first(u))
        # At u = -1 both numerators are 0: a root of the product, but not of the two equations.
        if square > 1e-9 and max(map(abs, polynomials(k, math.sqrt(square), u * square))) < 1e-6:
            found.append(Root(math.sqrt(square), u * square, edge < u))
    return sorted(found)
