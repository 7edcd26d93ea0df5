"""Compiled code is kept where that is possible, is never stale, and its loss costs one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = {
    "kgon/__init__.py": "",
    "kgon/inlined.py": (
        "from kgon.jit import jit\n@jit(inline='always')\ndef two():\n    return 2\n"
    ),
    "kgon/function.py": (
        "from kgon.inlined import two\nfrom kgon.jit import jit\n"
        "@jit\ndef twice(x):\n    return two() * x\n"
    ),
}
CALL = "from kgon.function import twice; print(twice(3), len(twice.stats.cache_hits))"


@pytest.fixture
def package(tmp_path):
    """A small package beside copies of the modules that keep compiled code."""
    from kgon import files, jit

    for name, text in PACKAGE.items():
        (tmp_path / "src" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "src" / name).write_text(text)
    for module in (files, jit):
        path = tmp_path / "src" / "kgon" / f"{module.__name__.rpartition('.')[2]}.py"
        path.write_text(Path(module.__file__).read_text())
    return tmp_path / "src"


def call(package, code=CALL, **environment):
    """What a new process prints and what it complains of."""
    known = {k: v for k, v in os.environ.items() if k not in ("HOME", "XDG_CACHE_HOME")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=package.parent,
        env=known | {"PYTHONPATH": str(package)} | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr.splitlines()


def kept(package):
    return sorted(package.glob("kgon/__pycache__/kgon-*/function.twice-*.nbc"))


def test_compiled_code_is_kept_and_a_cold_start_says_so(package):
    printed, lines = call(package)
    assert printed == "6 0"
    assert len(lines) == 1 and "compiles for this machine" in lines[0]
    assert call(package) == ("6 1", [])


def test_a_change_in_an_inlined_function_of_another_file_counts(package):
    call(package)
    inlined = package / "kgon" / "inlined.py"
    status = inlined.stat()
    inlined.write_text(inlined.read_text().replace("2", "5"))
    os.utime(inlined, (status.st_atime, status.st_mtime))
    assert call(package)[0] == "15 0"


def test_a_damaged_file_is_written_anew(package):
    call(package)
    (file,) = kept(package)
    for damage in (lambda _: b"", lambda _: b"damaged", lambda whole: whole[:-100]):
        file.write_bytes(damage(file.read_bytes()))
        assert call(package)[0] == "6 0"
    assert call(package)[0] == "6 1"


def test_without_a_folder_to_write_to_it_compiles_and_says_so(package):
    (package / "kgon" / "__pycache__").write_text("no folder")
    # A relative path, which is what ~ is without a home directory, is no place either.
    printed, lines = call(package, XDG_CACHE_HOME="~/.cache")
    assert printed == "6 0"
    assert len(lines) == 2 and "NUMBA_CACHE_DIR" in lines[1]
    assert not (package.parent / "~").exists()
    chosen = str(package.parent / "chosen")
    call(package, NUMBA_CACHE_DIR=chosen)
    assert call(package, NUMBA_CACHE_DIR=chosen) == ("6 1", [])


def test_a_full_disk_costs_one_line(package):
    full = (
        "import pathlib\n"
        "def full(*_): raise OSError(28, 'No space left on device')\n"
        "pathlib.Path.write_bytes = full\n"
    )
    printed, lines = call(package, full + CALL)
    assert printed == "6 0"
    assert sum("No space left on device" in line for line in lines) == 1
    assert not kept(package)
