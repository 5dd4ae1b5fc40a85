"""The quantizers on the CPU: the functions of kernels/reference.py, with the same bits, in C++.

Inputs may be float32, bfloat16 or float16 with any strides; matrices with unit stride along rows or along columns are read
where they are. Exact formats, which round nothing and serve tests, go to the reference. Nothing checks shapes: callers do.
"""

from __future__ import annotations

import torch

from ...formats import Quantizer
from .. import philox, reference
from ..reference import Blocks
from .loader import function

_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_QUEST, _STOCHASTIC, _ROTATE = 1, 2, 4
_OPERAND = "ifipppppp"
_NO_OPERAND = (0, 0.0, 0, None, None, None, None, None, None)

Operand = tuple[int, float, int, int | None, int | None, int | None, int, int, int | None]


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
    """`reference.quantize` of `x: float[rows, columns]` or its transpose. Without `signs` they come from `sign_seed`."""
    if quantizer.exact:
        signs = _signs(quantizer, stream, signs, sign_seed)
        return reference.quantize(x, quantizer, transpose=transpose, mask=mask, stream=stream, seed=seed, signs=signs)
    rows, columns = x.shape
    blocks = _empty(columns, rows, mask) if transpose else _empty(rows, columns, mask)
    operand = _operand(quantizer, blocks, mask, stream, seed, signs, sign_seed)
    if transpose:
        _run(x, _NO_OPERAND, operand)
    else:
        _run(x, operand, _NO_OPERAND)
    return blocks


def quantize_pair(
    dy: torch.Tensor, row: Quantizer, column: Quantizer, *, seed: torch.Tensor, sign_seed: torch.Tensor
) -> tuple[Blocks, Blocks]:
    """`dy` for dgrad and its transpose for wgrad, in one read of `dy: float[rows, columns]`.

    Row signs come from `seed`, column signs from `sign_seed`.
    """
    if row.exact or column.exact:
        return (
            quantize(dy, row, stream=philox.DGRAD_DY, seed=seed, sign_seed=seed),
            quantize(dy, column, transpose=True, stream=philox.WGRAD_DY, seed=seed, sign_seed=sign_seed),
        )
    rows, columns = dy.shape
    by_row, by_column = _empty(rows, columns, False), _empty(columns, rows, False)
    _run(
        dy,
        _operand(row, by_row, False, philox.DGRAD_DY, seed, None, seed),
        _operand(column, by_column, False, philox.WGRAD_DY, seed, None, sign_seed),
    )
    return by_row, by_column


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
    """`reference.requantize`, the transpose of a quantized operand. Without `signs` they come from `sign_seed`."""
    if quantizer.exact or source_quantizer.exact:
        signs = _signs(quantizer, stream, signs, sign_seed)
        return reference.requantize(source, source_quantizer, quantizer, stream=stream, seed=seed, signs=signs)
    rows, groups = source.scales.shape
    blocks = _empty(groups * 32, rows, False)
    function("quartet_requantize", _REQUANTIZE)(
        source.codes.data_ptr(),
        source.scales.data_ptr(),
        rows,
        groups,
        source_quantizer.shrink,
        *_operand(quantizer, blocks, False, stream, seed, signs, sign_seed),
        torch.get_num_threads(),
    )
    return blocks


def unrotate(x: torch.Tensor, mask: torch.Tensor, rotation: int, columns: int) -> torch.Tensor:
    """`reference.unrotate`: `(x where mask, else 0) @ H^T`, as `x.dtype[rows, columns]`."""
    rows = x.shape[0]
    out = torch.empty(rows, columns, dtype=x.dtype)
    x = x.contiguous()
    function("quartet_unrotate", _UNROTATE)(
        x.data_ptr(), mask.data_ptr(), out.data_ptr(), _TYPES[x.dtype], rows, columns, rotation, torch.get_num_threads()
    )
    return out


def _empty(rows: int, columns: int, mask: bool) -> Blocks:
    groups = (columns + 31) // 32
    return Blocks(
        torch.empty(rows, groups * 16, dtype=torch.uint8),
        torch.empty(rows, groups, dtype=torch.uint8),
        torch.empty(0),
        torch.empty(rows, groups * 4 if mask else 0, dtype=torch.uint8),
    )


def _operand(
    quantizer: Quantizer,
    blocks: Blocks,
    mask: bool,
    stream: int,
    seed: torch.Tensor | None,
    signs: torch.Tensor | None,
    sign_seed: torch.Tensor | None,
) -> Operand:
    flags = 0
    if quantizer.scale == "quest":
        flags |= _QUEST
    if quantizer.rounding == "stochastic":
        flags |= _STOCHASTIC
    if quantizer.rotation:
        flags |= _ROTATE
    random = quantizer.random_signs
    return (
        flags,
        quantizer.shrink,
        stream,
        seed.data_ptr() if flags & _STOCHASTIC else None,
        signs.data_ptr() if random and signs is not None else None,
        sign_seed.data_ptr() if random and signs is None else None,
        blocks.codes.data_ptr(),
        blocks.scales.data_ptr(),
        blocks.mask.data_ptr() if mask else None,
    )


def _run(x: torch.Tensor, row: Operand, column: Operand) -> None:
    """Both directions of `x`; a matrix that is contiguous along its columns is read as its transpose."""
    rows, columns = x.shape
    stride, step = x.stride()
    if step != 1 and columns > 1:
        if stride == 1:
            rows, columns, stride, row, column = columns, rows, step, column, row
        else:
            x = x.contiguous()
            stride = columns
    function("quartet_quantize", _QUANTIZE)(
        x.data_ptr(), _TYPES[x.dtype], rows, columns, stride, *row, *column, torch.get_num_threads()
    )


_QUANTIZE = "piiii" + _OPERAND * 2 + "i"
_REQUANTIZE = "ppiif" + _OPERAND + "i"
_UNROTATE = "pppiiiii"


def _signs(quantizer, stream, signs, sign_seed):
    if signs is None and quantizer.random_signs:
        return philox.signs(sign_seed, stream, quantizer.rotation)
    return signs
