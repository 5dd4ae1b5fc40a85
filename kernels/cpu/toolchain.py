"""What the CPU kernels are built with: compiler, instruction set, flags and OpenMP runtime."""

from __future__ import annotations

import errno
import functools
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import torch

from ... import _compat
from ...errors import CompilerError, OptionError, suggest
from .amx import AMX_FEATURES, reason_against_amx

ISA_VARIABLE = "QUARTET_CPU_ISA"

_OLDEST = {"GCC": 9, "clang": 12}

_AVX2 = ("avx2", "fma", "f16c")
_AVX512 = (*_AVX2, "avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl")
ISA_FEATURES = {
    "amx": (*_AVX512, "avx512vnni", *AMX_FEATURES),
    "avx512vnni": (*_AVX512, "avx512vnni"),
    "avx512": _AVX512,
    "avx2": _AVX2,
    "portable": (),
}
"""Each level, best first, with its `-m` flags; these are also the names in /proc/cpuinfo, but for - and _."""

_SYSTEMS = {"darwin": "macOS", "win32": "Windows"}

# No part of -ffast-math: it reassociates, and GCC links a start-up file that turns subnormals off for the process.
_FLAGS = (
    *("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-fno-math-errno"),
    "-Werror=switch",  # an entry that some kernel has no case for
)


class Toolchain(NamedTuple):
    """Everything, besides the sources, that decides what the library contains."""

    compiler: str
    version: str
    compile_flags: tuple[str, ...]
    link_flags: tuple[str, ...]
    machine: str


def toolchain() -> Toolchain:
    """The compiler and flags for this process. Raises `CompilerError` or `OptionError`."""
    compiler = require_compiler()
    version = run([compiler, "--version"])
    openmp_compile, openmp_link = _openmp_flags("clang" in version)
    features = tuple("-m" + feature for feature in ISA_FEATURES[isa()])
    return Toolchain(
        compiler, version, (*_FLAGS, *features, *openmp_compile), ("-shared", *openmp_link), platform.machine()
    )


@functools.cache
def isa() -> str:
    """The instruction set to build for: the best that this CPU has, or what `QUARTET_CPU_ISA` says. Empty is as unset."""
    supported = supported_isas()
    wanted = os.environ.get(ISA_VARIABLE) or supported[0]
    if wanted not in ISA_FEATURES:
        raise OptionError(
            f"{ISA_VARIABLE} is {wanted!r}{suggest(wanted, ISA_FEATURES)}; expected one of {', '.join(ISA_FEATURES)}."
        )
    if wanted not in supported:
        missing = ", ".join(
            sorted(feature for feature in ISA_FEATURES[wanted] if _plain(feature) not in _cpu_features())
        )
        what = f"this CPU lacks {missing}" if missing else refusal()
        raise OptionError(
            f"{ISA_VARIABLE} is {wanted!r}, but {what}; it supports {', '.join(supported)}. "
            f"Unset {ISA_VARIABLE} to use {supported[0]!r}."
        )
    return wanted


def supported_isas() -> list[str]:
    """The levels that this CPU can run and this process may use, best first."""
    levels = _levels_of_cpu()
    return levels[1:] if refusal() else levels


def refusal() -> str | None:
    """Why this process doesn't use the AMX that its CPU has, or None."""
    if _levels_of_cpu()[0] != "amx":
        return None
    reason = reason_against_amx(require_compiler())
    return reason and f"this CPU's AMX can't be used: {reason}"


def _levels_of_cpu() -> list[str]:
    present = _cpu_features()
    return [level for level, features in ISA_FEATURES.items() if present.issuperset(map(_plain, features))]


def run(command: list[str], scratch: Path | None = None) -> str:
    """The output of a compiler command, whose temporary files go to `scratch`.

    Raises `CompilerError` if there is no such compiler, if it is too old, or if it fails; `OSError` if the disk is full.
    """
    environment = {**os.environ, "LC_ALL": "C"} | ({} if scratch is None else {"TMPDIR": str(scratch)})
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment)
    except OSError as error:
        raise _no_compiler(command[0]) from error
    if not done.returncode:
        return done.stdout
    for code in (errno.ENOSPC, errno.EDQUOT):
        if os.strerror(code) in done.stderr:
            raise OSError(code, os.strerror(code), None if scratch is None else str(scratch.parent))
    raise CompilerError(
        f"Quartet Compile's CPU kernels failed to compile (exit status {done.returncode}).\n"
        f"Command: {' '.join(command)}\n{done.stderr}\n{_remedy(command[0])}"
    )


def _remedy(compiler: str) -> str:
    """What to do about a failed compilation, by the compiler's age."""
    done = subprocess.run([compiler, "--version"], capture_output=True, text=True, errors="replace")
    name = "clang" if "clang" in done.stdout else "GCC"
    found = re.search(r"(?:clang version|\)) (\d+)", done.stdout)
    if found and int(found[1]) < _OLDEST[name]:
        return (
            f"{compiler} is {name} {found[1]}, which is too old: expected GCC {_OLDEST['GCC']}, clang {_OLDEST['clang']} or "
            "later. Install one and set CXX to it."
        )
    return (
        f"They are known to compile with GCC {_OLDEST['GCC']}, clang {_OLDEST['clang']} and later: "
        "set CXX to another compiler."
    )


def require_linux(kernels: str) -> None:
    """Raise `CompilerError` outside of Linux. kernels: which are needed, as "CPU"."""
    if sys.platform != "linux":
        system = _SYSTEMS.get(sys.platform, sys.platform)
        raise CompilerError(
            f"Quartet Compile's {kernels} kernels are built on Linux, and this is {system}. "
            "Train on Linux, in a container, or on Windows in WSL 2; explain, recipes, law and export work here."
        )


def require_compiler() -> str:
    """The C++ compiler, which Inductor uses for the CPU too. Raises `CompilerError`, outside of Linux too."""
    require_linux("CPU")
    found = _compat.cpp_compiler()
    if found is None:
        raise _no_compiler(os.environ.get("CXX", "g++"))
    return found


def _no_compiler(name: str) -> CompilerError:
    return CompilerError(
        f"Quartet Compile's CPU kernels need a C++ compiler, and {name!r} can't be run. "
        "Install g++ (Debian, Ubuntu: apt-get install g++; conda: conda install gxx), or set CXX to a compiler."
    )


def _cpu_features() -> set[str]:
    """Instruction sets of this CPU, plain; empty where they can't be read (not Linux, not x86)."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    flags = next((line.partition(":")[2] for line in lines if line.startswith("flags")), "")
    return {_plain(flag) for flag in flags.split()}


def _plain(feature: str) -> str:
    """`avx512_vnni`, `amx-int8` without the mark, which -m flags and /proc/cpuinfo put in different places."""
    return feature.replace("_", "").replace("-", "")


def _openmp_flags(clang: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Flags to compile and to link with the very OpenMP runtime that torch runs on.

    Idle threads of a pool spin, so two pools fight over the cores: an elementwise op of torch's and a quantization of
    512x640 took 0.11 ms together with one pool, and 36 ms with two (2 busy Zen4 cores, 2 threads each, medians). Where
    torch has no runtime that fits, the library runs on one thread. clang calls __kmpc_*, which libgomp lacks; what GCC
    calls, GOMP_*, all three have.
    """
    runtime = _torch_openmp()
    if runtime is None or (clang and "libgomp" in runtime):
        return (), ()
    return ("-Xclang", "-fopenmp") if clang else ("-fopenmp",), (runtime,)


def _torch_openmp() -> str | None:
    """Path of the OpenMP runtime that this process has loaded, or None."""
    try:
        mapped = [line.split(maxsplit=5)[-1] for line in Path("/proc/self/maps").read_text().splitlines()]
    except OSError:
        mapped = [str(path) for path in Path(torch.__file__).parent.glob("lib/lib*omp*")]
    names = ("libgomp", "libiomp5", "libomp")
    return next((path for path in mapped if Path(path).name.startswith(names)), None)
