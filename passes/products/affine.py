"""`beta * bias + alpha * product`: what addmm and baddbmm compute around their product."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from ..graph import Builder, aten

ADDING = (aten.addmm.default, aten.baddbmm.default)


def factor(node: fx.Node, name: str) -> Any:
    """`alpha` or `beta` of a product, a number or the node of one; 1 where it has none."""
    value = node.kwargs.get(name, 1) if node.target in ADDING else 1
    return value.real if isinstance(value, complex) else value  # torch takes complex numbers without imaginary part


def is_scaled(node: fx.Node) -> bool:
    """Whether a product or its bias has a factor other than 1; torch then rounds the whole once."""
    return factor(node, "alpha") != 1 or factor(node, "beta") not in (0, 1)


def obstacle(node: fx.Node) -> str | None:
    """Why torch may leave out one of the two terms, where ours would not."""
    beta = factor(node, "beta")
    if isinstance(beta, fx.Node):
        return f"beta is dynamic ({beta.meta['val']}), and torch ignores the bias where it is 0"
    return "alpha is 0: the product is not used" if factor(node, "alpha") == 0 else None


def affine(build: Builder, node: fx.Node, product: fx.Node) -> fx.Node:
    """The whole of an addmm or baddbmm from its product; else the product itself. A bias times 0 isn't read."""
    if node.target not in ADDING:
        return product
    alpha, beta, bias = factor(node, "alpha"), factor(node, "beta"), node.args[0]
    if alpha != 1:
        product = build.call(node, aten.mul.Tensor, product, alpha)
    if beta != 0:
        bias = convert(build, node, bias, product.meta["val"].dtype)
        if beta != 1:
            bias = build.call(node, aten.mul.Tensor, bias, beta)
        product = build.call(node, aten.add.Tensor, product, bias)
    return convert(build, node, product, node.meta["val"].dtype)


def convert(build: Builder, like: fx.Node, value: fx.Node, dtype: torch.dtype) -> fx.Node:
    """A value in another dtype; itself if it has that."""
    if value.meta["val"].dtype == dtype:
        return value
    return build.call(like, torch.ops.prims.convert_element_type.default, value, dtype)
