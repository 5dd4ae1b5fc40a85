"""Products of quantized operands on the CPU: `reference.scaled_mm`, of FP4 by integer dot products (gemm.cpp).

MXFP8, operands of two formats, machines without AVX2, and scales too far apart for MXFP4's kernel (`kSpan` in gemm_layout.h)
take `torch.mm` of the decoded operands.
"""

from __future__ import annotations

import ctypes

import torch

from ...errors import QuartetError
from ..numerics.reference import Blocks
from ..operand_formats import OPERAND_FORMATS
from ..quantizer import padded
from .arguments import TENSOR_SCALE
from .arrays import ELEMENT_TYPES, Address, Array
from .decoded import decode
from .loader import function
from .supports import CPU, INTEGER_PRODUCTS
from .toolchain import isa


def scaled_mm(a: Blocks, b: Blocks, alpha: float, dtype: torch.dtype) -> torch.Tensor:
    """`alpha * a @ b^T`, as `dtype[M, N]`.

    a: `[M, K]`; b: `[N, K]`. The sum is float32, `alpha` multiplies in float32, the result is rounded to nearest. A NaN
    scale makes its row or column of the output NaN. Bits don't depend on the number of threads, except with `torch.mm`.
    """
    CPU.require_product(a.format, b.format)
    if (a.format, b.format) not in INTEGER_PRODUCTS:
        return _decoded_mm(a, b, alpha, dtype)
    group = OPERAND_FORMATS[a.format].group
    (rows, groups), (columns, b_groups) = a.scales.shape, b.scales.shape
    if groups != b_groups:
        raise QuartetError(
            f"scaled_mm got operands with {groups} and {b_groups} groups of {group} along K; expected the same K in both."
        )
    if isa() == "portable":
        return _decoded_mm(a, b, alpha, dtype)
    out, out_address = Array("a product", dtype, (rows, columns)).empty()
    done = ctypes.c_int32()
    left, right = _whole_groups(a), _whole_groups(b)  # held until the call is over
    function("quartet_scaled_mm", "pppppppipiiifi")(
        *_addresses(left),
        *_addresses(right),
        out_address,
        ELEMENT_TYPES[dtype],
        ctypes.byref(done),
        rows,
        columns,
        padded(groups * group, 32) // 32,
        alpha,
        torch.get_num_threads(),
    )
    return out if done.value else _decoded_mm(a, b, alpha, dtype)


def _whole_groups(x: Blocks) -> Blocks:
    """The operand with whole groups of 32, contiguous."""
    codes, scales = x.codes, x.scales.view(torch.uint8)
    if OPERAND_FORMATS[x.format].two_level and scales.shape[1] % 2:
        codes, scales = torch.nn.functional.pad(codes, (0, 8)), torch.nn.functional.pad(scales, (0, 1))
    return Blocks(codes.contiguous(), scales.contiguous().view(x.scales.dtype), x.tensor_scale, None, x.format)


def _addresses(x: Blocks) -> tuple[Address, Address, Address | None]:
    """What the kernel reads of an operand in whole groups of 32."""
    (rows, groups), two_level = x.scales.shape, OPERAND_FORMATS[x.format].two_level
    return (
        Array("codes", torch.uint8, (rows, groups * (8 if two_level else 16))).address(x.codes),
        Array("scales", x.scales.dtype, (rows, groups)).address(x.scales),
        TENSOR_SCALE.address(x.tensor_scale) if two_level else None,
    )


def _decoded_mm(a: Blocks, b: Blocks, alpha: float, dtype: torch.dtype) -> torch.Tensor:
    out = torch.empty((a.codes.shape[0], b.codes.shape[0]), dtype=torch.float32, device="cpu")
    torch.mm(decode(a), decode(b).t(), out=out)  # with `out`, autocast leaves the operands as they are
    return out.mul_(alpha).to(dtype)
