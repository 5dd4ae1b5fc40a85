"""How a device multiplies operands of low precision, in words: natively, or emulated and by what."""

from __future__ import annotations

from collections.abc import Collection

import torch

from .cpu.supports import INTEGER_PRODUCTS
from .cpu.toolchain import isa

_INSTRUCTIONS = {"avx512vnni": "AVX512-VNNI", "avx512": "AVX512", "avx2": "AVX2", "portable": "portable"}


def path_of(device: torch.device, products: Collection[tuple[str, str, bool]]) -> str:
    """`"CPU: emulated in int8 (AVX512-VNNI), no FP4 hardware"`: what products of these pairs of operand formats run on, each
    with whether it is grouped.

    Raises `OptionError` for an instruction set that can't be, `QuantizerError` for a GPU that isn't known.
    """
    if device.type == "cpu":
        level = isa()
        units = [
            "int8" if level != "portable" and (left, right) in INTEGER_PRODUCTS else "float32"
            for left, right, _ in sorted(products)
        ]
        return f"CPU: emulated in {' and '.join(dict.fromkeys(units))} ({_INSTRUCTIONS[level]}), no FP4 hardware"
    if device.type == "cuda":
        units = list(dict.fromkeys(_unit(device, *product) for product in sorted(products)))
        return f"{torch.cuda.get_device_name(device)}: {' and '.join(units)}"
    return f"{device.type}: emulated in float32 by PyTorch"


def _unit(device: torch.device, left: str, right: str, grouped: bool) -> str:
    from .lowering.device import has_fp4, unit_of  # here, since the package loads Inductor

    lacking = "" if has_fp4(device) else ", no FP4 hardware"
    words = {
        "native": f"native {left.upper()}",
        "fp8": "emulated on FP8 tensor cores",
        "bf16": "emulated in bf16",
        "reference": "emulated in float32 by PyTorch",
    }
    return words[unit_of(device, left, right, grouped)] + lacking
