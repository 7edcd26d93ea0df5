"""Items after Elhage et al. (2022), "Toy Models of Superposition": features against sparsity and
importance. As there, the member with the lowest loss stands for a run; its spread is shown, too."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kgon.data import WATCHED
from kgon.paper.jobs import Results
from kgon.paper.rows import Row
from kgon.paper.section import Block, Picture, Section, job_command
from kgon.record.run_directory import Run
from kgon.theory import geometry

Rows = list[dict[str, Any]]
Array = NDArray[Any]

ORTHOGONAL, ANTIPODAL = 0.3, 0.8
"""|cos| below which a pair counts as orthogonal, and -cos above which as antipodal."""

STATES = ("not represented", "dedicated dimension", "superposition")
"""What may become of the last feature, for which there is no dimension."""
UNDECIDED, MARGIN = "undecided", 2.0
"""The state is undecided if the best start with another state is within MARGIN standard errors."""


def final_weights(run: Run) -> tuple[Array, Array]:
    """W (n_members, n_hidden, n_features) and b (n_members, n_features) at the end."""
    weights = run.weights()
    return weights["W"][-1], weights["b"][-1]


def best_member(run: Run) -> int:
    """The index of the member with the lowest last loss in the table `loss`.

    Its `final_loss` is on other inputs, so it is not biased by this choice.
    """
    assert run.loss is not None
    losses = run.loss["loss"].to_numpy()[-len(run.members) :]
    return int(np.argmin(np.where(np.isnan(losses), np.inf, losses)))


def sparsity(run: Run) -> float:
    return float(run.config["data"]["sparsity"])


def best_weights(runs: Iterable[Run]) -> dict[str, Any]:
    """The best member of each run, in order of sparsity, and results of all members."""
    return {"pictures": [_picture(run) for run in sorted(runs, key=sparsity)]}


def _picture(run: Run) -> dict[str, Any]:
    W, b = final_weights(run)
    at = best_member(run)
    return {
        "sparsity": run.config["data"]["sparsity"],
        "best": at,
        "W": W[at].tolist(),
        "b": b[at].tolist(),
        "dimensionality": geometry.dimensionality(torch.from_numpy(W[at])).tolist(),
        "loss": run.members[at]["final_loss"],
        "loss_stderr": run.members[at]["loss_stderr"],
        "starts": {
            "loss": [row["final_loss"] for row in run.members],
            "represented": [row["features_represented"] for row in run.members],
            "per_feature": (W.shape[1] / (W**2).sum((1, 2))).tolist(),
        },
    }


def _starts(picture: Mapping[str, Any]) -> str:
    """The loss of the best start, and how many features each start ends with, in words."""
    ends = Counter(int(k) for k in picture["starts"]["represented"])
    return (
        f"loss {picture['loss']:.5f} ± {picture['loss_stderr']:.5f}; of {ends.total()} starts "
        + ", ".join(f"{ends[k]} end with {k}" for k in sorted(ends))
        + f", at losses up to {max(picture['starts']['loss']):.5f}"
    )


def polygon_rows(data: Mapping[str, Any]) -> list[Row]:
    """How many features are represented at each sparsity; Elhage et al. show this for 5 in 2
    dimensions."""
    expected = {0.0: "two, orthogonal", 0.8: "four, in antipodal pairs", 0.9: "five, a pentagon"}
    rows = []
    for picture in data["pictures"]:
        represented = geometry.represented(torch.tensor(picture["W"], dtype=torch.float64))
        known = expected.get(picture["sparsity"]) if len(represented) == 5 else None
        rows.append(
            Row(f"features represented of {len(represented)}, sparsity {picture['sparsity']:g}",
                float(represented.sum()), digits=0,
                remark=f"Elhage et al. picture {known}; " * bool(known) + _starts(picture))
        )  # fmt: skip
    return rows


def dimension_rows(data: Mapping[str, Any]) -> list[Row]:
    """Dimensions per feature, m / |W|^2, and features in antipodal pairs."""
    rows = []
    for picture in data["pictures"]:
        W, D = np.array(picture["W"]), np.array(picture["dimensionality"])
        rows.append(
            Row(f"dimensions per feature m / |W|², sparsity {picture['sparsity']:g}",
                len(W) / float((W**2).sum()), digits=3,
                remark=f"{(D > 0.1).sum()} of {len(D)} features represented, {_halves(D)} with "
                f"dimensionality 1/2 ± 0.05; {_starts(picture)}")
        )  # fmt: skip
    return rows


def _halves(dimensionality: Array) -> int:
    """How many features have dimensionality 1/2, as in an antipodal pair."""
    return int((np.abs(dimensionality - 0.5) < 0.05).sum())


def phase_change(runs: Iterable[Run]) -> dict[str, Any]:
    """What becomes of the last feature in the best member, with a dimension fewer than features.

    The feature is in superposition if the squared projections of the other columns on it sum to
    more than the square of a represented feature's least length. `agree` counts the members with
    the same state as the best one.
    """
    cells = []
    for run in runs:
        W = torch.from_numpy(final_weights(run)[0])
        last = geometry.represented(W)[:, -1]
        shared = last & (geometry.interference(W)[:, -1] > geometry.REPRESENTED**2)
        state = torch.where(shared, 2, torch.where(last, 1, 0)).tolist()
        at = best_member(run)
        best, loss = state[at], [row["final_loss"] for row in run.members]
        other = min((v for v, s in zip(loss, state, strict=True) if s != best), default=math.inf)
        decided = other - loss[at] > MARGIN * run.members[at]["loss_stderr"]
        relative = [float(x) for x in run.config["model"]["importance"]]
        cells.append({"sparsity": sparsity(run), "importance": relative[-1] / relative[0],
                      "state": STATES[best] if decided else UNDECIDED,
                      "agree": state.count(best)})  # fmt: skip
    cells.sort(key=lambda c: (c["importance"], c["sparsity"]))
    return {"n_features": W.shape[-1], "members": len(W), "cells": cells}


def phase_change_rows(data: Mapping[str, Any]) -> list[Row]:
    """The least sparsity at which the last feature is in superposition, for each importance."""
    rows = []
    for importance in dict.fromkeys(cell["importance"] for cell in data["cells"]):
        own = [c for c in data["cells"] if c["importance"] == importance]
        shared = [c["sparsity"] for c in own if c["state"] == "superposition"]
        alone = [c for c in own if c["state"] != "superposition"]
        rows.append(
            Row(f"{data['n_features']} features, least sparsity with superposition, relative "
                f"importance {importance:g}",
                min(shared) if shared else None, digits=2,
                text=None if shared else "none of those tried",
                remark="at others: " + ", ".join(sorted({c["state"] for c in alone})) if alone else "")
        )  # fmt: skip
    return rows


def learning_dynamics(run: Run) -> dict[str, Any]:
    """The dimensionality of each feature, and the loss, along the training of the best member."""
    weights, at = run.weights(), best_member(run)
    assert run.loss is not None
    step = np.unique(run.loss["step"].to_numpy())
    W = torch.from_numpy(weights["W"][:, at])
    return {
        "step": weights["step"].tolist(),
        "dimensionality": geometry.dimensionality(W).tolist(),
        "represented": geometry.represented(W).tolist(),
        "loss_step": step.tolist(),
        "loss": run.loss["loss"].to_numpy().reshape(len(step), -1)[:, at].tolist(),
        "sparsity": sparsity(run),
        "n_hidden": W.shape[-2],
    }


JUMP, WITHIN = 0.2, 1.25
"""A jump is a change of D by JUMP or more while the step grows by a factor WITHIN."""


def dynamics_rows(data: Mapping[str, Any]) -> list[Row]:
    """How many features jump in dimensionality while they are represented."""
    step, D = np.array(data["step"], dtype=float), np.array(data["dimensionality"])
    shown = np.array(data["represented"])
    jumps = []
    for i in range(D.shape[1]):
        changes = [
            (abs(D[later, i] - D[at, i]), step[at])
            for at in np.flatnonzero(shown[:, i])
            for later in [np.searchsorted(step, WITHIN * step[at], side="right") - 1]
        ]
        if changes and max(changes)[0] >= JUMP:
            jumps.append(max(changes)[1])
    return [
        Row(f"features of {D.shape[1]} whose dimensionality jumps by {JUMP:g} or more within a "
            f"factor {WITHIN:g} of steps", float(len(jumps)), digits=0,
            remark=f"from steps {min(jumps):.0f} to {max(jumps):.0f}" if jumps else ""),
        Row("features represented at the end", float(shown[-1].sum()), digits=0,
            remark=f"{_halves(D[-1])} with dimensionality 1/2 ± 0.05"),
    ]  # fmt: skip


def feature_sparsity(run: Run) -> dict[str, Any]:
    """Features that differ in sparsity: the best member, and the column lengths of all members."""
    W, _ = final_weights(run)
    return _picture(run) | {"length": np.linalg.norm(W, axis=1).tolist()}


def feature_sparsity_rows(data: Mapping[str, Any]) -> list[Row]:
    """How often the represented features are active, and how often the others."""
    active = 1 - np.array(data["sparsity"])
    shown = np.array(data["length"][data["best"]]) > geometry.REPRESENTED
    return [
        Row(f"features represented of {len(active)} in {len(data['W'])} dimensions",
            float(shown.sum()), digits=0,
            remark=f"active with probability {active[shown].min():.2g} to "
            f"{active[shown].max():.2g}, the others {active[~shown].min():.2g} to "
            f"{active[~shown].max():.2g}; " * bool((~shown).any()) + _starts(data)),
    ]  # fmt: skip


def pairs(runs: Mapping[str, Run]) -> dict[str, Any]:
    """The cosines between the two features of pairs, and the best member, for each kind of pair."""
    kinds = []
    for name, run in runs.items():
        W, b = final_weights(run)
        represented = geometry.represented(torch.from_numpy(W)).numpy()
        direction = W / np.linalg.norm(W, axis=1, keepdims=True)
        cosines = (direction[..., ::2] * direction[..., 1::2]).sum(1).T
        both = (represented[:, ::2] & represented[:, 1::2]).T
        at = best_member(run)
        kinds.append({"kind": name, "cosines": cosines[both].tolist(), "W": W[at].tolist(),
                      "b": b[at].tolist(), "members": len(W),
                      "sparsity": sparsity(run)})  # fmt: skip
    return {"kinds": kinds}


def pair_rows(kind: Mapping[str, Any]) -> list[Row]:
    """The shares of a kind of pairs that are orthogonal, and antipodal."""
    cosines = np.array(kind["cosines"])
    n = len(cosines)
    described = {"correlated": "orthogonal", "anticorrelated": "antipodal"}[kind["kind"]]
    shares = {
        "orthogonal": float((np.abs(cosines) < ORTHOGONAL).mean()),
        "antipodal": float((cosines < -ANTIPODAL).mean()),
    }
    return [
        Row(f"{kind['kind']} pairs that are {name}, of {n}", share, digits=2,
            stderr=math.sqrt(max(share * (1 - share), 0.25 / n) / n),
            remark="what Elhage et al. describe" if name == described else "")
        for name, share in shares.items()
    ]  # fmt: skip


_BELOW = (
    "Below: every start's loss, weighted by importance, against the number of features that it "
    "represents; filled: the best."
)


def _protocol(run: Run) -> str:
    config = run.config
    optimizer = config["optimizer"]["_target_"].rpartition(".")[2]
    return (
        f"{len(run.members)} starts, fresh inputs, {optimizer}, {config['trainer']['max_steps']} steps of "
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
                    f"features of importance 0.9^i, best of {_protocol(narrow[0])}. {_BELOW}"),
            Picture("superposition_weights", "grams", grams,
                    "WᵀW and b, and the dimensionality D of each feature, by sparsity S; 20 features "
                    f"of importance 0.7^i in 5 dimensions, best of {_protocol(wide[0])}. {_BELOW}"),
        ],
    )  # fmt: skip


def phase_change_section(results: Results) -> Section:
    blocks, pictures = [], []
    for name, setting in (("phase_change", "second of two features in one dimension"),
                          ("phase_change_3", "third of three features in two dimensions")):  # fmt: skip
        found = results.all(name)
        data = phase_change(found)
        caption = (
            f"What becomes of the {setting}, by sparsity S and importance relative to the others; "
            f"best of {_protocol(found[0])}. Numbers: of how many starts the same is true. "
            f"{UNDECIDED.capitalize()}: the losses of different outcomes are within {MARGIN:g} "
            "standard errors."
        )
        blocks.append(Block(job_command(name, results), phase_change_rows(data)))
        pictures.append(Picture(name, "phase_change", data, caption))
    return Section(blocks, pictures=pictures)


def dynamics_section(results: Results) -> Section:
    run = results.one("learning_dynamics")
    data = learning_dynamics(run)
    caption = (
        f"Loss (estimate from {WATCHED:,} inputs) and dimensionality D of each of "
        f"{len(data['dimensionality'][0])} equally important features in {data['n_hidden']} dimensions along training, S = "
        f"{data['sparsity']:g}; best of {_protocol(run)}. Dotted as in the figure above."
    )
    return Section(
        [Block(job_command("learning_dynamics", results), dynamics_rows(data))],
        pictures=[Picture("learning_dynamics", "learning_dynamics", data, caption)],
    )


def feature_sparsity_section(results: Results) -> Section:
    run = results.one("feature_sparsity")
    data = feature_sparsity(run)
    caption = (
        "Length of each column of W, and dimensionality D, against the probability 1 - S with which "
        "the feature is active: 20 equally important features in 5 dimensions that differ in "
        f"sparsity only; filled: best of {_protocol(run)}, pale: the other starts."
    )
    return Section(
        [Block(job_command("feature_sparsity", results), feature_sparsity_rows(data))],
        pictures=[Picture("feature_sparsity", "feature_sparsity", data, caption)],
    )


def dimensions_section(results: Results) -> Section:
    found = results.all("superposition_dimensions")
    data = best_weights(found)
    caption = (
        "Dimensionality D of each of 40 equally important features in 10 dimensions against "
        f"1 / (1 - S), and dimensions per feature; best of {_protocol(found[0])}. Dotted: 1/2 is an "
        "antipodal pair, 2/3 a triangle, 2/5 a pentagon, 3/4 a tetrahedron. Pale squares: the other "
        "starts."
    )
    return Section(
        [Block(job_command("superposition_dimensions", results), dimension_rows(data))],
        pictures=[Picture("superposition_dimensions", "dimensions", data, caption)],
    )


def pairs_section(results: Results) -> Section:
    data = pairs({kind: results.one(kind) for kind in ("correlated", "anticorrelated")})
    blocks = [
        Block(job_command(entry["kind"], results), pair_rows(entry)) for entry in data["kinds"]
    ]
    caption = (
        "Pairs a, a' and b, b' of features that are active together (left) or never together "
        "(right): the best member's columns, and the cosine between the two features of every "
        f"represented pair; 4 features in 2 dimensions, {_protocol(results.one('correlated'))}."
    )
    return Section(blocks, pictures=[Picture("pairs", "pairs", data, caption)])
