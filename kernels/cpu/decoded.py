"""The values of quantized operands on the CPU: `kernels/numerics/reference.py`'s `decode`, in C++ (gemm_decode.cpp)."""

from __future__ import annotations

import torch

from ..numerics.reference import Blocks
from ..operand_formats import OPERAND_FORMATS
from .arguments import TENSOR_SCALE
from .arrays import Array
from .entries import numbers
from .loader import function
from .supports import CPU


def decode(x: Blocks, shrink: float = 1.0) -> torch.Tensor:
    """float32[rows, padded] over `shrink`; of exact formats, the codes themselves."""
    CPU.require_entry("operand format", x.format)
    if x.format == "float32":
        return x.codes
    facts = OPERAND_FORMATS[x.format]
    rows, groups = x.scales.shape
    width = groups * facts.group
    codes, scales = x.codes.contiguous(), x.scales.contiguous()
    out, out_address = Array("decoded values", torch.float32, (rows, width)).empty()
    function("quartet_decode", "pippfpiii")(
        Array("codes", facts.codes, (rows, width // facts.packed)).address(codes),
        numbers("elements")[facts.elements],
        Array("scales", facts.scales, (rows, groups)).address(scales),
        TENSOR_SCALE.address(x.tensor_scale) if facts.two_level else None,
        shrink,
        out_address,
        rows * groups,
        facts.group,
        torch.get_num_threads(),
    )
    return out
