"""The items that need no run."""

import math

import pytest
import torch

from kgon.paper import errata, k_gons, theory
from kgon.paper.rows import NOT, UNPUBLISHED
from kgon.theory.loss import population_loss


@pytest.mark.parametrize(
    "make", [lambda: theory.lemma(2), lambda: theory.table_a1()[0], lambda: theory.search()[0],
             lambda: theory.free_energies()[0], lambda: errata.errata()[0]]
)  # fmt: skip
def test_every_published_number_of_theory_is_reproduced(make):
    for row in make():
        assert row.agreement != NOT, row


def test_what_is_published_is_compared():
    rows = [*theory.table_a1()[0], *theory.free_energies()[0], *errata.errata()[0]]
    numbers = {str(r.published) for r in rows if r.verdict != UNPUBLISHED}
    for number in ("1.17046", "-0.28230", "1.32053", "-0.61814", "0.11111", "0.10417", "0.09722",
                   "0.06874", "0.06180", "0.04819", "0.06667", "0.05667", "0.01583", "0.23738",
                   "0.86746", "601", "445", "about 380", "-0.02055", "2.7535"):  # fmt: skip
        assert number in numbers


def test_the_lemma_and_the_quadrature_notice_a_wrong_loss():
    torch.manual_seed(0)
    W, b = torch.randn(2, 5).double(), torch.randn(5).double()
    for oracle in (theory.lemma_as_printed, theory.quadrature):
        assert oracle(W, b) == pytest.approx(float(population_loss(W, b)), rel=1e-12)
        assert abs(oracle(W, b) - float(population_loss(W, b + 1e-3))) > 1e-6


def test_k_gons_with_k_features_exist_for_six_k():
    _, found = theory.search()
    assert found == [4, 5, 6, 7, 8, 12]


@pytest.mark.parametrize("k", [5, 6, 7, 8, 12])
def test_roots_solve_the_printed_polynomials_and_one_is_admissible(k):
    roots = k_gons.polynomial_roots(k)
    assert [ok for *_, ok in roots].count(True) == 1
    s = math.ceil(k / 4) - 1
    for x, y, ok in roots:
        assert max(map(abs, k_gons.polynomials(k, x, y))) < 1e-6 * max(1, x**8)
        assert ok == (-x * x * math.cos(2 * math.pi * s / k) < y)
