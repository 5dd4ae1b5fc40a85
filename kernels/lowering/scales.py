"""Block scales a second time, in the order in which tensor memory takes them; made with the operand, or copied once."""

from __future__ import annotations

from typing import Any

import torch

from .inductor import V, ir, lowerings, realize_inputs
from .operands import box, place, round_up

aten = torch.ops.aten


def _blocks_by_scales() -> dict[tuple, Any]:
    """Scales in the blocks of 128 rows by 4 groups that tensor memory takes (see `gpu/scales.py`), by the scales."""
    return V.graph.__dict__.setdefault("quartet_blocked", {})


def remember_blocked(scales: Any, blocked: Any) -> None:
    rows, columns = blocked.get_size()
    _blocks_by_scales()[place(realize_inputs(scales))] = realize_inputs(
        lowerings[aten.view.default](blocked, [rows * columns])
    )


def blocked_scales(scales: Any) -> Any:
    """The blocks of scales [rows, groups]: those that came with them, or a copy, one for all products that read them."""
    memo = _blocks_by_scales()
    key = place(scales)
    if key not in memo:
        rows, groups = scales.get_size()
        full_rows, full_groups = round_up(rows, 128), round_up(groups, 4)
        x = lowerings[aten.constant_pad_nd.default](box(scales), [0, full_groups - groups, 0, full_rows - rows], 0)
        x = lowerings[aten.view.default](x, [ir.FloorDiv(full_rows, 128), 4, 32, ir.FloorDiv(full_groups, 4), 4])
        x = lowerings[aten.clone.default](lowerings[aten.permute.default](x, [0, 3, 2, 1, 4]))
        memo[key] = realize_inputs(lowerings[aten.view.default](x, [full_rows * full_groups]))
    return memo[key]
