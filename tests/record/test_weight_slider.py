"""The report's slider over snapshots: its data are the run's, and it works in real Chromium."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from safetensors.numpy import save_file

from kgon.record import report

sys.path.insert(0, str(Path(__file__).parents[1]))
from browser import Browser, needed
from test_report import _EVIL, _run, _write
from test_report import catalogue as catalogue


def _with_weights(run, n_hidden=2, seed=0, phase=None):
    """The run with snapshots at every second step of its losses, and an LLC at every fourth."""
    steps = np.unique(run.loss["step"].to_numpy())
    at, members = steps[::2].copy(), len(run.members)
    rng = np.random.default_rng(seed)
    W = rng.normal(size=(len(at), members, n_hidden, 6))
    b = rng.uniform(-1, 1, size=(len(at), members, 6))
    b[0, 0, 0] = np.nan
    W[..., 5] *= 0.01  # a dead column
    save_file({"step": at, "W": W, "b": b}, run.path / "weights.safetensors")

    def table(step, **columns):
        number = {
            "step": np.repeat(step, members),
            "member": np.tile(np.arange(members), len(step)),
        }
        return pa.table(number | columns)

    n = len(at) * members
    snapshots = table(at, phase=[phase or ("4+" if i % 2 else "5") for i in range(n)])
    few = at[::2]
    n = len(few) * members
    llc = table(few, mean=rng.normal(6, 1, n), stderr=rng.uniform(0.1, 0.2, n),
                verdict=["escaped" if i % 3 else "ok" for i in range(n)])  # fmt: skip
    return replace(run, snapshots=snapshots, llc=llc), W, b


def test_the_sliders_data_are_those_of_a_member_of_each_phase(tmp_path):
    run, W, b = _with_weights(_run(tmp_path / "r"))
    data = _write([run], tmp_path).data["weights"]
    # Of the members that end in 5, and of those in 4+; the last one diverged.
    assert [one["reach"] > 1 for one in data["members"]] == [True, True]
    steps = np.unique(run.loss["step"].to_numpy())[::2]
    for one, m in zip(data["members"], (0, 1), strict=True):
        assert one["steps"] == steps.tolist()
        drawn = np.array(one["W"], dtype=float).swapaxes(1, 2)
        np.testing.assert_allclose(drawn, W[:, m], atol=0.5001e-3)
        np.testing.assert_allclose(np.array(one["b"], dtype=float), b[:, m], atol=0.5001e-3)
        assert [one["names"][i] for i in one["phase"]] == [("5", "4+")[m % 2]] * len(steps)
        rows = [r for r in run.loss.to_pylist() if r["member"] == m]
        loss = {r["step"]: r["loss"] for r in rows}
        np.testing.assert_allclose(one["loss"], [loss[s] for s in one["steps"]], rtol=5e-5)
        rows = {r["step"]: r for r in run.llc.to_pylist() if r["member"] == m}
        assert [v is None for v in one["llc"]] == [s not in rows for s in one["steps"]]
        assert one["verdict"] == [rows[s]["verdict"] if s in rows else None for s in one["steps"]]
        assert one["plateaus"] == [[0, 3000, "4+", 0.10417, None]]
    assert data["members"][0]["b"][0][0] is None  # what is not finite


def test_columns_in_space_are_turned_and_not_bent(tmp_path):
    run, W, _ = _with_weights(_run(tmp_path / "r"), n_hidden=3)
    data = _write([run], tmp_path).data["weights"]["members"][0]["W"]
    drawn, own = np.array(data, dtype=float).swapaxes(1, 2), W[:, 0]
    gram = drawn.swapaxes(1, 2) @ drawn
    # Each factor is off by half a thousandth, in three terms.
    most = 3 * (2 * np.abs(own).max() * 0.5e-3 + 0.25e-6)
    np.testing.assert_allclose(gram, own.swapaxes(1, 2) @ own, atol=most)
    spread = np.linalg.norm(drawn[-1], axis=1)  # along the last state's principal axes
    assert spread[0] > spread[1] > spread[2]


@pytest.mark.parametrize("missing", ["snapshots", "loss"])
def test_a_run_without_snapshots_or_losses_has_no_slider(tmp_path, missing):
    run, *_ = _with_weights(_run(tmp_path / "r"))
    assert "weights" not in _write([replace(run, **{missing: None})], tmp_path).data


def test_many_snapshots_are_thinned(tmp_path):
    run, *_ = _with_weights(_run(tmp_path / "r", n_members=30, n_steps=4000))
    page = _write([replace(run, llc=None)], tmp_path)
    members = page.data["weights"]["members"]
    assert len(members) == 2 and all(len(one["steps"]) == 200 for one in members)
    assert "Shown: 2 of 30 members" in page.text


def test_names_of_phases_never_become_markup(tmp_path):
    run, *_ = _with_weights(_run(tmp_path / "r"), phase=_EVIL)
    for member in run.members:
        member |= {"phase": _EVIL, "stages": _EVIL}
    page = _write([run], tmp_path)
    assert "<script>alert" not in page.source
    assert page.data["weights"]["members"][0]["names"] == [_EVIL]


# ---------------------------------------------------------------------------------- in a browser

SLIDER = """
    const box = document.querySelector(".slider"), svg = box.querySelector("svg");
    const range = box.querySelector("input"), said = () => box.querySelector("output").textContent;
    const tips = () => [...svg.querySelectorAll(".live, .off")]
      .map(tip => [Number(tip.getAttribute("cx")), Number(tip.getAttribute("cy"))]);
    const move = to => { range.value = to; range.dispatchEvent(new Event("input")); };
"""
MEMBER = "return JSON.parse(document.getElementById('weights').textContent).members[0];"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    needed()
    with Browser(tmp_path_factory.mktemp("profile")) as started:
        yield started


def _open(browser, folder, n_hidden):
    run, W, b = _with_weights(_run(folder / "r"), n_hidden)
    browser.console()
    browser.open(report.write_report([run], folder / "report.html").as_uri())
    return run, W, b


@pytest.mark.slow
def test_the_slider_moves_the_columns_and_says_where_it_is(browser, tmp_path):
    run, W, b = _open(browser, tmp_path, 2)
    steps = np.unique(run.loss["step"].to_numpy())[::2]
    reach = browser.run(MEMBER)["reach"]
    for at in (len(steps) - 1, 7):
        tips = np.array(browser.run(SLIDER + "move(arguments[0]); return tips();", at))
        assert browser.run(SLIDER + "return said();").startswith(f"step {steps[at]:,}, phase 5, ")
        live = W[at, 0, :, np.linalg.norm(W[at, 0], axis=0) >= 0.3]
        shown = tips * reach * [1, -1]
        assert len(shown) == len(live)
        for column in live:
            assert np.linalg.norm(shown - column, axis=1).min() < 2e-3
        length = np.linalg.norm(live, axis=1)
        off = (b[at, 0][np.linalg.norm(W[at, 0], axis=0) >= 0.3] < -(length**2)).sum()
        assert browser.run(SLIDER + "return svg.querySelectorAll('.off').length") == off
        assert browser.run(SLIDER + "return svg.querySelectorAll('.dead').length") == 6 - len(live)
    assert browser.run(SLIDER + "move(0); return svg.textContent;") == "not finite"
    # The cursor is drawn into both charts.
    draw = "return [...box.querySelectorAll('canvas')].map(c => c.toDataURL());"
    before = browser.run(SLIDER + "move(20);" + draw)
    assert all(
        a != b for a, b in zip(before, browser.run(SLIDER + "move(24);" + draw), strict=True)
    )
    other = (
        "const s = box.querySelector('select'); s.value = 1; s.dispatchEvent(new Event('change'));"
    )
    assert "phase 4+" in browser.run(SLIDER + other + "return said();")
    assert browser.console() == []


@pytest.mark.slow
def test_columns_in_space_turn_with_the_mouse_and_the_keys(browser, tmp_path):
    _open(browser, tmp_path, 3)
    place = browser.run(
        SLIDER + "svg.scrollIntoView({block: 'center'}); const r = svg.getBoundingClientRect();"
        "return [r.x + r.width / 2, r.y + r.height / 2];"
    )
    before = np.array(browser.run(SLIDER + "return tips();"))

    def mouse(kind, x, buttons):
        browser.command(
            "Input.dispatchMouseEvent",
            {"type": kind, "x": x, "y": place[1], "button": "left", "buttons": buttons,
             "clickCount": 1},
        )  # fmt: skip

    mouse("mousePressed", place[0], 1)
    mouse("mouseMoved", place[0] + 50, 1)
    mouse("mouseReleased", place[0] + 50, 0)
    mouse("mouseMoved", place[0] + 90, 0)  # with no button pressed
    after = np.array(browser.run(SLIDER + "return tips();"))
    # A hundredth of a radian about the vertical axis for each pixel; drawn from back to front.
    one = browser.run(MEMBER)
    W = np.array([column for column in one["W"][-1] if np.linalg.norm(column) >= 0.3])
    across = W[:, 0] * np.cos(0.5) + W[:, 2] * np.sin(0.5)
    depth = W[:, 2] * np.cos(0.5) - W[:, 0] * np.sin(0.5)
    expected = np.stack([across, -W[:, 1]], axis=1)[np.argsort(depth)] / one["reach"]
    np.testing.assert_allclose(after, expected, atol=1e-9)
    back = """
        for (let i = 0; i < 5; i++)
          svg.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowLeft" }));
        return tips();
        """
    again = np.array(browser.run(SLIDER + back))
    np.testing.assert_allclose(again, before, atol=1e-9)  # five tenths back are 50 hundredths
    assert browser.console() == []


@pytest.mark.slow
def test_other_hidden_dimensions_show_the_gram_matrix(browser, tmp_path):
    _open(browser, tmp_path, 4)
    cells = "return [...svg.querySelectorAll('rect')].map(cell => cell.getAttribute('fill'));"
    colours = browser.run(SLIDER + cells)
    assert len(colours) == 6 * 6 + 6
    square = np.array([colours[7 * i : 7 * i + 6] for i in range(6)])
    assert (square == square.T).all()
    assert browser.console() == []
