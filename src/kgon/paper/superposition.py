"""Items after Elhage et al. (2022), "Toy Models of Superposition": features against sparsity and
importance. Of each run the member with the lowest loss is shown, as there."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kgon.paper.rows import Row
from kgon.record.run_directory import Run

Rows = list[dict[str, Any]]
Array = NDArray[Any]

REPRESENTED = 0.5
"""Length of a column from which its feature counts as represented."""
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


def dimensionality(W: Array) -> Array:
    """D_i = |W_i|^2 / sum_j (W_i . W_j / |W_i|)^2 of each feature, (..., n_features): 1 for a
    dimension of its own, 1/2 in an antipodal pair, 0 for a feature that is not there."""
    gram = np.swapaxes(W, -1, -2) @ W
    square = np.diagonal(gram, axis1=-2, axis2=-1)
    shared = (gram**2).sum(-1)
    return np.divide(square**2, shared, out=np.zeros_like(square), where=shared > 0)


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
                "dimensionality": dimensionality(W[at]).tolist(),
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
        length = np.linalg.norm(np.array(picture["W"]), axis=0)
        n = int((length > REPRESENTED).sum())
        known = expected.get(picture["sparsity"]) if len(length) == 5 else None
        rows.append(
            Row(f"features represented of {len(length)}, sparsity {picture['sparsity']:g}",
                float(n), digits=0, remark=f"Elhage et al. picture {known}" if known else "")
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
        first, second = np.abs(W[best_member(run), 0]) > REPRESENTED
        state = {
            (True, True): "superposition",
            (True, False): "not represented",
            (False, True): "dedicated dimension",
            (False, False): "neither",
        }[bool(first), bool(second)]
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
        length = np.linalg.norm(W, axis=1)
        cosines = []
        for i in range(0, W.shape[2], 2):
            present = (length[:, i] > REPRESENTED) & (length[:, i + 1] > REPRESENTED)
            product = (W[:, :, i] * W[:, :, i + 1]).sum(1) / (length[:, i] * length[:, i + 1])
            cosines += product[present].tolist()
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
