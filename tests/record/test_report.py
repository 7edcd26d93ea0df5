"""The report page: complete, self-contained, well-formed, safe with any text, small."""

import base64
import html
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import numpy as np
import pyarrow as pa
import pytest

from kgon.data import SingleFeature
from kgon.figures import style
from kgon.record import report
from kgon.record.run_directory import Run

_POINTS = [
    SimpleNamespace(label="6", loss=0.048192, llc=8.5),
    SimpleNamespace(label="5", loss=0.068743, llc=7.0),
    SimpleNamespace(label="4+", loss=0.104167, llc=None),
]
_EVIL = "data=<script>alert('&\"')</script></script>"


_DATA = {"_target_": "kgon.data.SingleFeature", "n_features": 6}


@pytest.fixture(autouse=True)
def catalogue(monkeypatch):
    """Known theory values."""

    def known(self, n_hidden, importance):
        return _POINTS if n_hidden == 2 and importance is None else []

    monkeypatch.setattr(SingleFeature, "critical_points", known)


def _run(path, n_members=4, n_steps=50, *, curves=None, config=None, **status):
    """A finished run in which even members go 4+ -> 5 and the last one diverges."""
    path.mkdir(parents=True, exist_ok=True)
    step = np.unique(np.geomspace(1, 225_000, n_steps).astype(int) * 2 - 2)
    if curves is None:
        late = (step[:, None] > 3_000) & (np.arange(n_members) % 2 == 0)
        curves = np.where(late, 0.0687431234, 0.104167891)
    members = [
        {
            "member": m,
            "state": "finished",
            "final_loss": float(curves[-1, m]),
            "phase": "4+" if m % 2 else "5",
            "n_transitions": 1 - m % 2,
            "stages": "4+" if m % 2 else "4+ -> 5",
            "llc": 7.0 + m,
            "llc_stderr": 0.25,
            "llc_verdict": "escaped" if m == 2 else "ok",
        }
        for m in range(n_members)
    ]
    members[-1] |= {"state": "diverged", "final_loss": float("nan"), "phase": None, "llc": None}
    plateaus = [
        {"member": m, "start": 0, "end": 3_000, "loss": 0.1042, "nearest": "4+", "distance": 1e-4}
        for m in range(n_members)
    ]
    table = pa.table(
        {
            "step": np.repeat(step, n_members),
            "member": np.tile(np.arange(n_members), len(step)),
            "loss": curves.ravel(),
            "train_loss": curves.ravel(),
        }
    )
    status = {
        "state": "finished",
        "command": "train",
        "started": "2026-01-02T03:04:05.678+00:00",
        "finished": "2026-01-02T03:06:36+00:00",
        "seconds": 151.0,
        "error": None,
        "overrides": ["seed=7"],
    } | status
    config = config or {"seed": 7, "model": {"n_features": 6, "n_hidden": 2}, "data": _DATA}
    return Run(path, config, status, members, table, None, plateaus, None)


def _empty(path, **status):
    """A run that left nothing but its config and status."""
    path.mkdir(parents=True, exist_ok=True)
    config = {"model": {"n_features": -3, "n_hidden": 2}, "data": _DATA | {"n_features": -3}}
    status = {"state": "running", "command": "train", "started": None, "error": None} | status
    return Run(path, config, status, [], None, None, [], None)


class _Page(HTMLParser):
    """Checks that tags balance and collects what tests ask for."""

    _VOID = frozenset({"meta", "img", "input", "br", "link", "hr"})

    def __init__(self, path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.open, self.tags, self.data, self.ids, self.text = [], [], {}, [], ""
        self.tables, self.held = [], []
        self.feed(self.source)
        for part in self.held:  # what the script puts into the page later
            self.feed(part)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        assert len(attributes) == len(attrs), f"an attribute twice in {tag}"
        self.tags.append((tag, attributes))
        if "id" in attributes:
            self.ids.append(attributes["id"])
        if tag not in self._VOID:
            self.open.append((tag, attributes))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open and self.open[-1][0] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data):
        tag, attributes = self.open[-1] if self.open else ("", {})
        if attributes.get("type") == "text/html":
            self.held.append(data)
        if tag == "script" and attributes.get("type") == "application/json":
            self.data[attributes["id"]] = json.loads(data)
        elif tag not in ("script", "style"):
            self.text += data
            if any(name in ("td", "th") for name, _ in self.open):
                self.tables[-1][-1][-1] += data

    def table(self, first_column):
        return next(t for t in self.tables if t[0][0] == first_column)


def _write(runs, tmp_path):
    return _Page(report.write_report(runs, tmp_path / "report.html"))


def _assert_self_contained(page):
    # What a page can load: by attribute, by CSS, by script.
    for tag, attributes in page.tags:
        for name in ("src", "srcset", "poster", "data", "action", "background"):
            assert attributes.get(name, "data:").startswith("data:"), (tag, attributes)
        assert tag not in ("link", "iframe", "object", "embed", "base")
        assert not any(name.startswith("on") for name in attributes)
        href = attributes.get("href", "./")
        assert href.startswith(("./", "#")), href
    code = re.sub(r"/\*.*?\*/", "", page.source, flags=re.DOTALL)
    assert not re.search(r"https?://|@import|url\(|fetch\(|XMLHttpRequest|import\(", code)
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv"))
    assert "default-src 'none'" in policy and "img-src data:" in policy


# -------------------------------------------------------------------------------------- one run


def test_a_run_has_its_header_theory_members_and_config(tmp_path):
    page = _write([_run(tmp_path / "a1b2")], tmp_path)
    _assert_self_contained(page)
    for text in ("a1b2", "finished", "seed=7", "2 min 31 s", "2026-01-02 03:04:05", "n_features"):
        assert text in page.text
    phases = {row[0]: row[1:] for row in page.table("phase")[1:]}
    # Members 0 and 2 end on 5; the estimate of 2 has escaped, so the mean LLC is that of 0.
    assert phases["5"] == ["2", "0.068743", "0.068743", "7", "", "1 of 2", "7"]
    assert phases["4+"] == ["1", "0.10417", "0.10417", "8", "", "1 of 1", ""]
    assert phases["diverged"][:3] == ["1", "", ""]
    members = page.table("member")
    assert [row[0] for row in members[1:]] == ["0", "1", "2", "3"]
    assert members[1][6] == "4+ -> 5" and members[4][1] == "diverged"


def test_standard_error_is_that_of_the_mean_over_members(tmp_path):
    run = _run(tmp_path / "r", n_members=7)
    page = _write([run], tmp_path)
    values = np.array([7.0, 11.0])  # members 0 and 4 on 5; 2 escaped, 6 diverged
    mean, error = page.table("phase")[[r[0] for r in page.table("phase")].index("5")][4:6]
    assert float(mean) == values.mean()
    assert float(error) == pytest.approx(values.std(ddof=1) / 2**0.5, rel=1e-4)


def test_transitions_and_plateaus_are_counted(tmp_path):
    page = _write([_run(tmp_path / "r", n_members=6)], tmp_path)
    # Members 0, 2 and 4; theory 0.068743 - 0.104167.
    assert page.table("from")[1:] == [["4+", "5", "3", "-0.035424"]]
    assert page.table("nearest critical point")[1][:4] == ["4+", "6", "6", "3000"]


def test_curves_are_the_runs_losses_to_five_digits(tmp_path):
    run = _run(tmp_path / "r")
    curves = np.asarray(run.loss["loss"]).reshape(-1, 4).copy()
    curves[-3:, 3] = np.nan
    run = _run(tmp_path / "r", curves=curves)
    data = _write([run], tmp_path).data["curves"]
    assert data["steps"] == sorted(set(run.loss["step"].to_pylist()))
    assert [c["member"] for c in data["curves"]] == [0, 1, 2, 3]
    assert [c["phase"] for c in data["curves"]] == ["5", "4+", "5", "diverged"]
    drawn = np.array([c["y"] for c in data["curves"]], dtype=float).T
    np.testing.assert_array_equal(np.isnan(drawn), np.isnan(curves))
    np.testing.assert_allclose(drawn, curves, rtol=5e-5)  # half a unit of the fifth digit
    assert data["curves"][0]["y"][-1] == 0.068743
    assert data["levels"] == [["6", 0.048192], ["5", 0.068743], ["4+", 0.10417]]
    assert {"4+", "5", "6", "diverged"} <= set(data["colors"])
    low, high = data["range"]
    assert low < 0.048192 and high > 0.104167


def test_rows_of_the_loss_table_may_come_in_any_order(tmp_path):
    run = _run(tmp_path / "r")
    order = np.random.default_rng(0).permutation(run.loss.num_rows)
    shuffled = replace(run, loss=run.loss.take(order))
    assert _write([run], tmp_path).data == _write([shuffled], tmp_path).data


def test_many_curves_are_thinned_and_the_page_says_so(tmp_path):
    run = _run(tmp_path / "r", n_members=900, n_steps=4_000)
    page = _write([run], tmp_path)
    data = page.data["curves"]
    n_curves, n_steps = len(data["curves"]), len(data["steps"])
    assert n_curves * n_steps <= 200_000
    all_steps = np.unique(run.loss["step"].to_numpy())
    assert f"{n_curves} of 900 members, {n_steps} of {len(all_steps)} steps" in page.text
    assert data["steps"][0] == 0 and data["steps"][-1] == all_steps[-1]
    lookup = dict(zip(run.loss["step"].to_pylist(), run.loss["loss"].to_pylist(), strict=True))
    assert set(data["steps"]) <= set(lookup)
    assert len(page.table("member")) == 1 + 900  # the table has them all


def test_figures_are_inline_as_svg_or_if_that_is_large_as_png(tmp_path):
    run = _run(tmp_path / "r")
    folder = run.path / "figures"
    folder.mkdir()
    small, large, png = b"<svg>a</svg>", b"<svg>" + b" " * 1_000_000 + b"</svg>", b"\x89PNG"
    (folder / "small.svg").write_bytes(small)
    (folder / "small.png").write_bytes(png)
    (folder / "loss_curves.svg").write_bytes(large)
    (folder / "loss_curves.png").write_bytes(png)
    page = _write([run], tmp_path)
    _assert_self_contained(page)
    images = {a["alt"]: a["src"] for t, a in page.tags if t == "img"}
    kinds = {"small": ("svg+xml", small), "loss curves": ("png", png)}
    assert images == {
        name: f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
        for name, (kind, content) in kinds.items()
    }


def test_links_lead_from_the_page_to_the_files(tmp_path):
    run = _run(tmp_path / "runs" / "a=1,b#2 ü")
    (run.path / "config.yaml").write_text("seed: 7\n")
    (run.path / "loss.parquet").write_bytes(b"")
    page = _Page(report.write_report([run], tmp_path / "pages" / "report.html"))
    links = [a["href"] for t, a in page.tags if t == "a"]
    found = {(tmp_path / "pages" / unquote(urlsplit(link).path)).resolve() for link in links}
    assert found == {run.path / "config.yaml", run.path / "loss.parquet"}


_SPARSE = {"_target_": "kgon.data.Sparse", "n_features": 6, "sparsity": 0.9}


@pytest.mark.parametrize(
    ("model", "data"),
    [
        ({"n_hidden": 3}, _DATA),
        ({"n_hidden": 2}, _SPARSE),
        ({"n_hidden": 2, "importance": 0.9}, _DATA),
        ({"n_hidden": 2, "importance": [1, 0.5, 1, 1, 1, 1]}, _DATA),
        ({"n_hidden": 2}, {"_target_": "a_module_of.somebody.Else"}),
    ],
)
def test_no_theory_is_shown_where_it_is_for_another_loss(tmp_path, model, data):
    page = _write([_run(tmp_path / "r", config={"model": model, "data": data})], tmp_path)
    assert page.data["curves"]["levels"] == []
    assert all(row[3] == row[7] == "" for row in page.table("phase")[1:])


@pytest.mark.parametrize("importance", [None, [1] * 6])
def test_equal_importance_leaves_the_theory(tmp_path, importance):
    config = {"model": {"n_hidden": 2, "importance": importance}, "data": _DATA}
    page = _write([_run(tmp_path / "r", config=config)], tmp_path)
    assert len(page.data["curves"]["levels"]) == len(_POINTS)


# ------------------------------------------------------------------------------ incomplete runs


@pytest.mark.parametrize("state, error", [("failed", "ValueError: no <k>"), ("running", None)])
def test_runs_without_metrics_show_state_and_error(tmp_path, state, error):
    empty = _empty(tmp_path / "bad", state=state, error=error, overrides=["model.n_features=-3"])
    for runs in ([empty], [empty, _run(tmp_path / "good")]):
        page = _write(runs, tmp_path)
        assert state in page.text and "model.n_features=-3" in page.text
        assert error is None or error in page.text
        assert "No loss recorded." in page.text


def test_a_run_still_going_on_draws_its_curves_in_grey(tmp_path):
    run = _run(tmp_path / "r", state="running", finished=None, seconds=None)
    going = replace(run, members=[], plateaus=[])
    data = _write([going], tmp_path).data["curves"]
    assert {c["phase"] for c in data["curves"]} == {"unknown"}
    assert data["colors"]["unknown"] == [
        style.phase_color("other"),
        style.phase_color("other", dark=True),
    ]


def test_an_empty_loss_table_is_no_loss(tmp_path):
    run = _run(tmp_path / "r")
    empty = replace(run, loss=run.loss.slice(0, 0))
    assert "No loss recorded." in _write([empty], tmp_path).text


def test_no_runs_are_refused(tmp_path):
    with pytest.raises(ValueError, match="runs is empty"):
        report.write_report([], tmp_path / "report.html")


# ---------------------------------------------------------------------------------------- safety


@pytest.mark.parametrize("n_runs", [1, 3])
def test_text_of_a_run_never_becomes_markup(tmp_path, n_runs):
    def evil(i):
        run = _run(
            tmp_path / f"<b>{i}&",
            overrides=[_EVIL],
            error=_EVIL,
            state='failed" onload="x',
            command=_EVIL,
            started=_EVIL,
            config={"seed": _EVIL, "model": {"n_hidden": 2}, "data": _DATA},
        )
        for member in run.members:
            member |= {"phase": _EVIL, "stages": f"{_EVIL} -> 5", "llc_verdict": _EVIL}
        for plateau in run.plateaus:
            plateau["nearest"] = _EVIL
        return run

    page = _write([evil(i) for i in range(n_runs)], tmp_path)
    _assert_self_contained(page)
    assert _EVIL in page.text
    assert "<script>alert" not in page.source
    # One script is the page's; all others are data or tables, read back unharmed.
    scripts = [a.get("type") for t, a in page.tags if t == "script"]
    assert scripts.count(None) == 1
    assert set(scripts) <= {None, "application/json", "text/html"}
    assert any(c["phase"] == _EVIL for d in page.data.values() for c in d.get("curves", []))


# ---------------------------------------------------------------------------------------- sweeps


def test_a_command_without_members_shows_its_results(tmp_path):
    empty = _empty(tmp_path / "llc", state="finished", metrics={"llc/5/5000": 7.25, "best": "5"})
    for runs in ([empty], [empty, _run(tmp_path / "other")]):
        page = _write(runs, tmp_path)
        assert page.table("result")[1:] == [["llc/5/5000", "7.25"], ["best", "5"]]


def test_a_sweep_lists_every_run_and_unfolds_each(tmp_path):
    runs = [_run(tmp_path / f"run{i}", overrides=[f"seed={i}"]) for i in range(3)]
    runs.append(_empty(tmp_path / "bad", state="failed", error="RuntimeError: all diverged"))
    page = _write(runs, tmp_path)
    _assert_self_contained(page)
    overview = page.table("run")
    assert overview[0][3].startswith("error")
    assert [row[0] for row in overview[1:]] == ["run0", "run1", "run2", "bad"]
    assert overview[1][1:3] == ["0", "finished"]
    # 0.0687431 twice and 0.104167 once; the diverged member has no loss.
    assert float(overview[1][6]) == pytest.approx((2 * 0.0687431 + 0.1041679) / 3, rel=5e-5)
    assert re.sub(r"\s+", " ", overview[1][7]).strip() == "4+: 1 5: 2 diverged: 1"
    assert "all diverged" in overview[4][3]
    # Each row's link and filter find its part of the page; each part finds its data.
    for attributes in (a for t, a in page.tags if "data-details" in a):
        assert attributes["data-details"] in page.ids
    for reference in (a["data-source"] for _, a in page.tags if "data-source" in a):
        assert reference in page.data
    members = [table for table in page.tables if table[0][0] == "member"]
    assert [[row[0] for row in table[1:]] for table in members] == [["0", "1", "2", "3"]] * 3


def test_a_sweep_is_told_apart_by_what_varies(tmp_path):
    words = [
        ["members=4", f"seed={seed}", f"optimizer.lr={lr}"]
        for lr in (0.1, 1e-3)
        for seed in (10, 9)
    ]
    runs = [_run(tmp_path / f"run{i}", overrides=some) for i, some in enumerate(words)]
    page = _write(runs, tmp_path)
    overview = page.table("run")
    assert [head.split()[0] for head in overview[0][:3]] == ["run", "seed", "optimizer.lr"]
    assert [row[:3] for row in overview[1:]] == [
        ["run3", "9", "0.001"],
        ["run1", "9", "0.1"],
        ["run2", "10", "0.001"],
        ["run0", "10", "0.1"],
    ]
    assert (
        "4 runs of kgon train" in page.source and "All with <code>members=4</code>" in page.source
    )
    # The filter finds the words that are not shown, too.
    told = [a["data-words"] for _, a in page.tags if "data-words" in a]
    assert told[0] == "members=4 seed=9 optimizer.lr=0.001"
    # Many names share a column.
    many = [_run(tmp_path / f"m{i}", overrides=[f"a{k}={i}" for k in range(9)]) for i in range(2)]
    overview = _write([*many, _empty(tmp_path / "other", command="llc")], tmp_path).table("run")
    assert [head.split()[0] for head in overview[0][:3]] == ["run", "command", "overrides"]


def test_a_sweep_shows_its_results_against_each_swept_parameter(tmp_path):
    def swept(path, words, loss, state="finished"):
        return _empty(path, overrides=words, metrics={"final/loss": loss}, state=state)

    words = [["members=4", f"seed={seed}", f"lr={lr}"] for lr in (0.1, 0.2) for seed in (1, 2)]
    runs = [swept(tmp_path / f"run{i}", some, 0.1 + i) for i, some in enumerate(words)]
    runs.append(swept(tmp_path / "bad", ["members=4", "width=3"], 9.0, state="failed"))
    page = _write(runs, tmp_path)
    _assert_self_contained(page)
    assert [a["alt"] for t, a in page.tags if t == "img"] == [
        "train against seed",
        "train against lr",
    ]


def test_a_list_in_a_config_is_one_line(tmp_path):
    config = {"seed": 7, "steps": [0, 1, 10], "names": ["a [b", "c, d"], "empty": []}
    page = _write([_run(tmp_path / "a", config=config)], tmp_path)
    assert '"steps": [0, 1, 10],' in page.source
    start = page.source.index("<pre")
    text = page.source[page.source.index(">", start) + 1 : page.source.index("</pre>")]
    assert json.loads(html.unescape(text)) == config


def test_ids_are_unique_and_tables_are_accessible(tmp_path):
    for runs in ([_run(tmp_path / "a")], [_run(tmp_path / "a"), _run(tmp_path / "b")]):
        page = _write(runs, tmp_path)
        assert len(set(page.ids)) == len(page.ids)
        heads = [a for t, a in page.tags if t == "th"]
        assert heads and all(a["scope"] == "col" and a["aria-sort"] == "none" for a in heads)
        assert sum(t == "button" for t, _ in page.tags) >= len(heads)
        assert any(a.get("name") == "viewport" for _, a in page.tags)
        assert ("html", {"lang": "en"}) in page.tags
        assert "prefers-color-scheme: dark" in page.source and ":focus-visible" in page.source
        for table in page.tables:
            assert {len(row) for row in table} == {len(table[0])}


@pytest.mark.slow
def test_three_hundred_runs_stay_small(tmp_path):
    noise = np.random.default_rng(0).random((400, 100))  # 5 digits of noise compress least
    one = _run(tmp_path / "r", n_members=100, n_steps=400)
    n_steps = len(np.unique(one.loss["step"].to_numpy()))
    one = _run(tmp_path / "r", n_members=100, n_steps=400, curves=noise[:n_steps])
    runs = [replace(one, path=tmp_path / f"run-{i}") for i in range(300)]
    path = report.write_report(runs, tmp_path / "report.html")
    assert path.stat().st_size < 20e6
    page = _Page(path)
    for i in (0, 299):
        assert len(page.data[f"curves-{i}"]["curves"]) >= 24
    members = [table for table in page.tables if table[0][0] == "member"]
    assert [len(table) for table in members] == [1 + 100] * 300
