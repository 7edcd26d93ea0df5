"""Computation in superposition (Elhage et al. 2022): absolute values by too few neurons.

The model y' = ReLU(W2 ReLU(W1 x) + b) is trained on y = |x|. A feature x_i is 0 with probability
S and else uniform on [-1, 1]; its error weighs 0.8^i. Two neurons, ReLU(x_i) and ReLU(-x_i), make
an absolute value.

**Without superposition** each neuron reads and writes one feature. With p = 1 - S, the best output
for a feature without a neuron is its mean p/2, at the loss p/3 - p^2/4. With one neuron its loss is
p/6 - p^2 / (16 - 6 p), with two it is 0. The second neuron saves at least as much as the first, so
it is best to give pairs to the m/2 most important features (`dedicated`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kgon.paper.jobs import Results
from kgon.paper.rows import Published, Row, Table
from kgon.paper.section import Block, Picture, Section, item_command

DECAY = 0.8
COMPUTED = 0.5
"""A feature is computed if by itself, at +1 and at -1, it raises its output by at least this."""
SERVES = 0.2
"""A neuron serves a feature if it contributes at least this to the slope of the feature's output,
which should be 1."""
_EVALUATED = 100_000  # inputs


class AbsoluteValues(nn.Module):
    """A stack of k models from different starts; maps (k, batch, n) to (k, batch, n)."""

    def __init__(self, starts: int, n: int, m: int, rng: torch.Generator):
        super().__init__()
        self.W1 = nn.Parameter(torch.randn(starts, n, m, generator=rng) / n**0.5)
        self.W2 = nn.Parameter(torch.rand(starts, m, n, generator=rng) / m**0.5)
        self.b = nn.Parameter(torch.zeros(starts, 1, n))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.baddbmm(self.b, (x @ self.W1).relu(), self.W2).relu()
        return y

    def losses(self, x: Tensor) -> Tensor:
        """The weighted squared error of each input, (k, batch)."""
        return (x.abs() - self.forward(x)).square() @ importance(x.shape[-1])


def importance(n: int) -> Tensor:
    return DECAY ** torch.arange(n)


def dedicated(n: int, m: int, sparsity: float) -> float:
    """The least loss without superposition (see the module docstring)."""
    p = 1 - sparsity
    return float(importance(n).double()[m // 2 :].sum()) * (p / 3 - p * p / 4)


def inputs(starts: int, count: int, n: int, sparsity: float, rng: torch.Generator) -> Tensor:
    x = 2 * torch.rand(starts, count, n, generator=rng) - 1
    return torch.where(torch.rand(x.shape, generator=rng) < sparsity, 0.0, x)


def train(sparsities: Sequence[float], **settings: Any) -> list[dict[str, Any]]:
    """The best of some starts at each sparsity: chosen by one sample, its loss from another."""
    return [_train(sparsity, seed, **settings) for seed, sparsity in enumerate(sparsities)]


def _train(
    sparsity: float, seed: int, *, n: int, m: int, starts: int, steps: int, batch: int, lr: float
) -> dict[str, Any]:
    rng = torch.Generator().manual_seed(seed)
    model = AbsoluteValues(starts, n, m, rng)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model.losses(inputs(starts, batch, n, sparsity, rng)).mean(1).sum()
        torch.autograd.backward(loss)
        optimizer.step()
        scheduler.step()
    with torch.no_grad():
        first, second = (
            torch.cat([model.losses(inputs(1, 10_000, n, sparsity, rng).expand(starts, -1, -1))
                       for _ in range(_EVALUATED // 10_000)], 1)
            for _ in range(2)
        )  # fmt: skip
        best = int(first.mean(1).argmin())
        alone = torch.eye(n).expand(starts, n, n)
        plus, minus, zero = (
            model(x * alone).diagonal(dim1=1, dim2=2)[best] for x in (1.0, -1.0, 0.0)
        )
    slope = (model.W1.mT * model.W2)[best].abs().T.detach()  # (n, m)
    return {
        "sparsity": sparsity,
        "loss": float(second[best].mean()),
        "loss_stderr": float(second[best].std()) / _EVALUATED**0.5,
        "starts": second.mean(1).tolist(),
        "dedicated": dedicated(n, m, sparsity),
        "computed": (torch.minimum(plus, minus) - zero >= COMPUTED).tolist(),
        "slope": slope.tolist(),
    }


Found = Sequence[Mapping[str, Any]]


def serving(one: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Which feature is served by which neuron, (n, m)."""
    return np.array(one["slope"]) >= SERVES


def in_superposition(one: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Which computed features share a neuron with another computed feature, (n,)."""
    serves = serving(one) & np.array(one["computed"])[:, None]
    return np.asarray(serves[:, serves.sum(0) > 1].any(1))


def rows(found: Found) -> list[Row]:
    """The loss divided by the least one without superposition, which is the best at S = 0."""
    m = len(found[0]["slope"][0])
    shown = []
    for one in found:
        reference = None
        if one["sparsity"] == 0:
            reference = Published(1.0, ("D",), "pairs for the most important features, closed form",
                                  text="1")  # fmt: skip
        ratio = np.array([one["loss"], one["loss_stderr"]]) / one["dedicated"]
        several = int((serving(one).sum(0) > 1).sum())
        starts = np.array(one["starts"]) / one["dedicated"]
        shown.append(
            Row(f"S = {one['sparsity']:g}: loss / least loss without superposition",
                float(ratio[0]), reference, float(ratio[1]), digits=3,
                remark=f"{several} of {m} neurons serve several features; the {len(starts)} starts "
                f"end between {starts.min():.2f} and {starts.max():.2f}")
        )  # fmt: skip
    return shown


def table(found: Found) -> Table:
    """Counts of computed features, and of neurons by how many features they serve."""
    body = []
    for one in found:
        served = serving(one).sum(0)
        counts = (sum(one["computed"]), in_superposition(one).sum(), (served == 1).sum(),
                  (served > 1).sum(), served.max())  # fmt: skip
        body.append(
            [f"{one['sparsity']:g}", f"{one['loss']:.5f} ± {one['loss_stderr']:.5f}",
             f"{one['dedicated']:.5f}", *map(str, counts)]
        )  # fmt: skip
    header = ["S", "loss", "without superposition", "features computed",
              "of these in superposition", "neurons serving one", "several", "at most"]  # fmt: skip
    return "features and neurons", header, body


def section(results: Results) -> Section:
    sizes = {"n": 30, "m": 12, "starts": 8, "steps": 8000, "batch": 1024, "lr": 0.003}
    if results.quick:
        sizes |= {"starts": 2, "steps": 1000, "batch": 256}
    found = results.once("computation", train, sparsities=[0.0, 0.5, 0.8, 0.9, 0.97, 0.99], **sizes)
    n, m = np.shape(found[0]["slope"])
    caption = (
        f"What each of {m} neurons contributes to the slopes of the {n} absolute values, |W2 W1|, "
        "stacked by feature, the most important at the bottom; an absolute value needs two neurons "
        "with a slope of 1 each. "
        f"By sparsity S; importance {DECAY:g}^i; best of {sizes['starts']} starts, fresh inputs, "
        f"Adam, {sizes['steps']} steps of {sizes['batch']} inputs."
    )
    return Section(
        [Block(item_command("computation"), rows(found))],
        [table(found)],
        [Picture("computation", "computation", {"pictures": found}, caption)],
        [f"y' = ReLU(W2 ReLU(W1 x) + b) is trained on |x|. Elhage et al. have 100 features and 40 "
         f"neurons, here it is {n} and {m}. Without superposition the best is a pair of neurons "
         f"for each of the {m // 2} most important features, and the mean for the others: their "
         "importance times (1 - S)/3 - (1 - S)²/4. A feature is computed if alone, at ±1, it "
         f"raises its output by at least {COMPUTED:g}; a neuron serves it with a slope of at least "
         f"{SERVES:g}."],
    )  # fmt: skip
