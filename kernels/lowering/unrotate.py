"""Lowering of `unrotate`, and of the product that it alone follows: the rotation back is then that template's end."""

from __future__ import annotations

from typing import Any

import sympy
import torch

from ..schemas import Unrotate, arguments_of
from . import templates
from .inductor import V, ir, realize_inputs
from .operands import realize_fusably, vector
from .templates import GROUP_TILES, select


def rotated_back() -> set[str]:
    """Names of the products that have been rotated back already."""
    return V.graph.__dict__.setdefault("quartet_unrotated", set())


def following_unrotate() -> tuple[Any, Any] | None:
    """The mask and the number of columns of the `unrotate` that alone reads the product being lowered, else None."""
    users = list(V.graph.current_node.users)
    if len(users) != 1 or users[0].target is not torch.ops.quartet.unrotate.default:
        return None
    _, mask, rotation, columns = arguments_of(users[0])
    if rotation != 32 or (mask is not None and mask not in V.graph.env):
        return None
    if isinstance(columns, torch.fx.Node):
        columns = V.graph.env.get(columns)
    return None if columns is None else (V.graph.env.get(mask), sympy.sympify(columns))


def unrotate(call: Unrotate):
    x, mask, rotation, columns = call
    device = x.get_device()
    if x.maybe_get_name() in rotated_back():
        return x
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
