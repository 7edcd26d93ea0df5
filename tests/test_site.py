"""The site of make docs, opened from disk in a real browser."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import browser
import pytest
import yaml

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.slow
def test_pages_load_nothing_from_elsewhere_and_fit_a_phone(site, tmp_path):
    browser.needed()
    with browser.Browser(tmp_path, width=390) as window:
        window.requested()
        # (404.html is for servers.)
        for page in (page for page in sorted(site.rglob("*.html")) if page.stem != "404"):
            window.open(page.as_uri())
            assert window.run("return document.documentElement.scrollWidth") <= 390, page
            missing = "return [...document.images].filter(i => !i.naturalWidth).map(i => i.src)"
            assert window.run(missing) == [], page
        assert window.console() == []
        own = ("file:", "data:", "chrome:")
        assert [url for url in window.requested() if not url.startswith(own)] == []


@pytest.mark.slow
def test_formulas_are_drawn_in_the_line(site, tmp_path):
    browser.needed()
    source = (ROOT / "docs" / "numbers.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```math", source, re.M)
    inline = re.findall(r"\$[^$]+\$", re.sub(r"^```.*?^```", "", source, flags=re.S | re.M))
    with browser.Browser(tmp_path) as window:
        window.open((site / "numbers.html").as_uri())
        sizes = window.run(
            "return [...document.querySelectorAll('svg.formula')].map(s => {"
            "const r = s.getBoundingClientRect(); return [r.width, r.height]})"
        )
    assert len(sizes) == len(blocks) + len(inline) > 30
    assert all(width > 4 and 4 < height < 80 for width, height in sizes)


@pytest.mark.slow
def test_the_search_works_from_disk(site, tmp_path):
    browser.needed()
    with browser.Browser(tmp_path) as window:
        window.open((site / "index.html").as_uri())
        window.run(
            "const field = document.querySelector('.md-search__input'); field.focus();"
            "field.value = 'localization'; field.dispatchEvent(new Event('input'));"
            "field.dispatchEvent(new KeyboardEvent('keyup'))"
        )
        links = "return [...document.querySelectorAll('.md-search-result__link')].map(a => a.href)"
        end = time.monotonic() + 60
        while not (found := window.run(links)) and time.monotonic() < end:
            time.sleep(0.2)
    assert any("configuration.html" in link or "numbers.html" in link for link in found)


def test_github_makes_what_ci_run_makes():
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    steps = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    made = {step.removeprefix("make ").removeprefix(".ci/run ") for step in steps}
    everything = re.search(r"set -- (.+)", (ROOT / ".ci/run").read_text())
    assert made == set(everything[1].split())
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.M))
    assert made <= targets
