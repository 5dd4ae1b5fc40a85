"""The values of quantized operands on the CPU: `kernels/numerics/reference.py`'s `decode`, in C++ (gemm_decode.cpp)."""

from __future__ import annotations

import torch

from ..numerics.reference import Blocks
from .arguments import TENSOR_SCALE
from .arrays import Array
from .loader import function


def decode(x: Blocks, shrink: float = 1.0) -> torch.Tensor:
    """float32[rows, padded] over `shrink`; of exact formats, the codes themselves."""
    if x.codes.dtype == torch.float32:
        return x.codes
    e4m3, two_level = (t.dtype == torch.float8_e4m3fn for t in (x.codes, x.scales))
    rows, groups = x.scales.shape
    group = 16 if two_level else 32
    width = groups * group
    codes, scales = x.codes.contiguous(), x.scales.contiguous()
    out, out_address = Array("decoded values", torch.float32, (rows, width)).empty()
    function("quartet_decode", "pippfpiii")(
        Array("codes", codes.dtype if e4m3 else torch.uint8, (rows, width if e4m3 else width // 2)).address(codes),
        e4m3,
        Array("scales", scales.dtype if two_level else torch.uint8, (rows, groups)).address(scales),
        TENSOR_SCALE.address(x.tensor_scale) if two_level else None,
        shrink,
        out_address,
        rows * groups,
        group,
        torch.get_num_threads(),
    )
    return out
