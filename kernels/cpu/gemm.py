"""Products of quantized operands on the CPU: `reference.scaled_mm`, for MXFP4 by integer dot products (gemm.cpp).

Other formats, machines without AVX2, and scales too far apart for the integer kernel (`kSpan` in gemm_layout.h) take
`torch.mm` of the decoded operands.
"""

from __future__ import annotations

import ctypes

import torch

from ...errors import QuartetError
from ..reference import Blocks
from .decoded import decode
from .loader import function
from .native import ELEMENT_TYPES
from .toolchain import isa


def scaled_mm(a: Blocks, b: Blocks, alpha: float, dtype: torch.dtype) -> torch.Tensor:
    """`alpha * a @ b^T`, as `dtype[M, N]`.

    a: `[M, K]`; b: `[N, K]`. The sum is float32, `alpha` multiplies in float32, the result is rounded to nearest. A NaN
    scale makes its row or column of the output NaN. Bits don't depend on the number of threads, except with `torch.mm`.
    """
    if any(part.dtype != torch.uint8 for part in (a.codes, a.scales, b.codes, b.scales)):
        return _decoded_mm(a, b, alpha, dtype)
    rows, groups = a.scales.shape
    columns, b_groups = b.scales.shape
    if groups != b_groups:
        raise QuartetError(
            f"scaled_mm got operands with {groups} and {b_groups} groups of 32 along K; expected the same K in both."
        )
    if isa() == "portable":
        return _decoded_mm(a, b, alpha, dtype)
    out = torch.empty(rows, columns, dtype=dtype)
    done = ctypes.c_int32()
    inputs = [t.contiguous() for t in (a.codes, a.scales, b.codes, b.scales)]  # held until the call is over
    function("quartet_scaled_mm", "pppppipiiifi")(
        *(t.data_ptr() for t in inputs),
        out.data_ptr(),
        ELEMENT_TYPES[dtype],
        ctypes.byref(done),
        rows,
        columns,
        groups,
        alpha,
        torch.get_num_threads(),
    )
    return out if done.value else _decoded_mm(a, b, alpha, dtype)


def _decoded_mm(a: Blocks, b: Blocks, alpha: float, dtype: torch.dtype) -> torch.Tensor:
    out = torch.empty(a.codes.shape[0], b.codes.shape[0])
    torch.mm(decode(a), decode(b).t(), out=out)  # with `out`, autocast leaves the operands as they are
    return out.mul_(alpha).to(dtype)
