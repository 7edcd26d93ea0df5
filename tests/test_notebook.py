"""The notebook docs/kgon.ipynb runs from top to bottom, and nothing in it warns."""

import os
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "docs" / "kgon.ipynb"
SOURCE = Path(__file__).parents[1] / "src"


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of the client, not of the notebook
def test_the_notebook_runs_without_warnings(tmp_path, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    path = os.pathsep.join([str(SOURCE), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs for cell in code), "it is kept without outputs"
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=600, resources=resources).execute()
    outputs = [output for cell in code for output in cell.outputs]
    said = [o.text for o in outputs if o.output_type == "stream" and o.name == "stderr"]
    assert said == []
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert "theory: 7" in outputs[-1].text
    assert list(tmp_path.glob("multirun/train-*/members.parquet"))
