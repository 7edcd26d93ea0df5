"""Features in superposition: closed cases of their geometry."""

import math

import pytest
import torch

from kgon.theory.critical import critical_point
from kgon.theory.geometry import dimensionality, geometry, interference, represented


@pytest.mark.parametrize("k", [3, 4, 5, 6, 8])
@pytest.mark.parametrize("length", [0.8, 1.3])
def test_in_a_k_gon_each_feature_has_two_kths_of_a_dimension(k, length):
    angle = 2 * math.pi / k * torch.arange(k, dtype=torch.float64)
    W = length * torch.stack([angle.cos(), angle.sin()])
    torch.testing.assert_close(dimensionality(W), torch.full((k,), 2 / k).double())
    # sum_j cos^2 = k / 2 over the k-gon, of which one term is the feature's own.
    expected = torch.full((k,), length**2 * (k / 2 - 1), dtype=torch.float64)
    torch.testing.assert_close(interference(W), expected)


def test_orthogonal_columns_have_a_dimension_each_and_no_interference():
    W = torch.diag(torch.tensor([1.0, 0.7, 1.3, 0.2], dtype=torch.float64))
    assert dimensionality(W).tolist() == [1.0] * 4
    assert interference(W).tolist() == [0.0] * 4
    assert represented(W).tolist() == [True, True, True, False]


def test_an_antipodal_pair_shares_its_dimension_and_zeros_have_none():
    W = torch.tensor([[1.0, -1.0, 0.0, 0.0], [0.0, 0.0, 1.3, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(
        dimensionality(W), torch.tensor([0.5, 0.5, 1.0, 0.0], dtype=torch.float64)
    )
    assert interference(W).tolist() == pytest.approx([1.0, 1.0, 0.0, 0.0])


def test_means_are_over_represented_features_of_each_model():
    points = [critical_point(label, 6) for label in ("4", "5+", "6")]
    found = geometry(torch.stack([*(p.W for p in points), torch.zeros(2, 6).double()]))
    assert found.features_represented.tolist() == [4, 5, 6, 0]
    assert found.dimensionality[:3].tolist() == pytest.approx([2 / 4, 2 / 5, 2 / 6])
    lengths = [float(p.W[:, 0].norm()) for p in points]
    expected = [x * x * (k / 2 - 1) for x, k in zip(lengths, (4, 5, 6), strict=True)]
    assert found.interference[:3].tolist() == pytest.approx(expected)
    assert found.dimensionality[3].isnan() and found.interference[3].isnan()


def test_rotations_and_permutations_change_nothing():
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(7, 3, 5, generator=generator, dtype=torch.float64)
    Q, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    order = torch.randperm(5, generator=generator)
    for measure in (dimensionality, interference):
        torch.testing.assert_close(measure(Q @ W[..., order]), measure(W)[..., order])
