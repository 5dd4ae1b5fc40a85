"""Products of quantized operands by torch's own library, `torch.nn.functional.scaled_mm`: cuBLASLt for NVFP4, MXFP8 and FP8
with a scale a row, MSLK for MXFP4.

This is what generated code calls where the library is chosen (`lowering/library.py`). The operands are bytes as our
kernels leave them; here they get the dtypes that torch asks for, which costs no launch. As torch checks it (functional.py
of torch.nn, ScaledBlas.cpp of ATen), block scales lie in blocks of 128 rows by 4 groups, as `gpu/scales.py` has them. Sums
are in float32, on Hopper never in "fast accumulation", which leaves all of a sum to 14 bits; the result is rounded once.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _compat
from ..process import process
from .operand_formats import OPERAND_FORMATS

log = logging.getLogger("quartet_compile")

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32


class LibraryProduct(NamedTuple):
    """What torch's `scaled_mm` takes of a format.

    architectures: entries of `ARCHITECTURES` on which it multiplies the format. results: the dtypes of a product.
    takes_factor: whether a product can have a factor, which is one with float32 scales. elements, scales: the dtypes that
    it asks for.
    """

    architectures: tuple[str, ...]
    results: tuple[torch.dtype, ...]
    takes_factor: bool
    elements: torch.dtype
    scales: torch.dtype


IN_ROWS = "mxfp4 in FP8"
"""MXFP4 in E4M3 with a scale a row (`lowering/fp8.py`)."""

LIBRARY_PRODUCTS: Mapping[str, LibraryProduct] = MappingProxyType(
    {
        "mxfp4": LibraryProduct(("blackwell",), (BF16,), False, torch.float4_e2m1fn_x2, torch.float8_e8m0fnu),
        "nvfp4": LibraryProduct(
            ("blackwell", "blackwell-rtx"), (BF16, F16, F32), True, torch.float4_e2m1fn_x2, torch.float8_e4m3fn
        ),
        "mxfp8": LibraryProduct(
            ("blackwell", "blackwell-rtx"), (BF16, F16, F32), False, torch.float8_e4m3fn, torch.float8_e8m0fnu
        ),
        IN_ROWS: LibraryProduct(("hopper",), (BF16,), True, torch.float8_e4m3fn, F32),
    }
)
"""By the format of both operands."""


def quartet_library_mm(
    a: Tensor,
    a_scales: Tensor,
    b: Tensor,
    b_scales: Tensor,
    *tensor_scales: Tensor,
    number_format: str,
    factor: float,
    dtype: torch.dtype,
) -> Tensor:
    """`factor a b^T`, dtype[M, N], of operands as `ops.scaled_mm` takes them, K contiguous.

    a_scales, b_scales: [rows, groups], or in one line in blocks of 128 rows by 4 groups. tensor_scales: of a and of b,
    float32[1] each, of a format that has them. Raises what torch raises where its build or the GPU lacks the product.
    """
    facts, two_level = LIBRARY_PRODUCTS[number_format], OPERAND_FORMATS[number_format].two_level
    say(number_format, a.shape[0], b.shape[0], a.shape[1] * OPERAND_FORMATS[number_format].packed)
    left, right = (codes.view(facts.elements) for codes in (a, b))
    of_blocks = [_blocked(scales).view(facts.scales) for scales in (a_scales, b_scales)]
    if two_level:
        first, second = tensor_scales
        scales = [[of_blocks[0], first if factor == 1.0 else first * factor], [of_blocks[1], second]]
        recipe = [F.ScalingType.BlockWise1x16, F.ScalingType.TensorWise]
        order = [F.SwizzleType.SWIZZLE_32_4_4, F.SwizzleType.NO_SWIZZLE]
    else:
        scales = [[one] for one in of_blocks]
        recipe, order = [F.ScalingType.BlockWise1x32], [F.SwizzleType.SWIZZLE_32_4_4]
    return F.scaled_mm(
        left, right.t(), scales[0], recipe, scales[1], recipe, swizzle_a=order, swizzle_b=order, output_dtype=dtype
    )


def quartet_library_mm_in_rows(
    a: Tensor,
    a_scales: Tensor,
    b: Tensor,
    b_scales: Tensor,
    a_values: Tensor,
    a_rows: Tensor,
    a_beyond: Tensor,
    b_values: Tensor,
    b_rows: Tensor,
    b_beyond: Tensor,
    *,
    factor: float,
    dtype: torch.dtype,
) -> Tensor:
    """`factor a b^T`, dtype[M, N], of MXFP4 operands that are also there in E4M3 with a scale a row, as the template
    `scaled_mm_fp8` takes them: codes and scales, int32[rows, K / 4] of E4M3's bytes, int32[rows, 1] of the bits of float32
    scales, int32[rows, 1] that is not 0 where E4M3 can't hold a row.

    The library multiplies all rows in FP8; tiles with such a row are then computed again from the codes.
    """
    (m, n), k = (a.shape[0], b.shape[0]), a.shape[1] * 2
    say(IN_ROWS, m, n, k)
    left, right = (values.view(torch.float8_e4m3fn) for values in (a_values, b_values))
    of_a, of_b = a_rows.view(F32), b_rows.view(F32)
    by_row = F.ScalingType.RowWise
    product = F.scaled_mm(
        left, right.t(), of_a if factor == 1.0 else of_a * factor, by_row, of_b.t(), by_row, output_dtype=dtype
    )
    if not _compat.is_fake(product):
        from .gpu.mend import BLOCK, mend_kernel  # here, since it loads Triton

        tiles = -(-m // BLOCK.value) * -(-n // BLOCK.value)
        given = a, a_scales, a_beyond, b, b_scales, b_beyond, product
        strides = a.stride(0), *a_scales.stride(), b.stride(0), *b_scales.stride()
        mend_kernel[(tiles,)](*given, m, n, k, *strides, factor, num_warps=4)
    return product


def _blocked(scales: Tensor) -> Tensor:
    """Scales in one line, in blocks of 128 rows by 4 groups, zeros where there are none."""
    if scales.dim() == 1:
        return scales
    rows, groups = scales.shape
    padded = F.pad(scales.view(torch.uint8), (0, -groups % 4, 0, -rows % 128))
    blocks = padded.view(padded.shape[0] // 128, 4, 32, padded.shape[1] // 4, 4)
    return blocks.permute(0, 3, 2, 1, 4).reshape(-1)


def say(number_format: str, m: int, n: int, k: int) -> None:
    """Tell `TORCH_LOGS=quartet_compile` once of each kind of product that the library runs."""
    what = (number_format, m, n, k)
    if log.isEnabledFor(logging.INFO) and not process.trying and what not in process.library_products:
        process.library_products.add(what)
        log.info("product of %s, %d x %d x %d (M N K): by the library, torch.nn.functional.scaled_mm", *what)


@contextlib.contextmanager
def trying() -> Iterator[None]:
    """While this is entered, calls of the library are trials, which nobody is told of."""
    before, process.trying = process.trying, True
    try:
        yield
    finally:
        process.trying = before
