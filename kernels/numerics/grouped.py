"""Products of groups of rows with a matrix each (mixtures of experts, batches), over any backend's `scaled_mm`.

Row `t` of group `e` (`ends[e - 1] <= t < ends[e]`) meets matrix `e`. Groups start at multiples of a block of rows (the
larger of the quantizers' groups and rotations, 32 or more), so that none spans two of them; `separate_groups` moves them
there, with rows of zeros between.

    fprop   a [T, K], b [E * N, K]     a_e b_e^T, as [T, N]
    dgrad   a [T, N], b [K, E * N]     the same with the matrices side by side, as [T, K]
    wgrad   a [N, T], b [K, T]         a_e b_e^T over the rows of each group, as [E * N, K]
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ...errors import QuartetError
from ..operand_formats import OPERAND_FORMATS
from ..quantizer import padded
from .reference import Blocks


def scaled_grouped_mm(
    a: Blocks,
    b: Blocks,
    ends: torch.Tensor,
    matrices: int,
    gemm: str,
    alpha: float,
    dtype: torch.dtype,
    scaled_mm: Callable[[Blocks, Blocks, float, torch.dtype], torch.Tensor],
) -> torch.Tensor:
    """The grouped product `gemm` of the table above, in `dtype`; rows of no group are zero.

    ends: int32[matrices], multiples of the block. scaled_mm: the product of two operands.
    """
    rows, columns = product_shape(a.codes.shape[0], b.codes.shape[0], matrices, gemm)
    out = torch.zeros((rows, columns), dtype=dtype, device=a.codes.device)
    height = b.codes.shape[0] // matrices
    start = 0
    for index, end in enumerate(ends.tolist()):
        if gemm == "wgrad":
            height = a.codes.shape[0]
            left, right = _columns(a, start, end), _columns(b, start, end)
            into = out[index * height : (index + 1) * height]
        else:
            left, into = _rows(a, start, end), out[start:end]
            width = _width(b) // matrices
            of_matrix = (index * width, (index + 1) * width)
            right = _rows(b, index * height, (index + 1) * height) if gemm == "fprop" else _columns(b, *of_matrix)
        if end > start:
            into.copy_(scaled_mm(left, right, alpha, dtype))
        start = end
    return out


def separate_groups(ends: torch.Tensor, x: torch.Tensor, block: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Where the rows of `x: [T, ...]` go so that each group starts at a multiple of `block`.

    ends: int[E], not decreasing, at most T. Returns index: int64[rows], the row of `x` that each new row holds, T for a
    row of zeros; back: int64[T], the new row of each row, the last one, a row of zeros, for rows of no group; and the new
    ends, int32[E].
    """
    count = x.shape[0]
    rows = separate_rows(count, ends.shape[0], block)
    ends = ends.to(torch.int64)
    sizes = torch.diff(ends, prepend=ends.new_zeros(1))
    new_ends = padded(sizes, block).cumsum(0)
    shift = torch.cat([new_ends.new_zeros(1), new_ends]) - torch.cat([ends.new_zeros(1), ends])  # of the group after
    row, old = (torch.arange(size, dtype=torch.int64, device=ends.device) for size in (rows, count))
    group = torch.searchsorted(new_ends, row, right=True)
    source = row - shift[group]
    limit = torch.cat([ends, ends.new_zeros(1)])[group]
    index = torch.where(source < limit, source, count)
    back = torch.where(old < ends[-1], old + shift[torch.searchsorted(ends, old, right=True)], rows - 1)
    return index, back, new_ends.to(torch.int32)


def separate_matrices(x: torch.Tensor, block: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`separate_groups` of the rows of `x: [E, rows, columns]`, each matrix a group."""
    matrices, rows, _ = x.shape
    ends = torch.arange(1, matrices + 1, dtype=torch.int64, device=x.device) * rows
    return separate_groups(ends, x.reshape(matrices * rows, -1), block)


def separate_rows(rows, groups: int, block: int):
    """How many rows any `groups` groups of `rows` rows need, and one row of zeros; also for symbolic sizes."""
    return padded(rows + groups * (block - 1) + 1, block)


def product_shape(a_rows, b_rows, matrices: int, gemm: str) -> tuple:
    """The shape of a grouped product, from the rows of its operands. Raises `QuartetError` for a product that isn't in the
    table above."""
    match gemm:
        case "fprop":
            return a_rows, b_rows // matrices
        case "dgrad":
            return a_rows, b_rows
        case "wgrad":
            return matrices * a_rows, b_rows
    raise QuartetError(
        f"Got the grouped product {gemm!r}; expected fprop, dgrad or wgrad. Write its code beside theirs."
    )


def _width(x: Blocks) -> int:
    return x.codes.shape[1] * OPERAND_FORMATS[x.format].packed


def _rows(x: Blocks, start: int, end: int) -> Blocks:
    return Blocks(x.codes[start:end], x.scales[start:end], x.tensor_scale, None, x.format)


def _columns(x: Blocks, start: int, end: int) -> Blocks:
    width = _width(x)

    def part(t: torch.Tensor) -> torch.Tensor:
        return t[:, start * t.shape[1] // width : end * t.shape[1] // width]

    return Blocks(part(x.codes), part(x.scales), x.tensor_scale, None, x.format)
