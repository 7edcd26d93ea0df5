"""What importing costs: heavy packages only where they are used."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import kgon
from kgon.cli import main

HEAVY = ("torch", "lightning", "hydra", "wandb", "matplotlib", "numba", "devinterp", "arviz",
         "transformers", "jax")  # fmt: skip


def imported_by(statement):
    script = f"{statement}\nimport sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return {name.partition(".")[0] for name in done.stdout.split()}


@pytest.mark.parametrize("name", kgon.__all__)
def test_every_public_name_is_there(name):
    assert getattr(kgon, name).__doc__


def test_the_version_is_that_of_the_package_everywhere(capsys, monkeypatch):
    top = Path(__file__).parents[1]
    version = tomllib.loads((top / "pyproject.toml").read_text())["project"]["version"]
    assert kgon.__version__ == version
    for flag, end in (("--help", f"This is kgon {version}."), ("--version", version)):
        monkeypatch.setattr(sys, "argv", ["kgon", flag])
        try:
            main()
        except SystemExit as ended:
            assert not ended.code
        assert capsys.readouterr().out.endswith(f"{end}\n")
    assert f"\n## [{version}]\n" in (top / "CHANGELOG.md").read_text()


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'k_gon'"):
        _ = kgon.k_gon


@pytest.mark.parametrize(
    ("statement", "light"),
    [
        ("import kgon, kgon.cli", HEAVY),
        ("from kgon import population_loss, critical_points, classify", HEAVY[1:]),
        ("import kgon.compiled, kgon.data", ("lightning", "hydra", "wandb", "matplotlib", "arviz")),
        # (torchmetrics, which Lightning imports, takes in transformers where it is installed.)
        ("import kgon.cli.train", ("jax", "arviz", "wandb_workspaces", "datasets", "xarray")),
    ],
)
def test_imports_stay_light(statement, light):
    assert not imported_by(statement) & set(light)
