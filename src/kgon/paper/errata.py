"""Misprints of the paper, checked by computation."""

import math

import torch

from kgon.paper import k_gons
from kgon.paper.rows import Published, Row, Table
from kgon.paper.theory import SIDES
from kgon.theory.critical import critical_point


def errata() -> tuple[list[Row], list[Table]]:
    """Four errata as rows, and all roots of App. E.1 as a table."""
    five = critical_point("5", 6)
    W = five.W.clone()
    W[:, :5] = k_gons.polygon(5, k_gons.length_and_bias(five)[0], 2 * math.pi / 6)
    as_printed, as_meant = (k_gons.gradient_norm(w, five.b) for w in (W, five.W))
    differences = []
    for k in (5, 6, 7, 8, 12):
        x, y = k_gons.length_and_bias(critical_point(k, k))
        F, G, K, _ = k_gons.sums(k)
        z = (2 * x**8 * F + 3 * x**6 * y * G - 2 * x**6 - 2 * y**3) / (y**3 * K)
        differences.append(abs(z - x * x))
    eight = [root for root in k_gons.polynomial_roots(8) if root.admissible]
    twelve = k_gons.polynomial_roots(12)
    rows = [
        Row("Theorem F.2 prints the angle 2π/c; with it, the 5-gon at c = 6 is not critical",
            as_printed > 1e-3 and as_meant < 1e-12,
            Published(True, ("P", "D"), "errata: Theorem F.2", text="2π/k is meant"),
            text=f"|∇L| = {as_printed:.3f} with 2π/c, {as_meant:.0e} with 2π/k"),
        Row("-z y³ H(s) in the first display of the system holds for z = x² only",
            max(differences) < 1e-10,
            Published(True, ("P", "D"), "errata: polynomial system", text="-x² y³ H(s) is meant"),
            text=f"z solved for is x² within {max(differences):.0e} at k = 5..8, 12"),
        Row("the 8-gon, printed twice with different digits, is a single admissible root",
            len(eight) == 1, Published(True, ("P", "D"), "errata: 8-gon", text="two prints"),
            text="(l*, b*) = " + "; ".join(f"({x:.6f}, {y:.6f})" for x, y, _ in eight),
            remark="neither print is at hand, so which digits are right is not decided here"),
        Row("one of the two printed 12-gon roots violates -x² cos(s α) < y",
            [ok for *_, ok in twelve].count(True) == 1 and len(twelve) >= 2,
            Published(True, ("P", "D"), "errata: 12-gon", text="one of two"),
            text="; ".join(f"({x:.5f}, {y:.5f}) {'admissible' if ok else 'not admissible'}"
                           for x, y, ok in twelve)),
    ]  # fmt: skip
    body = []
    for k in SIDES[1:]:
        for root in k_gons.polynomial_roots(k):
            b = torch.full((k,), root.bias, dtype=torch.float64)
            slope = k_gons.gradient_norm(k_gons.polygon(k, root.length), b)
            body.append([str(k), f"{root.length:.6f}", f"{root.bias:.6f}",
                         "yes" if root.admissible else "no", f"{slope:.1e}"])  # fmt: skip
    header = ["k", "l", "b", "admissible", "|∇L| of the k-gon, c = k"]
    return rows, [("all roots of App. E.1 with l > 0 > b", header, body)]
