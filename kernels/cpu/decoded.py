"""The values of quantized operands on the CPU: `kernels/numerics/reference.py`'s `decode`, in C++ (gemm_decode.cpp)."""

from __future__ import annotations

import torch

from ..numerics.reference import Blocks
from ..operand_formats import OPERAND_FORMATS, format_of
from ..support import require
from .arguments import TENSOR_SCALE
from .arrays import Array
from .entries import numbers
from .loader import function
from .supports import CPU


def decode(x: Blocks, shrink: float = 1.0) -> torch.Tensor:
    """float32[rows, padded] over `shrink`; of exact formats, the codes themselves."""
    name = format_of(x.codes.dtype, x.scales.dtype)
    if name == "float32":
        return x.codes
    require(CPU.reason_of("operand format", name))
    form = OPERAND_FORMATS[name]
    rows, groups = x.scales.shape
    width = groups * form.group
    codes, scales = x.codes.contiguous(), x.scales.contiguous()
    out, out_address = Array("decoded values", torch.float32, (rows, width)).empty()
    function("quartet_decode", "pippfpiii")(
        Array("codes", form.codes, (rows, width // form.packed)).address(codes),
        numbers("elements")[form.elements],
        Array("scales", form.scales, (rows, groups)).address(scales),
        TENSOR_SCALE.address(x.tensor_scale) if form.scale_format == "e4m3" else None,
        shrink,
        out_address,
        rows * groups,
        form.group,
        torch.get_num_threads(),
    )
    return out
