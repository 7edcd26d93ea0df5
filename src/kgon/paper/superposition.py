"""Items after Elhage et al. (2022), "Toy Models of Superposition": features against sparsity and
importance. Of each run the member with the lowest loss is shown, as there."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kgon.paper.jobs import Results
from kgon.paper.rows import Row
from kgon.paper.section import Block, Picture, Section, job_command
from kgon.record.run_directory import Run
from kgon.theory import geometry

Rows = list[dict[str, Any]]
Array = NDArray[Any]

ORTHOGONAL, ANTIPODAL = 0.3, 0.8
"""|cos| below which a pair counts as orthogonal, and -cos above which as antipodal."""


def final_weights(run: Run) -> tuple[Array, Array]:
    """W (n_members, n_hidden, n_features) and b (n_members, n_features) at the end."""
    weights = run.weights()
    return weights["W"][-1], weights["b"][-1]


def best_member(run: Run) -> int:
    """The place of the member with the lowest final loss."""
    losses = [math.inf if r["final_loss"] is None else r["final_loss"] for r in run.members]
    return int(np.argmin(losses))


def sparsity(run: Run) -> float:
    return float(run.config["data"]["sparsity"])


def best_weights(runs: Iterable[Run]) -> dict[str, Any]:
    """The best member of each run, by sparsity."""
    pictures = []
    for run in sorted(runs, key=sparsity):
        W, b = final_weights(run)
        at = best_member(run)
        pictures.append(
            {
                "sparsity": sparsity(run),
                "W": W[at].tolist(),
                "b": b[at].tolist(),
                "dimensionality": geometry.dimensionality(torch.from_numpy(W[at])).tolist(),
                "loss": run.members[at]["final_loss"],
                "members": len(run.members),
            }
        )
    return {"pictures": pictures}


def polygon_rows(data: Mapping[str, Any]) -> list[Row]:
    """How many features are represented at each sparsity; Elhage et al. show it for 5 in 2."""
    expected = {0.0: "two, orthogonal", 0.8: "four, in antipodal pairs", 0.9: "five, a pentagon"}
    rows = []
    for picture in data["pictures"]:
        represented = geometry.represented(torch.tensor(picture["W"], dtype=torch.float64))
        known = expected.get(picture["sparsity"]) if len(represented) == 5 else None
        rows.append(
            Row(f"features represented of {len(represented)}, sparsity {picture['sparsity']:g}",
                float(represented.sum()), digits=0,
                remark=f"Elhage et al. picture {known}" if known else "")
        )  # fmt: skip
    return rows


def dimension_rows(data: Mapping[str, Any]) -> list[Row]:
    """Dimensions per feature, m / |W|^2, and features in antipodal pairs."""
    rows = []
    for picture in data["pictures"]:
        W, D = np.array(picture["W"]), np.array(picture["dimensionality"])
        pairs = int((np.abs(D - 0.5) < 0.05).sum())
        rows.append(
            Row(f"dimensions per feature m / |W|², sparsity {picture['sparsity']:g}",
                len(W) / float((W**2).sum()), digits=3,
                remark=f"{int((D > 0.1).sum())} of {len(D)} features represented, {pairs} with "
                "dimensionality 1/2 ± 0.05")
        )  # fmt: skip
    return rows


def phase_change(runs: Iterable[Run]) -> dict[str, Any]:
    """One dimension for two features: what becomes of the second, in the best member."""
    cells = []
    for run in runs:
        W, _ = final_weights(run)
        first, second = geometry.represented(torch.from_numpy(W[best_member(run)])).tolist()
        state = {
            (True, True): "superposition",
            (True, False): "not represented",
            (False, True): "dedicated dimension",
            (False, False): "neither",
        }[first, second]
        relative = [float(x) for x in run.config["model"]["importance"]]
        cells.append({"sparsity": sparsity(run), "importance": relative[1] / relative[0],
                      "state": state})  # fmt: skip
    return {"cells": sorted(cells, key=lambda c: (c["importance"], c["sparsity"]))}


def phase_change_rows(data: Mapping[str, Any]) -> list[Row]:
    """From which sparsity on the two features share the dimension, for each importance."""
    rows = []
    for importance in dict.fromkeys(cell["importance"] for cell in data["cells"]):
        own = [c for c in data["cells"] if c["importance"] == importance]
        shared = [c["sparsity"] for c in own if c["state"] == "superposition"]
        alone = [c for c in own if c["state"] != "superposition"]
        rows.append(
            Row(f"least sparsity with superposition, relative importance {importance:g}",
                min(shared) if shared else None, digits=2,
                text=None if shared else "none of those tried",
                remark="below: " + ", ".join(sorted({c["state"] for c in alone})) if alone else "")
        )  # fmt: skip
    return rows


def pairs(runs: Mapping[str, Run]) -> dict[str, Any]:
    """The angle between the two features of a pair, by kind of pair: all members, and a picture."""
    kinds = []
    for name, run in runs.items():
        W, b = final_weights(run)
        represented = geometry.represented(torch.from_numpy(W)).numpy()
        direction = W / np.linalg.norm(W, axis=1, keepdims=True)
        cosines = []
        for i in range(0, W.shape[2], 2):
            cosine = (direction[:, :, i] * direction[:, :, i + 1]).sum(1)
            cosines += cosine[represented[:, i] & represented[:, i + 1]].tolist()
        at = best_member(run)
        kinds.append({"kind": name, "cosines": cosines, "W": W[at].tolist(), "b": b[at].tolist(),
                      "members": len(W), "sparsity": sparsity(run)})  # fmt: skip
    return {"kinds": kinds}


def pair_rows(data: Mapping[str, Any]) -> list[Row]:
    """Which shares of pairs are orthogonal and antipodal."""
    expected = {"correlated": "orthogonal", "anticorrelated": "antipodal"}
    rows = []
    for kind in data["kinds"]:
        cosines = np.array(kind["cosines"])
        shares = {
            "orthogonal": float((np.abs(cosines) < ORTHOGONAL).mean()),
            "antipodal": float((cosines < -ANTIPODAL).mean()),
        }
        for name, share in shares.items():
            likes = expected[kind["kind"]] == name
            rows.append(
                Row(f"{kind['kind']} pairs that are {name}, of {len(cosines)}", share, digits=2,
                    stderr=math.sqrt(max(share * (1 - share), 0.25 / len(cosines)) / len(cosines)),
                    remark="what Elhage et al. describe" if likes else "")
            )  # fmt: skip
    return rows


def _adam(run: Run) -> str:
    config = run.config
    return (
        f"{len(run.members)} members, fresh inputs, Adam, {config['trainer']['max_steps']} steps of "
        f"{config['batch_size']} inputs"
    )


def polygons_section(results: Results) -> Section:
    narrow = results.all("superposition")
    polygons = best_weights(narrow)
    wide = results.all("superposition_weights")
    grams = best_weights(wide)
    return Section(
        [Block(job_command("superposition", results), polygon_rows(polygons)),
         Block(job_command("superposition_weights", results), polygon_rows(grams))],
        pictures=[
            Picture("superposition", "polygons", polygons,
                    f"Columns of W in the plane (dashed: unit circle), WᵀW and b by sparsity S; 5 "
                    f"features of importance 0.9^i, best of {_adam(narrow[0])}."),
            Picture("superposition_weights", "grams", grams,
                    "WᵀW and b, and the dimensionality D of each feature, by sparsity S; 20 features "
                    f"of importance 0.7^i in 5 dimensions, best of {_adam(wide[0])}."),
        ],
    )  # fmt: skip


def phase_change_section(results: Results) -> Section:
    found = results.all("phase_change")
    data = phase_change(found)
    caption = (
        "What becomes of the second of two features in one dimension, by sparsity S and importance "
        f"relative to the first; best of {_adam(found[0])}."
    )
    return Section(
        [Block(job_command("phase_change", results), phase_change_rows(data))],
        pictures=[Picture("phase_change", "phase_change", data, caption)],
    )


def dimensions_section(results: Results) -> Section:
    found = results.all("superposition_dimensions")
    data = best_weights(found)
    caption = (
        "Dimensionality D of each of 40 equally important features in 10 dimensions against "
        f"1 / (1 - S), and dimensions per feature; best of {_adam(found[0])}. Dotted: 1/2 is an "
        "antipodal pair, 2/3 a triangle, 2/5 a pentagon, 3/4 a tetrahedron."
    )
    return Section(
        [Block(job_command("superposition_dimensions", results), dimension_rows(data))],
        pictures=[Picture("superposition_dimensions", "dimensions", data, caption)],
    )


def pairs_section(results: Results) -> Section:
    kinds = ("correlated", "anticorrelated")
    data = pairs({kind: results.one(kind) for kind in kinds})
    blocks = [
        Block(job_command(kind, results), pair_rows({"kinds": [entry]}))
        for kind, entry in zip(kinds, data["kinds"], strict=True)
    ]
    caption = (
        "Pairs a, a' and b, b' of features that are active together (left) or never together "
        "(right): the best member's columns, and the cosine between the two features of every "
        f"represented pair; 4 features in 2 dimensions, {_adam(results.one('correlated'))}."
    )
    return Section(blocks, pictures=[Picture("pairs", "pairs", data, caption)])
