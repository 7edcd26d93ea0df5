"""Absolute values by too few neurons: the solution without superposition, and counts."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from kgon.paper import computation
from kgon.paper.computation import AbsoluteValues, dedicated, importance, inputs

PAGE = Path(__file__).parents[2] / "docs" / "paper"


@pytest.mark.parametrize("sparsity", [0.0, 0.9])
def test_pairs_for_the_most_important_features_have_the_loss_of_the_closed_form(sparsity):
    n, m, rng = 5, 4, torch.Generator().manual_seed(0)
    model = AbsoluteValues(1, n, m, rng)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for i in range(m // 2):
            for neuron, sign in ((2 * i, 1.0), (2 * i + 1, -1.0)):
                model.W1[0, i, neuron], model.W2[0, neuron, i] = sign, 1.0
        model.b[0, 0, m // 2 :] = (1 - sparsity) / 2
        losses = model.losses(inputs(1, 200_000, n, sparsity, rng))[0].double()
    error = float(losses.std()) / len(losses) ** 0.5
    assert abs(float(losses.mean()) - dedicated(n, m, sparsity)) < 4 * error


@pytest.mark.parametrize("p", [0.02, 0.3, 1.0])
def test_one_neuron_saves_no_more_than_the_second(p):
    """The best of ReLU(b + c ReLU(x)) on a grid of (b, c), by quadrature, against the docstring."""
    x = (np.arange(200) + 0.5) / 200
    b, c = np.meshgrid(np.linspace(-0.2, 0.6, 201), np.linspace(0, 1.4, 201))
    b, c = b[..., None], c[..., None]
    off, on = np.maximum(b, 0), np.maximum(b + c * x, 0)
    errors = (off - x) ** 2, (on - x) ** 2
    loss = (1 - p) * off[..., 0] ** 2 + p / 2 * (errors[0].mean(-1) + errors[1].mean(-1))
    none, one = p / 3 - p * p / 4, p / 6 - p * p / (16 - 6 * p)
    # The grid is 0.004 and 0.007 wide and the loss quadratic with a curvature of at most 4; the
    # midpoint rule is off by at most 1 / (24 * 200^2) times a second derivative of at most 2.
    assert loss.min() == pytest.approx(one, abs=2 * (0.004**2 + 0.007**2) + 1e-5)
    assert none - one <= one


def test_features_are_in_superposition_if_a_neuron_serves_two_that_are_computed():
    slope = [[1.0, 1.0, 0.0, 0.0], [0.0, 1.0, 1.0, 0.0], [0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.5]]
    one = {"slope": slope, "computed": [True, True, True, False]}
    assert computation.in_superposition(one).tolist() == [True, True, True, False]
    one["computed"] = [True, False, True, False]
    assert not computation.in_superposition(one).any()


def test_training_is_a_function_of_its_seed_and_learns():
    settings = {"n": 4, "m": 4, "starts": 2, "steps": 200, "batch": 64, "lr": 0.01}
    first, again = (computation.train([0.0], **settings)[0] for _ in range(2))
    assert first == again
    none = float(importance(4).sum()) / 12
    assert first["loss"] < none


def test_dense_data_end_at_the_solution_without_superposition():
    data = json.loads((PAGE / "data" / "computation.json").read_text(encoding="utf-8"))
    dense = data["pictures"][0]
    n, m = np.shape(dense["slope"])
    assert dense["sparsity"] == 0
    assert dense["dedicated"] == pytest.approx(dedicated(n, m, 0.0), rel=1e-5)
    assert abs(dense["loss"] - dense["dedicated"]) < 3 * dense["loss_stderr"]
    assert ((np.array(dense["slope"]) >= computation.SERVES).sum(0) == 1).all()
