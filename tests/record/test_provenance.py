"""The code that a record names is the code that ran, wherever one stands."""

import hashlib
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


def test_own_modules_are_those_that_a_config_names(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_package").mkdir()
    for name in ("own_package/__init__.py", "own_package/inner.py", "own_single.py", "unnamed.py"):
        (tmp_path / name).write_text(f"# {name}\nclass Thing:\n    method = None\n")
    config = {
        "a": {"_target_": "own_package.inner.Thing.method"},
        "b": [{"_target_": "hydra.utils.get_method", "path": "own_single.Thing"}, 3],
        "c": {"_target_": "torch.optim.SGD", "path": "/a/folder.of/files", "name": "unnamed.Thing"},
        "d": {"_target_": "kgon.data.Sparse"}, "e": {"_target_": "functools.partial"},
        "f": {"_target_": "nowhere.Thing"}, "g": {"_target_": "builtins.bool"},
    }  # fmt: skip
    files = {"own_package.inner": "own_package/inner.py", "own_single": "own_single.py"}
    digests = {
        name: hashlib.sha256((tmp_path / file).read_bytes()).hexdigest()
        for name, file in files.items()
    }
    assert provenance.own_modules(config) == digests

    directory = RunDirectory(tmp_path / "job")
    with directory.job("train", [], config):
        pass
    code = directory.status()["code"]
    assert code["modules"] == digests
    assert provenance.changes(code, config) == provenance.changes(None, config) == []
    (tmp_path / "own_single.py").write_text("# changed")
    assert provenance.changes(code, config) == [
        "made with another version of the module own_single"
    ]
    other = code | {"kgon": "0.0.9", "commit": "a" * 40, "dirty": True}
    made = "made by kgon 0.0.9 at commit aaaaaaa with changes, and this is kgon "
    assert provenance.changes(other, config)[0].startswith(made)
    del config["b"]
    (gone,) = provenance.changes(code, config)
    assert gone == "made with the module own_single, which is not found now"
