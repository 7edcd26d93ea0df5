"""Which transitions of training follow an edge of the atlas's graph, and how close to the pass.

The graph has the atlas's phases as vertices and its passes (saddles of index 1) as edges.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kgon.compiled.exact_loss import descent
from kgon.landscape.passes import Crossing, crossings, distances, passes
from kgon.landscape.search import DESCENT_SLOPE, DESCENT_STEPS
from kgon.paper.jobs import Results
from kgon.paper.rows import Row, Table, share_stderr
from kgon.paper.section import Block, Picture, Section, job_command
from kgon.record import run_directory
from kgon.record.tables import LEVEL_TOLERANCE
from kgon.theory.atlas import built
from kgon.theory.critical import CriticalPoint, parse_label
from kgon.theory.loss import population_loss
from kgon.theory.phases import OTHER, phase_codes, phase_labels

DESCENTS, ASIDE = 100, 0.01
"""Descents from each phase that runs leave, and the standard deviation of their displacement from
it, which is that of the starts of training."""
_POINTS = 40
"""Points of a path in the figure."""
_CONTROLS = 60
"""The largest number of runs that stay in a phase, which are controls for those that leave it."""

Found = Mapping[str, Any]


def transitions(folder: str) -> dict[str, Any]:
    """A run's transitions, the edges that they follow, and where descents from their starts end."""
    run = run_directory.load(Path(folder))
    weights = run.weights()
    steps, W, b = (torch.from_numpy(weights[name]) for name in ("step", "W", "b"))
    atlas = built(b.shape[-1], W.shape[-2])
    ways = passes(atlas)
    taken = crossings(steps, W, b, ways)
    labels = np.array(phase_labels(b.shape[-1], W.shape[-2]))[phase_codes(W, b).numpy()]
    edges = []
    for way in ways:
        own = [crossing for crossing in taken if crossing.way == way.point.label]
        for start, end in {(crossing.start, crossing.end) for crossing in own}:
            point = way.point
            edges.append({
                "way": point.label, "from": start, "to": end, "loss": point.loss,
                "growth": -1 / (float(point.eigenvalues[0]) * float(run.config["optimizer"]["lr"])),
                "phases": {p: [float(distances(point, atlas[p].W[None], atlas[p].b[None])),
                               atlas[p].loss] for p in (start, end)},
                "paths": [_path(point, c, labels, steps, W, b) for c in own if c.start == start],
                "staying": _staying(point, start, labels, W, b),
            })  # fmt: skip
    return {
        "members": b.shape[1],
        "snapshots": len(steps),
        "crossings": [asdict(crossing) for crossing in taken],
        "edges": sorted(edges, key=lambda edge: -len(edge["paths"])),
        "descents": {start: _descents(atlas[start]) for start in {c.start for c in taken}},
    }


def _path(
    point: CriticalPoint, crossing: Crossing, labels: NDArray[Any], steps: Tensor, W: Tensor,
    b: Tensor,
) -> dict[str, Any]:  # fmt: skip
    """The path of a run from one phase to the other, past the point nearest to the pass.

    From the nearest point to the arrival in the next phase it takes some time T. The path begins T
    before the nearest point, or when the run comes into the first phase if that is later, and ends
    T after the arrival.
    """
    assert crossing.nearest is not None
    member, lag = crossing.member, crossing.arrived - crossing.nearest
    left, at = (int(torch.searchsorted(steps, s)) for s in (crossing.left, crossing.nearest))
    since = int(steps[_since(labels[: left + 1, member], crossing.start)])
    ends = max(crossing.nearest - lag, since), crossing.arrived + lag
    wanted = torch.cat([torch.linspace(*ends, _POINTS), steps[at : at + 1]])
    kept = torch.unique(torch.searchsorted(steps, wanted).clamp(max=len(steps) - 1))
    path = W[kept, member].double(), b[kept, member].double()
    away = distances(point, *path, int((kept == at).nonzero()))
    return {"member": member, "distance": away.tolist(), "loss": population_loss(*path).tolist()}


def _since(labels: NDArray[Any], phase: str) -> int:
    """The index of the first label of the stay in a phase that lasts to the end of the labels."""
    elsewhere = ~np.isin(labels, (phase, OTHER))
    left = int(elsewhere.nonzero()[0].max(initial=-1))
    return left + 1 + int((labels[left + 1 :] == phase).argmax())


def _staying(
    point: CriticalPoint, phase: str, labels: NDArray[Any], W: Tensor, b: Tensor
) -> list[float]:
    """The least distance from the pass of each run that stays in a phase to the end."""
    found = []
    for member in np.flatnonzero(labels[-1] == phase)[:_CONTROLS]:
        since = _since(labels[:, member], phase)
        path = W[since:, member].double(), b[since:, member].double()
        found.append(float(distances(point, *path, len(path[1]) - 1).min()))
    return found


def _descents(start: CriticalPoint) -> dict[str, int]:
    """How many descents from displaced copies of the phase end in which phase."""
    rng = torch.Generator().manual_seed(0)
    W, b = (
        x + ASIDE * torch.randn(DESCENTS, *x.shape, generator=rng, dtype=torch.float64)
        for x in (start.W, start.b)
    )
    W, b, *_ = descent(W, b, DESCENT_SLOPE, DESCENT_STEPS)
    names = np.array(phase_labels(start.n_features, start.n_hidden))[phase_codes(W, b).numpy()]
    return {str(name): int((names == name).sum()) for name in np.unique(names)}


def by_kind(found: Found) -> list[tuple[tuple[str, str, str], list[dict[str, Any]]]]:
    """Each (from, to, pass) with its transitions, most frequent first."""
    kinds = defaultdict(list)
    for crossing in found["crossings"]:
        kinds[crossing["start"], crossing["end"], crossing["way"]].append(crossing)
    return sorted(kinds.items(), key=lambda kind: -len(kind[1]))


def _of(found: Found, start: str, end: str) -> dict[str, Any]:
    """The edge between two phases, with the least distance from the pass of each run along it
    (`least`), the distance of the phase that they leave (`away`), and how many runs, leaving and
    staying, come closer than half of this."""
    (edge,) = (e for e in found["edges"] if (e["from"], e["to"]) == (start, end))
    away = float(edge["phases"][start][0])
    least = np.array([
        c["distance"] for c in found["crossings"] if (c["start"], c["end"]) == (start, end)
    ])  # fmt: skip
    close, staying_close = (
        sum(distance < away / 2 for distance in some) for some in (least, edge["staying"])
    )
    return {**edge, "away": away, "least": least, "close": close, "staying_close": staying_close}


def rows(found: Found) -> list[Row]:
    """How many transitions follow an edge, and how close to the pass they come."""
    total = len(found["crossings"])
    kinds = by_kind(found)
    along = sum(len(own) for (_, _, way), own in kinds if way)
    others = [(start, len(own)) for (start, _, way), own in kinds if not way]
    saddles = sum(n for start, n in others if all(parse_label(start)[1:]))
    shown = [
        Row(f"transitions between phases, of {found['members']:,} runs", float(total), digits=0,
            remark=f"by the labels of {found['snapshots']:,} snapshots of each run"),
        Row("share of these along an edge of the graph: a pass joins the two phases",
            along / max(total, 1), text=f"{along} of {total}"),
        Row("share of the others that leave a saddle, from which the loss falls without a pass",
            saddles / max(total - along, 1), text=f"{saddles} of {total - along}",
            remark="4-gons with σ and φ of at least 1"),
    ]  # fmt: skip
    for (start, end, way), own in kinds:
        if not way:
            continue
        edge = _of(found, start, end)
        least, staying, close = edge["least"], edge["staying"], edge["close"]
        lag = np.median([c["arrived"] - c["nearest"] for c in own]) / edge["growth"]
        remark = (
            f"{close} of {len(own)}; {start} is at {edge['away']:.3f}, the least distance of runs "
            f"has the median {np.median(least):.3f} ({least.min():.3f} to {least.max():.3f}); "
            f"it is reached {lag:.1f} (median) e-folding times of the pass before {end} is"
        )
        if staying:
            remark += (
                f"; of {len(staying)} runs that stay in {start} {edge['staying_close']} come "
                f"as close, median {np.median(staying):.3f}"
            )
        shown.append(
            Row(f"{start} → {end}: share of runs that come closer to {way} than half the distance "
                f"of {start}", close / len(own), stderr=share_stderr(close, len(own)), digits=2,
                remark=remark)
        )  # fmt: skip
    return shown


def table(found: Found) -> Table:
    """Transitions by kind."""
    body = []
    for (start, end, way), own in by_kind(found):
        falls = found["descents"][start].get(end, 0)
        cells = ["-"] * 5
        if way:
            edge = _of(found, start, end)
            least = edge["least"]
            cells = [
                f"{edge['loss'] - edge['phases'][start][1]:.5f}",
                f"{edge['away']:.3f}",
                f"{np.median(least):.3f} ({least.min():.3f} .. {least.max():.3f})",
                f"{edge['close']} of {len(least)}",
                f"{edge['staying_close']} of {len(edge['staying'])}",
            ]
        body.append([f"{start} → {end}", str(len(own)), way or "none", *cells,
                     f"{falls} of {DESCENTS}"])  # fmt: skip
    header = ["from → to", "runs", "pass", "its barrier", "distance of `from` from it",
              "least distance of runs, median (range)", "closer than half of `from`",
              "runs that stay in `from`, as close",
              "descents from `from` that end at `to`"]  # fmt: skip
    return "transitions of training, and the passes of the atlas", header, body


def section(results: Results) -> Section:
    (folder,) = results.folders["passes"]
    found = results.once("passes", transitions, folder=str(folder))
    caption = (
        "Population loss (summed over coordinates) against the distance from the pass, relative to "
        "the pass's norm and up to rotations and permutations, of every run before and after it "
        "comes closest to it; c = 6, r = 2, SGD from 4-gons. Cross: the pass, a saddle of index 1; "
        "polygons: the two phases."
    )
    return Section(
        [Block(job_command("passes", results), rows(found))],
        [table(found)],
        [Picture("passes", "approach", {"edges": found["edges"]}, caption)]
        if found["edges"]
        else [],
        ["The graph has the atlas's phases as vertices and its saddles of index 1 as edges "
         "([the atlas](../atlas.md#passes-and-rates)). Half of the distance between the pass and "
         "the phase that is left is the measure of close. The barriers are below the tolerance of "
         f"critical levels ({LEVEL_TOLERANCE:g}), so a plateau at a pass cannot be told from one "
         "at the phase by its loss.",
         "No pass joins two different 4-gons: they are kinks of the loss, where biases are 0. One "
         "with σ and φ of at least 1 is itself a saddle: gradient descent from it, displaced by "
         f"{ASIDE:g}, leaves it for the phases of the last column, or for lower ones. From those "
         "with φ and no σ descent does not move, and runs leave them along flat directions, by the "
         "noise of SGD."],
    )  # fmt: skip
