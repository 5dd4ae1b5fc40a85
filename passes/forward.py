"""Rewrite the forward matmul of each site.

Before:  y = mm(x, w^T)                                     x: [M, K], w: [N, K]
After:   xq = quantize(x, fprop.a); wq = quantize(w, fprop.b)       rotated along K, shared between sites
         y  = scaled_mm(xq, wq)                                     the two rotations cancel

Legal because both operands are rotated by the same orthogonal matrix along the contraction dimension. A recipe may keep
this GEMM in high precision and quantize only those of the backward. Of a packed weight, wq is there already (packed.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from ..config.recipe import Recipe
from ..kernels.numerics import philox
from .graph import Builder, Values
from .packed import operand as packed_operand
from .saved import Saved
from .share import Operands
from .site import MatmulSite
from .work import Work


def apply(work: Work) -> None:
    """Rewrite the forward matmul of each chosen site."""
    work.saved = rewrite_forward(work.chosen, work.recipes, work.build)


def rewrite_forward(sites: list[MatmulSite], recipes: Mapping[int, Recipe], build: Builder) -> dict[int, Saved]:
    """Rewrite every site's forward matmul in place; returns the operands by site index, as the recipes are given."""
    saved, values = {}, Values()
    for site in sites:
        build.working_on = site.index
        with build.graph.inserting_before(site.node):
            form = site.kind.form(site)(site, build, recipes[site.index].block, values)
            saved[site.index] = Saved(form, form.x(), form.w())
    operands = Operands(build, _masked(sites, saved, recipes))
    for site in sites:
        gemm, before = recipes[site.index].fprop, saved[site.index]
        if gemm is None:
            continue
        build.working_on = site.index
        with build.graph.inserting_before(site.node):
            x = operands.forward(before.x_original, gemm.a, philox.FPROP_X, site.node)
            if site.packed is not None:
                w = packed_operand(build, site, before.w_original.key in operands.masked)
            else:
                w = operands.forward(before.w_original, gemm.b, philox.FPROP_W, site.node)
            build.replace(site.node, before.form.fprop(x, w, gemm))
        saved[site.index] = dataclasses.replace(before, x=x, w=w)
    return saved


def _masked(sites: list[MatmulSite], saved: Mapping[int, Saved], recipes: Mapping[int, Recipe]) -> set[tuple]:
    """Keys of the operands whose gradient is computed, where the recipe masks it."""
    needed = set()
    for site in sites:
        recipe, operands = recipes[site.index], saved[site.index]
        if recipe.trust_mask and recipe.dgrad and site.dgrad is not None:
            needed.add(operands.x_original.key)
        if recipe.trust_mask and recipe.wgrad and site.wgrad is not None:
            needed.add(operands.w_original.key)
    return needed
