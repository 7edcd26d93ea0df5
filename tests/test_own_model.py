"""The blocks of docs/own_model.md run, one after the other."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "own_model.md"


@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:.*number of training batches")
def test_the_pages_blocks_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    names = {}
    exec(compile("\n".join(blocks), str(PAGE), "exec"), names)
    assert [row["step"] for row in names["llc"].rows] == [0, 250, 500, 750, 1000]
    assert [row["verdict"] for row in names["llc"].rows][-1] == "ok"
    assert [row["step"] for row in names["plateaus"].rows] == list(range(0, 1001, 10))
    assert "torch.Size([256]) torch.Size([256])" in capsys.readouterr().out
