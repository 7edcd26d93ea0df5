"""The blocks of docs/own_model.md run, one after the other."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "own_model.md"


@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:.*number of training batches")
def test_the_pages_blocks_run(capsys):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    names = {}
    exec(compile("\n".join(blocks), str(PAGE), "exec"), names)
    assert [row["step"] for row in names["llc"].rows] == [0, 100, 200, 300]
    assert [row["step"] for row in names["plateaus"].rows] == list(range(0, 301, 5))
    assert "torch.Size([49]) torch.Size([49])" in capsys.readouterr().out
