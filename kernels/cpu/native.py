"""The quantizers on the CPU: the functions of kernels/reference.py, with the same bits, in C++.

Inputs are matrices with any strides; float32, bfloat16 and float16 ones that are contiguous along rows or along columns
are read where they are, others are copied. Exact formats, which round nothing and serve tests, go to the reference.

Python's share of a call is 8 us (one Zen4 core), 5 of them in `torch.empty`.
"""

from __future__ import annotations

import ctypes

import torch

from ...errors import QuartetError
from ...formats import Quantizer
from .. import philox, reference
from ..reference import Blocks
from .loader import function

ELEMENT_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""`Type` of element.h."""

_QUEST, _STOCHASTIC, _ROTATE = 1, 2, 4


class _Request(ctypes.Structure):
    """`Request` of operand.h."""

    _fields_ = [
        ("flags", ctypes.c_int64),
        ("stream", ctypes.c_int64),
        ("shrink", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("seed", "signs", "sign_seed", "codes", "scales", "mask")),
    ]


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
        signs = _signs(quantizer, stream, signs, sign_seed)
        return reference.quantize(x, quantizer, transpose=transpose, mask=mask, stream=stream, seed=seed, signs=signs)
    rows, columns = x.shape
    blocks = _empty(columns, rows, mask) if transpose else _empty(rows, columns, mask)
    request = _request(quantizer, blocks, mask, stream, seed, signs, sign_seed)
    _quantize(x, None if transpose else request, request if transpose else None)
    return blocks


def quantize_pair(
    dy: torch.Tensor, row: Quantizer, column: Quantizer, *, seed: torch.Tensor, sign_seed: torch.Tensor
) -> tuple[Blocks, Blocks]:
    """`dy: float[rows, columns]` for dgrad and its transpose for wgrad, from one read.

    The same as two calls of `quantize`: row signs come from `seed`, column signs from `sign_seed`.
    """
    if row.exact or column.exact:
        return (
            quantize(dy, row, stream=philox.DGRAD_DY, seed=seed, sign_seed=seed),
            quantize(dy, column, transpose=True, stream=philox.WGRAD_DY, seed=seed, sign_seed=sign_seed),
        )
    rows, columns = dy.shape
    row_blocks, column_blocks = _empty(rows, columns, False), _empty(columns, rows, False)
    _quantize(
        dy,
        _request(row, row_blocks, False, philox.DGRAD_DY, seed, None, seed),
        _request(column, column_blocks, False, philox.WGRAD_DY, seed, None, sign_seed),
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
    if quantizer.exact or source_quantizer.exact:
        signs = _signs(quantizer, stream, signs, sign_seed)
        return reference.requantize(source, source_quantizer, quantizer, stream=stream, seed=seed, signs=signs)
    codes, scales = source.codes.contiguous(), source.scales.contiguous()
    rows, groups = scales.shape
    _check(codes, rows, groups * 16)
    blocks = _empty(groups * 32, rows, False)
    function("quartet_requantize", "ppiifpi")(
        codes.data_ptr(),
        scales.data_ptr(),
        rows,
        groups,
        source_quantizer.shrink,
        _request(quantizer, blocks, False, stream, seed, signs, sign_seed),
        torch.get_num_threads(),
    )
    return blocks


def unrotate(x: torch.Tensor, mask: torch.Tensor | None, rotation: int, columns: int) -> torch.Tensor:
    """`reference.unrotate`: `(x where mask, else 0) @ H^T` of `x: float[rows, padded]`, as `x.dtype[rows, columns]`."""
    if mask is None or x.dtype not in ELEMENT_TYPES:
        return reference.unrotate(x, mask, rotation, columns)
    rows, groups = x.shape[0], (columns + 31) // 32
    _check(x, rows, groups * 32)
    _check(mask, rows, groups * 4)
    out = torch.empty(rows, columns, dtype=x.dtype)
    x, mask = x.contiguous(), mask.contiguous()
    function("quartet_unrotate", "pppiiiii")(
        x.data_ptr(),
        mask.data_ptr(),
        out.data_ptr(),
        ELEMENT_TYPES[x.dtype],
        rows,
        columns,
        rotation,
        torch.get_num_threads(),
    )
    return out


def _quantize(x: torch.Tensor, row: int | None, column: int | None) -> None:
    """Fill what the requests ask for; a matrix that is contiguous along its columns is read as its transpose."""
    if x.dtype not in ELEMENT_TYPES:
        x = x.float()
    rows, columns = x.shape
    stride, step = x.stride()
    if step != 1:
        if stride == 1:
            rows, columns, stride, row, column = columns, rows, step, column, row
        else:
            x = x.contiguous()
            stride = columns
    function("quartet_quantize", "piiiippi")(
        x.data_ptr(), ELEMENT_TYPES[x.dtype], rows, columns, stride, row, column, torch.get_num_threads()
    )


def _request(
    quantizer: Quantizer,
    blocks: Blocks,
    mask: bool,
    stream: int,
    seed: torch.Tensor | None,
    signs: torch.Tensor | None,
    sign_seed: torch.Tensor | None,
):
    flags = _ROTATE if quantizer.rotation else 0
    if quantizer.scale == "quest":
        flags |= _QUEST
    if quantizer.rounding == "stochastic":
        flags |= _STOCHASTIC
    random = quantizer.random_signs
    return ctypes.byref(
        _Request(
            flags,
            stream,
            quantizer.shrink,
            seed.data_ptr() if flags & _STOCHASTIC else None,
            signs.data_ptr() if random and signs is not None else None,
            sign_seed.data_ptr() if random and signs is None else None,
            blocks.codes.data_ptr(),
            blocks.scales.data_ptr(),
            blocks.mask.data_ptr() if mask else None,
        )
    )


def _empty(rows: int, columns: int, mask: bool) -> Blocks:
    groups = (columns + 31) // 32
    return Blocks(
        torch.empty(rows, groups * 16, dtype=torch.uint8),
        torch.empty(rows, groups, dtype=torch.uint8),
        torch.empty(0),
        torch.empty(rows, groups * 4 if mask else 0, dtype=torch.uint8),
    )


def _check(x: torch.Tensor, rows: int, columns: int) -> None:
    """The kernels read as many bytes as this says, so a wrong shape must not reach them."""
    if x.shape != (rows, columns):
        raise QuartetError(f"A quantized operand has a part of shape {tuple(x.shape)}; expected {(rows, columns)}.")


def _signs(
    quantizer: Quantizer, stream: int, signs: torch.Tensor | None, sign_seed: torch.Tensor | None
) -> torch.Tensor | None:
    if signs is None and quantizer.random_signs:
        return philox.signs(sign_seed, stream, quantizer.rotation)
    return signs
