"""The items that need no run: Lemma 3.1, k-gons, free energies."""

import itertools
import math
from contextlib import suppress

import numpy as np
import torch
from torch import Tensor

from kgon.paper.k_gons import gradient_norm, length_and_bias, polynomials
from kgon.paper.rows import Published, Row, Table
from kgon.theory.critical import CriticalPoint, critical_point, critical_points
from kgon.theory.free_energy import critical_sample_size, prior_constant
from kgon.theory.loss import population_loss

LARGEST = 203
"""The largest k in the search for k-gons with k = n_features."""


# ----------------------------------------------------------------------------------- Lemma 3.1


def lemma_as_printed(W: Tensor, b: Tensor) -> float:
    """Lemma 3.1, eq. (4), term by term: L = (1 / 3c) sum_i H_i at one parameter."""
    A, c = (W.mT @ W).tolist(), len(b)
    total = 0.0
    for i, bias in enumerate(b.tolist()):
        square = A[i][i]
        others = [A[i][j] for j in range(c) if j != i]
        N = (1 - square) ** 2 - 3 * (1 - square) * bias + 3 * bias**2
        if bias <= 0:
            total += math.fsum((a + bias) ** 3 / a for a in others if a > 0 and -a <= bias)
            on = square > 0 and -square <= bias
            total += bias**3 / square**2 + bias**3 / square + N if on else 1.0
        else:
            total += N + math.fsum(
                -(bias**3) / a if -a > bias else a * a + 3 * a * bias + 3 * bias**2 for a in others
            )
    return total / (3 * c)


def quadrature(W: Tensor, b: Tensor) -> float:
    """E ||x - f(x)||^2 at one parameter, by Gauss-Legendre quadrature between the kinks."""
    A, bias, c = (W.mT @ W).numpy(), b.numpy(), len(b)
    nodes, weights = np.polynomial.legendre.leggauss(8)
    total = 0.0
    for i, j in itertools.product(range(c), repeat=2):
        kink = -bias[i] / A[i, j] if A[i, j] else 0.0
        edges = [0.0, *([kink] if 0 < kink < 1 else []), 1.0]
        for low, high in itertools.pairwise(edges):
            a = low + (high - low) * (nodes + 1) / 2
            residual = (i == j) * a - np.maximum(a * A[i, j] + bias[i], 0.0)
            total += float((high - low) / 2 * weights @ residual**2)
    return total / c


def lemma(draws: int = 40) -> list[Row]:
    """The closed form of the loss against quadrature and against the lemma as printed."""
    generator = torch.Generator().manual_seed(0)
    worst = {"quadrature": 0.0, "lemma": 0.0}
    for r, c, _ in itertools.product(range(1, 5), range(2, 9), range(draws)):
        W = torch.randn(r, c, generator=generator, dtype=torch.float64)
        b = 0.6 * torch.randn(c, generator=generator, dtype=torch.float64)
        W[:, torch.rand(c, generator=generator) < 0.2] = 0.0
        b[torch.rand(c, generator=generator) < 0.2] = 0.0
        value = float(population_loss(W, b))
        for name, other in (("quadrature", quadrature(W, b)), ("lemma", lemma_as_printed(W, b))):
            worst[name] = max(worst[name], abs(value - other) / max(value, 1.0))
    where = "Lemma 3.1, eq. (4)"
    setting = f"r = 1..4, c = 2..8, {draws} draws each with zero columns and zero biases"
    return [
        Row(
            f"closed form = quadrature ({setting})",
            worst["quadrature"] < 1e-12,
            Published(True, ("P", "D"), where, text="equal"),
            text=f"largest difference {worst['quadrature']:.1e}",
        ),
        Row(
            "closed form by truncated moments = the lemma as printed (same draws)",
            worst["lemma"] < 1e-12,
            Published(True, ("P", "D"), where, text="equal"),
            text=f"largest difference {worst['lemma']:.1e}",
        ),
    ]


# ----------------------------------------------------------------------------------- Table A.1

SIDES = (4, 5, 6, 7, 8, 12)

_LENGTH_AND_BIAS = {"4": (1.0, 0.0, None), "5": (1.17046, -0.28230, 5), "6": (1.32053, -0.61814, 5)}
_LEVELS = {
    6: {"4": 0.11111, "4+": 0.10417, "4++": 0.09722, "5": 0.06874, "5+": 0.06180, "6": 0.04819},
    5: {"4": 0.06667, "4+": 0.05667, "5": 0.01583},
    4: {"4": 0.0},
}
_LLC = {"5": 7.0, "5+": 8.5, "6": 8.5}
_VOLUME = {"4": 7.5, "4+": 8.0, "4++": 8.5}
_H = {5: 0.23738, 6: 0.86746}


def table_a1() -> tuple[list[Row], list[Table]]:
    """(l*, b*), losses and learning coefficients of k-gons."""
    rows = []
    for label, (known_length, known_bias, digits) in _LENGTH_AND_BIAS.items():
        l_star, b_star = length_and_bias(critical_point(label, 6))
        rows += [
            Row(f"{label}-gon, {name}", value,
                Published(known, ("P", "D"), "Table A.1, App. E.1", digits=digits))
            for name, value, known in (("l*", l_star, known_length), ("b*", b_star, known_bias))
        ]  # fmt: skip
    remark = "the paper tabulates further k; its digits are not at hand"
    rows += [
        Row(f"{k}-gon, {name}", value, remark=remark)
        for k in (7, 8, 12)
        for name, value in zip(("l*", "b*"), length_and_bias(critical_point(k, k)), strict=True)
    ]
    step = critical_point("4-", 6).loss - critical_point("4", 6).loss
    gradient = max(gradient_norm(p.W, p.b) for c in (4, 5, 6) for p in critical_points(c))
    residuals = (polynomials(k, *length_and_bias(critical_point(k, k))) for k in SIDES if k > 4)
    equations = max(abs(residual) for pair in residuals for residual in pair)
    where = "Sec. 3 (formula D, values P)"
    rows += [
        *(Row(f"L({label}), c = {c}", critical_point(label, c).loss,
              Published(value, ("D", "P"), where, digits=5))
          for c, levels in _LEVELS.items() for label, value in levels.items()),
        *(Row(f"h_{k} = 3 c L - (c - k)", 3 * k * critical_point(k, k).loss,
              Published(value, ("D", "P"), where, digits=5))
          for k, value in _H.items()),
        Row("loss added by each phi, c = 6", step,
            Published(1 / 18, ("D",), "Sec. 3", text="1/18", digits=12)),
        *(Row(f"λ({label}), c = 6", critical_point(label, 6).llc, digits=1,
              published=Published(value, ("P", "D"), "Sec. 3, Table A.1"))
          for label, value in _LLC.items()),
        *(Row(f"λ({label}), c = 6, volume exponent", critical_point(label, 6).llc, digits=1,
              published=Published(value, ("D",), "volume exponent"),
              remark="the paper lists values that depend on the direction, {4, 4.5, 5, 5.5} (P)")
          for label, value in _VOLUME.items()),
        Row("families of k-gons at c = 6", float(len(critical_points(6))), digits=0,
            published=Published(18.0, ("P", "I"), "Sec. 3 (count P, the reading of φ I)")),
        Row("the gradient vanishes at every family, c = 4, 5, 6", gradient < 1e-12,
            Published(True, ("D",), "Sec. 3", text="< 1e-15"), text=f"largest {gradient:.1e}"),
        Row("App. E.1's two polynomials vanish at (l*, b*), k = 5..8, 12", equations < 1e-11,
            Published(True, ("P", "D"), "App. E.1"), text=f"largest residual {equations:.1e}"),
    ]  # fmt: skip
    body = []
    for k in SIDES:
        point = critical_point(k, k)
        numbers = (*length_and_bias(point), 3 * k * point.loss, point.loss)
        body.append([str(k), *(f"{x:.8f}" for x in numbers), _llc(point), point.kind])
    header = ["k", "l*", "b*", "h_k", "L, c = k", "λ, c = k", "kind"]
    return rows, [("k-gons with k = c, solved to rounding", header, body)]


def _llc(point: CriticalPoint) -> str:
    return "-" if point.llc is None else f"{point.llc:g}"


def search() -> tuple[list[Row], list[int]]:
    """The k = n_features <= LARGEST for which a standard k-gon exists."""
    found = []
    for k in range(4, LARGEST + 1):
        with suppress(ValueError):
            critical_point(k, k)
            found.append(k)
    row = Row(
        f"all k = c, 4 <= k <= {LARGEST}, for which a k-gon exists",
        float(len(found)),
        text=", ".join(map(str, found)),
        remark="the paper says for which k no root exists; its list is not at hand",
    )
    return [row], found


# -------------------------------------------------------------------------------- free energies

_CONSTANTS = {"4": 2.0, "4+": 2.00347, "5": 3.62417, "5+": 3.62764, "6": 6.37764}


def free_energies() -> tuple[list[Row], list[Table]]:
    """Eq. (9): constants c_alpha, and crossings under both conventions of the likelihood."""
    point = {label: critical_point(label, 6) for label in ("4", "4+", "5", "5+", "6")}
    rows = [
        Row(f"c_α of {label}", prior_constant(point[label]),
            Published(value, ("D",), "eq. (9)", digits=None if label == "4" else 5))
        for label, value in _CONSTANTS.items()
    ]  # fmt: skip
    five, six, four = point["5"], point["6"], point["4+"]
    assert five.llc is not None and six.llc is not None
    where = "eq. (9), Sec. 4"
    rows += [
        Row("ΔL, 5 → 6", six.loss - five.loss, Published(-0.02055, ("P", "D"), where, digits=5)),
        Row("Δλ, 5 → 6", six.llc - five.llc, Published(1.5, ("P", "D"), where), digits=1),
        Row("Δc, 5 → 6", prior_constant(six) - prior_constant(five),
            Published(2.7535, ("P",), where, digits=4), digits=4),
        Row("n_cr(5 → 6)", critical_sample_size(five, six), digits=1,
            published=Published(601.0, ("P", "D"), where, digits=0)),
        Row("n_cr(5 → 6) without the constants c_α", _without_constants(five, six), digits=1,
            published=Published(445.0, ("R", "I"), "the paper's table of crossings, second hand",
                                digits=0),
            remark="which convention gives 445 is inferred: c_α left out"),
        Row("n_cr(4+ → 5) with the paper's λ(4+) = 5",
            critical_sample_size(four, five, llc={"4+": 5.0}), digits=1,
            published=Published(380.0, ("P",), where, spread=10.0, text="about 380"),
            remark='"about" is read as one unit of the last digit, ± 10; 381 at c = 6 (D)'),
        Row("n_cr(5 → 6), likelihood exp(-n L / 2)", critical_sample_size(five, six, halved=True),
            Published(1316.0, ("D",), "eq. (9), halved", digits=0), digits=1),
        Row("n_cr(5 → 6) without c_α, likelihood exp(-n L / 2)",
            _without_constants(five, six, halved=True), digits=1),
        Row("n_cr(4+ → 5) with λ(4+) = 5, likelihood exp(-n L / 2)",
            critical_sample_size(four, five, halved=True, llc={"4+": 5.0}), digits=1),
    ]  # fmt: skip
    return rows, [_crossing_table(c) for c in (6, 5)]


def _without_constants(alpha: CriticalPoint, beta: CriticalPoint, *, halved: bool = False) -> float:
    # With a prior that is flat on the scale of the critical points, the constants are equal.
    return critical_sample_size(alpha, beta, halved=halved, prior_std=1e12)


def _crossing_table(c: int) -> Table:
    points = [p for p in critical_points(c) if p.llc is not None]
    body = []
    for alpha, beta in itertools.permutations(points, 2):
        assert alpha.llc is not None and beta.llc is not None
        if beta.loss >= alpha.loss or beta.llc <= alpha.llc:
            continue
        numbers = [
            crossing(alpha, beta, halved=halved)
            for halved in (False, True)
            for crossing in (critical_sample_size, _without_constants)
        ]
        body.append(
            [f"{alpha.label} → {beta.label}", f"{beta.loss - alpha.loss:.5f}",
             f"{beta.llc - alpha.llc:g}",
             *("-" if math.isnan(n) else f"{n:.0f}" for n in numbers)]
        )  # fmt: skip
    header = ["from → to", "ΔL", "Δλ", "n_cr", "n_cr, no c_α", "n_cr halved", "halved, no c_α"]
    title = f"every pair at c = {c} whose loss falls while λ (theory) rises"
    return title, header, body


def other_features() -> Table:
    """Beyond the paper: the k-gons of other n_features, their losses and learning coefficients."""
    body = [
        [str(c), point.label, f"{point.loss:.5f}", _llc(point), point.kind]
        for c in (4, 5, 7, 8, 12)
        for point in critical_points(c)
        if point.phi == 0 and point.sigma in (0, c - point.k)
    ]
    return "k-gons without φ, σ none or all", ["c", "label", "L", "λ", "kind"], body
