"""Lowering of `unrotate`, and of the epilogues of products, which are the end of a product's template where that knows the
rotation, and a kernel of their own elsewhere."""

from __future__ import annotations

from typing import Any

from ..schemas import Epilogue, Unrotate
from . import templates
from .inductor import V, ir, realize_inputs
from .operands import realize_fusably, vector
from .templates import GROUP_TILES, select


def in_template(epilogue: Epilogue | None) -> bool:
    """Whether the templates of products end with it."""
    return epilogue is not None and epilogue.rotation == 32


def ended(product: Any, epilogue: Epilogue | None) -> Any:
    """A product with its epilogue as a kernel of its own."""
    return product if epilogue is None else unrotate(Unrotate(product, *epilogue))


def unrotate(call: Unrotate):
    x, mask, rotation, columns = call
    device = x.get_device()
    rows, full = x.get_size()
    size = rotation or (32 if V.graph.sizevars.statically_known_multiple_of(full, 32) else 16)
    x = realize_fusably(x)
    inputs = [x] if mask is None else [x, realize_inputs(mask)]
    return select(
        templates.unrotate,
        inputs,
        ir.FixedLayout(device, x.get_dtype(), [rows, columns]),
        [rows, full],
        GROUP_TILES,
        VEC=vector(x.get_dtype()),
        MASKED=mask is not None,
        ROTATION=rotation,
        SIZE=size,
    )
