"""Products of quantized operands on the CPU: `reference.scaled_mm`, of FP4 by integer dot products (gemm.cpp).

MXFP8, operands of two formats, machines without AVX2, and scales too far apart for MXFP4's kernel (`kSpan` in gemm_layout.h)
take `torch.mm` of the decoded operands.
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
    forms = [(x.codes.dtype, x.scales.dtype) for x in (a, b)]
    group = {(torch.uint8, torch.uint8): 32, (torch.uint8, torch.float8_e4m3fn): 16}.get(forms[0])
    if group is None or forms[0] != forms[1]:
        return _decoded_mm(a, b, alpha, dtype)
    (rows, groups), (columns, b_groups) = a.scales.shape, b.scales.shape
    if groups != b_groups:
        raise QuartetError(
            f"scaled_mm got operands with {groups} and {b_groups} groups of {group} along K; expected the same K in both."
        )
    if isa() == "portable":
        return _decoded_mm(a, b, alpha, dtype)
    out = torch.empty(rows, columns, dtype=dtype)
    done = ctypes.c_int32()
    inputs = [*_inputs(a), *_inputs(b)]  # held until the call is over
    function("quartet_scaled_mm", "pppppppipiiifi")(
        *(None if t is None else t.data_ptr() for t in inputs),
        out.data_ptr(),
        ELEMENT_TYPES[dtype],
        ctypes.byref(done),
        rows,
        columns,
        inputs[0].shape[1] // 16,
        alpha,
        torch.get_num_threads(),
    )
    return out if done.value else _decoded_mm(a, b, alpha, dtype)


def _inputs(x: Blocks) -> list[torch.Tensor | None]:
    """What the kernel reads of an operand: codes and scales of whole groups of 32, and NVFP4's tensor scale."""
    if x.scales.dtype == torch.uint8:
        return [x.codes.contiguous(), x.scales.contiguous(), None]
    codes, scales = x.codes, x.scales.view(torch.uint8)
    if scales.shape[1] % 2:
        codes, scales = torch.nn.functional.pad(codes, (0, 8)), torch.nn.functional.pad(scales, (0, 1))
    return [codes.contiguous(), scales.contiguous(), x.tensor_scale]


def _decoded_mm(a: Blocks, b: Blocks, alpha: float, dtype: torch.dtype) -> torch.Tensor:
    out = torch.empty(a.codes.shape[0], b.codes.shape[0])
    torch.mm(decode(a), decode(b).t(), out=out)  # with `out`, autocast leaves the operands as they are
    return out.mul_(alpha).to(dtype)
