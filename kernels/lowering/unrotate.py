"""Lowering of `unrotate`, and of the epilogues of products, which are the end of a product's template where that knows the
rotation, and a kernel of their own elsewhere."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..schemas import Epilogue, Unrotate
from . import templates
from .inductor import V, ir, realize_inputs
from .operands import realize_fusably, vector
from .templates import GROUP_TILES, select


class InTemplate(NamedTuple):
    """What a product's template does of its epilogue, and how many columns it gives."""

    is_there: bool
    mask: list[Any]
    columns: Any

    def constants(self) -> dict[str, bool]:
        """What the template is told of it."""
        return {"UNROTATED": self.is_there, "MASKED": bool(self.mask)}


def in_template(epilogue: Epilogue | None, columns: Any) -> InTemplate:
    """The templates of products know the rotation of 32; `columns` are those of the product without an epilogue."""
    if epilogue is None or epilogue.rotation != 32:
        return InTemplate(False, [], columns)
    return InTemplate(True, [] if epilogue.mask is None else [realize_inputs(epilogue.mask)], epilogue.columns)


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
