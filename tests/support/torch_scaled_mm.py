"""What torch documents of `aten._scaled_mm_v2`, behind `torch.nn.functional.scaled_mm`, as plain PyTorch on a CPU. It knows
of our code nothing: E2M1, low nibble first; block scales in blocks of 128 rows by 4 groups (SWIZZLE_32_4_4), or a float32
a row; sums in float32."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
GROUPS = {F.ScalingType.BlockWise1x32: 32, F.ScalingType.BlockWise1x16: 16}
BY_ROW = [F.ScalingType.RowWise]
CALLS: list[tuple] = []
"""The arguments of the calls so far."""


def scaled_mm(*args: Any) -> Tensor:
    """`[M, N]` of the arguments of a call."""
    CALLS.append(args)
    a, b, a_scales, a_recipe, a_order, b_scales, b_recipe, b_order, bias, dtype, *rest = args
    assert bias is None and not any(rest), "no bias, the last of A with the first of B, no fast accumulation"
    assert a.stride() == (a.shape[1], 1) and b.stride() == (1, b.shape[0])
    if list(map(F.ScalingType, a_recipe)) == list(map(F.ScalingType, b_recipe)) == BY_ROW:
        return _by_row(a, b, a_scales, b_scales, dtype, [*a_order, *b_order])
    left = _values(a, a_scales, a_recipe, a_order)
    right = _values(b.t(), b_scales, b_recipe, b_order)
    product = left @ right.t()
    if len(a_scales) == 2:
        product = product * (a_scales[1] * b_scales[1])
    return product.to(dtype)


def _by_row(a: Tensor, b: Tensor, a_scales: list, b_scales: list, dtype: torch.dtype, order: list) -> Tensor:
    (of_a,), (of_b,) = a_scales, b_scales
    assert a.dtype == b.dtype == torch.float8_e4m3fn and of_a.dtype == of_b.dtype == torch.float32 and not order
    assert (of_a.shape, of_b.shape) == ((a.shape[0], 1), (1, b.shape[1])) and of_a.stride(1) == of_b.stride(1) == 1
    return ((a.float() @ b.float()) * of_a * of_b).to(dtype)


def _values(codes: Tensor, scales: list, recipe: list, order: list) -> Tensor:
    """float32[rows, K], without the scale of the whole tensor."""
    values = _elements(codes)
    kind = F.ScalingType(recipe[0])
    assert [F.SwizzleType(one).name for one in order] == ["SWIZZLE_32_4_4", "NO_SWIZZLE"][: len(order)]
    assert len(scales) == len(recipe) == len(order)
    assert [F.ScalingType(one).name for one in recipe[1:]] == ["TensorWise"] * (len(recipe) - 1)
    rows, groups = codes.shape[0], values.shape[1] // GROUPS[kind]
    return values * _in_rows(scales[0].float(), rows, groups).repeat_interleave(GROUPS[kind], 1)


def _elements(codes: Tensor) -> Tensor:
    if codes.dtype == torch.float8_e4m3fn:
        return codes.float()
    assert codes.dtype == torch.float4_e2m1fn_x2
    nibbles = torch.stack([codes.view(torch.uint8) & 15, codes.view(torch.uint8) >> 4], -1).flatten(1).long()
    return torch.where(nibbles > 7, -1.0, 1.0) * E2M1[nibbles & 7]


def _in_rows(line: Tensor, rows: int, groups: int) -> Tensor:
    """Scales of their rows and groups: in a block, the one of (row, group) is at `row % 32 * 16 + row // 32 * 4 + group`."""
    assert line.dim() == 1 and line.numel() == -(-rows // 128) * 128 * (-(-groups // 4) * 4)
    row, group = torch.arange(rows)[:, None], torch.arange(groups)[None, :]
    block = row // 128 * -(-groups // 4) + group // 4
    return line[block * 512 + row % 32 * 16 + row % 128 // 32 * 4 + group % 4]
