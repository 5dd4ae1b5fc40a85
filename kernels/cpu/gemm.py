"""The FP4 GEMM on the CPU: `reference.scaled_mm` by integer dot products (gemm.cpp).

On machines without AVX2, and for scales that lie too far apart for the integer kernel (`kSpan` in gemm_layout.h), it is
`torch.mm` of the decoded operands.
"""

from __future__ import annotations

import ctypes

import torch

from ...errors import QuartetError
from .. import reference
from ..reference import Blocks
from .loader import function
from .native import ELEMENT_TYPES
from .toolchain import isa


def scaled_mm(a: Blocks, b: Blocks, alpha: float, dtype: torch.dtype) -> torch.Tensor:
    """`alpha * a @ b^T`, as `dtype[M, N]`.

    a: MXFP4 `[M, K]`; b: MXFP4 `[N, K]`. The sum is float32, `alpha` multiplies in float32, the result is rounded to
    nearest. A NaN scale makes its row or column of the output NaN. Bits don't depend on the number of threads, except
    with `torch.mm`. Exact formats (float32 codes) and NVFP4 go to the reference.
    """
    if a.codes.dtype == torch.float32 or a.scales.dtype == torch.float8_e4m3fn:
        return reference.scaled_mm(a, b, alpha, dtype)
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
    return torch.mm(_decode(a), _decode(b).t()).mul_(alpha).to(dtype)


def _decode(x: Blocks) -> torch.Tensor:
    """The values of MXFP4 blocks: float32[rows, 32 * groups]."""
    rows, groups = x.scales.shape
    out = torch.empty(rows, 32 * groups)
    codes, scales = x.codes.contiguous(), x.scales.contiguous()
    function("quartet_decode", "pppiii")(
        codes.data_ptr(), scales.data_ptr(), out.data_ptr(), rows, groups, torch.get_num_threads()
    )
    return out
