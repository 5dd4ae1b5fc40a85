"""Recipes that compute what a served model will: for `eval=`, so that its loss is known before it is served.

    w4a16    FP4 weights, decoded; activations in high precision
    w4a4     activations in MXFP4 too, each group by its largest magnitude at run time, as compressed-tensors and vLLM do

A server chooses the scales of activations without the statistics that a recipe may train with (QuEST's), so its loss is
another one. Each name has a form with `-unrotated`, for the weights of `export(..., unrotated=True)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from ..errors import RecipeError, suggest
from ..kernels.quantizer import Quantizer
from .presets import recipe as recipe_named
from .recipe import Gemm, Recipe
from .rules import Rules, rules

WEIGHTS, ACTIVATIONS, UNROTATED, PREFIX = "w4a16", "w4a4", "-unrotated", "served-"

SERVED: Mapping[str, str] = MappingProxyType(
    {
        f"{PREFIX}{WEIGHTS}": "FP4 weights; activations in high precision",
        f"{PREFIX}{WEIGHTS}{UNROTATED}": "the same, quantized without the recipe's rotation",
        f"{PREFIX}{ACTIVATIONS}": "FP4 weights, and MXFP4 activations by the largest magnitude of a group",
        f"{PREFIX}{ACTIVATIONS}{UNROTATED}": "the same, both quantized without the recipe's rotation",
    }
)
"""The values of the option `eval` that are made from the recipe of training."""


def served(recipe: str | Recipe, as_: str) -> Recipe:
    """The recipe of inference that a model trained with `recipe` computes when it is served.

    as_: an entry of `SERVED`. A recipe that changes nothing stays as it is. Raises `RecipeError` for an unknown entry, and
    for weights that can't be served so.
    """
    trained = recipe_named(recipe)
    if as_ not in SERVED:
        raise RecipeError(f"Unknown served forward {as_!r}{suggest(as_, SERVED)}; expected one of {', '.join(SERVED)}.")
    if trained.fprop is None:
        return trained
    weight = trained.fprop.b
    if weight.elements != "e2m1":
        raise RecipeError(
            f"Recipe {trained.name!r} has weights by {weight.name}, and {as_!r} is for FP4 weights; leave eval out, which "
            "computes the forward pass of training."
        )
    if as_.endswith(UNROTATED):
        weight = weight.unrotated
    quantized = as_.removesuffix(UNROTATED) == f"{PREFIX}{ACTIVATIONS}"
    activation = _dynamic(trained, weight, as_) if quantized else _kept(weight)
    name = f"{as_} of {trained.name}"
    return Recipe(name=name, fprop=Gemm(a=activation, b=weight), dgrad=None, wgrad=None)


def served_rules(training: Rules, as_: str) -> Rules:
    """The same rules with each recipe as it is served."""
    return Rules(tuple((glob, served(recipe, as_)) for glob, recipe in training))


def evaluation_rules(training: Rules, value: Any) -> Rules:
    """What the option `eval` says, beside the rules of training: an entry of `SERVED`, or rules of its own."""
    if isinstance(value, str) and value.startswith(PREFIX):
        return served_rules(training, value)
    return rules("eval", value)


def _kept(weight: Quantizer) -> Quantizer:
    """What rounds nothing, in the space of the weight."""
    return Quantizer(elements="float32", group=weight.group, rotation=weight.rotation)


def _dynamic(trained: Recipe, weight: Quantizer, as_: str) -> Quantizer:
    if weight.two_level:
        raise RecipeError(
            f"Recipe {trained.name!r} has NVFP4 weights ({weight.name}), and {as_!r} has MXFP4 activations: a server of "
            f"NVFP4 scales activations by a constant that it calibrates. Use eval={PREFIX + WEIGHTS!r}, or leave eval out."
        )
    if weight.shrink != 1.0:
        raise RecipeError(
            f"Recipe {trained.name!r} has weights by {weight.name}, whose shrink no MXFP4 file can say; use "
            f"eval={PREFIX + WEIGHTS!r} (export format 'bf16')."
        )
    return Quantizer(rotation=weight.rotation, scale_rounding="even")
