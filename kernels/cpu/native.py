"""The quantizers on the CPU: the functions of kernels/numerics/reference.py, with the same bits, in C++.

Inputs are matrices with any strides; float32, bfloat16 and float16 ones that are contiguous along rows or along columns
are read where they are, others are copied. Exact formats, which round nothing and serve tests, go to the reference.

A call for a matrix of 32x64 takes 21 us (one core of an AMD EPYC), nearly all of them in Python: 4 for the checks of
arrays.py, 5 in `torch.empty`.
"""

from __future__ import annotations

import ctypes

import torch

from ..numerics import philox, reference
from ..numerics.reference import Blocks
from ..operand_formats import OPERAND_FORMATS
from ..quantizer import Quantizer, padded
from .arguments import is_fast, request, require_known
from .arrays import ELEMENT_TYPES, Array, matrix_address
from .decoded import decode
from .loader import function
from .supports import CPU


def quantize(
    x: torch.Tensor,
    quantizer: Quantizer,
    *,
    transpose: bool = False,
    mask: bool = False,
    stream: int = 0,
    seed: torch.Tensor | None = None,
    signs: torch.Tensor | None = None,
    sign_seed: torch.Tensor | None = None,
) -> Blocks:
    """`reference.quantize` of `x: float[rows, columns]`, or its transpose. Signs not given come from `sign_seed`."""
    if quantizer.exact:
        return reference.quantize(
            x, quantizer, transpose=transpose, mask=mask, stream=stream, signs=signs, sign_seed=sign_seed
        )
    rows, columns = reversed(x.shape) if transpose else x.shape
    blocks, wanted = request(quantizer, (rows, columns), mask, stream, seed, signs, sign_seed)
    if not is_fast(quantizer):
        _quantize_any(x, transpose, wanted)
    else:
        _quantize(x, None if transpose else wanted, wanted if transpose else None)
    return blocks


def quantize_pair(
    dy: torch.Tensor, row: Quantizer, column: Quantizer, *, seed: torch.Tensor, sign_seed: torch.Tensor
) -> tuple[Blocks, Blocks]:
    """`dy: float[rows, columns]` for dgrad and its transpose for wgrad, from one read if both are fast.

    The same as two calls of `quantize`: row signs come from `seed`, column signs from `sign_seed`.
    """
    if not (is_fast(row) and is_fast(column)):
        return (
            quantize(dy, row, stream=philox.DGRAD_DY, seed=seed, sign_seed=seed),
            quantize(dy, column, transpose=True, stream=philox.WGRAD_DY, seed=seed, sign_seed=sign_seed),
        )
    rows, columns = dy.shape
    row_blocks, row_request = request(row, (rows, columns), False, philox.DGRAD_DY, seed, None, seed)
    column_blocks, column_request = request(column, (columns, rows), False, philox.WGRAD_DY, seed, None, sign_seed)
    _quantize(dy, row_request, column_request)
    return row_blocks, column_blocks


def requantize(
    source: Blocks,
    source_quantizer: Quantizer,
    quantizer: Quantizer,
    *,
    stream: int,
    seed: torch.Tensor | None,
    sign_seed: torch.Tensor | None = None,
    signs: torch.Tensor | None = None,
) -> Blocks:
    """`reference.requantize`, the transpose of a quantized operand. Signs not given come from `sign_seed`."""
    CPU.require(source_quantizer)
    if not (is_fast(quantizer) and source.format == "mxfp4"):
        values = decode(source, source_quantizer.shrink)
        return quantize(values, quantizer, transpose=True, stream=stream, seed=seed, signs=signs, sign_seed=sign_seed)
    codes, scales = source.codes.contiguous(), source.scales.contiguous()
    rows, groups = scales.shape
    blocks, wanted = request(quantizer, (groups * 32, rows), False, stream, seed, signs, sign_seed)
    function("quartet_requantize", "ppiifpi")(
        Array("codes", torch.uint8, (rows, groups * 16)).address(codes),
        Array("scales", torch.uint8, (rows, groups)).address(scales),
        rows,
        groups,
        source_quantizer.shrink,
        ctypes.byref(wanted),
        torch.get_num_threads(),
    )
    require_known(wanted)
    return blocks


def transposed(source: Blocks, quantizer: Quantizer) -> Blocks:
    """`reference.transposed`, the transpose of an operand in square blocks, codes as they are."""
    CPU.require(quantizer)
    group, packed = quantizer.group, OPERAND_FORMATS[source.format].packed
    rows, groups = source.scales.shape
    full = padded(rows, group)
    codes, scales = (part.contiguous().view(torch.uint8) for part in (source.codes, source.scales))
    to, to_address = Array("codes", torch.uint8, (groups * group, full // packed)).empty()
    to_scales, to_scales_address = Array("scales", torch.uint8, (groups * group, full // group)).empty()
    function("quartet_transpose", "ppiiiiippi")(
        Array("codes", torch.uint8, (rows, groups * group // packed)).address(codes),
        Array("scales", torch.uint8, (rows, groups)).address(scales),
        rows,
        groups,
        group,
        packed,
        full,
        to_address,
        to_scales_address,
        torch.get_num_threads(),
    )
    return Blocks(
        to.view(source.codes.dtype),
        to_scales.view(source.scales.dtype),
        source.tensor_scale.clone(),
        None,
        source.format,
    )


def unrotate(x: torch.Tensor, mask: torch.Tensor | None, rotation: int, columns: int) -> torch.Tensor:
    """`reference.unrotate`: `(x where mask, else 0) @ H^T` of `x: float[rows, padded]`, as `x.dtype[rows, columns]`."""
    CPU.require_entry("rotation", rotation)
    if x.dtype not in ELEMENT_TYPES:
        return reference.unrotate(x, mask, rotation, columns)
    rows, full = x.shape[0], padded(max(columns, x.shape[1]), max(rotation, 16))
    x = x.resolve_neg().contiguous()
    if mask is not None:
        mask = mask.contiguous()
    out, out_address = Array("a product", x.dtype, (rows, columns)).empty()
    function("quartet_unrotate", "pppiiiiii")(
        Array("a product", x.dtype, (rows, full)).address(x),
        None if mask is None else Array("a mask", torch.uint8, (rows, full // 8)).address(mask),
        out_address,
        ELEMENT_TYPES[x.dtype],
        rows,
        columns,
        full,
        rotation,
        torch.get_num_threads(),
    )
    return out


def _quantize(x: torch.Tensor, row: ctypes.Structure | None, column: ctypes.Structure | None) -> None:
    """Fill what the requests ask for; a matrix that is contiguous along its columns is read as its transpose."""
    x, turned = matrix_of(x)
    if turned:
        row, column = column, row
    function("quartet_quantize", "piiiippi")(
        matrix_address(x),
        ELEMENT_TYPES[x.dtype],
        *x.shape,
        x.stride(0),
        ctypes.byref(row) if row else None,
        ctypes.byref(column) if column else None,
        torch.get_num_threads(),
    )
    require_known(row, column)


def _quantize_any(x: torch.Tensor, transpose: bool, wanted: ctypes.Structure) -> None:
    x, turned = matrix_of(x)
    function("quartet_quantize_any", "piiiiipi")(
        matrix_address(x),
        ELEMENT_TYPES[x.dtype],
        *x.shape,
        x.stride(0),
        transpose != turned,
        ctypes.byref(wanted),
        torch.get_num_threads(),
    )
    require_known(wanted)


def matrix_of(x: torch.Tensor) -> tuple[torch.Tensor, bool]:
    """`x` or its transpose, whichever is contiguous along rows, else a copy; and whether it is the transpose."""
    if x.dtype not in ELEMENT_TYPES:
        x = x.float()
    x = x.resolve_neg()
    if x.stride(1) == 1 or x.is_contiguous():  # of one element or none, whatever the strides
        return x, False
    if x.stride(0) == 1:
        return x.t(), True
    return x.contiguous(), False
