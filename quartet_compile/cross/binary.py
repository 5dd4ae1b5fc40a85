"""Compile one Triton kernel of a generated module for a target, and read what came out: PTX, SASS, resources; AMD's assembly
(amdgcn.py).

Inductor's own object decides the signature, constants, warps and stages; of several configurations that it would measure,
the first is compiled.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
import subprocess
import tempfile
from collections import Counter

from .._compat.fake_gpu import compile_triton, triton_bin
from ..errors import QuartetError
from ..machines.targets import Target
from . import amdgcn

_MMA = re.compile(r"(?<![\w.])(?:tcgen05\.mma|mma\.sync|wgmma\.mma_async)(?:[.:\w]*)")
_CONVERSION = re.compile(r"(?<![\w.])cvt\.r[ns]\.[.\w]*e2m1x\d[.\w]*")
_STORE = re.compile(r"(?<![\w.])(?:st\.(?:[a-z]+\.)*global|red\.|atom\.|cp\.async\.bulk\.(?:tensor\.)?[\w.:]*global)")
_BLOCKS = {"scale_vec::1X": "block32", "scale_vec::2X": "block32", "scale_vec::4X": "block16"}  # older names
_NOISE = re.compile(r"^(sync|aligned|row|col|cta_group::\d|f32|collector::.*|disable_output_lane|mma_async)$")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Binary:
    """A compiled kernel.

    ptx, cubin: for AMD the assembly, and its binary.
    mma: the kinds of its matrix instructions, with how often each is in the PTX. conversions: those to E2M1.
    registers: a thread. stack_bytes: a thread, AMD's scratch; more than 0 means that registers spill. shared_bytes: a CTA,
    AMD's LDS. tmem_columns: of tensor memory that a CTA allocates. threads: a CTA. stores: whether it writes anything.
    """

    ptx: str
    cubin: bytes
    mma: Counter[str]
    conversions: Counter[str]
    registers: int
    stack_bytes: int
    shared_bytes: int
    tmem_columns: int
    threads: int
    stores: bool


def compile_kernel(name: str, source: str, folder: str, target: Target) -> Binary:
    """Compile the kernel `name` of this source, in `fake_gpu`; the source is kept in `folder` for as long as that is
    there. Raises what Triton raises."""
    path = pathlib.Path(folder) / f"{name}.py"
    path.write_text(source)
    ptx, cubin, dynamic_shared = compile_triton(name, path)
    if target.amd:
        return _of_amd(ptx, cubin, dynamic_shared)
    registers, stack, static_shared = resource_usage(cubin)
    return Binary(
        ptx=ptx,
        cubin=cubin,
        mma=Counter(mma_kind(found) for found in _MMA.findall(ptx)),
        conversions=Counter(_CONVERSION.findall(ptx)),
        registers=registers,
        stack_bytes=stack,
        shared_bytes=max(dynamic_shared, static_shared),
        tmem_columns=sum(map(int, re.findall(r"tcgen05\.alloc\.[^;]*?,\s*(\d+)\s*;", ptx))),
        threads=int((re.search(r"\.(?:reqntid|maxntid)\s+(\d+)", ptx) or ["", "0"])[1]),
        stores=bool(_STORE.search(ptx)),
    )


def _of_amd(text: str, binary: bytes, dynamic_shared: int) -> Binary:
    registers, scratch, static_shared, threads = amdgcn.resources(text)
    return Binary(
        ptx=text,
        cubin=binary,
        mma=amdgcn.matrix_instructions(text),
        conversions=amdgcn.conversions(text),
        registers=registers,
        stack_bytes=scratch,
        shared_bytes=max(dynamic_shared, static_shared),
        tmem_columns=0,
        threads=threads,
        stores=amdgcn.stores(text),
    )


def mma_kind(instruction: str) -> str:
    """A PTX matrix instruction without what doesn't tell its kind: `tcgen05.mma.kind::mxf4.block_scale.block32`,
    `mma.sync.m16n8k16.bf16`, `wgmma.m64n128k16.bf16`."""
    unit, *parts = instruction.split(".")
    kept = ["sync"] if unit == "mma" else []
    for part in (_BLOCKS.get(part, part) for part in parts):
        if not _NOISE.match(part) and part not in kept:
            kept.append(part)
    return ".".join([unit, *kept])


def resource_usage(cubin: bytes) -> tuple[int, int, int]:
    """Registers, stack bytes and static shared bytes of the kernel in a cubin."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = _tool("cuobjdump", "--dump-resource-usage", file.name)
    found = re.findall(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)", text)
    if not found:
        raise QuartetError(f"cuobjdump told no resource usage; it printed: {text.strip()[:500]}")
    registers, stack, shared = map(int, found[-1])
    return registers, stack, shared


def disassemble(cubin: bytes) -> str:
    """The SASS of a cubin."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return _tool("nvdisasm", "-c", file.name)


def _tool(name: str, *arguments: str) -> str:
    path = triton_bin() / name
    if not path.is_file():
        raise QuartetError(
            f"cross compilation needs {name}, expected in Triton's wheel at {path}. Install a Triton wheel from PyPI "
            "(tested: 3.6 and 3.9)."
        )
    done = subprocess.run([path, *arguments], capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise QuartetError(f"{name} failed with exit code {done.returncode}: {done.stderr.strip()[:500]}")
    return done.stdout
