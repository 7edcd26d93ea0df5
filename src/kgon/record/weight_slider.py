"""The slider over a run's snapshots: what `assets/report.js` draws, as JSON.

To keep pages small there is one member for each final phase, with three decimals of its parameters
at a share of its snapshots; the page says so.
"""

from collections import Counter
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from kgon.figures.style import phase_color
from kgon.figures.weights import DEAD, bias_colors, principal_axes
from kgon.record.drawing import Drawing
from kgon.record.loss_chart import Array, five_digits, json_script
from kgon.record.run_directory import Run
from kgon.record.tables import Member

_MEMBERS, _SNAPSHOTS = 6, 200


def weight_slider(run: Run, name: str) -> str:
    """HTML of the slider and its data; empty without snapshots or losses. The loss is called
    `name`."""
    recorded = run.members and run.loss is not None and run.snapshots is not None
    if not recorded or not (run.path / "weights.safetensors").exists():
        return ""
    drawing = Drawing.of(run)
    members = _one_for_each_phase(drawing.members)
    shown = [_member(drawing, m.member) for m in members]
    labels = {label for one in shown for label in (*one["names"], *(p[2] for p in one["plateaus"]))}
    W = drawing.column("weights", "W")
    data = {
        "n_hidden": W.shape[-2],
        "members": shown,
        "colors": {p: [phase_color(p), phase_color(p, dark=True)] for p in sorted(labels)},
        "bias": bias_colors(21),
        "dead": DEAD,
        "name": name,
    }
    options = "".join(
        f'<option value="{n}">{m.member}: {escape(m.stages or m.group)}</option>'
        for n, m in enumerate(members)
    )
    count = ""
    if len(shown) < len(drawing.members):
        count = f" Shown: {len(shown)} of {len(drawing.members)} members, one for each final phase."
    picture = "WᵀW and b (purple &#8722;1 to brown 1)."
    if W.shape[-2] in (2, 3):
        picture = (
            "The columns of W. Colour: bias, purple &#8722;1 to brown 1; ring and dot: dead, with "
            "positive and negative bias; dotted: off by its bias; dashed: unit circle."
        )
    if W.shape[-2] == 3:
        picture += " Drag the picture, or focus it and use the arrow keys, to turn it."
    return (
        f'{json_script("weights", data)}<div class="slider" data-source="weights"><div class="bar">'
        f"<label>Member <select>{options}</select></label>"
        '<button type="button" data-axis="x">log steps</button>'
        '<button type="button" data-play>play</button></div><div class="beside">'
        '<svg viewBox="-1 -1 2 2" role="img" aria-label="Columns of W" tabindex="0"></svg>'
        '<div class="curves"><div></div><div></div></div></div>'
        '<input type="range" min="0" step="1" aria-label="snapshot"><output></output></div>'
        f'<p class="soft">{picture} Curves: the loss, and the LLC with its error, hollow where its '
        f"verdict is not ok. Bands: plateaus; dashed: theory.{count}</p>"
    )


def _one_for_each_phase(members: Sequence[Member]) -> list[Member]:
    """Of each of the most frequent final phases the member with most transitions."""
    frequent = Counter(m.group for m in members if m.group != "diverged").most_common(_MEMBERS)
    return [
        max((m for m in members if m.group == group), key=lambda m: m.n_transitions or 0)
        for group, _ in frequent
    ]


def _member(drawing: Drawing, member: int) -> dict[str, Any]:
    """A member's record at the snapshots that are shown; None where there is no value."""
    place = drawing.place(member)
    steps = drawing.history.steps("weights").numpy()
    kept = np.unique(np.linspace(0, len(steps) - 1, _SNAPSHOTS).round().astype(int))
    if drawing.verdicts is not None:
        estimated = np.isin(steps, drawing.history.steps("llc").numpy())
        kept = np.union1d(kept, np.flatnonzero(estimated))
    at = steps[kept]
    W, b = (drawing.column("weights", name)[kept, place] for name in ("W", "b"))
    if W.shape[1] == 3:
        W = principal_axes(W[-1]) @ W
    length = np.linalg.norm(W[len(W) // 8 :], axis=1)
    assert drawing.labels is not None
    names, phase = np.unique(drawing.labels[kept, place].astype(str), return_inverse=True)
    theory = {point.label: point for point in drawing.points}
    own = [p for p in drawing.plateaus if p.member == member and p.nearest]
    llc: dict[str, Any] = {"llc": None}
    if drawing.verdicts is not None:
        mean, stderr = (drawing.column("llc", k)[:, place] for k in ("mean", "stderr"))
        step = drawing.history.steps("llc").numpy()
        llc = {"llc": _aligned(at, step, mean), "stderr": _aligned(at, step, stderr)}
        verdict = dict(zip(step.tolist(), drawing.verdicts[:, place].tolist(), strict=True))
        llc["verdict"] = [verdict.get(s) for s in at.tolist()]
    return {
        "steps": at.tolist(),
        "names": names.tolist(),
        "phase": phase.tolist(),
        "reach": five_digits(1.12 * float(np.nanmax(length, initial=1.1))),
        "W": [_three_decimals(w.T) for w in W],
        "b": [_three_decimals(row) for row in b],
        "loss": _aligned(at, drawing.history.steps("loss").numpy(),
                         drawing.column("loss", "loss")[:, place]),
        "plateaus": [
            [p.start, p.end, p.nearest,
             five_digits(theory[p.nearest].loss) if p.nearest in theory else None,
             theory[p.nearest].llc if p.nearest in theory else None]
            for p in own if p.nearest
        ],
        **llc,
    }  # fmt: skip


def _aligned(at: Array, step: Array, values: Array) -> list[float | None]:
    """The values at these steps, to five digits."""
    known = dict(zip(step.tolist(), values.tolist(), strict=True))
    return [five_digits(known.get(s, np.nan)) for s in at.tolist()]


def _three_decimals(values: Array) -> Any:
    """Nested lists; what is not finite is None."""
    rounded = np.round(values, 3).astype(object)
    rounded[~np.isfinite(values)] = None
    return rounded.tolist()
