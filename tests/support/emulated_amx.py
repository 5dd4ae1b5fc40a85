"""A pytest plugin: the CPU kernels as built for AMX, whose tile instructions amx_tiles.h stands in for.

`PYTHONPATH=tests/support python -m pytest -p emulated_amx ...`, on a CPU with AVX512-VNNI and a compiler that knows AMX.
"""

import ctypes
import hashlib
import pathlib

from quartet_compile.kernels.cpu import loader, toolchain

HEADER = pathlib.Path(__file__).parent / "amx_tiles.h"


def _emulated(found=toolchain.toolchain) -> toolchain.Toolchain:
    tools, digest = found(), hashlib.sha256(HEADER.read_bytes()).hexdigest()
    flags = (
        *tools.compile_flags,
        "-include",
        str(HEADER),
        f'-DAMX_TILES="{digest}"',
    )  # the digest, for the loader's key
    return tools._replace(compile_flags=flags)


toolchain.isa = lambda: "amx"
loader.toolchain = _emulated


def tile_products() -> tuple[int, int]:
    """How many instructions multiplied tiles of int8, and of bf16, so far."""
    count = loader.library().amx_tiles_products
    count.restype = ctypes.c_int64
    return count(0), count(1)
