"""Builds the C++ kernels of this folder into one shared library, at first use, and loads it.

    unrotate = loader.function("quartet_unrotate", "pppiiiiii")
    unrotate(Array(...).address(x), ...)

The library is kept in Inductor's cache folder as `<hash of all that went in>-<hash of its bytes>.so`. So a binary of
another CPU, compiler or source is never picked up, and a damaged one is seen before it is mapped (a truncated library
dies of SIGBUS, not of an error). It appears by an atomic rename: processes may build at the same time.

Conventions for a kernel: `QUARTET_EXPORT void`, raw pointers, sizes and strides in elements as int64_t, the number of
threads last; no torch headers (ATen.h alone takes 8 s to compile), no global state, no exceptions.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import hashlib
import os
import shutil
import tempfile
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ... import _compat
from .arrays import Address
from .toolchain import Toolchain, run, toolchain

SOURCES = Path(__file__).parent


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
def function(name: str, signature: str) -> ctypes._CFuncPtr:
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
        path = _intact(folder, key) or _build(tools, key, folder)
    except OSError as error:
        warnings.warn(
            f"Quartet Compile can't keep its CPU kernels in Inductor's cache folder ({error}), so every process builds "
            "them again. Set TORCHINDUCTOR_CACHE_DIR to a writable folder.",
            stacklevel=3,
        )
        folder = Path(tempfile.mkdtemp(prefix="quartet-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        path = _build(tools, key, folder)
    return ctypes.CDLL(str(path))


def _key(tools: Toolchain) -> str:
    digest = hashlib.sha256(repr(tools).encode())
    for source in sorted((*SOURCES.glob("*.cpp"), *SOURCES.glob("*.h"))):
        digest.update(f"\n{source.name}\n".encode() + source.read_bytes())
    return digest.hexdigest()[:32]


def _intact(folder: Path, key: str) -> Path | None:
    """The cached library, if its bytes are those that were built."""
    return next((path for path in folder.glob(f"{key}-*.so") if path == _named(folder, key, path)), None)


def _named(folder: Path, key: str, built: Path) -> Path:
    return folder / f"{key}-{hashlib.sha256(built.read_bytes()).hexdigest()[:32]}.so"


def _build(tools: Toolchain, key: str, folder: Path) -> Path:
    """Compile every source, two or more at a time, link, and move the result to its name."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        objects = {source: os.path.join(scratch, source.stem + ".o") for source in sorted(SOURCES.glob("*.cpp"))}
        compile_ = [tools.compiler, *tools.compile_flags, "-c"]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(run, ([*compile_, str(source), "-o", target] for source, target in objects.items())))
        linked = Path(scratch) / "quartet.so"
        run([tools.compiler, *objects.values(), *tools.link_flags, "-o", str(linked)])
        path = _named(folder, key, linked)
        os.replace(linked, path)
    return path
