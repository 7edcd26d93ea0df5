"""The code that a record names is the code that ran, wherever one stands."""

import subprocess
from contextlib import nullcontext

import pytest

import kgon
from kgon.record import provenance
from kgon.record.run_directory import RunDirectory
from kgon.training.checkpoints import Stopped


def git(folder, *words):
    own = ["-c", "user.name=a", "-c", "user.email=a@localhost", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", folder, *own, *words], check=True, capture_output=True)
    return done.stdout.decode().strip()


@pytest.fixture
def checkout(tmp_path):
    """A repository with a package in src/ and a conf/."""
    for name in ("src/package/__init__.py", "src/package/a.py", "conf/a.yaml", "notes.md"):
        file = tmp_path / "checkout" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("a")
    git(tmp_path / "checkout", "init", "-q")
    git(tmp_path / "checkout", "add", ".")
    git(tmp_path / "checkout", "commit", "-qm", "one")
    return tmp_path / "checkout"


def test_a_checkout_has_a_commit_and_is_dirty_if_its_code_differs(checkout, tmp_path, monkeypatch):
    package, commit = checkout / "src" / "package", git(checkout, "rev-parse", "HEAD")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))  # as inside a hook
    assert provenance.checkout(package) == {"commit": commit, "dirty": False}
    (checkout / "notes.md").write_text("b")
    assert provenance.checkout(package)["dirty"] is False
    for changed in ("conf/a.yaml", "src/package/a.py", "src/package/new.py"):
        (checkout / changed).write_text("b")
        assert provenance.checkout(package)["dirty"] is True
        monkeypatch.delenv("GIT_DIR", raising=False)
        git(checkout, "checkout", "-q", "conf", "src")


def test_an_installed_package_has_none_even_inside_a_repository(checkout):
    installed = checkout / ".venv" / "lib" / "package"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("a")
    assert provenance.checkout(installed) == {"commit": None, "dirty": None}


def test_without_git_there_is_no_commit(checkout, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    found = provenance.checkout(checkout / "src" / "package")
    assert found == {"commit": None, "dirty": None}


def test_the_status_says_which_code_ran_and_which_ran_before(tmp_path, monkeypatch):
    directory = RunDirectory(tmp_path / "job")

    def attempt(commit, error=None):
        code = {"kgon": kgon_version, "commit": commit}
        monkeypatch.setattr(provenance, "code", lambda: code)
        stops = pytest.raises(Stopped) if error else nullcontext()
        with stops, directory.job("train", [], {}):
            if error:
                raise error
        return directory.status()

    kgon_version = provenance.code()["kgon"]
    assert attempt("a", Stopped(130))["code"]["commit"] == "a"
    attempt("a", Stopped(130))
    status = attempt("b", Stopped(130))
    assert status["code"]["commit"] == "b"
    status = attempt("c")
    assert [code["commit"] for code in status["earlier_code"]] == ["a", "b"]
    assert "earlier_code" not in attempt("d")  # it finished, so this is all of it


def test_versions_are_those_of_the_running_packages():
    import devinterp
    import lightning
    import torch
    import wandb

    code = provenance.code()
    assert {module.__name__ for module in (kgon, devinterp)} <= code.keys()
    for module in (torch, lightning, wandb):
        assert module.__version__ == code[module.__name__]
