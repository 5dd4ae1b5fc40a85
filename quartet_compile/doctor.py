"""The command `doctor`: what this machine runs Quartet Compile on, and whether it computes the right bits; for bug reports.

    python -m quartet_compile doctor
    python -m quartet_compile doctor --json

Nothing here is timed: `examples/bench_step.py` measures a training step. The exit code is 1 where a check has failed.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import pathlib
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator

import torch

from . import _compat
from .errors import QuartetError
from .kernels.cpu import native
from .kernels.cpu.toolchain import isa, require_compiler, run
from .kernels.numerics import reference
from .kernels.paths import path_of
from .kernels.quantizer import quantizer
from .tables import aligned

NEEDED_BYTES = 10_000_000
"""What the CPU kernels take in the cache folder."""

OK, FAILED, UNKNOWN = "ok", "failed", "not known"


@dataclasses.dataclass(frozen=True)
class Check:
    """One thing that was looked at. state: `"ok"`, `"failed"` or `"not known"`; found: in words."""

    name: str
    state: str
    found: str


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `doctor` to the commands of `python -m quartet_compile`."""
    text = "what this machine runs it on, and whether it computes the right bits here; for bug reports"
    command = commands.add_parser("doctor", help=text, description=text[0].upper() + text[1:] + ".")
    command.add_argument("--json", action="store_true", help="machine-readable output")
    command.set_defaults(run=run_doctor)


def run_doctor(options: argparse.Namespace) -> str:
    """A line for each check; `options.code` is the exit code afterwards."""
    found = examine()
    options.code = int(any(check.state == FAILED for check in found))
    if options.json:
        return json.dumps([dataclasses.asdict(check) for check in found], indent=1)
    return "\n".join(aligned([(check.name, check.state, check.found) for check in found]))


def examine() -> list[Check]:
    """All checks, in the order in which they depend on one another."""
    checks: dict[str, Callable[[], tuple[str, str]]] = {
        "quartet-compile": lambda: (OK, importlib.metadata.version("quartet-compile")),
        "Python": lambda: (OK, f"{platform.python_version()} on {platform.platform()}"),
        "torch": _torch,
        "Triton": _triton,
        "C++ compiler": lambda: (OK, run([require_compiler(), "--version"]).partition("\n")[0]),
        "instruction set": lambda: (OK, isa()),
        "MXFP4": lambda: (OK, path_of(torch.device("cpu"), [("mxfp4", "mxfp4", False)])),
        "MXFP8": lambda: (OK, path_of(torch.device("cpu"), [("mxfp8", "mxfp8", False)])),
        "GPU": _gpu,
        "cache folder": _cache,
        "bits": _bits,
    }
    return [Check(name, *_tried(look)) for name, look in checks.items()] + [
        Check("speed", UNKNOWN, "nothing is timed here; python examples/bench_step.py measures a training step")
    ]


def _tried(look: Callable[[], tuple[str, str]]) -> tuple[str, str]:
    """What a check says; that it failed, and why, where that is an error of ours or of the system."""
    try:
        return look()
    except (QuartetError, OSError) as error:
        return FAILED, str(error).partition("\n")[0]


def _torch() -> tuple[str, str]:
    return OK if _compat.is_tested() else UNKNOWN, f"{torch.__version__}; tested with {_compat.tested_range()}"


def _triton() -> tuple[str, str]:
    try:
        version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return UNKNOWN, "not installed; GPUs and cross-compile need it, a CPU doesn't"
    return UNKNOWN, f"{version}; docs/support.md has the pairs with torch that were tested"


def _gpu() -> tuple[str, str]:
    if not torch.cuda.is_available():
        return UNKNOWN, "none that this torch sees"
    devices = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    return OK, "; ".join(path_of(device, [("mxfp4", "mxfp4", False)]) for device in devices)


def _cache() -> tuple[str, str]:
    folder = pathlib.Path(_compat.cache_dir())
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass
    free = shutil.disk_usage(folder).free
    text = f"{folder}, {free / 1e9:.1f} GB free"
    return (OK, text) if free >= NEEDED_BYTES else (FAILED, f"{text}; {NEEDED_BYTES / 1e6:.0f} MB are needed")


def _bits() -> tuple[str, str]:
    """The C++ kernels build, and quantize a matrix to the bits of the reference."""
    x = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    names = ["mxfp4-quest", "mxfp4-sr", "nvfp4-rtn", "mxfp8"]
    wrong = [name for name in names if not all(_equal_parts(x, name))]
    if wrong:
        return FAILED, f"the CPU kernels differ from the reference: {', '.join(wrong)}"
    return OK, f"the CPU kernels equal the reference, 64x128 by {', '.join(names)}; on a GPU: make gpu-check"


def _equal_parts(x: torch.Tensor, name: str) -> Iterator[bool]:
    chosen, seed = quantizer(name), torch.tensor(1)
    ours = native.quantize(x, chosen, seed=seed, sign_seed=seed)
    expected = reference.quantize(x, chosen, seed=seed, sign_seed=seed)
    for part in ("codes", "scales"):
        yield torch.equal(getattr(ours, part).view(torch.uint8), getattr(expected, part).view(torch.uint8))
