"""The quantizers on the CPU: the functions of kernels/reference.py, with the same bits, in C++.

Inputs are matrices with any strides; float32, bfloat16 and float16 ones that are contiguous along rows or along columns
are read where they are, others are copied. Exact formats, which round nothing and serve tests, go to the reference.

Python's share of a call is 8 us (one Zen4 core), 5 of them in `torch.empty`.
"""

from __future__ import annotations

import ctypes

import torch

from ...formats import Quantizer, padded
from .. import philox, reference
from ..reference import Blocks
from .arguments import empty, is_fast, request
from .decoded import check, decode
from .loader import function

ELEMENT_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""`Type` of element.h."""


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
    blocks = empty(quantizer, rows, columns, mask)
    wanted = request(quantizer, blocks, mask, stream, seed, signs, sign_seed)
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
    row_blocks, column_blocks = empty(row, rows, columns, False), empty(column, columns, rows, False)
    _quantize(
        dy,
        request(row, row_blocks, False, philox.DGRAD_DY, seed, None, seed),
        request(column, column_blocks, False, philox.WGRAD_DY, seed, None, sign_seed),
    )
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
    if not (is_fast(quantizer) and source.codes.dtype == source.scales.dtype == torch.uint8):
        values = decode(source, source_quantizer.shrink)
        return quantize(values, quantizer, transpose=True, stream=stream, seed=seed, signs=signs, sign_seed=sign_seed)
    codes, scales = source.codes.contiguous(), source.scales.contiguous()
    rows, groups = scales.shape
    check(codes, rows, groups * 16)
    blocks = empty(quantizer, groups * 32, rows, False)
    function("quartet_requantize", "ppiifpi")(
        codes.data_ptr(),
        scales.data_ptr(),
        rows,
        groups,
        source_quantizer.shrink,
        ctypes.byref(request(quantizer, blocks, False, stream, seed, signs, sign_seed)),
        torch.get_num_threads(),
    )
    return blocks


def unrotate(x: torch.Tensor, mask: torch.Tensor | None, rotation: int, columns: int) -> torch.Tensor:
    """`reference.unrotate`: `(x where mask, else 0) @ H^T` of `x: float[rows, padded]`, as `x.dtype[rows, columns]`."""
    if x.dtype not in ELEMENT_TYPES:
        return reference.unrotate(x, mask, rotation, columns)
    rows, full = x.shape[0], padded(max(columns, x.shape[1]), max(rotation, 16))
    check(x, rows, full)
    if mask is not None:
        check(mask, rows, full // 8)
        mask = mask.contiguous()
    out = torch.empty(rows, columns, dtype=x.dtype)
    x = x.contiguous()
    function("quartet_unrotate", "pppiiiiii")(
        x.data_ptr(),
        None if mask is None else mask.data_ptr(),
        out.data_ptr(),
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
    x, turned = _matrix(x)
    if turned:
        row, column = column, row
    function("quartet_quantize", "piiiippi")(
        x.data_ptr(),
        ELEMENT_TYPES[x.dtype],
        *x.shape,
        x.stride(0),
        ctypes.byref(row) if row else None,
        ctypes.byref(column) if column else None,
        torch.get_num_threads(),
    )


def _quantize_any(x: torch.Tensor, transpose: bool, wanted: ctypes.Structure) -> None:
    x, turned = _matrix(x)
    function("quartet_quantize_any", "piiiiipi")(
        x.data_ptr(),
        ELEMENT_TYPES[x.dtype],
        *x.shape,
        x.stride(0),
        transpose != turned,
        ctypes.byref(wanted),
        torch.get_num_threads(),
    )


def _matrix(x: torch.Tensor) -> tuple[torch.Tensor, bool]:
    """`x` or its transpose, whichever is contiguous along rows, else a copy; and whether it is the transpose."""
    if x.dtype not in ELEMENT_TYPES:
        x = x.float()
    if x.stride(1) == 1:
        return x, False
    if x.stride(0) == 1:
        return x.t(), True
    return x.contiguous(), False
