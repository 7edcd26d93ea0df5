"""One self-contained HTML page about one run or a whole sweep; it opens from disk, offline.

One run gets everything: its figures inline, tables of phases, transitions, plateaus and members,
and interactive loss curves. Several runs get a sortable, filterable table, and for each run a part
that unfolds with a sketch of the loss, its members and its config; their figures stay files,
linked.
The page's own script draws the curves from numbers embedded as JSON (5 significant digits). To keep
pages small curves are thinned to fewer members and steps, and the page says by how much.

The look and the script are in `report.html`. All text that comes from a run is escaped, and the
page's security policy forbids it to load anything.
"""

import base64
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import cache
from html import escape
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from string import Template
from typing import Any, Protocol
from urllib.parse import quote

import numpy as np
import pyarrow as pa

from kgon.figures.style import phase_color, phase_order
from kgon.record.html_table import Cell, html_table
from kgon.theory.critical import CriticalPoint, critical_points

# Numbers on the page. With these, 300 runs of 100 members take about 7 MB.
_CURVE_POINTS = 200_000  # loss values, shared by the runs of the page ...
_SKETCH = (24, 64)  # ... but each run may have this many members and steps at least
_MEMBER_ROWS = 60_000  # rows of member tables, shared likewise ...
_FEWEST_ROWS = 60  # ... with this many a run at least
_MOST_NAMES = 6  # columns for what varies in a sweep; more share one
_INLINE_SVG = 1_000_000  # bytes; a larger figure is shown as its PNG

_MEMBER_COLUMNS = {
    "member": "member",
    "state": "state",
    "final_loss": "final loss",
    "phase": "phase",
    "n_transitions": "transitions",
    "stages": "stages",
    "llc": "LLC",
    "llc_stderr": "s.e.",
    "llc_verdict": "verdict",
}


Catalogue = Callable[[int], list[CriticalPoint]]
"""n_features to its critical points."""


class Run(Protocol):
    """What a report needs of a run's record."""

    @property
    def path(self) -> Path: ...
    @property
    def config(self) -> dict[str, Any]: ...
    @property
    def status(self) -> dict[str, Any]: ...
    @property
    def members(self) -> list[dict[str, Any]]: ...
    @property
    def loss(self) -> pa.Table | None: ...
    @property
    def plateaus(self) -> list[dict[str, Any]]: ...


def write_report(runs: Sequence[Run], path: Path) -> Path:
    """Write the page about `runs` to `path` (links in it are relative to there) and return it.

    Raises:
        ValueError: no run at all.
    """
    if not runs:
        raise ValueError("runs is empty: a report needs at least one run directory")
    title = f"kgon: {runs[0].path.name}" if len(runs) == 1 else f"kgon: {len(runs)} runs"
    catalogue = cache(critical_points)  # the runs of a sweep mostly share n_features
    if len(runs) == 1:
        body = _single(runs[0], path.parent, catalogue)
    else:
        body = _sweep(runs, path.parent, catalogue)
    page = Template(files("kgon.record").joinpath("report.html").read_text(encoding="utf-8"))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page.substitute(title=escape(title), body=body), encoding="utf-8")
    return path


# ------------------------------------------------------------------------------------ one run


def _single(run: Run, base: Path, catalogue: Catalogue) -> str:
    theory = _theory(run, catalogue)
    sections = [
        f"<header><h1>{escape(str(run.status.get('command', 'run')))} "
        f"<code>{escape(run.path.name)}</code></h1>{_facts(run)}</header>",
        _section("Phases", "" if _results(run) else _phase_table(run, theory)),
        _section("Results", _results(run)),
        _section("Figures", _figures(run)),
        _section("Loss curves", _curves(run, theory, "curves", 1)),
        _section("Transitions and plateaus", _transition_tables(run, theory)),
        _section("Members", _member_table(run.members)),
        _section("Config", _config(run)),
        _section("Files", _links(run, base)),
    ]
    return "\n".join(s for s in sections if s)


def _section(heading: str, content: str) -> str:
    return f"<section><h2>{escape(heading)}</h2>\n{content}</section>" if content else ""


def _facts(run: Run) -> str:
    status = run.status
    state = str(status.get("state", "unknown"))
    rows = [("state", f'<span class="state {escape(state)}">{escape(state)}</span>')]
    if status.get("started"):
        rows.append(("started", escape(_when(status["started"]))))
    if status.get("finished"):
        rows.append(("ended", escape(_when(status["finished"]))))
    if status.get("seconds") is not None:
        rows.append(("duration", _duration(status["seconds"])))
    overrides = status.get("overrides") or []
    rows.append(
        ("overrides", " ".join(f"<code>{escape(str(o))}</code>" for o in overrides) or "none")
    )
    if run.members:
        states = Counter(str(m.get("state")) for m in run.members)
        rows.append(("members", escape(", ".join(f"{n} {s}" for s, n in states.items()))))
    facts = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in rows)
    error = status.get("error")
    return f"<dl>{facts}</dl>" + (f'<p class="error">{escape(str(error))}</p>' if error else "")


def _when(moment: str) -> str:
    """An ISO time to the second; what is no ISO time as it stands."""
    try:
        return datetime.fromisoformat(moment).isoformat(" ", "seconds")
    except ValueError:
        return str(moment)


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s"
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {whole % 60} s"


def _theory(run: Run, catalogue: Catalogue) -> dict[str, CriticalPoint]:
    """The critical points this run's losses can be held against, by label.

    Empty where the theory is for another loss (n_hidden other than 2, several active features,
    importance weights), and where the run has no losses: its config may be what made it fail.
    """
    if not run.members and _no_loss(run):
        return {}
    model, data = run.config.get("model") or {}, run.config.get("data") or {}
    importance = model.get("importance")
    if isinstance(importance, Mapping):  # the arguments of what makes the weights
        importance = importance.get("importance")
    weighted = importance is not None and bool(np.any(np.asarray(importance) != 1))
    if model.get("n_hidden") != 2 or "n_features" not in model or "sparsity" in data or weighted:
        return {}
    return {p.label: p for p in catalogue(model["n_features"])}


def _phase_table(run: Run, theory: Mapping[str, CriticalPoint]) -> str:
    """The final phases: measured means beside theory."""
    if not run.members:
        return "<p>No members recorded.</p>"
    groups = defaultdict(list)
    for member in run.members:
        groups[_phase(member)].append(member)
    rows = []
    for label in phase_order(groups):
        group, point = groups[label], theory.get(label)
        loss = _numbers(group, "final_loss")
        trusted = _numbers([m for m in group if m.get("llc_verdict") == "ok"], "llc")
        tried = len(_numbers(group, "llc"))
        rows.append(
            [
                Cell(label, _named(label)),
                len(group),
                float(loss.mean()) if loss.size else None,
                None if point is None else point.loss,
                float(trusted.mean()) if trusted.size else None,
                float(trusted.std(ddof=1) / len(trusted) ** 0.5) if trusted.size > 1 else None,
                f"{trusted.size} of {tried}" if tried else "",
                None if point is None else point.llc,
            ]
        )
    columns = ["phase", "members", "mean final loss", "theory loss"]
    columns += ["mean LLC", "s.e.", "estimates ok", "theory LLC"]
    note = (
        "Mean LLC: over the members whose estimate has the verdict ok; s.e.: of that mean, over "
        "members. On 4-gons the theory LLC is the volume exponent, which estimates at finite n "
        "stay far below."
    )
    return html_table(columns, rows) + f'<p class="soft">{note}</p>'


def _results(run: Run) -> str:
    """The numbers that a job reported, of the commands that have no members."""
    summary = run.status.get("metrics") or {}
    if run.members or not summary:
        return ""
    return html_table(["result", "value"], [[name, value] for name, value in summary.items()])


def _phase(member: Mapping[str, Any]) -> str:
    if member.get("state") == "diverged":
        return "diverged"
    return str(member.get("phase") or "other")


def _numbers(rows: Iterable[Mapping[str, Any]], key: str) -> np.ndarray[Any, Any]:
    values = np.array([row[key] for row in rows if row.get(key) is not None], dtype=float)
    return values[np.isfinite(values)]


def _figures(run: Run) -> str:
    folder = run.path / "figures"
    stems = sorted({f.with_suffix("") for f in folder.glob("*") if f.suffix in (".svg", ".png")})
    shown = []
    for stem in stems:
        svg, png = stem.with_name(f"{stem.name}.svg"), stem.with_name(f"{stem.name}.png")
        # As an image an SVG is a document of its own: ids do not clash and scripts do not run.
        small = svg.is_file() and svg.stat().st_size < _INLINE_SVG
        if not small and not png.is_file():
            continue
        kind, source = ("svg+xml", svg) if small else ("png", png)
        data = base64.b64encode(source.read_bytes()).decode()
        name = escape(stem.name.replace("_", " "))
        shown.append(
            f'<figure><img alt="{name}" src="data:image/{kind};base64,{data}">'
            f"<figcaption>{name}</figcaption></figure>"
        )
    return f'<div class="figures">{"".join(shown)}</div>' if shown else ""


def _transition_tables(run: Run, theory: Mapping[str, CriticalPoint]) -> str:
    counts: Counter[tuple[str, str]] = Counter()
    for member in run.members:
        stages = [s.strip() for s in str(member.get("stages") or "").split("->")]
        counts.update(pairwise(stages))
    rows: list[list[Any]] = []
    for (before, after), n in counts.most_common():
        a, b = theory.get(before), theory.get(after)
        known = a is not None and b is not None
        rows.append([before, after, n, b.loss - a.loss if known else None])  # type: ignore[union-attr]
    tables = "<h3>Transitions</h3>"
    columns = ["from", "to", "count", "change of loss (theory)"]
    tables += html_table(columns, rows) if rows else "<p>No transitions found.</p>"
    if not run.plateaus:
        return tables
    groups = defaultdict(list)
    for plateau in run.plateaus:
        groups[str(plateau.get("nearest") or "other")].append(plateau)
    rows = []
    for label in phase_order(groups):
        group = groups[label]
        length = [p["end"] - p["start"] for p in group]
        distance = _numbers(group, "distance")
        rows.append(
            [
                Cell(label, _named(label)),
                len(group),
                len({p["member"] for p in group}),
                round(float(np.median(length))),
                float(_numbers(group, "loss").mean()),
                float(np.median(distance)) if distance.size else None,
            ]
        )
    columns = ["nearest critical point", "plateaus", "members", "median length (steps)"]
    columns += ["mean loss", "median distance in loss"]
    return tables + "<h3>Plateaus</h3>" + html_table(columns, rows)


def _member_table(members: Sequence[Mapping[str, Any]]) -> str:
    if not members:
        return ""
    rows = [[m.get(key) for key in _MEMBER_COLUMNS] for m in members]
    return html_table(list(_MEMBER_COLUMNS.values()), rows)


def _config(run: Run) -> str:
    text = json.dumps(run.config, indent=2, default=str, ensure_ascii=False)
    # A list of numbers or names is one line.
    text = re.sub(r"\[\s+([^][{}]*)\n\s*\]", lambda found: f"[{' '.join(found[1].split())}]", text)
    return f'<pre tabindex="0">{escape(text, quote=False)}</pre>'


def _links(run: Run, base: Path) -> str:
    items = "".join(
        f'<li><a href="{_href(f, base)}">{escape(f.relative_to(run.path).as_posix())}</a></li>'
        for f in _files(run.path)
    )
    return f'<ul class="files">{items}</ul>' if items else ""


def _files(folder: Path) -> list[Path]:
    names = "config.yaml status.json error.txt *.parquet *.safetensors figures/*.png figures/*.svg"
    return [f for pattern in names.split() for f in sorted(folder.glob(pattern))]


def _href(target: Path, base: Path) -> str:
    relative = os.path.relpath(target.absolute(), base.absolute())
    # A first segment with a colon would be read as a scheme.
    return escape("./" + quote(Path(relative).as_posix()))


# ------------------------------------------------------------------------------------ many runs


class _Points:
    """What tells the runs of a page apart: the words of their overrides that not all have."""

    def __init__(self, runs: Sequence[Run]):
        words = [[str(word) for word in run.status.get("overrides") or []] for run in runs]
        self.shared = [word for word in words[0] if all(word in own for own in words)]
        own = [[word for word in some if word not in self.shared] for some in words]
        self.words = {run.path: some for run, some in zip(runs, own, strict=True)}
        self.names = list(dict.fromkeys(word.partition("=")[0] for some in own for word in some))

    def values(self, run: Run) -> dict[str, Any]:
        """What the run has of each name: a number where it is one."""
        pairs = (word.partition("=") for word in self.words[run.path])
        return {name: _as_number(value) for name, _, value in pairs}

    def key(self, run: Run) -> list[tuple[int, float, str]]:
        """For sorting: by the first name, then by the second; numbers before words."""
        values = self.values(run)
        found = [values.get(name, "") for name in self.names]
        return [(1, 0.0, v) if isinstance(v, str) else (0, v, "") for v in found]


def _as_number(text: str) -> int | float | str:
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


def _sweep(runs: Sequence[Run], base: Path, catalogue: Catalogue) -> str:
    points = _Points(runs)
    runs = sorted(runs, key=points.key)
    commands = {str(run.status.get("command")) for run in runs}
    states = Counter(str(run.status.get("state", "unknown")) for run in runs)
    counts = ", ".join(f"{n} {escape(state)}" for state, n in states.most_common())
    options = "".join(f"<option>{escape(state)}</option>" for state in states)
    names = points.names if len(points.names) <= _MOST_NAMES else []
    columns = ["run", "command", *(names or ["overrides"]), "state", "error", "time (s)", "members"]
    columns += ["mean final loss", "phases", "files"]
    rows, attributes = [], []
    for n, run in enumerate(runs):
        loss = _numbers(run.members, "final_loss")
        phases = Counter(_phase(m) for m in run.members)
        state = str(run.status.get("state", "unknown"))
        shown = " ".join(_named(p, f"{p}: {phases[p]}") for p in phase_order(phases))
        rows.append(
            [
                Cell(run.path.name, f'<a href="#run-{n}">{escape(run.path.name)}</a>'),
                run.status.get("command") if len(commands) > 1 else None,
                *(
                    [points.values(run).get(name) for name in names]
                    or [" ".join(points.words[run.path])]
                ),
                Cell(state, f'<span class="state {escape(state)}">{escape(state)}</span>'),
                _shortened(str(run.status.get("error") or "")),
                run.status.get("seconds"),
                len(run.members) or None,
                float(loss.mean()) if loss.size else None,
                Cell(" ".join(f"{p}:{phases[p]}" for p in phase_order(phases)), shown, "phases"),
                Cell(run.path.name, f'<a href="{_href(run.path, base)}/">folder</a>'),
            ]
        )
        words = escape(" ".join(map(str, run.status.get("overrides") or [])))
        attributes.append(
            f'data-state="{escape(state)}" data-details="run-{n}" data-words="{words}"'
        )
    # What no run has (an error, mostly) takes no width.
    told = [i for i in range(len(columns)) if any(row[i] not in (None, "") for row in rows)]
    columns, rows = [columns[i] for i in told], [[row[i] for i in told] for row in rows]
    overview = html_table(columns, rows, attributes, identifier="runs")
    filters = (
        '<div class="bar" data-filter="runs" role="search">'
        '<label>Filter <input type="search" placeholder="words, e.g. seed=3"></label>'
        f'<label>State <select><option value="">all</option>{options}</select></label>'
        '<output aria-live="polite"></output></div>'
    )
    parts = [
        _details(run, n, len(runs), " ".join(points.words[run.path]), base, catalogue)
        for n, run in enumerate(runs)
    ]
    of = f" of kgon {escape(min(commands))}" if len(commands) == 1 else ""
    shared = "".join(f" <code>{escape(word)}</code>" for word in points.shared)
    return (
        f"<header><h1>{len(runs)} runs{of}</h1><p>{counts}</p>"
        f"{f'<p>All with{shared}</p>' if shared else ''}</header>\n"
        f"{_section('Overview', filters + overview)}\n{_section('Runs', ''.join(parts))}"
    )


def _details(run: Run, n: int, n_runs: int, words: str, base: Path, catalogue: Catalogue) -> str:
    theory = _theory(run, catalogue)
    budget = max(_MEMBER_ROWS // n_runs, _FEWEST_ROWS)
    kept = run.members[:budget]
    inside = [_facts(run), _results(run), _curves(run, theory, f"curves-{n}", n_runs)]
    if kept:
        data = {
            "columns": list(_MEMBER_COLUMNS.values()),
            "rows": [[_short(m.get(key)) for key in _MEMBER_COLUMNS] for m in kept],
        }
        inside.append("<h3>Members</h3>")
        if len(kept) < len(run.members):
            inside.append(
                f'<p class="soft">The first {len(kept)} of {len(run.members)}; '
                "all are in the run's files.</p>"
            )
        source = f"members-{n}"
        inside.append(_json(source, data))
        inside.append(f'<div class="scroll" tabindex="0" data-source="{source}"></div>')
    inside += [
        f"<details><summary>Config</summary>{_config(run)}</details>",
        f"<details><summary>Files</summary>{_links(run, base)}</details>",
    ]
    state = escape(str(run.status.get("state", "unknown")))
    return (
        f'<details class="run" id="run-{n}"><summary><code>{escape(run.path.name)}</code> '
        f'<span class="state {state}">{state}</span> {escape(words)}</summary>'
        f"<div>{''.join(inside)}</div></details>\n"
    )


# ------------------------------------------------------------------------------------ curves


def _curves(run: Run, theory: Mapping[str, CriticalPoint], source: str, n_runs: int) -> str:
    if _no_loss(run):
        return "<p>No loss recorded.</p>"
    step, member, loss = _pivot(run.loss)
    rows, columns = _thin(step, len(member), n_runs)
    phase = {m["member"]: _phase(m) for m in run.members}
    # Of a run still going on there is no final table: its curves are grey.
    phases = [phase.get(int(member[m]), "other") for m in columns]
    levels = [[p.label, _short(p.loss)] for p in theory.values()]
    shown = loss[np.ix_(rows, columns)]
    labels = {*phases, *theory, "other"}
    zero_level = any(p.loss <= 1e-9 for p in theory.values())
    hint = "Point at a curve, or focus the chart and use the arrow keys."
    data = {
        "steps": step[rows].tolist(),
        "curves": [
            {"member": int(member[m]), "phase": p, "y": [_short(v) for v in shown[:, i].tolist()]}
            for i, (m, p) in enumerate(zip(columns, phases, strict=True))
        ],
        "levels": levels,
        "colors": {p: [phase_color(p), phase_color(p, dark=True)] for p in sorted(labels)},
        "logy": not zero_level,
        "hint": hint,
    }
    thinned = ""
    if len(rows) < len(step) or len(columns) < len(member):
        thinned = (
            f" Shown: {len(columns)} of {len(member)} members, {len(rows)} of {len(step)} steps."
        )
    return (
        f'{_json(source, data)}<div class="chart" data-source="{source}">'
        '<div class="bar" role="group" aria-label="axes">'
        '<button type="button" data-axis="x">log steps</button>'
        '<button type="button" data-axis="y">log loss</button></div>'
        f'<canvas tabindex="0" role="img" aria-label="Population loss of {len(columns)} members '
        'against SGD steps; arrow keys read values"></canvas>'
        f'<output aria-live="polite">{hint}</output></div>'
        f'<p class="soft">Population loss by member, coloured by final phase; dashed: critical '
        f"levels.{thinned}</p>"
    )


def _no_loss(run: Run) -> bool:
    return run.loss is None or run.loss.num_rows == 0


def _pivot(
    table: pa.Table,
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Long to wide: step (S,), member (M,), loss (S, M), NaN where a member has no value."""
    step, row = np.unique(table["step"].to_numpy(), return_inverse=True)
    member, column = np.unique(table["member"].to_numpy(), return_inverse=True)
    loss = np.full((len(step), len(member)), np.nan)
    loss[row, column] = table["loss"].to_numpy()
    return step, member, loss


def _thin(
    step: np.ndarray[Any, Any], n_members: int, n_runs: int
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Which steps and members to show: half of the steps evenly spaced, half on a log scale."""
    fewest_members, fewest_steps = _SKETCH
    budget = max(_CURVE_POINTS // n_runs, fewest_members * fewest_steps)
    if len(step) * n_members <= budget:
        return np.arange(len(step)), np.arange(n_members)
    n_kept = min(n_members, max(fewest_members, budget // min(len(step), 400)))
    members = np.unique(np.linspace(0, n_members - 1, n_kept).round().astype(int))
    n_steps = min(len(step), max(2, budget // n_kept))
    if n_steps == len(step):
        return np.arange(len(step)), members
    first = max(float(step[step > 0][0]), 1e-9) if (step > 0).any() else 1.0
    last = max(float(step[-1]), first)
    wanted = np.concatenate(
        [
            np.geomspace(first, last, (n_steps + 1) // 2),
            np.linspace(float(step[0]), last, n_steps // 2),
        ]
    )
    return np.unique(np.searchsorted(step, wanted).clip(0, len(step) - 1)), members


# ------------------------------------------------------------------------------------ HTML, JSON


def _named(label: str, text: str | None = None) -> str:
    """A phase's name (or another text) behind a square of its colour."""
    swatch = f'<span class="swatch" style="background:{phase_color(label)}"></span>'
    return f'<span class="count">{swatch}{escape(text or label)}</span>'


def _shortened(text: str, most: int = 200) -> str:
    return text if len(text) <= most else text[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _short(value: Any) -> Any:
    """5 significant digits of a number; None for NaN and infinity, which JSON does not know."""
    if isinstance(value, float):
        return float(f"{value:.5g}") if np.isfinite(value) else None
    return value


def _json(identifier: str, data: object) -> str:
    """Data for the script. With "<" escaped no text in it can end the element."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return f'<script type="application/json" id="{identifier}">{text}</script>'
