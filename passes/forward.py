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
from ..recipe import Recipe
from .forms import Form, form_of
from .graph import Builder, Matrix, aten
from .match import MatmulSite
from .share import Operands, Quantized


@dataclasses.dataclass(frozen=True)
class Saved:
    """What the forward GEMM of a site leaves for its backward."""

    form: Form
    x: Quantized
    w: Quantized


def rewrite_forward(sites: list[MatmulSite], recipe: Recipe, build: Builder) -> dict[int, Saved]:
    """Rewrite every site's forward matmul in place; returns the quantized operands by site index."""
    forms = []
    for site in sites:
        with build.graph.inserting_before(site.node):
            form = form_of(site, build)
            forms.append((site, form, form.x(), form.w()))
    operands = Operands(build, _masked(forms, recipe))
    saved = {}
    for site, form, x_matrix, w_matrix in forms:
        with build.graph.inserting_before(site.node):
            x = operands.forward(x_matrix, recipe.fprop.a, philox.FPROP_X, site.node)
            w = operands.forward(w_matrix, recipe.fprop.b, philox.FPROP_W, site.node)
            product = form.fprop(x, w, recipe.fprop)
            build.replace(site.node, _affine(build, site.node, product))
        saved[site.index] = Saved(form, x, w)
    return saved


def _affine(build: Builder, node: fx.Node, product: fx.Node) -> fx.Node:
    """`beta * bias + alpha * product` for an addmm or baddbmm; else the product itself."""
    if node.target not in (aten.addmm.default, aten.baddbmm.default):
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


def _masked(forms: list[tuple[MatmulSite, Form, Matrix, Matrix]], recipe: Recipe) -> set[tuple]:
    """Keys of the operands whose gradient is computed, if the recipe masks it."""
    if not recipe.trust_mask:
        return set()
    needed = {x.key for site, _, x, _ in forms if site.dgrad is not None}
    return needed | {w.key for site, _, _, w in forms if site.wgrad is not None}
