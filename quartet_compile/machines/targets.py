"""The GPUs that a model can be compiled for without having one: one chip for each architecture, with its datasheet rates.

Rates are dense (no 2:4 sparsity), at boost clock, with float32 accumulation. Sources, all NVIDIA's: A100 80GB SXM datasheet
(2021); L40S datasheet (2023); H100 datasheet (2023); H200 datasheet (2024); HGX B200 and HGX B300 platform specifications
(2025), an eighth of each; "NVIDIA RTX Blackwell GPU Architecture" whitepaper (2025), RTX 5090. Limits of an SM: CUDA C++
Programming Guide, "Technical Specifications per Compute Capability". AMD's: Instinct MI355X datasheet and "AMD CDNA 4
Architecture" whitepaper (2025).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from ..errors import OptionError, suggest

TERA = 1e12
TENSOR_MEMORY_COLUMNS = 512
"""Columns of tensor memory in an SM of sm_100 and sm_103 (128 lanes of 32 bits each)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """A GPU architecture, and the chip of it that predictions assume.

    shared_bytes: shared memory that one CTA may ask for; shared_bytes_sm: that of a whole SM.
    bandwidth: of device memory, bytes a second.
    rates: operations a second (a multiply-add is two) by number format; a format that the chip's tensor cores lack is
           absent. `float32` is that of the ordinary cores, which torch uses for float32 matmuls unless TF32 is allowed.
    amd: the binaries are AMD's, of which no instructions are counted, so that no time is predicted.
    """

    name: str
    chip: str
    capability: tuple[int, int]
    processors: int
    threads_sm: int
    shared_bytes: int
    shared_bytes_sm: int
    l2_bytes: int
    memory_bytes: int
    bandwidth: float
    rates: Mapping[str, float]
    amd: bool = False

    @property
    def warp(self) -> int:
        """Threads that run together."""
        return 64 if self.amd else 32

    def multiplies(self, number_format: str) -> bool:
        """Whether the tensor cores multiply "mxfp4", "nvfp4" or "mxfp8", scales included."""
        return self.fp4 and not (self.amd and number_format == "nvfp4")

    @property
    def fp4(self) -> bool:
        """Whether the tensor cores multiply FP4."""
        return "fp4" in self.rates

    @property
    def instruction_rate(self) -> float:
        """Instructions of a thread a second that the chip issues: as many as float32 multiply-adds."""
        return self.rates["float32"] / 2

    @property
    def architecture(self) -> int:
        """The capability as one number: 90 for sm_90."""
        return 10 * self.capability[0] + self.capability[1]


def _target(chip: str, architecture: int, rates: Mapping[str, float], bandwidth: float, **limits: int) -> Target:
    return Target(
        name=f"sm_{architecture}",
        chip=chip,
        capability=divmod(architecture, 10),
        amd=False,
        bandwidth=bandwidth * TERA,
        rates={name: rate * TERA for name, rate in rates.items()},
        **limits,
    )


_CENTER = {"threads_sm": 2048, "shared_bytes": 232448, "shared_bytes_sm": 233472}
_DESKTOP = {"threads_sm": 1536, "shared_bytes": 101376, "shared_bytes_sm": 102400}
_MB, _GB = 2**20, 2**30

TARGETS: Mapping[str, Target] = {
    target.name: target
    for target in (
        _target(
            "A100 80GB SXM", 80, {"float32": 19.5, "tf32": 156, "bf16": 312}, 2.039,
            processors=108, l2_bytes=40 * _MB, memory_bytes=80 * _GB,
            threads_sm=2048, shared_bytes=166912, shared_bytes_sm=167936,
        ),
        _target(
            "L40S", 89, {"float32": 91.6, "tf32": 183, "bf16": 362, "fp8": 733}, 0.864,
            processors=142, l2_bytes=96 * _MB, memory_bytes=48 * _GB, **_DESKTOP,
        ),
        _target(
            "H200 SXM", 90, {"float32": 67, "tf32": 494, "bf16": 989, "fp8": 1979}, 4.8,
            processors=132, l2_bytes=50 * _MB, memory_bytes=141 * _GB, **_CENTER,
        ),
        _target(
            "B200", 100, {"float32": 75, "tf32": 1125, "bf16": 2250, "fp8": 4500, "fp4": 9000}, 8.0,
            processors=148, l2_bytes=126 * _MB, memory_bytes=180 * _GB, **_CENTER,
        ),
        _target(
            "B300", 103, {"float32": 75, "tf32": 1125, "bf16": 2250, "fp8": 4500, "fp4": 13500}, 8.0,
            processors=148, l2_bytes=126 * _MB, memory_bytes=270 * _GB, **_CENTER,
        ),
        _target(
            "RTX 5090", 120, {"float32": 104.8, "tf32": 104.8, "bf16": 209.5, "fp8": 419, "fp4": 1676}, 1.792,
            processors=170, l2_bytes=96 * _MB, memory_bytes=32 * _GB, **_DESKTOP,
        ),
        Target(
            name="gfx950", chip="MI355X", capability=(9, 5), amd=True, processors=256, threads_sm=2048,
            shared_bytes=160 * 1024, shared_bytes_sm=160 * 1024, l2_bytes=32 * _MB, memory_bytes=288 * _GB,
            bandwidth=8 * TERA,
            rates={"float32": 157.3 * TERA, "bf16": 2516 * TERA, "fp8": 5033 * TERA, "fp4": 10066 * TERA},
        ),
    )
}  # fmt: skip


CHIPS: Mapping[str, Target] = {
    "a100": TARGETS["sm_80"],
    "l40s": TARGETS["sm_89"],
    "h100": dataclasses.replace(TARGETS["sm_90"], chip="H100 SXM", memory_bytes=80 * _GB, bandwidth=3.35 * TERA),
    "h200": TARGETS["sm_90"],
    "b200": TARGETS["sm_100"],
    "b300": TARGETS["sm_103"],
    "rtx5090": TARGETS["sm_120"],
    "mi355x": TARGETS["gfx950"],
}
"""The same by the names of chips; an H100 (datasheet, 2023) is an H200 with another memory."""


def find_target(target: str | Target) -> Target:
    """A target by its name, as `"sm_100"`, or its chip's, as `"b200"` or `"RTX 5090"`; a `Target` of your own (another chip)
    is itself. Raises `OptionError`."""
    if isinstance(target, Target):
        return target
    known = {**TARGETS, **CHIPS}
    plain = str(target).lower().translate({ord(mark): None for mark in " -"})
    if plain not in known:
        names = ", ".join(f"{name} ({found.chip})" for name, found in TARGETS.items())
        raise OptionError(
            f"Unknown target {target!r}{suggest(plain, known)}. The targets are: {names}; or by chip: {', '.join(CHIPS)}."
        )
    return known[plain]


def known_chip(capability: tuple[int, int], name: str) -> Target | None:
    """The chip of a GPU that has this capability, and this name as its driver gives it; None of one that isn't here."""
    alike = [chip for chip in CHIPS.values() if chip.capability == capability and not chip.amd]
    named = [chip for chip in alike if chip.chip.split(" ")[0] in name.split(" ")]
    return next(iter([*named, *alike]), None)
