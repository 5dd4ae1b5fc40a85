"""What is looked at, in the order in which it depends on one another."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import pathlib
import platform
import shutil
import sysconfig
import tempfile
from collections.abc import Callable

import torch

from .. import _compat, debug
from ..errors import QuartetError
from ..kernels import architectures
from ..kernels.cpu import loader
from ..kernels.cpu.toolchain import ISA_VARIABLE, isa, require_compiler, run
from ..kernels.paths import path_of
from . import numbers

NEEDED_BYTES = 10_000_000
"""What the CPU kernels take in the cache folder."""

OK, FAILED, UNKNOWN = "ok", "failed", "not known"

TESTED_PAIRS = (("2.11", "3.6"), ("2.13", "3.9"), ("2.14", "3.8"))
"""Versions of torch and Triton that tests were run with together (docs/support.md)."""

OFF = ("TORCHDYNAMO_DISABLE", "TORCH_COMPILE_DISABLE")
"""Variables by which nothing is compiled, so that nothing is in FP4."""

ODD = {
    "TORCHDYNAMO_SUPPRESS_ERRORS": "what can't be compiled runs eagerly, in high precision, with a warning",
    "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "every process compiles anew",
    "TORCHINDUCTOR_CPP_WRAPPER": "not tested here",
    ISA_VARIABLE: "not the best instruction set that this CPU has, where it names another",
    architectures.VARIABLE: "how products without FP4 hardware are emulated",
    architectures.LIBRARY_VARIABLE: "when torch's own product stands in for ours",
    debug.VARIABLE: "prints graphs, or makes again what the weight cache gives",
}
"""Variables that change what runs, each with how."""


@dataclasses.dataclass(frozen=True)
class Check:
    """One thing that was looked at. state: `"ok"`, `"failed"` or `"not known"`; found: in words."""

    name: str
    state: str
    found: str


def examine() -> list[Check]:
    """All checks, in the order in which they depend on one another."""
    cpu = torch.device("cpu")
    checks: dict[str, Callable[[], tuple[str, str]]] = {
        "quartet-compile": lambda: (OK, importlib.metadata.version("quartet-compile")),
        "Python": lambda: (OK, f"{platform.python_version()} on {platform.platform()}"),
        "torch": _torch,
        "Triton": _triton,
        "C++ compiler": lambda: (OK, run([require_compiler(), "--version"]).partition("\n")[0]),
        "Python.h": _headers,
        "instruction set": lambda: (OK, isa()),
        "MXFP4": lambda: (OK, path_of(cpu, [("mxfp4", "mxfp4", False)])),
        "MXFP8": lambda: (OK, path_of(cpu, [("mxfp8", "mxfp8", False)])),
        "GPU": _gpu,
        "settings": _settings,
        "cache folder": _cache,
        "caches": _caches,
        "bits": lambda: _numbers(numbers.bits),
        "products": lambda: _numbers(numbers.products),
        "linear layer": lambda: _numbers(numbers.linear),
        "speed": lambda: (OK, numbers.speed()),
    }
    return [Check(name, *_tried(look)) for name, look in checks.items()]


def _tried(look: Callable[[], tuple[str, str]]) -> tuple[str, str]:
    """What a check says; that it failed, and why, where that is an error of ours or of the system."""
    try:
        return look()
    except (QuartetError, OSError) as error:
        return FAILED, str(error).partition("\n")[0]


def _numbers(look: Callable[[], tuple[bool, str]]) -> tuple[str, str]:
    right, text = look()
    return OK if right else FAILED, text


def _torch() -> tuple[str, str]:
    return OK if _compat.is_tested() else UNKNOWN, f"{torch.__version__}; tested with {_compat.tested_range()}"


def _triton() -> tuple[str, str]:
    try:
        version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return UNKNOWN, "not installed; GPUs and cross-compile need it, a CPU doesn't"
    pair = tuple(".".join(full.split(".")[:2]) for full in (torch.__version__, version))
    if pair in TESTED_PAIRS:
        return OK, f"{version}, which was tested with torch {pair[0]} (docs/support.md)"
    known = ", ".join(f"{newest} with torch {of}" for of, newest in TESTED_PAIRS)
    return UNKNOWN, f"{version}, which was not tested with torch {pair[0]}; tested were {known} (docs/support.md)"


def _headers() -> tuple[str, str]:
    """What Inductor's code for a CPU includes."""
    path = pathlib.Path(sysconfig.get_path("include"), "Python.h")
    if path.exists():
        return OK, str(path)
    return FAILED, f"no {path}; install it (Debian, Ubuntu: apt-get install python3-dev)"


def _gpu() -> tuple[str, str]:
    if not torch.cuda.is_available():
        return UNKNOWN, "none that this torch sees"
    devices = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    return OK, "; ".join(path_of(device, [("mxfp4", "mxfp4", False)]) for device in devices)


def _settings() -> tuple[str, str]:
    """Variables of the environment that turn things off, or change them."""
    off = [name for name in OFF if _is_set(name)]
    if off:
        return FAILED, f"{' and '.join(off)} is set: nothing is compiled, so nothing is in FP4. Unset it"
    odd = [f"{name}={os.environ[name]}: {what}" for name, what in ODD.items() if _is_set(name)]
    return (UNKNOWN, "; ".join(odd)) if odd else (OK, "no variable that changes what runs is set")


def _is_set(name: str) -> bool:
    return os.environ.get(name, "") not in ("", "0")


def _cache() -> tuple[str, str]:
    folder = pathlib.Path(_compat.cache_dir())
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass
    free = shutil.disk_usage(folder).free
    text = f"{folder}, {free / 1e9:.1f} GB free"
    return (OK, text) if free >= NEEDED_BYTES else (FAILED, f"{text}; {NEEDED_BYTES / 1e6:.0f} MB are needed")


def _caches() -> tuple[str, str]:
    """Whether what is kept is whole, and whether compiled graphs are kept."""
    whole, damaged = loader.kept()
    text = f"{whole} build{'s' * (whole != 1)} of the CPU kernels"
    if damaged:
        text += f"; {len(damaged)} more are damaged, and are built again; delete {', '.join(map(str, damaged))}"
    kept = _compat.kept_graphs()
    if kept is None:
        return UNKNOWN, f"{text}; Inductor's cache of graphs is off: every process compiles anew"
    return UNKNOWN if damaged else OK, f"{text}, {kept} compiled graphs"
