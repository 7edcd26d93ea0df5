"""One self-contained HTML page about one run or a whole sweep. It opens from disk, offline.

A page about several runs has a table of them, plots of their results against what was swept, and
for each run a part that unfolds; the runs' own figures are linked.

`assets/` holds the page's frame, look and script, and uPlot, which draws the curves. All text that
comes from a run is escaped, and the page's security policy forbids it to load anything.
"""

import base64
import io
import json
import os
import re
import textwrap
from collections import Counter
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from urllib.parse import quote

import numpy as np

from kgon.figures.style import phase_order, rendering
from kgon.figures.sweep import against_parameter
from kgon.record import drawing
from kgon.record.drawing import critical_points
from kgon.record.html_table import Cell, Value, html_table
from kgon.record.loss_chart import loss_chart, named
from kgon.record.run_directory import Run
from kgon.record.sweeps import Swept
from kgon.record.tables import Member, Plateau, phases, transitions
from kgon.record.weight_slider import weight_slider
from kgon.theory.critical import CriticalPoint

_MEMBER_ROWS = 60_000  # rows of member tables, shared by the runs of a page ...
_FEWEST_ROWS = 60  # ... with this many a run at least
_MOST_NAMES = 6  # columns for what varies in a sweep; more share one
_INLINE_SVG = 1_000_000  # bytes; a larger figure is shown as its PNG
_FILES = (
    "config.yaml status.json error.txt *.parquet *.safetensors "
    "figures/*.png figures/*.svg figures/*.gif"
)


def write_report(runs: Sequence[Run], path: Path) -> Path:
    """Write the page about `runs`, at least one, to `path` and return it; its links are
    relative."""
    if not runs:
        raise ValueError("runs is empty: a report needs at least one run directory")
    one = len(runs) == 1
    title = f"kgon: {runs[0].path.name}" if one else f"kgon: {len(runs)} runs"
    asset = {f.name: f.read_text(encoding="utf-8") for f in files("kgon.record.assets").iterdir()
             if f.name.startswith(("report.", "uPlot."))}  # fmt: skip
    page = Template(asset["report.html"]).substitute(
        title=escape(title),
        style=asset["uPlot.min.css"] + asset["report.css"],
        script=f"/*\n{asset['uPlot.LICENSE.txt']}\n*/\n{asset['uPlot.iife.min.js']}\n"
        + asset["report.js"],
        body=_single(runs[0], path.parent) if one else _sweep(runs, path.parent),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


# ------------------------------------------------------------------------------------ one run


def _single(run: Run, base: Path) -> str:
    members, points = [Member.of(row) for row in run.members], critical_points(run)
    command = escape(str(run.status.get("command", "run")))
    sections = [
        f"<header><h1>{command} <code>{escape(run.path.name)}</code></h1>{_facts(run)}</header>",
        _section("Phases", "" if _results(run) else _phase_table(members, points)),
        _section("Results", _results(run)),
        _section("Figures", _figures(run.path / "figures")),
        _section(
            "Loss curves",
            loss_chart(run.loss, _ends(members), points, "curves", 1, _loss_name(run)),
        ),
        _section("Weights, step by step", weight_slider(run, _loss_name(run))),
        _section("Transitions and plateaus", _transition_tables(run, members, points)),
        _section("Members", _member_table(members)),
        _section("Config", _config(run)),
        _section("Files", _links(run, base)),
    ]
    return "\n".join(s for s in sections if s)


def _section(heading: str, content: str) -> str:
    return f"<section><h2>{escape(heading)}</h2>\n{content}</section>" if content else ""


def _ends(members: Sequence[Member]) -> dict[int, str]:
    return {m.member: m.group for m in members}


def _facts(run: Run) -> str:
    status = run.status
    rows = [("state", _state(run))]
    for name, key in (("started", "started"), ("ended", "finished")):
        if status.get(key):
            rows.append((name, escape(str(status[key]).replace("T", " ", 1))))
    if status.get("seconds") is not None:
        rows.append(("duration", _duration(status["seconds"])))
    overrides = " ".join(f"<code>{escape(str(o))}</code>" for o in status.get("overrides") or [])
    rows.append(("overrides", overrides or "none"))
    if run.members:
        states = Counter(str(m.get("state")) for m in run.members)
        rows.append(("members", escape(", ".join(f"{n} {s}" for s, n in states.items()))))
    facts = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in rows)
    error = status.get("error")
    return f"<dl>{facts}</dl>" + (f'<p class="error">{escape(str(error))}</p>' if error else "")


def _state(run: Run) -> str:
    state = escape(str(run.status.get("state", "unknown")))
    return f'<span class="state {state}">{state}</span>'


def _duration(seconds: float) -> str:
    if seconds < 59.5:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"


def _phase_table(members: Sequence[Member], points: Sequence[CriticalPoint]) -> str:
    if not members:
        return "<p>No members recorded.</p>"
    rows: list[list[Value]] = [
        [Cell(p.phase, named(p.phase)), p.members,
         p.loss if p.loss_most == p.loss_least or p.loss is not None
         else f"{p.loss_least:.5f} to {p.loss_most:.5f}",
         p.theory_loss, p.llc, p.llc_stderr,
         f"{p.llc_ok} of {p.llc_tried}" if p.llc_tried else "", p.theory_llc]
        for p in phases(members, points)
    ]  # fmt: skip
    columns = ["phase", "members", "mean final loss", "theory loss"]
    columns += ["mean LLC", "s.e.", "estimates ok", "theory LLC"]
    return html_table(columns, rows) + (
        '<p class="soft">Mean LLC: over the members whose estimate has the verdict ok; s.e.: of '
        "that mean, over members. On cross-polytopes (4-gons, the octahedron 2x2x2) the theory LLC "
        "is the volume exponent; estimates on 4-gons at finite n stay far below it.</p>"
    )


def _results(run: Run) -> str:
    """The numbers that a job reported, for commands without members."""
    summary = run.status.get("metrics") or {}
    return "" if run.members or not summary else html_table(["result", "value"], [*summary.items()])


def _figures(folder: Path) -> str:
    shown = []
    images = [f for f in folder.glob("*") if f.suffix in (".svg", ".png")]
    for stem in sorted({f.with_suffix("") for f in images}):
        svg, png = stem.with_name(f"{stem.name}.svg"), stem.with_name(f"{stem.name}.png")
        small = svg.is_file() and svg.stat().st_size < _INLINE_SVG
        if small or png.is_file():
            kind, source = ("svg+xml", svg) if small else ("png", png)
            shown.append(_image(stem.name.replace("_", " "), kind, source.read_bytes()))
    return f'<div class="figures">{"".join(shown)}</div>' if shown else ""


def _image(name: str, kind: str, content: bytes) -> str:
    # As an image an SVG is a document of its own: ids do not clash and scripts do not run.
    data = base64.b64encode(content).decode()
    return (
        f'<figure><img alt="{escape(name)}" src="data:image/{kind};base64,{data}">'
        f"<figcaption>{escape(name)}</figcaption></figure>"
    )


def _transition_tables(run: Run, members: Sequence[Member], points: Sequence[CriticalPoint]) -> str:
    level = {p.label: p.loss for p in points}
    rows: list[list[Value]] = [
        [t.from_, t.to, t.members,
         level[t.to] - level[t.from_] if {t.from_, t.to} <= level.keys() else None]
        for t in transitions(members)
    ]  # fmt: skip
    columns = ["from", "to", "count", "change of loss (theory)"]
    tables = "<h3>Transitions</h3>"
    tables += html_table(columns, rows) if rows else "<p>No transitions found.</p>"
    if not run.plateaus:
        return tables
    plateaus = [Plateau.of(row) for row in run.plateaus]
    rows = []
    for label in phase_order(p.nearest or "other" for p in plateaus):
        group = [p for p in plateaus if (p.nearest or "other") == label]
        distances = [p.distance for p in group if p.distance is not None]
        rows.append(
            [Cell(label, named(label)), len(group), len({p.member for p in group}),
             round(float(np.median([p.end - p.start for p in group]))),
             float(np.mean([p.loss for p in group])),
             float(np.median(distances)) if distances else None]
        )  # fmt: skip
    columns = ["nearest critical point", "plateaus", "members", "median length (steps)"]
    columns += ["mean loss", "median distance in loss"]
    return tables + "<h3>Plateaus</h3>" + html_table(columns, rows)


def _loss_name(run: Run) -> str:
    return drawing.loss_name(run).replace("$", "").replace("\n", " ")


def _member_table(members: Sequence[Member]) -> str:
    columns = ["member", "state", "final loss", "s.e.", "phase", "transitions", "stages"]
    rows: list[list[Value]] = [
        [m.member, m.state, m.final_loss, m.loss_stderr, m.phase, m.n_transitions, m.stages,
         m.llc, m.llc_stderr, m.llc_verdict]
        for m in members
    ]  # fmt: skip
    return html_table([*columns, "LLC", "error", "verdict"], rows) if rows else ""


def _config(run: Run) -> str:
    text = json.dumps(run.config, indent=2, default=str, ensure_ascii=False)
    # A list of numbers or names is one line.
    text = re.sub(r"\[\s+([^][{}]*)\n\s*\]", lambda found: f"[{' '.join(found[1].split())}]", text)
    return f'<pre tabindex="0">{escape(text, quote=False)}</pre>'


def _links(run: Run, base: Path) -> str:
    items = "".join(
        f'<li><a href="{_href(f, base)}">{escape(f.relative_to(run.path).as_posix())}</a></li>'
        for pattern in _FILES.split()
        for f in sorted(run.path.glob(pattern))
    )
    return f'<ul class="files">{items}</ul>' if items else ""


def _href(target: Path, base: Path) -> str:
    relative = Path(os.path.relpath(target.absolute(), base.absolute())).as_posix()
    return escape("./" + quote(relative))  # a first segment with a colon would be read as a scheme


# ------------------------------------------------------------------------------------ many runs


def _sweep(runs: Sequence[Run], base: Path) -> str:
    swept = Swept([_overrides(run) for run in runs])
    runs = sorted(runs, key=lambda run: swept.key(_overrides(run)))
    commands = {str(run.status.get("command")) for run in runs}
    states = Counter(str(run.status.get("state", "unknown")) for run in runs)
    counts = ", ".join(f"{n} {escape(state)}" for state, n in states.most_common())
    options = "".join(f"<option>{escape(state)}</option>" for state in states)
    filters = (
        '<div class="bar" data-filter="runs" role="search">'
        '<label>Filter <input type="search" placeholder="words, e.g. seed=3"></label>'
        f'<label>State <select><option value="">all</option>{options}</select></label>'
        '<output aria-live="polite"></output></div>'
    )
    details = [_details(run, n, len(runs), swept, base) for n, run in enumerate(runs)]
    of = f" of kgon {escape(min(commands))}" if len(commands) == 1 else ""
    shared = "".join(f" <code>{escape(word)}</code>" for word in swept.shared)
    return (
        f"<header><h1>{len(runs)} runs{of}</h1><p>{counts}</p>"
        f"{f'<p>All with{shared}</p>' if shared else ''}</header>\n"
        + _section("Overview", filters + _overview(runs, swept, base))
        + _section("Results against what was swept", _plots(runs, swept))
        + _section("Runs", "".join(details))
    )


def _overrides(run: Run) -> list[str]:
    return [str(word) for word in run.status.get("overrides") or []]


def _overview(runs: Sequence[Run], swept: Swept, base: Path) -> str:
    names = swept.names if len(swept.names) <= _MOST_NAMES else []
    columns = ["run", "command", *(names or ["overrides"]), "state", "error", "time (s)", "members"]
    columns += ["mean final loss", "phases", "files"]
    several = len({run.status.get("command") for run in runs}) > 1
    rows: list[list[Value]] = []
    attributes = []
    for n, run in enumerate(runs):
        members, words = [Member.of(row) for row in run.members], _overrides(run)
        values = swept.values(words)
        losses = [m.final_loss for m in members if m.final_loss is not None]
        groups = Counter(m.group for m in members)
        shown = " ".join(named(p, f"{p}: {groups[p]}") for p in phase_order(groups))
        state = str(run.status.get("state", "unknown"))
        rows.append(
            [Cell(run.path.name, f'<a href="#run-{n}">{escape(run.path.name)}</a>'),
             run.status.get("command") if several else None,
             *([values.get(name) for name in names] or [" ".join(swept.own(words))]),
             Cell(state, _state(run)),
             textwrap.shorten(str(run.status.get("error") or ""), 200, placeholder=" ..."),
             run.status.get("seconds"),
             len(members) or None,
             float(np.mean(losses)) if losses else None,
             Cell(" ".join(f"{p}:{groups[p]}" for p in phase_order(groups)), shown, "phases"),
             Cell(run.path.name, f'<a href="{_href(run.path, base)}/">folder</a>')]
        )  # fmt: skip
        attributes.append(
            f'data-state="{escape(state)}" data-details="run-{n}" '
            f'data-words="{escape(" ".join(words))}"'
        )
    # A column that is blank in every run (the error, mostly) is left out.
    told = [i for i in range(len(columns)) if any(row[i] not in (None, "") for row in rows)]
    columns, rows = [columns[i] for i in told], [[row[i] for i in told] for row in rows]
    return html_table(columns, rows, attributes, identifier="runs")


def _plots(runs: Sequence[Run], swept: Swept) -> str:
    """The results of finished runs against each parameter that takes several values in them."""
    shown = []
    done = [run for run in runs if run.status.get("state") == "finished"]
    for command in sorted({str(run.status.get("command")) for run in done}):
        for name in swept.names:
            having = [run for run in done if str(run.status.get("command")) == command
                      and name in swept.texts(_overrides(run))]  # fmt: skip
            values = [swept.values(_overrides(run))[name] for run in having]
            results = [run.status.get("metrics") or {} for run in having]
            figure = against_parameter(name, values, results) if len(set(values)) > 1 else None
            if figure is not None:
                svg = io.BytesIO()
                with rendering():
                    figure.savefig(svg, format="svg", metadata={"Date": None})
                shown.append(_image(f"{command} against {name}", "svg+xml", svg.getvalue()))
    return f'<div class="figures">{"".join(shown)}</div>' if shown else ""


def _details(run: Run, n: int, n_runs: int, swept: Swept, base: Path) -> str:
    members, points = [Member.of(row) for row in run.members], critical_points(run)
    kept = members[: max(_MEMBER_ROWS // n_runs, _FEWEST_ROWS)]
    chart = loss_chart(run.loss, _ends(members), points, f"curves-{n}", n_runs, _loss_name(run))
    inside = [_facts(run), _results(run), chart]
    if kept:
        inside.append("<h3>Members</h3>")
        if len(kept) < len(members):
            inside.append(
                f'<p class="soft">The first {len(kept)} of {len(members)}; '
                "all are in the run's files.</p>"
            )
        # In a script it costs nothing until the part unfolds. It is escaped, and so cannot end it.
        inside.append(f'<script type="text/html">{_member_table(kept)}</script>')
    inside += [
        f"<details><summary>Config</summary>{_config(run)}</details>",
        f"<details><summary>Files</summary>{_links(run, base)}</details>",
    ]
    return (
        f'<details class="run" id="run-{n}"><summary><code>{escape(run.path.name)}</code> '
        f"{_state(run)} {escape(' '.join(swept.own(_overrides(run))))}</summary>"
        f"<div>{''.join(inside)}</div></details>\n"
    )
