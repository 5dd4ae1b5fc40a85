"""A product where no tensor cores take the operands as they are: a pointwise decoding to bf16, which is exact, and
Inductor's own `mm`, with its choice of libraries and templates."""

from __future__ import annotations

from typing import Any

import torch

from ..operand_formats import OPERAND_FORMATS, OperandFormat
from ..schemas import Operand
from .derived import derived_of
from .inductor import ir, lowerings, ops, realize_inputs
from .operands import as_bytes

aten = torch.ops.aten


def decoded_mm(left: Operand, right: Operand, alpha: float, dtype: torch.dtype):
    """The product where no tensor cores take the operands as they are: both decoded to bf16, exactly."""
    a = _decoded(left)
    b = lowerings[aten.permute.default](_decoded(right), [1, 0])
    if dtype == torch.bfloat16:
        product = lowerings[aten.mm.default](a, b)
    else:
        product = lowerings[aten.mm.dtype](a, b, torch.float32)
    for operand in (left, right):
        if OPERAND_FORMATS[operand.format].two_level:
            product = lowerings[aten.mul.Tensor](_cast(product, torch.float32), operand.tensor_scale)
    if alpha != 1.0:
        product = lowerings[aten.mul.Tensor](_cast(product, torch.float32), alpha)
    return _cast(product, dtype)


def _cast(x: Any, dtype: torch.dtype) -> Any:
    return lowerings[torch.ops.prims.convert_element_type.default](x, dtype)


def _decoded(operand: Operand) -> Any:
    """bf16[rows, n] of codes and their scales, without the tensor scale; one buffer for all products that read it."""
    known = derived_of(operand.codes)
    if known.bf16 is None:
        codes, scales = realize_inputs(operand.codes, operand.scales)
        known.bf16 = _decode(codes, scales, OPERAND_FORMATS[operand.format])
    return known.bf16


def _decode(codes: Any, scales: Any, facts: OperandFormat) -> ir.TensorBox:
    rows, width = codes.get_size()
    e2m1, scale_value = _IS_E2M1[facts.elements], _SCALE_VALUES[facts.scale_format]
    load_codes, load_scales = (as_bytes(x).make_loader() for x in (codes, scales))

    def value(index):
        row, column = index
        if e2m1:
            byte = ops.to_dtype(load_codes([row, ir.FloorDiv(column, 2)]), torch.int32)
            odd = ops.index_expr(ir.ModularIndexing(column, 1, 2), torch.int32)
            x = _e2m1_value(nibble_of(byte, odd))
        else:
            x = _e4m3_value(ops.to_dtype(load_codes([row, column]), torch.int32))
        scale = ops.to_dtype(load_scales([row, ir.FloorDiv(column, facts.group)]), torch.int32)
        return ops.to_dtype(ops.mul(x, scale_value(scale)), torch.bfloat16)

    device, columns = codes.get_device(), width * facts.packed
    result = ir.Pointwise.create(device=device, dtype=torch.bfloat16, inner_fn=value, ranges=[rows, columns])
    result.realize()
    return result


def nibble_of(byte: Any, odd: Any) -> Any:
    return ops.bitwise_and(ops.bitwise_right_shift(byte, ops.mul(odd, int32(4))), int32(15))


def _e2m1_value(nibble: Any) -> Any:
    magnitude = ops.bitwise_and(nibble, int32(7))
    normal = ops.add(ops.bitwise_left_shift(magnitude, int32(22)), int32(0x3F000000))
    bits = ops.where(ops.gt(magnitude, int32(1)), normal, ops.mul(magnitude, int32(0x3F000000)))
    sign = ops.bitwise_left_shift(ops.bitwise_and(nibble, int32(8)), int32(28))
    return _float(ops.bitwise_or(bits, sign))


def _e4m3_value(byte: Any) -> Any:
    """With the bits of E4M3 where float32 has its own, a multiply by the ratio of the biases is left: 2^120."""
    magnitude = ops.bitwise_and(byte, int32(0x7F))
    sign = ops.bitwise_left_shift(ops.bitwise_and(byte, int32(0x80)), int32(24))
    bits = ops.bitwise_or(ops.bitwise_left_shift(magnitude, int32(20)), sign)
    value = ops.mul(_float(bits), ops.constant(2.0**120, torch.float32))
    return ops.where(ops.eq(magnitude, int32(0x7F)), ops.constant(float("nan"), torch.float32), value)


def _e8m0_value(byte: Any) -> Any:
    bits = ops.where(ops.eq(byte, int32(0)), int32(1 << 22), ops.bitwise_left_shift(byte, int32(23)))
    return _float(ops.where(ops.eq(byte, int32(255)), int32(0x7FC00000), bits))


_IS_E2M1 = {"e2m1": True, "e4m3": False}
_SCALE_VALUES = {"e8m0": _e8m0_value, "e4m3": _e4m3_value}


def _float(bits: Any) -> Any:
    return ops.to_dtype_bitcast(bits, torch.float32, torch.int32)


def int32(value: int) -> Any:
    return ops.constant(value, torch.int32)
