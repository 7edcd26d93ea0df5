"""Which code makes a run: versions of packages, and the commit of kgon's own checkout."""

import os
import platform
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("kgon", "torch", "devinterp", "lightning", "wandb", "numpy", "numba")
_PACKAGE = Path(__file__).parents[1]
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
