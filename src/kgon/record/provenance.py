"""Which code makes a run: versions of packages, the commit of kgon's own checkout, and the modules
of a user's own that its config names."""

import hashlib
import importlib.util
import os
import platform
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("kgon", "torch", "devinterp", "lightning", "wandb", "numpy", "numba")
_PACKAGE = Path(__file__).parents[1]
_PYTHON = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")]
_GIT_SECONDS = 10


@cache
def code() -> dict[str, Any]:
    """Versions by package, and `commit` and `dirty` of the checkout that this package is in.

    `dirty` says whether the package or conf/ differ from the commit. Both are None for an installed
    package, even if its environment lies in a repository.
    """
    versions = {name: version(name) for name in PACKAGES}
    return {"python": platform.python_version(), **versions, **checkout(_PACKAGE)}


def checkout(package: Path) -> dict[str, Any]:
    """The commit and state of a checkout whose src/ has this package."""
    tracked = _git(package, "ls-files", "--error-unmatch", "__init__.py") is not None
    commit = _git(package, "rev-parse", "HEAD") if tracked else None
    if commit is None:
        return {"commit": None, "dirty": None}
    changed = _git(package, "status", "--porcelain", "--", ".", ":(top)conf")
    return {"commit": commit, "dirty": None if changed is None else bool(changed)}


def _git(folder: Path, *words: str) -> str | None:
    """The output of git in a folder; None if it fails or there is no git."""
    # These would let it look at another repository.
    there = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")
    environment = {name: value for name, value in os.environ.items() if name not in there}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words],
            capture_output=True, text=True, timeout=_GIT_SECONDS, env=environment,
        )  # fmt: skip
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def is_own(file: Path) -> bool:
    """Whether a file of code is a user's own: neither kgon's nor installed."""
    installed = any(file.is_relative_to(folder) for folder in (_PACKAGE, *_PYTHON))
    return not (installed or "site-packages" in file.parts)


def own_modules(config: Any) -> dict[str, str]:
    """The sha256 of the file of each module of a user's own that a config names, by module.

    A module is named by a `_target_`, or by a `path` as of hydra.utils.get_method.
    """
    files = {name: file for target in _targets(config) for name, file in [_module(target)] if file}
    return {
        name: hashlib.sha256(file.read_bytes()).hexdigest()
        for name, file in sorted(files.items())
        if is_own(file)
    }


def _targets(node: Any) -> Iterator[str]:
    for key, value in node.items() if isinstance(node, Mapping) else enumerate(node):
        if isinstance(value, Mapping | list):
            yield from _targets(value)
        elif key in ("_target_", "path") and isinstance(value, str):
            yield value


def _module(target: str) -> tuple[str, Path | None]:
    """The module in which a dotted name is, and its file; None if there is no such file."""
    name = target.rpartition(".")[0]
    while name:
        if name in sys.modules:
            origin = getattr(sys.modules[name], "__file__", None)
        else:
            try:
                spec = importlib.util.find_spec(name)
            except ImportError:
                spec = None
            origin = spec and spec.origin
        if origin and Path(origin).is_file():
            return name, Path(origin)
        name = name.rpartition(".")[0]
    return target, None


def changes(before: Mapping[str, Any] | None, config: Any) -> list[str]:
    """How the present code differs from that which made a run with this config: a line each."""
    if not before:
        return []
    lines = []
    then, now = _kgon(before), _kgon(code())
    if then != now:
        lines.append(f"made by {then}, and this is {now}")
    present = own_modules(config)
    for module, digest in before.get("modules", {}).items():
        if module not in present:
            lines.append(f"made with the module {module}, which is not found now")
        elif present[module] != digest:
            lines.append(f"made with another version of the module {module}")
    return lines


def _kgon(code: Mapping[str, Any]) -> str:
    commit, changed = code.get("commit"), " with changes" if code.get("dirty") else ""
    return f"kgon {code.get('kgon')}" + (f" at commit {commit[:7]}{changed}" if commit else "")
