"""The report page in real Chromium: it draws, sorts, filters and fits, and asks nobody."""

import re
import sys
import time
from pathlib import Path

import pytest

from kgon.record import report

sys.path.insert(0, str(Path(__file__).parents[1]))
from browser import Browser, needed
from test_report import _run

pytestmark = pytest.mark.slow

N_RUNS = 300


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A page of one run and one of a large sweep."""
    needed()
    folder = tmp_path_factory.mktemp("pages")
    one = _run(folder / "train-one", n_members=30, n_steps=200)
    figures = one.path / "figures"
    figures.mkdir()
    (figures / "loss.svg").write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"><path d="M1 1h7v7z"/></svg>'
    )
    sweep = [
        _run(folder / f"train-{i:03}", n_members=100, n_steps=60, overrides=[f"seed={i}"])
        for i in range(N_RUNS)
    ]
    return {
        "one": report.write_report([one], folder / "one.html"),
        "sweep": report.write_report(sweep, folder / "sweep.html"),
    }


@pytest.fixture(scope="module", params=["light", "dark"])
def desktop(request, pages, tmp_path_factory):
    profile = tmp_path_factory.mktemp("profile")
    with Browser(profile, dark=request.param == "dark") as started:
        yield started


def look(browser, page):
    """Open a page; the milliseconds until it is loaded, with all that its script does at first."""
    browser.open(page.as_uri())
    return browser.run("const t = performance.timing; return t.loadEventEnd - t.navigationStart")


def column(browser, section, heading):
    """The texts of a column of a section's first table, rows that are hidden left out."""
    return browser.run(
        """
        const [section, heading] = arguments;
        const place = Array.from(document.querySelectorAll("section"))
          .find(s => s.querySelector("h2") && s.querySelector("h2").textContent === section);
        const table = place.querySelector("table.sortable");
        const at = Array.from(table.tHead.rows[0].cells)
          .findIndex(head => head.textContent.trim() === heading);
        return Array.from(table.tBodies[0].rows).filter(row => !row.hidden)
          .map(row => row.cells[at].textContent.trim());
        """,
        section,
        heading,
    )


def press(browser, section, heading):
    browser.run(
        """
        const [section, heading] = arguments;
        const place = Array.from(document.querySelectorAll("section"))
          .find(s => s.querySelector("h2") && s.querySelector("h2").textContent === section);
        Array.from(place.querySelectorAll("th button"))
          .find(button => button.textContent.trim() === heading).click();
        """,
        section,
        heading,
    )


@pytest.mark.parametrize("name", ["one", "sweep"])
def test_a_page_says_no_error_and_asks_nobody(desktop, pages, name):
    desktop.console(), desktop.requested()
    look(desktop, pages[name])
    # (All 300 would take the browser a quarter of a minute.)
    desktop.run("[...document.querySelectorAll('details')].slice(0, 3).forEach(d => d.open = true)")
    time.sleep(0.3)
    assert desktop.console() == []
    asked = [url for url in desktop.requested() if not url.startswith("data:")]
    assert asked == [pages[name].as_uri()]


def test_a_table_sorts_up_and_down_with_blanks_last(desktop, pages):
    look(desktop, pages["one"])
    press(desktop, "Members", "LLC")
    values = column(desktop, "Members", "LLC")
    numbers = [float(value) for value in values if value]
    assert len(numbers) == 29 and numbers == sorted(numbers) and values[-1] == ""
    press(desktop, "Members", "LLC")
    values = column(desktop, "Members", "LLC")
    assert [float(value) for value in values[:-1]] == numbers[::-1] and values[-1] == ""


CHART = """
    const plot = document.querySelector(".plot"), canvas = plot.querySelector("canvas");
    const readout = document.querySelector(".chart output");
"""


def test_curves_and_figures_are_drawn(desktop, pages):
    look(desktop, pages["one"])
    count = (
        CHART
        + """
        const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
        return new Set(new Uint32Array(data.buffer)).size;
        """
    )
    assert desktop.run(count) > 5  # a blank canvas has one
    images = desktop.run("return [...document.images].map(i => i.complete && i.naturalWidth > 0)")
    assert images and all(images)
    before = desktop.run(CHART + "return canvas.toDataURL();")
    desktop.run("document.querySelector('[data-axis=y]').click()")
    assert desktop.run(CHART + "return canvas.toDataURL();") != before
    assert desktop.run(count) > 5


def test_keys_and_the_pointer_read_values(desktop, pages):
    look(desktop, pages["one"])
    read = CHART + "return readout.textContent;"
    hint = desktop.run(read)
    press_key = """
        plot.dispatchEvent(new KeyboardEvent("keydown", {key: arguments[0], bubbles: true}));
        """
    desktop.run(CHART + press_key, "ArrowRight")
    assert desktop.run(read).startswith("member 0, final phase 5, step ")
    for _ in range(29):
        desktop.run(CHART + press_key, "ArrowDown")
    assert desktop.run(read).startswith("member 29, final phase diverged")
    point = (
        CHART
        + """
        const over = plot.querySelector(".u-over"), box = over.getBoundingClientRect();
        const at = {clientX: box.right - 5, clientY: box.top + box.height / 2, bubbles: true};
        for (const kind of arguments) over.dispatchEvent(new MouseEvent(kind, at));
        // uPlot follows the pointer once a frame.
        return new Promise(done => requestAnimationFrame(() => requestAnimationFrame(
          () => done(readout.textContent))));
        """
    )
    said = desktop.run(point, "mouseenter", "mousemove")
    assert re.match(r"(member \d+, final phase|critical point) .*, loss 0\.\d+$", said)
    assert desktop.run(point, "mouseleave") == hint


def test_three_hundred_runs_open_in_two_seconds_and_filter(desktop, pages):
    assert pages["sweep"].stat().st_size < 20e6
    # The machine may have other things to do at one time or another.
    assert min(look(desktop, pages["sweep"]) for _ in range(3)) < 2000
    assert len(column(desktop, "Overview", "run")) == N_RUNS
    desktop.run(
        """
        const input = document.querySelector("[data-filter] input");
        input.value = "train-017";
        input.dispatchEvent(new Event("input"));
        """
    )
    assert column(desktop, "Overview", "run") == ["train-017"]


def test_a_phone_need_not_scroll_sideways(pages, tmp_path):
    with Browser(tmp_path / "profile", width=390, height=800) as phone:
        for page in pages.values():
            look(phone, page)
            assert phone.run("return document.documentElement.scrollWidth") <= 390
