"""The values of quantized operands on the CPU: `kernels/reference.py`'s `decode`, in C++ (gemm_decode.cpp)."""

from __future__ import annotations

import torch

from ...errors import QuartetError
from ..reference import Blocks
from .loader import function


def decode(x: Blocks, shrink: float = 1.0) -> torch.Tensor:
    """float32[rows, padded] over `shrink`; of exact formats, the codes themselves."""
    if x.codes.dtype == torch.float32:
        return x.codes
    e4m3, two_level = (t.dtype == torch.float8_e4m3fn for t in (x.codes, x.scales))
    rows, groups = x.scales.shape
    group = 16 if two_level else 32
    check(x.codes, rows, groups * (group if e4m3 else group // 2))
    codes, scales = x.codes.contiguous(), x.scales.contiguous()
    out = torch.empty(rows, groups * group)
    function("quartet_decode", "pippfpiii")(
        codes.data_ptr(),
        e4m3,
        scales.data_ptr(),
        x.tensor_scale.data_ptr() if two_level else None,
        shrink,
        out.data_ptr(),
        rows * groups,
        group,
        torch.get_num_threads(),
    )
    return out


def check(x: torch.Tensor, rows: int, columns: int) -> None:
    """The kernels read as many bytes as this says, so a wrong shape must not reach them."""
    if x.shape != (rows, columns):
        raise QuartetError(f"A quantized operand has a part of shape {tuple(x.shape)}; expected {(rows, columns)}.")
