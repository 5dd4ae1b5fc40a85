"""Rewrite the forward matmul of each site.

Before:  y = mm(x, w^T)                                     x: [M, K], w: [N, K]
After:   xq = quantize(x, fprop.a); wq = quantize(w, fprop.b)       rotated along K, shared between sites
         y  = scaled_mm(xq, wq)                                     the two rotations cancel

Legal because both operands are rotated by the same orthogonal matrix along the contraction dimension.
"""

from __future__ import annotations

import dataclasses

from torch import fx

from ..kernels import philox
from ..recipe import Gemm, Recipe
from .graph import Builder, aten
from .match import MatmulSite
from .share import Operands, Quantized, quartet


@dataclasses.dataclass(frozen=True)
class Saved:
    """What the forward GEMM of a site leaves for its backward."""

    x: Quantized
    w: Quantized


def rewrite_forward(sites: list[MatmulSite], recipe: Recipe, build: Builder) -> dict[int, Saved]:
    """Rewrite every site's forward matmul in place; returns the quantized operands by site index."""
    operands = Operands(build, _masked(sites, recipe))
    saved = {}
    for site in sites:
        with build.graph.inserting_before(site.node):
            x = operands.forward(site.x, recipe.fprop.a, philox.FPROP_X, site.node)
            w = operands.forward(site.w, recipe.fprop.b, philox.FPROP_W, site.node)
            a, b = (w, x) if site.swapped else (x, w)
            product = scaled_mm(build, site.node, a, b, recipe.fprop)
            build.replace(site.node, _affine(build, site.node, product))
        saved[site.index] = Saved(x, w)
    return saved


def scaled_mm(build: Builder, like: fx.Node, a: Quantized, b: Quantized, gemm: Gemm) -> fx.Node:
    """A node `a b^T` in the dtype of `like`."""
    return build.call(like, quartet.scaled_mm.default, *a[:3], *b[:3], gemm.gain, like.meta["val"].dtype)


def _affine(build: Builder, node: fx.Node, product: fx.Node) -> fx.Node:
    """`beta * bias + alpha * product` for an addmm; the product itself for an mm."""
    if node.target is not aten.addmm.default:
        return product
    bias = node.args[0]
    for name, value in node.kwargs.items():
        if value == 1:
            continue
        if name == "alpha":
            product = build.call(node, aten.mul.Tensor, product, value)
        else:
            bias = build.call(node, aten.mul.Tensor, bias, value)
    return build.call(node, aten.add.Tensor, product, bias)


def _masked(sites: list[MatmulSite], recipe: Recipe) -> set[tuple]:
    """Keys of the operands whose gradient is computed, if the recipe masks it."""
    if not recipe.trust_mask:
        return set()
    needed = {site.x.key for site in sites if site.dgrad is not None}
    return needed | {site.w.key for site in sites if site.wgrad is not None}
