"""Block scales a second time, in the order in which tensor memory takes them (see `gpu/scales.py`): made with the operand,
or copied once."""

from __future__ import annotations

from typing import Any

import torch

from .derived import derive, derived
from .inductor import ir, lowerings, realize_inputs
from .operands import box, round_up

aten = torch.ops.aten


def swizzled_with(scales: Any, swizzled: Any) -> None:
    """Say that the kernel that made scales [rows, groups] has made their blocks too."""
    rows, columns = swizzled.get_size()
    derive("swizzled", _line(swizzled, rows * columns), realize_inputs(scales))


def swizzled_scales(scales: Any) -> Any:
    """The blocks of 128 rows by 4 groups of scales [rows, groups]: those that came with them, or a copy."""

    def copy() -> Any:
        rows, groups = scales.get_size()
        full_rows, full_groups = round_up(rows, 128), round_up(groups, 4)
        x = lowerings[aten.constant_pad_nd.default](box(scales), [0, full_groups - groups, 0, full_rows - rows], 0)
        x = lowerings[aten.view.default](x, [ir.FloorDiv(full_rows, 128), 4, 32, ir.FloorDiv(full_groups, 4), 4])
        x = lowerings[aten.clone.default](lowerings[aten.permute.default](x, [0, 3, 2, 1, 4]))
        return _line(x, full_rows * full_groups)

    return derived("swizzled", copy, scales)


def _line(blocks: Any, size: Any) -> Any:
    return realize_inputs(lowerings[aten.view.default](blocks, [size]))
