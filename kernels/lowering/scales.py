"""Block scales a second time, in the order in which tensor memory takes them (see `gpu/scales.py`): made with the operand,
or copied once."""

from __future__ import annotations

from typing import Any

import torch

from .derived import derived_of
from .inductor import ir, lowerings, realize_inputs
from .operands import round_up

aten = torch.ops.aten


def swizzled_with(scales: Any, swizzled: Any) -> None:
    """Give scales [rows, groups] the same in that order, which the kernel that made them has made too."""
    rows, columns = swizzled.get_size()
    derived_of(scales).swizzled = _line(swizzled, rows * columns)


def swizzled_scales(scales: Any) -> Any:
    """Scales [rows, groups] in that order: those that came with them, or one copy for all products that read them."""
    known = derived_of(scales)
    if known.swizzled is None:
        known.swizzled = _swizzled(scales)
    return known.swizzled


def _swizzled(scales: Any) -> Any:
    rows, groups = scales.get_size()
    full_rows, full_groups = round_up(rows, 128), round_up(groups, 4)
    x = lowerings[aten.constant_pad_nd.default](scales, [0, full_groups - groups, 0, full_rows - rows], 0)
    x = lowerings[aten.view.default](x, [ir.FloorDiv(full_rows, 128), 4, 32, ir.FloorDiv(full_groups, 4), 4])
    x = lowerings[aten.clone.default](lowerings[aten.permute.default](x, [0, 3, 2, 1, 4]))
    return _line(x, full_rows * full_groups)


def _line(swizzled: Any, size: Any) -> Any:
    return realize_inputs(lowerings[aten.view.default](swizzled, [size]))
