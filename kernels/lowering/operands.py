"""Quantized operands as Inductor knows them, and what templates are told of them."""

from __future__ import annotations

from typing import Any

import torch

from ..operand_formats import OPERAND_FORMATS
from .inductor import V, empty_strided, ir, lowerings, realize_inputs
from .places import are_short, stay_short

aten = torch.ops.aten
E4M3 = torch.float8_e4m3fn
ELEMENTS_E4M3 = {"e2m1": False, "e4m3": True}
SCALES_E4M3 = {"e8m0": False, "e4m3": True}
"""What the templates call elements and scale formats."""


def round_up(size: Any, multiple: int) -> Any:
    """`size` rounded up to a multiple, as an expression of sympy's."""
    return V.graph.sizevars.simplify(ir.FloorDiv(size + multiple - 1, multiple) * multiple)


def groups_of_32(columns: Any) -> Any:
    return V.graph.sizevars.simplify(ir.FloorDiv(columns + 31, 32))


def nothing(rows: Any, dtype: torch.dtype, device: torch.device) -> ir.TensorBox:
    size = [0] if rows is None else [rows, 0]
    return empty_strided(size, None, dtype=dtype, device=device)


def vector(dtype: torch.dtype) -> int:
    """Elements of 16 bytes."""
    return 16 // dtype.itemsize


def seeds_of(seed: Any, sign_seed: Any) -> list[Any]:
    """Both seeds as inputs; an op that needs but one of them may lack the other."""
    one = seed if seed is not None else sign_seed
    return [] if one is None else realize_inputs(one, sign_seed if sign_seed is not None else one)


def realize_fusably(x: ir.TensorBox) -> Any:
    """The input of a template, computed in it if it is cheap: what is pointwise joins the template's load.
    `invoke_quant_ops` is Inductor's list of the operations that may join. Places in the template have 32 bits where those in
    `x` have, so what reads a larger tensor, as a half of its columns, is a kernel of its own."""
    x.realize()
    producer = x.data.data if isinstance(x.data, ir.StorageBox) else None
    if isinstance(producer, ir.ComputedBuffer):
        read = [V.graph.get_buffer(name).get_layout().storage_size() for name in producer.get_read_names()]
        short = are_short([x.get_numel()])
        if short and not are_short(read):
            V.graph.no_fuse_buffer_names.add(producer.get_name())
        else:
            if short:
                stay_short(read)
            V.graph.invoke_quant_ops.add(producer.get_operation_name())
    return realize_inputs(x)


def fields_of(format: str) -> dict[str, Any]:
    """What the templates of products know of a format."""
    facts = OPERAND_FORMATS[format]
    return {
        "FORMAT": repr(format),
        "GROUP": facts.group,
        "PACK": facts.packed,
        "E4M3": ELEMENTS_E4M3[facts.elements],
        "TENSOR_SCALED": SCALES_E4M3[facts.scale_format],
    }


def in_float8(x: ir.TensorBox, wanted: bool) -> ir.TensorBox:
    return lowerings[aten.view.dtype](x, E4M3) if wanted else x


def as_bytes(x: Any) -> Any:
    return lowerings[aten.view.dtype](box(x), torch.uint8) if x.get_dtype() == E4M3 else x


def box(x: Any) -> ir.TensorBox:
    return x if isinstance(x, ir.TensorBox) else ir.TensorBox(x)


def in_words(x: Any) -> Any:
    """A mask or codes whose rows lie on 4 bytes: themselves or a copy; a row has 4 bytes, or 16, for each group."""
    known = V.graph.sizevars.statically_known_multiple_of
    stride, offset = x.get_stride(), x.get_layout().offset
    if stride[1] == 1 and known(stride[0], 4) and known(offset, 4):
        return x
    return realize_inputs(lowerings[aten.clone.default](box(x), memory_format=torch.contiguous_format))
