"""Weights of which a graph is given the codes and scales: a module holds them, and its forward pass reads `decode` of
them; or ranks gathered them, and it reads `gathered` of them.

Before:  w = decode(codes, scales, ...);  xq = quantize(x);  wq = quantize(w);  y = scaled_mm(xq, wq)
After:   xq = quantize(x);  y = scaled_mm(xq, codes, scales)

Legal because the codes are what the forward pass would have made of the weight; the weight itself is never computed. A
site of which that doesn't hold, since it reads a part of the weight or contracts the other dimension, keeps `decode`.
`gathered` has no value, so there it is an error. Its weight may be trained: a trust mask comes with the codes, and its
gradient is that of an ordinary weight.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from torch import fx

from ..config.recipe import Recipe, differing
from ..errors import RecipeError, WireError
from ..kernels.numerics import philox
from ..kernels.quantizer import Quantizer, quantizer
from ..kernels.schemas import Gathered, arguments_of, op_of
from .graph import CASTS, CONVERSIONS, VIEWS, Builder, Matrix, Values, aten, strip
from .share import Quantized
from .site import MatmulSite

SUFFIX = "_packed"
"""Of the name of the buffer that holds the codes, after that of the weight."""

STREAM = philox.FPROP_W


def is_packed(node: fx.Node) -> bool:
    """Whether a node stands for a weight of which there are codes."""
    return op_of(node) == "decode" or is_gathered(node)


def is_gathered(node: fx.Node) -> bool:
    """Whether a node stands for a weight whose codes ranks gathered."""
    return op_of(node) == "gathered"


def merge_gathered(graph: fx.Graph) -> None:
    """One node for each gathered weight: AOTAutograd writes one for each matmul that reads it."""
    first: dict[tuple, fx.Node] = {}
    for node in list(graph.nodes):
        if is_gathered(node):
            known = first.setdefault(node.args, node)
            if known is not node:
                node.replace_all_uses_with(known)
                graph.erase_node(node)


def check_gathered(graph: fx.Graph, names: Mapping[fx.Node, str]) -> None:
    """Raise `WireError` if a rewritten graph still reads the value of a weight whose codes ranks gathered."""
    for node in filter(is_gathered, graph.nodes):
        if node.users:
            raise unread(names.get(node, str(node)), f"{next(iter(node.users))} reads it")


def unread(name: str, why: str) -> WireError:
    """The error of a weight that is wanted in high precision."""
    return WireError(
        f"Ranks gather the weight {name!r} as codes, and this graph wants it in high precision: {why}; expected FP4 matmuls "
        f"alone to read it, as the options say that were in force when the codes were asked for. Keep it as it is: "
        f"exclude=[{name.removesuffix('.weight')!r}], or wire='high'."
    )


def described_input(node: fx.Node) -> fx.Node:
    """The input of a graph that stands for a weight: of a gathered one, the codes."""
    return strip(arguments_of(node).codes) if is_gathered(node) else node


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
        if root.target in CONVERSIONS and is_gathered(strip(root)):
            return None  # the codes are of the weight as it was gathered
        source = root.args[0]
        before, after = source.meta["val"], root.meta["val"]
        if before.shape != after.shape or before.stride() != after.stride():
            return None
        root = values.root(source)
    return root if is_packed(root) and tuple(layout) == values.matrix(root).key[1:] else None


def quantizer_of(node: fx.Node) -> Quantizer:
    """The quantizer whose codes a packed weight is."""
    return quantizer(arguments_of(node).quantizer)


def operand(build: Builder, site: MatmulSite, masked: bool) -> Quantized:
    """The codes of a site's packed weight as the operand of its products; those of several matrices one below the other.
    masked: with the trust mask, which only a gathered weight has."""
    call = arguments_of(site.packed)
    found: list[fx.Node] = [call.codes, call.scales]
    if masked and isinstance(call, Gathered):
        found.append(call.mask)
    if found[0].meta["val"].dim() > 2:
        found = [build.call(site.node, aten.reshape.default, part, [-1, part.meta["val"].shape[-1]]) for part in found]
    codes, scales, *mask = found
    return Quantized(codes, scales, call.tensor_scale, quantizer_of(site.packed).format, *mask)


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
    if is_gathered(site.packed):
        _check_recipe(name, recipe, site)
        return recipe
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


def _check_recipe(name: str, recipe: Recipe, site: MatmulSite) -> None:
    """Raise `WireError` where a recipe makes other codes of a weight than those that ranks gathered."""
    call: Gathered = arguments_of(site.packed)
    if recipe.fprop is None or recipe.fprop.b != quantizer(call.quantizer):
        raise unread(name, f"the recipe {recipe.name!r} doesn't quantize it by {call.quantizer}")
    if site.dgrad is not None and (recipe.dgrad is None or recipe.w_from == "original"):
        raise unread(name, f"the recipe {recipe.name!r} computes dgrad from the weight itself")
    masked = recipe.trust_mask and recipe.wgrad is not None and site.wgrad is not None
    if masked and call.mask.meta["val"].shape[-1] == 0:
        raise unread(name, f"the recipe {recipe.name!r} needs a trust mask, and none was gathered")
