"""Builds the C++ kernels of this folder into one shared library, at first use, and loads it.

    unrotate = loader.function("quartet_unrotate", "pppiiiiii")
    unrotate(Array(...).address(x), ...)

The library is kept in Inductor's cache folder as `<hash of all that went in>-<hash of its bytes>.so`. So a binary of
another CPU, compiler or source is never picked up, and a damaged one is seen before it is mapped (a truncated library
dies of SIGBUS, not of an error). It appears by an atomic rename: processes may build at the same time, and a killed one
leaves no half of it. Where the folder can't be written, a process builds for itself and says so.

Conventions for a kernel: `QUARTET_EXPORT void`, raw pointers, sizes and strides in elements as int64_t, the number of
threads last; no torch headers (ATen.h alone takes 8 s to compile), no global state, no exceptions.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ... import _compat
from ...errors import CompilerError
from ...warn import warn
from .arrays import Address
from .scratch import scratch_folder
from .toolchain import Toolchain, run, toolchain

SOURCES = Path(__file__).parent
_SPACE = "10 MB"


class _Pointer:
    """An argument that is None, the address of a checked tensor, or `ctypes.byref` of a structure."""

    _by_reference = type(ctypes.byref(ctypes.c_int32()))

    @classmethod
    def from_param(cls, value: object) -> object:
        if value is None or isinstance(value, Address):
            return ctypes.c_void_p(value)
        if isinstance(value, cls._by_reference):
            return value
        raise TypeError(f"a CPU kernel got a pointer of type {type(value).__name__}; expected None, Address or byref")


_TYPES = {"p": _Pointer, "i": ctypes.c_int64, "f": ctypes.c_float}
_lock = threading.Lock()


@functools.cache
def function(name: str, signature: str) -> Callable[..., Any]:
    """A C function, to be called with plain integers and floats: `p` is a pointer, of an `Address` or None, `i` an int64_t,
    `f` a float."""
    found = getattr(library(), name)
    found.argtypes = [_TYPES[kind] for kind in signature]
    found.restype = None
    return found


def library() -> ctypes.CDLL:
    """The loaded library, built first if it is not in the cache. Raises `CompilerError` or `OptionError`."""
    with _lock:
        return _library()


@functools.cache
def _library() -> ctypes.CDLL:
    tools = toolchain()
    key = _key(tools)
    try:
        folder = Path(_compat.cache_dir()) / "quartet"
        return ctypes.CDLL(str(_intact(folder, key) or _build(tools, key, folder)))
    except OSError as error:
        return _uncached(tools, key, error)


def _uncached(tools: Toolchain, key: str, reason: OSError) -> ctypes.CDLL:
    """The library built for this process only, in a temporary folder that is gone once it is mapped."""
    try:
        with tempfile.TemporaryDirectory(prefix="quartet-", ignore_cleanup_errors=True) as folder:
            library = ctypes.CDLL(str(_build(tools, key, Path(folder))))
    except OSError as error:
        raise CompilerError(
            f"Quartet Compile can't keep its CPU kernels in Inductor's cache folder ({reason}), nor in a temporary one "
            f"({error}); expected {_SPACE} free in a folder that may be written and holds programs. Free some, or set "
            "TORCHINDUCTOR_CACHE_DIR or TMPDIR to such a folder."
        ) from error
    warn(
        "QC202",
        f"Quartet Compile can't keep its CPU kernels in Inductor's cache folder ({reason}), so every process builds "
        f"them again. Set TORCHINDUCTOR_CACHE_DIR to a writable folder with {_SPACE} free.",
    )
    return library


def _key(tools: Toolchain) -> str:
    digest = hashlib.sha256(repr(tools).encode())
    for source in sorted((*SOURCES.glob("*.cpp"), *SOURCES.glob("*.h"))):
        digest.update(f"\n{source.name}\n".encode() + source.read_bytes())
    return digest.hexdigest()[:32]


def _intact(folder: Path, key: str) -> Path | None:
    """The cached library, if its bytes are those that were built."""
    return next((path for path in folder.glob(f"{key}-*.so") if path == _named(folder, key, path)), None)


def kept() -> tuple[int, list[Path]]:
    """How many builds of the library the cache folder has, of this machine or others, and those that are damaged."""
    builds = sorted((Path(_compat.cache_dir()) / "quartet").glob("*-*.so"))
    damaged = [path for path in builds if path != _named(path.parent, path.name.partition("-")[0], path)]
    return len(builds) - len(damaged), damaged


def _named(folder: Path, key: str, built: Path) -> Path:
    return folder / f"{key}-{hashlib.sha256(built.read_bytes()).hexdigest()[:32]}.so"


def _build(tools: Toolchain, key: str, folder: Path) -> Path:
    """Compile every source, two or more at a time, link, and move the result to its name."""
    folder.mkdir(parents=True, exist_ok=True)
    with scratch_folder(folder) as scratch:
        objects = {str(source): str(scratch / f"{source.stem}.o") for source in sorted(SOURCES.glob("*.cpp"))}
        compile_ = [tools.compiler, *tools.compile_flags, "-c"]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            commands = [[*compile_, source, "-o", made] for source, made in objects.items()]
            list(pool.map(functools.partial(run, scratch=scratch), commands))
        linked = scratch / "quartet.so"
        run([tools.compiler, *objects.values(), *tools.link_flags, "-o", str(linked)], scratch=scratch)
        path = _named(folder, key, linked)
        os.replace(linked, path)
    return path
