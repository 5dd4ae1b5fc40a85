"""The matrix products that a joint graph may hold, and the operands of each.

mm, addmm             [M, K] [K, N]
bmm, baddbmm          [E, M, K] [E, K, N]
_grouped_mm           [T, K] [E, K, N]: consecutive rows, up to `ends[e]`, go with matrix e
                      [M, T] [T, N]: the same rows contracted, as [E, M, N]
grouped_mm_fallback   transformers' op for the first form, whose backward is one op for both gradients
convolution           a product of its unfolded windows, where it has one group
"""

from __future__ import annotations

import operator
from typing import Any

from torch import fx

from .. import _compat
from .graph import aten

MATMULS = (aten.mm.default, aten.addmm.default)
BATCHED = (aten.bmm.default, aten.baddbmm.default)
GROUPED = (aten._grouped_mm.default,)
ADDING = (aten.addmm.default, aten.baddbmm.default)
"""Those that compute `beta * bias + alpha * product`."""

PRODUCTS = (*MATMULS, *BATCHED, *GROUPED)
CONVOLUTION = aten.convolution.default
FALLBACK = "transformers::grouped_mm_fallback"


def op_name(node: fx.Node) -> str:
    """The qualified name of an op, `aten::mm`; empty for what is no op."""
    return _compat.op_name(node.target)


def factors(node: fx.Node) -> tuple[fx.Node, fx.Node]:
    """The two operands that a product multiplies."""
    return node.args[1:3] if node.target in ADDING else node.args[:2]


def factor(node: fx.Node, name: str) -> Any:
    """`alpha` or `beta` of a product, a number or the node of one; 1 where it has none."""
    value = node.kwargs.get(name, 1) if node.target in ADDING else 1
    return value.real if isinstance(value, complex) else value  # torch takes complex numbers without imaginary part


def is_scaled(node: fx.Node) -> bool:
    """Whether a product or its bias has a factor other than 1; torch then rounds the whole once."""
    return factor(node, "alpha") != 1 or factor(node, "beta") not in (0, 1)


def ends(node: fx.Node) -> fx.Node | None:
    """Where each group of rows of a grouped product ends; None for other products."""
    grouped = node.target in GROUPED or op_name(node) == FALLBACK
    return node.args[2] if grouped and len(node.args) > 2 else None


def is_plain(node: fx.Node) -> bool:
    """Whether a product has no options beyond its operands (a bias inside, another output dtype)."""
    return node.target not in GROUPED or len(node.args) == 3 and not any(node.kwargs.values())


def backward_of(node: fx.Node, suffix: str) -> list[fx.Node]:
    """The ops that compute all gradients of a product of the operands of `node` at once."""
    name = op_name(node) + suffix
    operands = set(node.args[:2])
    found = dict.fromkeys(user for operand in node.args[:2] for user in operand.users if op_name(user) == name)
    return [user for user in found if operands <= set(user.args)]


def output(node: fx.Node, index: int) -> fx.Node | None:
    """The node that takes one output of an op with several; None if nobody does."""
    items = [user for user in node.users if user.target is operator.getitem and user.args[1] == index]
    return items[0] if items else None
