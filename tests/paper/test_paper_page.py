"""The committed page: figures show their files, verdicts follow from the rows."""

import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from kgon.paper import superposition
from kgon.paper.drawings import DRAWINGS
from kgon.paper.items import ITEMS, check_names
from kgon.paper.jobs import JOBS
from kgon.paper.page import draw, write_page
from kgon.paper.rows import NOT, VERDICTS, Published, Row
from kgon.paper.section import Block, Picture, Section
from kgon.record.run_directory import Run
from kgon.theory.critical import critical_points
from kgon.theory.geometry import REPRESENTED

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "paper"
RESULTS = json.loads((PAGE / "results.json").read_text(encoding="utf-8"))
FILES = sorted((PAGE / "data").glob("*.json"))


def stored(name):
    return json.loads((PAGE / "data" / f"{name}.json").read_text(encoding="utf-8"))


def by_gid(figure):
    return {a.get_gid(): a for ax in figure.axes for a in ax.get_children() if a.get_gid()}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_figure_is_there_drawn_from_a_file_and_named_on_the_page(file):
    data = json.loads(file.read_text(encoding="utf-8"))
    assert data["drawing"] in DRAWINGS
    text = (PAGE / "README.md").read_text(encoding="utf-8")
    assert f"data/{file.name}" in text and f"figures/{file.stem}.png" in text
    for ending in ("png", "svg"):
        assert (PAGE / "figures" / f"{file.stem}.{ending}").stat().st_size > 1000


def test_figure_1_shows_its_file():
    data = stored("figure_1")
    shown = by_gid(DRAWINGS["staircase"](data))
    assert np.array_equal(shown["loss"].get_xydata(), np.c_[data["step"], data["loss"]])
    assert np.array_equal(shown["llc"].get_xydata(), np.c_[data["llc_step"], data["llc"]])


def test_figure_3_shows_its_file_and_all_levels():
    data = stored("figure_3_c5")
    shown = by_gid(DRAWINGS["losses"](data))
    for m in range(len(data["final_phase"])):
        assert np.array_equal(shown[f"member-{m}"].get_ydata(), np.array(data["loss"])[:, m])
    assert len(stored("figure_3")["final_phase"]) >= 1000
    levels = {k.removeprefix("level-") for k in by_gid(DRAWINGS["losses"](few(stored("figure_3"))))
              if k.startswith("level-") and k != "level-label"}  # fmt: skip
    assert levels == {point.label for point in critical_points(6)}


def few(data):
    """The highest and some other members: the frame is theirs, and drawing is quick."""
    loss = np.array(data["loss"])
    kept = [*np.argsort(-loss[-1])[:5], *range(20)]
    return data | {"loss": loss[:, kept].tolist(),
                   "final_phase": [data["final_phase"][i] for i in kept]}  # fmt: skip


def test_the_dimensionality_shown_is_that_of_the_weights_in_the_file():
    for name in ("superposition_weights", "superposition_dimensions"):
        for picture in stored(name)["pictures"]:
            W = np.array(picture["W"])
            gram = W.T @ W
            direct = np.diag(gram) ** 2 / np.maximum((gram**2).sum(0), 1e-300)
            assert picture["dimensionality"] == pytest.approx(direct.tolist(), abs=1e-4)


def test_verdicts_follow_from_the_rows_by_the_rules():
    assert sum(RESULTS["verdicts"].values()) == len(RESULTS["rows"])
    for row in RESULTS["rows"]:
        published = None
        if row["published"] is not None:
            value = row["published"]
            published = Published(
                tuple(value) if isinstance(value, list) else value, tuple(row["marks"]),
                row["source"], row["published_spread"], row["published_digits"],
            )  # fmt: skip
        again = Row(row["quantity"], row["kgon"], published, row["stderr"], remark=row["remark"])
        assert again.verdict == row["verdict"], row


def test_the_whole_paper_was_run_and_every_item_is_on_the_page():
    assert RESULTS["not_run"] == []
    assert {row["item"] for row in RESULTS["rows"]} == {item.name for item in ITEMS}
    text = (PAGE / "README.md").read_text(encoding="utf-8")
    for item in ITEMS:
        assert f"### {item.title}" in text
    assert "quick version" not in text


def test_items_need_jobs_that_there_are():
    assert {name for item in ITEMS for name in item.needs} == set(JOBS)
    with pytest.raises(ValueError, match=r"item must be some of lemma, .*got figure_9"):
        check_names(["figure_9"])


def test_the_readme_quotes_rows_of_the_table():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    extract = text.partition("| what | published | kgon |")[2].partition("\n\n")[0]
    lines = [line for line in extract.splitlines()[2:] if line.startswith("|")]
    assert len(lines) == 10
    page = (PAGE / "README.md").read_text(encoding="utf-8")
    rows = {}
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if len(cells) == 8:
            rows[cells[0]] = cells
    for line in lines:
        what, published, kgon, difference, verdict = (
            cell.strip() for cell in line.strip().strip("|").split(" | ")
        )
        found = rows[what]
        assert [published, kgon, difference] == found[1:4], what
        assert verdict == found[4].strip("*"), what


def test_what_is_not_reproduced_stands_out_and_counts(tmp_path):
    rows = [Row("a", 2.0, Published(1.0, ("P",), "Sec. 1")), Row("b", 1.0)]
    picture = Picture("p", "pairs", stored("pairs"), "caption")
    sections = {item.name: None for item in ITEMS}
    sections["lemma"] = Section([Block("kgon x", rows)], pictures=[picture])
    results = write_page(tmp_path, sections, "how")
    assert results["verdicts"] == dict(zip(VERDICTS, (0, 0, 1, 1), strict=True))
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert f"**{NOT}**" in text and "Not run yet: `kgon paper item=figure_1`" in text


def test_a_figure_is_drawn_from_what_was_written(tmp_path):
    draw(tmp_path, Picture("again", "survival", {"rows": stored("sparsity")["rows"]}, "c"))
    written = json.loads((tmp_path / "data" / "again.json").read_text(encoding="utf-8"))
    assert written["rows"] == stored("sparsity")["rows"]
    assert (tmp_path / "figures" / "again.svg").exists()


def test_a_partial_run_leaves_the_other_items_as_they_are(tmp_path):
    nothing = {item.name: None for item in ITEMS}
    first = Section([Block("kgon x", [Row("a", 2.0, Published(1.0, ("P",), "Sec. 1"))])])
    write_page(tmp_path, nothing | {"lemma": first}, "how")
    before = (tmp_path / "README.md").read_text(encoding="utf-8")
    second = Section([Block("kgon y", [Row("b | c", 1.0)])], notes=["A note."])
    both = write_page(tmp_path, nothing | {"approach": second}, "how")
    assert [row["quantity"] for row in both["rows"]] == ["a", "b | c"]
    assert both == write_page(tmp_path / "anew", nothing | {"lemma": first, "approach": second}, "")
    write_page(tmp_path, nothing | {"approach": second}, "how")  # once more: nothing is doubled
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert text.count("### ") == before.count("### ") == len(ITEMS)
    kept = before.partition("### Lemma 3.1")[2].partition("\n### ")[0]
    assert f"### Lemma 3.1{kept}\n### " in text and "A note." in text


def run_of(losses, members):
    """A run with the final losses on the inputs along training, and rows of members."""
    table = pa.table({"step": [0] * len(losses) + [9] * len(losses), "member": [0, 1] * 2,
                      "loss": [1.0] * len(losses) + losses})  # fmt: skip
    return Run(Path("run"), {}, {}, members, table, None, [], None)


def test_the_best_start_is_chosen_on_one_sample_and_its_loss_is_that_of_another():
    run = run_of([0.2, 0.3], [{"final_loss": 0.31}, {"final_loss": 0.29}])
    assert superposition.best_member(run) == 0
    assert superposition.best_member(run_of([math.nan, 0.3], [{}, {}])) == 1


@pytest.mark.parametrize("name", ["superposition", "superposition_weights"])
def test_pictures_show_every_start_and_losses_with_their_errors(name):
    data = stored(name)
    shown = by_gid(DRAWINGS[data["drawing"]](data))
    for picture in data["pictures"]:
        starts, S = picture["starts"], picture["sparsity"]
        assert shown[f"starts-{S:g}"].get_ydata().tolist() == starts["loss"]
        assert picture["loss"] == starts["loss"][picture["best"]]
        # No start is better by more than chance: the best is best on other inputs.
        assert picture["loss"] < min(starts["loss"]) + 8 * picture["loss_stderr"]
        length = np.linalg.norm(picture["W"], axis=0)
        assert (length > REPRESENTED).sum() == starts["represented"][picture["best"]]


def test_jumps_are_of_represented_features_within_few_steps():
    step = list(range(0, 101, 10))
    jump, slow, absent = ([0.5] * 5 + [1.0] * 6, [0.5 + 0.05 * t for t in range(11)],
                          [0.0] * 5 + [0.9] * 6)  # fmt: skip
    data = {"step": step, "dimensionality": np.array([jump, slow, absent]).T.tolist(),
            "represented": [[True, True, False]] * 11}  # fmt: skip
    row = superposition.dynamics_rows(data)[0]
    assert row.value == 1 and "steps 40 to 40" in row.remark
