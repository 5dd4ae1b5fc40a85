"""Lowering of `transposed`: the codes of square blocks, as kernels of Inductor's own."""

from __future__ import annotations

from typing import Any

import torch

from ..quantizer import quantizer as quantizer_named
from ..schemas import Transposed
from .decoded import int32, nibble_of
from .inductor import V, ir, lowerings, ops, realize_inputs
from .operands import as_bytes, in_float8

aten = torch.ops.aten


def transposed(call: Transposed):
    """The codes of square blocks transposed, a byte out of two rows, as kernels of Inductor's own."""
    spec = quantizer_named(call.quantizer)
    group, device = spec.group, call.codes.get_device()
    rows, length = call.codes.get_size()[0], call.codes.get_size()[1] * 2
    groups = V.graph.sizevars.simplify(ir.FloorDiv(rows + group - 1, group))
    codes, of_scales = realize_inputs(call.codes, call.scales)
    load_codes, load_scales = codes.make_loader(), as_bytes(of_scales).make_loader()

    def nibble(row: Any, column: Any) -> Any:
        inside = ops.lt(ops.index_expr(row, torch.int64), ops.index_expr(rows, torch.int64))
        byte = ops.masked(inside, lambda: load_codes([row, ir.FloorDiv(column, 2)]), 0)
        odd = ops.index_expr(ir.ModularIndexing(column, 1, 2), torch.int32)
        return nibble_of(ops.to_dtype(byte, torch.int32), odd)

    def code(index: Any) -> Any:
        row, byte = index
        high = ops.bitwise_left_shift(nibble(2 * byte + 1, row), int32(4))
        return ops.to_dtype(ops.bitwise_or(nibble(2 * byte, row), high), torch.uint8)

    made = [
        ir.Pointwise.create(device=device, dtype=torch.uint8, inner_fn=function, ranges=[length, width])
        for function, width in (
            (code, groups * (group // 2)),
            (lambda index: load_scales([index[1] * group, ir.FloorDiv(index[0], group)]), groups),
        )
    ]
    for x in made:
        x.realize()
    new_scales = in_float8(made[1], spec.two_level)
    return made[0], new_scales, lowerings[aten.clone.default](call.tensor_scale)
