"""Weights that are packed: a module holds their codes and scales, and its forward pass reads `decode` of them.

Before:  w = decode(codes, scales, ...);  xq = quantize(x);  wq = quantize(w);  y = scaled_mm(xq, wq)
After:   xq = quantize(x);  y = scaled_mm(xq, codes, scales)

Legal because the codes are what the forward pass would have made of the weight; the weight itself is never computed. A
site of which that doesn't hold, since it reads a part of the weight or contracts the other dimension, keeps `decode`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from torch import fx

from ..config.recipe import Recipe, differing
from ..errors import RecipeError
from ..kernels.numerics import philox
from ..kernels.quantizer import Quantizer, quantizer
from ..kernels.schemas import Decode, arguments_of, op_of
from .graph import CASTS, VIEWS, Builder, Matrix, Values, aten, strip
from .share import Quantized
from .site import MatmulSite

SUFFIX = "_packed"
"""Of the name of the buffer that holds the codes, after that of the weight."""

STREAM = philox.FPROP_W


def is_packed(node: fx.Node) -> bool:
    """Whether a node computes a packed weight."""
    return op_of(node) == "decode"


def packed_weights(graph: fx.Graph, names: Mapping[fx.Node, str]) -> dict[fx.Node, str]:
    """The nodes that compute packed weights, by the names of these. names: of the placeholders."""
    found = {}
    for node in filter(is_packed, graph.nodes):
        name = names.get(strip(arguments_of(node).codes), node.name)
        found[node] = name.removesuffix(SUFFIX)
    return found


def whole(values: Values, matrix: Matrix) -> fx.Node | None:
    """The node of a packed weight that a matrix is as a whole, its rows the rows of the codes; through casts."""
    root, *layout = matrix.key
    while root.target in CASTS:
        source = root.args[0]
        before, after = source.meta["val"], root.meta["val"]
        if before.shape != after.shape or before.stride() != after.stride():
            return None
        root = values.root(source)
    return root if is_packed(root) and tuple(layout) == values.matrix(root).key[1:] else None


def quantizer_of(node: fx.Node) -> Quantizer:
    """The quantizer whose codes a packed weight is."""
    return quantizer(arguments_of(node).quantizer)


def operand(build: Builder, site: MatmulSite) -> Quantized:
    """The codes of a site's packed weight as the operand of its products; those of several matrices one below the other."""
    call: Decode = arguments_of(site.packed)
    codes, scales = call.codes, call.scales
    if codes.meta["val"].dim() > 2:
        codes, scales = (
            build.call(site.node, aten.reshape.default, part, [-1, part.meta["val"].shape[-1]])
            for part in (codes, scales)
        )
    return Quantized(codes, scales, call.tensor_scale, quantizer_of(site.packed).format)


def parts(node: fx.Node) -> tuple[fx.Node, fx.Node, fx.Node]:
    """Codes, scales and tensor scale of a packed weight."""
    call = arguments_of(node)
    return call.codes, call.scales, call.tensor_scale


def is_part(node: fx.Node, part: fx.Node) -> bool:
    """Whether a node is this part of a packed weight, or its matrices one below the other."""
    return node is part or (node.target is aten.reshape.default and strip(node, VIEWS) is strip(part, VIEWS))


def recipe_of(name: str, recipe: Recipe, site: MatmulSite) -> Recipe:
    """The recipe of a site with the packed weight of this name: its forward pass reads those codes.

    Raises `RecipeError` where the recipe can't compute with such codes alone.
    """
    packed, gemm = quantizer_of(site.packed), recipe.fprop
    subject = f"The packed weight {name!r} has codes of {packed.name}, and the recipe {recipe.name!r}"
    if gemm is None:
        raise RecipeError(
            f"{subject} computes fprop in high precision; expected a recipe that reads codes, as the one that it was "
            "packed with. Or give it back first: quartet_compile.unpack(model)."
        )
    for field, wanted, got in differing(gemm.a, packed):
        remedy = (
            f"Take quartet_compile.unrotated({recipe.name!r})"
            if field == "rotation" and not got
            else "Take the recipe that it was packed with"
        )
        raise RecipeError(
            f"{subject} has X in {field}={wanted!r} for fprop; expected {field}={got!r}, or the product is not that "
            f"of the originals. {remedy}."
        )
    if site.dgrad is not None and (recipe.dgrad is None or recipe.w_from == "original"):
        raise RecipeError(
            f"{subject} computes dgrad from the weight in high precision; expected w_from='requantized', or 'codes' with "
            "square blocks, since the whole weight is nowhere. Take 'quartet', 'quartet2' or one like them."
        )
    if site.matrices > 1 and site.w.shape[0] % recipe.block:
        raise RecipeError(
            f"{subject} has blocks of {recipe.block}; expected blocks that fill the {site.w.shape[0]} rows of each of its "
            f"{site.matrices} matrices. Take 'quartet' or quartet_compile.unrotated('quartet'), whose blocks are 32."
        )
    return recipe if gemm.b == packed else dataclasses.replace(recipe, fprop=dataclasses.replace(gemm, b=packed))
