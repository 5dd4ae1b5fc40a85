"""Quantized operands as Inductor knows them: one flat buffer of bytes, `[codes, scales, mask]` with each part padded to
16 bytes, and views of it, since a template has one output."""

from __future__ import annotations

from typing import Any

import sympy
import torch

from ..operand_formats import OPERAND_FORMATS
from .device import through_tensor_memory
from .inductor import V, empty_strided, ir, lowerings, realize_inputs

aten = torch.ops.aten
E4M3 = torch.float8_e4m3fn
ELEMENTS_E4M3 = {"e2m1": False, "e4m3": True}
SCALES_E4M3 = {"e8m0": False, "e4m3": True}
"""What the templates call elements and scale formats."""


class Flat:
    """The parts of quantized operands in one buffer of bytes."""

    def __init__(self) -> None:
        self.size: Any = sympy.Integer(0)
        self.parts: list[tuple[Any, Any, Any]] = []

    def add(self, rows: Any, columns: Any) -> None:
        self.parts.append((self.size, rows, columns))
        self.size = self.size + round_up(rows * columns, 16)

    def add_blocked(self, rows: Any, groups: Any, device: torch.device) -> bool:
        """Scales a second time, as tensor memory takes them, if products of the device do and no block is part empty."""
        wanted = through_tensor_memory(device) and V.graph.sizevars.statically_known_multiple_of(groups, 4)
        if wanted:
            self.add(round_up(rows, 128), groups)
        return wanted

    def layout(self, device: torch.device) -> ir.FixedLayout:
        return ir.FixedLayout(device, torch.uint8, [self.size])

    def views(self, buffer: ir.TensorBox) -> list[ir.TensorBox]:
        view = lowerings[aten.as_strided.default]
        return [view(buffer, [rows, columns], [columns, 1], start) for start, rows, columns in self.parts]


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
    """The input of a template, computed in it if it is cheap: what is pointwise joins the template's load."""
    x.realize()
    producer = x.data.data if isinstance(x.data, ir.StorageBox) else None
    if isinstance(producer, ir.ComputedBuffer):
        V.graph.invoke_quant_ops.add(producer.get_operation_name())
    return realize_inputs(x)


def fields_of(format: str) -> dict[str, Any]:
    """What the templates of products know of a format."""
    form = OPERAND_FORMATS[format]
    return {
        "FORM": repr(format),
        "GROUP": form.group,
        "PACK": form.packed,
        "E4M3": ELEMENTS_E4M3[form.elements],
        "TENSOR_SCALED": SCALES_E4M3[form.scale_format],
    }


def in_float8(x: ir.TensorBox, wanted: bool) -> ir.TensorBox:
    return lowerings[aten.view.dtype](x, E4M3) if wanted else x


def as_bytes(x: Any) -> Any:
    return lowerings[aten.view.dtype](box(x), torch.uint8) if x.get_dtype() == E4M3 else x


def box(x: Any) -> ir.TensorBox:
    return x if isinstance(x, ir.TensorBox) else ir.TensorBox(x)


def place(x: Any) -> tuple:
    """Where a realized tensor lies: its buffer, and its part of it."""
    layout = x.get_layout()
    return x.get_name(), str(layout.offset), str(layout.size), str(layout.stride)
