"""The outputs of a template: parts of one flat buffer, and views of it, since a template has one output."""

from __future__ import annotations

from typing import Any

import sympy
import torch

from .device import through_tensor_memory
from .inductor import V, ir, lowerings
from .operands import round_up

aten = torch.ops.aten


class Flat:
    """Parts one after another, of bytes unless `dtype` says otherwise, each on 16 elements. What it adds up, the template
    reads as text: no template does.

    sizes: those of which the parts are made, by the names that they have in the template: `Flat(ROWS=rows, PER_ROW=groups)`.
    """

    def __init__(self, dtype: torch.dtype = torch.uint8, **sizes: Any) -> None:
        self._dtype = dtype
        self._names = {name: sympy.Symbol(name, integer=True, positive=True) for name in sizes}
        self._sizes = {self._names[name]: sympy.sympify(size) for name, size in sizes.items()}
        self._parts: dict[str, tuple[Any, Any, Any]] = {}
        self._end: Any = sympy.Integer(0)

    def add(self, part: str, rows: str, columns: str = "", width: int = 1) -> None:
        """A part of [rows, columns * width], of sizes by name; without `columns`, of [rows, width]."""
        wide = self._names[columns] * width if columns else sympy.Integer(width)
        self._add(part, self._names[rows], wide)

    def add_swizzled(self, part: str, rows: str, groups: str, device: torch.device) -> bool:
        """Scales a second time, as tensor memory takes them, if products of the device do and no block is part empty."""
        known = V.graph.sizevars.statically_known_multiple_of
        wanted = through_tensor_memory(device) and known(self._sizes[self._names[groups]], 4)
        if wanted:
            self._add(part, round_up(self._names[rows], 128), self._names[groups])
        return wanted

    def _add(self, part: str, rows: Any, columns: Any) -> None:
        self._parts[part] = (self._end, rows, columns)
        self._end = self._end + round_up(rows * columns, 16)

    def layout(self, device: torch.device) -> ir.FixedLayout:
        """Of the buffer."""
        return ir.FixedLayout(device, self._dtype, [self._actual(self._end)])

    def starts(self) -> dict[str, str]:
        """Where each part starts, for the template: `SCALES_AT` of the part `SCALES`, an expression in the names of sizes,
        which the template writes as `{{at(SCALES_AT)}}`."""
        return {f"{part}_AT": repr(str(start)) for part, (start, _, _) in self._parts.items()}

    def views(self, buffer: ir.TensorBox) -> dict[str, ir.TensorBox]:
        """The parts of a buffer."""
        made = {}
        for part, (start, rows, columns) in self._parts.items():
            at, height, width = map(self._actual, (start, rows, columns))
            made[part] = lowerings[aten.as_strided.default](buffer, [height, width], [width, 1], at)
        return made

    def _actual(self, size: Any) -> Any:
        return V.graph.sizevars.simplify(size.xreplace(self._sizes))
