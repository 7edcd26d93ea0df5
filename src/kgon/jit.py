"""numba.njit, with a cache of compiled code that is never stale and never raises an error.

numba's own cache does not notice a change in an inlined function of another file. It raises an
error on import if there is no folder to write to, and in every call if one of its files is damaged
or the disk is full. Here compiled code is kept under a hash of all sources that numba compiles, and
is checked when it is read. A damaged file is compiled again. Code that cannot be kept is compiled
again by the next process, and a line says so.
"""

import functools
import hashlib
import os
import pickle
import sys
import tempfile
from pathlib import Path
from typing import Any

import numba
from numba.core.caching import NullCache
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps

from kgon import files

_DIGEST_BYTES = 32


def jit(function: Any = None, **options: Any) -> Any:
    """`numba.njit(**options)`, keeping the compiled code."""
    if function is None:
        return functools.partial(jit, **options)
    compiled = numba.njit(**options)(function)
    compiled._cache = _Kept(function)
    return compiled


@functools.cache
def folder() -> Path | None:
    """The folder of the compiled code: in $NUMBA_CACHE_DIR if that is set, else beside the sources,
    else in the user's cache; None if none of these is writable."""
    package = Path(__file__).parent
    texts = (path.read_bytes() for path in sorted(package.rglob("*.py")))
    compiled = [text for text in texts if b"numba" in text or b"kgon.jit" in text]
    versions = f"{sys.version} {numba.__version__}".encode()
    name = f"kgon-{hashlib.sha256(b''.join([versions, *compiled])).hexdigest()[:12]}"
    # Path.expanduser raises an error if there is no home directory; this leaves the ~ in the path.
    home = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))  # noqa: PTH111
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    for place in [Path(chosen).absolute()] if chosen else [package / "__pycache__", home]:
        if place.is_absolute() and _can_write(place / name):
            return place / name
    return None


def _can_write(path: Path) -> bool:
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError:
        return False
    return True


class _Kept(NullCache):
    """The compiled code of one function: a file for each signature and processor."""

    def __init__(self, function: Any):
        self.function = function

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The compiled code for a signature; None if there is none, or its file is damaged."""
        target_context.refresh()
        if where := folder():
            path = self._path(where, sig, target_context.codegen())
            content = path.read_bytes() if path.exists() else b""
            digest, data = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
            if hashlib.sha256(data).digest() == digest:
                return CompileResult._rebuild(target_context, *pickle.loads(data))
        _say("kgon compiles for this machine, which takes up to a minute")
        if where is None:
            _say("kgon cannot keep compiled code: set NUMBA_CACHE_DIR to a folder for it")
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        where = folder()
        if where is None or data.library.has_dynamic_globals:
            return
        content = dumps(data._reduce())
        try:
            with files.replaced(self._path(where, sig, data.codegen), sync=False) as partial:
                partial.write_bytes(hashlib.sha256(content).digest() + content)
        except OSError as error:
            _say(f"kgon cannot keep compiled code in {where}: {error.strerror}")

    def _path(self, where: Path, sig: Any, codegen: Any) -> Path:
        closure = [cell.cell_contents for cell in self.function.__closure__ or ()]
        key = f"{sig} {codegen.magic_tuple()}".encode() + dumps(closure)
        code = self.function.__code__
        name = f"{Path(code.co_filename).stem}.{code.co_name}-{code.co_firstlineno}"
        return where / f"{name}-{hashlib.sha256(key).hexdigest()[:16]}.nbc"


@functools.cache
def _say(line: str) -> None:
    """Print a line, once."""
    print(line, file=sys.stderr, flush=True)
