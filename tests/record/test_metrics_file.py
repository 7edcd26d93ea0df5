"""metrics.jsonl: every row once, whatever was interrupted and when."""

import json

import pytest

from kgon.callbacks.recorder import Row
from kgon.record.metrics_file import NAME, MetricsFile


def test_lines_of_a_step_are_one_row_and_earlier_steps_are_ignored(tmp_path):
    file = MetricsFile(tmp_path)
    assert file.rows() == []
    file.log_metrics({"loss": 0.1}, 0)
    file.log_image("weights", [str(tmp_path / "figures" / "0.png")], 0)
    file.log_metrics({"loss": 1e-300, "llc": float("inf")}, 5)
    file.log_metrics({"loss": 7.0}, 3)
    assert file.rows() == [
        Row(0, {"loss": 0.1}, {"weights": tmp_path / "figures" / "0.png"}),
        Row(5, {"loss": 1e-300, "llc": float("inf")}),
    ]
    assert [json.loads(line)["step"] for line in (tmp_path / NAME).read_text().splitlines()] == [
        0,
        0,
        5,
    ]


@pytest.mark.parametrize("first", [0, 2, 9])
def test_a_job_that_resumes_replaces_what_was_written_from_its_first_row_on(tmp_path, first):
    before = MetricsFile(tmp_path)
    for step in range(5):
        before.log_metrics({"loss": -1.0}, step)
    with before.path.open("a") as file:
        file.write('{"step": 5, "lo')  # killed in mid-line
    assert [row.step for row in before.rows()] == [0, 1, 2, 3, 4]
    after = MetricsFile(tmp_path)
    for step in (first, first + 1):
        after.log_metrics({"loss": 1.0}, step)
    rows = [(row.step, row.metrics["loss"]) for row in after.rows()]
    kept = [(step, -1.0) for step in range(min(first, 5))]
    assert rows == [*kept, (first, 1.0), (first + 1, 1.0)]


@pytest.mark.parametrize("damage", ["", "[]", "{}", '{"step": 1', '{"step": 1, "media": 1}'])
def test_a_damaged_line_is_named(tmp_path, damage):
    (tmp_path / NAME).write_text(f'{{"step": 0}}\n{damage}\n{{"step": 2}}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2 is damaged"):
        MetricsFile(tmp_path).rows()
