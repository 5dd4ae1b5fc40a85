"""How a device multiplies operands of low precision, in words: natively, or emulated and by what."""

from __future__ import annotations

from collections.abc import Collection

import torch

from .architectures import library_use
from .cpu.supports import INTEGER_PRODUCTS
from .cpu.toolchain import isa, refusal
from .library import IN_ROWS, LIBRARY_PRODUCTS

_INSTRUCTIONS = {"amx": "AMX", "avx512vnni": "AVX512-VNNI", "avx512": "AVX512", "avx2": "AVX2", "portable": "portable"}


def path_of(device: torch.device, products: Collection[tuple[str, str, bool]]) -> str:
    """`"CPU: emulated in int8 (AVX512-VNNI), no FP4 hardware"`: what products of these pairs of operand formats run on, each
    with whether it is grouped.

    Raises `OptionError` for an instruction set that can't be, `QuantizerError` for a GPU that isn't known.
    """
    if device.type == "cpu":
        level, against = isa(), refusal()
        units = [unit for left, right, _ in sorted(products) for unit in _cpu_units(level, left, right)]
        how = f"{_INSTRUCTIONS[level]}; {against}" if against else _INSTRUCTIONS[level]
        return f"CPU: emulated in {' and '.join(dict.fromkeys(units))} ({how}), no FP4 hardware"
    if device.type == "cuda":
        units = list(dict.fromkeys(_unit(device, *product) for product in sorted(products)))
        return f"{torch.cuda.get_device_name(device)}: {' and '.join(units)}"
    return f"{device.type}: emulated in float32 by PyTorch"


def _cpu_units(level: str, left: str, right: str) -> tuple[str, ...]:
    """What a product is computed in; on AMX, rows of MXFP4 with similar scales in int8, the others in bf16."""
    if level == "portable" or (left, right) not in INTEGER_PRODUCTS:
        return ("float32",)
    if level == "amx":
        return ("int8", "bf16") if left == right == "mxfp4" else ("bf16",)
    return ("int8",)


def _unit(device: torch.device, left: str, right: str, grouped: bool) -> str:
    from .lowering.device import architecture_of, has_fp4, unit_of  # here, since the package loads Inductor

    lacking = "" if has_fp4(device) else ", no FP4 hardware"
    if architecture_of(device) == "cdna4":
        lacking = ", kernels that were compiled for gfx950 and that nobody has run"
    words = {
        "native": f"native {left.upper()}",
        "fp8": "emulated on FP8 tensor cores",
        "bf16": "emulated in bf16",
        "reference": "emulated in float32 by PyTorch",
    }
    unit = unit_of(device, left, right, grouped)
    product = IN_ROWS if unit == "fp8" else left
    has_library = not grouped and unit in ("native", "fp8") and product in LIBRARY_PRODUCTS
    if has_library and architecture_of(device) in LIBRARY_PRODUCTS[product].architectures and library_use() == "always":
        lacking += ", by torch's library where it computes the same"
    return words[unit] + lacking
