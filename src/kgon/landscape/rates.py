"""How fast a phase is left: the Eyring-Kramers law, and measured escapes.

**Langevin dynamics** dw = -grad L dt + sqrt(2 T) dB at the temperature T leaves the phase of a
minimum over a pass s at the rate (Kramers 1940; Berglund 2013, Sec. 2)

    k_s = (N_s / N) (V_s / V) (|h_-| / 2 pi) sqrt(prod' h_i / prod' |h_i^s|) exp(-(L_s - L) / T)

to leading order in T. h and h^s are the nonzero eigenvalues of the Hessians, h_- the negative one.
The minimum and the pass are orbits of rotations and permutations: V and V_s are the volumes of the
orbits of SO(n_hidden), and N_s / N is the number of passes for each minimum, the ratio of the
orders of their symmetry groups.

**Escapes** are counted by quenching: chains start at the minimum, and after each interval gradient
descent tells which phase each is in. With x chains out of y leaving per interval tau, the rate is
-log(1 - x / y) / tau, with a relative standard error of 1 / sqrt(x). Chains that have left are not
followed further, and the first interval is not counted.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kgon import streams
from kgon.compiled.exact_loss import descent, population_kernel
from kgon.landscape.passes import Pass
from kgon.landscape.search import match
from kgon.theory.atlas import Atlas
from kgon.theory.critical import CriticalPoint
from kgon.theory.shapes import SAME, symmetry

STEP = 0.1
"""Time step of the simulation times the largest eigenvalue. The variance along the stiffest
direction is then 1 / (1 - 0.1 / 2), 5% too large, along others less."""
INTERVAL = 6.0
"""Time between two quenches, in units of 1 / (smallest nonzero eigenvalue)."""
QUENCH_SLOPE = 1e-6
QUENCH_STEPS = 20_000


@dataclass(frozen=True)
class Escape:
    """A rate of leaving a phase at one temperature.

    Attributes:
        start: label of the phase that is left.
        end: label of the phase that follows.
        temperature (loss): T.
        barrier (loss): height of the lowest pass from start to end; NaN if the atlas has none.
        predicted (1 / gradient flow's time): Eyring-Kramers rate, summed over the passes that join
            the two.
        measured (1 / gradient flow's time): measured rate.
        error (1 / gradient flow's time): standard error of the measured rate.
        n_escapes: how many chains left this way.
    """

    start: str
    end: str
    temperature: float
    barrier: float
    predicted: float
    measured: float
    error: float
    n_escapes: int


def eyring_kramers(minimum: CriticalPoint, way: Pass, temperature: float) -> float:
    """The rate of leaving the phase of a minimum over one pass (see the module docstring).

    Both must be isolated up to rotations: `check_start` checks the minimum; for other passes the
    rate is NaN.
    """
    saddle = way.point
    if not _isolated(saddle):
        return math.nan
    h, h_saddle = (p.eigenvalues[p.eigenvalues != 0] for p in (minimum, saddle))
    determinants = math.exp(0.5 * float(h.log().sum() - h_saddle.abs().log().sum()))
    orbits = _order(minimum) / _order(saddle) * _volume(saddle.W) / _volume(minimum.W)
    attempts = orbits * float(-h_saddle[0]) / (2 * math.pi) * determinants
    return attempts * math.exp(-(saddle.loss - minimum.loss) / temperature)


def check_start(point: CriticalPoint) -> None:
    """ValueError unless this is a minimum whose only flat directions are rotations. A phase with
    dead columns is unbounded in their directions and has no rate."""
    if point.index != 0 or not _isolated(point):
        raise ValueError(f"must be a minimum without dead columns, not {point.label}")


def _isolated(point: CriticalPoint) -> bool:
    """Whether rotations are the only directions in which the loss does not change."""
    flat = point.n_hidden * (point.n_hidden - 1) // 2
    return point.rank is not None and point.W.numel() + point.b.numel() - point.rank == flat


def _order(point: CriticalPoint) -> int:
    """The order of the symmetry group, permutations of equal dead columns included."""
    order, _ = symmetry(point.W, point.b)
    dead = point.b[point.W.abs().amax(-2) <= SAME]
    for count in torch.unique((dead / SAME).round(), return_counts=True)[1].tolist():
        order *= math.factorial(count)
    return order


def _volume(W: Tensor) -> float:
    """The volume of the orbit of SO(n_hidden) relative to that of the group: the square root of the
    Gram determinant of the tangent vectors X W, X the antisymmetric generators."""
    m = len(W)
    tangents = []
    for i in range(m):
        for j in range(i):
            X = W.new_zeros(m, m)
            X[i, j], X[j, i] = 1.0, -1.0
            tangents.append((X @ W).flatten())
    if not tangents:
        return 1.0
    gram = torch.stack(tangents) @ torch.stack(tangents).mT
    return float(torch.linalg.det(gram).sqrt())


def escapes(
    start: CriticalPoint,
    atlas: Atlas,
    ways: Sequence[Pass],
    temperatures: Sequence[float],
    *,
    n_chains: int,
    n_intervals: int,
    seed: int,
) -> list[Escape]:
    """Predicted and measured rates from one minimum to every phase that chains leave it for.

    Args:
        ways: the passes of the atlas.
        temperatures: T of each experiment.
        n_chains: chains at each temperature.
        n_intervals: most intervals at each temperature.
    """
    found = []
    for i, temperature in enumerate(temperatures):
        counts, trials, tau = _simulate(
            start, atlas, temperature, n_chains=n_chains, n_intervals=n_intervals,
            keys=streams.member_keys(seed, range(i * n_chains, (i + 1) * n_chains), "escapes"),
        )  # fmt: skip
        neighbours = {end for way in ways if start.label in way.ends for end in way.ends}
        for end in sorted({*counts, *neighbours} - {start.label, ""}):
            joining = [way for way in ways if set(way.ends) == {start.label, end}]
            barriers = [way.point.loss - start.loss for way in joining]
            n = counts.get(end, 0)
            rate = abs(math.log1p(-n / trials)) / tau if n < trials else math.inf
            found.append(
                Escape(
                    start.label, end, temperature, min(barriers, default=math.nan),
                    sum(eyring_kramers(start, way, temperature) for way in joining),
                    rate, rate / math.sqrt(n) if n else 1 / (trials * tau), n,
                )
            )  # fmt: skip
    return found


def _simulate(
    start: CriticalPoint, atlas: Atlas, temperature: float, *, n_chains: int, n_intervals: int,
    keys: streams.Keys,
) -> tuple[Counter[str], int, float]:  # fmt: skip
    """How many chains left for each phase, the number of intervals summed over chains, and their
    length."""
    h = start.eigenvalues
    dt, tau = STEP / float(h.max()), INTERVAL / float(h[h > 0].min())
    n_steps = math.ceil(tau / dt)
    kernel = population_kernel(start.n_features)
    W = start.W.expand(n_chains, 1, *start.W.shape).clone()
    b = start.b.expand(n_chains, 1, -1).clone()
    centre = start.W.unsqueeze(0).clone(), start.b.unsqueeze(0).clone()
    inside = torch.ones(n_chains, dtype=torch.bool)
    counts: Counter[str] = Counter()
    trials = 0
    for interval in range(n_intervals):
        # Langevin's step is w - eps / (2 T) grad + sqrt(eps) noise: a time of eps / (2 T).
        kernel.langevin(
            W, b, 1, keys=keys.reshape(n_chains, 1), centre=centre,
            nbeta=W.new_tensor([1 / temperature]), lr=W.new_tensor([2 * temperature * dt]),
            localization=W.new_zeros(1), first_step=interval * n_steps, thin=n_steps,
        )  # fmt: skip
        end_W, end_b, *_ = descent(W[:, 0], b[:, 0], QUENCH_SLOPE, QUENCH_STEPS)
        labels = match(end_W, end_b, torch.zeros(n_chains, dtype=torch.bool), atlas)
        out = torch.tensor([label not in (start.label, "") for label in labels])
        if interval:
            trials += int(inside.sum())
            counts.update(labels[j] for j in torch.nonzero(inside & out).flatten().tolist())
        inside &= ~out
        if int(inside.sum()) < n_chains // 10:
            break
    return counts, max(trials, 1), n_steps * dt
