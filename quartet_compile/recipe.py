"""Recipes: which quantizer each operand of the three GEMMs of a linear layer gets. Data, not code.

For `Y = X W^T` with `X: [M, K]`, `W: [N, K]` and the gradient `dY: [M, N]`:

    fprop   Y  = X  W^T     contracts K
    dgrad   dX = dY W       contracts N
    wgrad   dW = dY^T X     contracts M

Source of the presets: "Quartet" (arXiv 2505.14669), algorithm 1.
"""

from __future__ import annotations

import dataclasses
from types import MappingProxyType

from .errors import RecipeError, suggest
from .formats import QUANTIZERS, Quantizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gemm:
    """The quantizers of one GEMM's operands; both contract along their columns after transposition."""

    a: Quantizer
    b: Quantizer

    @property
    def gain(self) -> float:
        """What the product is multiplied by, to undo the shrink of both operands."""
        return self.a.gain * self.b.gain

    def check(self, role: str) -> None:
        """Raise `RecipeError` if the two operands can't be multiplied."""
        for field in ("elements", "group", "rotation", "random_signs"):
            left, right = getattr(self.a, field), getattr(self.b, field)
            if left != right:
                raise RecipeError(
                    f"Recipe operands of {role} differ in {field!r}: {left!r} and {right!r}. Both operands of a GEMM "
                    f"need the same {field}, or the product is not the product of the originals."
                )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """A method of training in low precision.

    fprop: operands X and W, along K. Their codes are all that is saved for backward.
    dgrad: operands dY and W^T, along N; W is quantized again from its codes.
    wgrad: operands dY^T and X^T, along M; X is quantized again from its codes.
    trust_mask: gradients of X and W pass only where the forward quantizer did not clip.

    A recipe whose GEMMs are all None keeps every matmul in high precision.
    """

    name: str
    fprop: Gemm | None
    dgrad: Gemm | None
    wgrad: Gemm | None
    trust_mask: bool = False

    def __post_init__(self) -> None:
        gemms = {"fprop": self.fprop, "dgrad": self.dgrad, "wgrad": self.wgrad}
        present = {role: gemm for role, gemm in gemms.items() if gemm is not None}
        if present and len(present) < len(gemms):
            missing = ", ".join(role for role in gemms if role not in present)
            raise RecipeError(f"Recipe {self.name!r} has no {missing}; give all three GEMMs, or None for all three.")
        for role, gemm in present.items():
            gemm.check(f"{self.name!r} {role}")
        for operand in (self.fprop.a, self.fprop.b) if self.fprop else ():
            if operand.seeded:
                raise RecipeError(
                    f"Recipe {self.name!r} has a random quantizer ({operand.name}) in fprop; a forward pass that is "
                    "recomputed must give the same bits: use a deterministic one, as mxfp4-quest."
                )
        for role in ("dgrad", "wgrad"):
            gemm = gemms[role]
            if gemm and (gemm.a.clips or gemm.b.clips):
                raise RecipeError(
                    f"Recipe {self.name!r} has a quantizer that clips in {role}; QuEST must not be used in backward "
                    "(its gradients misalign down to .49, arXiv 2505.14669): use mxfp4-sr or mxfp4-rtn."
                )

    @property
    def rewrites(self) -> bool:
        """Whether any matmul changes under this recipe."""
        return self.fprop is not None


def _pair(quantizer: str) -> Gemm:
    return Gemm(a=QUANTIZERS[quantizer], b=QUANTIZERS[quantizer])


def _quartet(name: str, backward: str) -> Recipe:
    return Recipe(name=name, fprop=_pair("mxfp4-quest"), dgrad=_pair(backward), wgrad=_pair(backward), trust_mask=True)


_RECIPES: dict[str, Recipe] = {
    "quartet": _quartet("quartet", "mxfp4-sr"),
    "quartet-rtn": _quartet("quartet-rtn", "mxfp4-rtn"),
    "exact": Recipe(
        name="exact",
        fprop=_pair("exact-fixed"),
        dgrad=_pair("exact-random"),
        wgrad=_pair("exact-random"),
        trust_mask=True,
    ),
    "bf16": Recipe(name="bf16", fprop=None, dgrad=None, wgrad=None),
}


def recipes() -> MappingProxyType[str, Recipe]:
    """Every registered recipe by name."""
    return MappingProxyType(_RECIPES)


def recipe(name: str | Recipe) -> Recipe:
    """The recipe with this name; a `Recipe` passes through. Raises `RecipeError` for an unknown one."""
    if isinstance(name, Recipe):
        return name
    if not isinstance(name, str):
        raise RecipeError(f"Got a recipe of type {type(name).__name__}; expected a name or a quartet_compile.Recipe.")
    if name not in _RECIPES:
        raise RecipeError(
            f"Unknown recipe {name!r}{suggest(name, _RECIPES)}. Registered: {', '.join(_RECIPES)}; "
            "add one with quartet_compile.register_recipe(Recipe(...))."
        )
    return _RECIPES[name]


def register_recipe(recipe: Recipe) -> Recipe:
    """Make a recipe known by its name. Raises `RecipeError` if the name is taken by a different recipe."""
    if not isinstance(recipe, Recipe):
        raise RecipeError(f"Got a {type(recipe).__name__}; expected a quartet_compile.Recipe.")
    known = _RECIPES.get(recipe.name)
    if known is not None and known != recipe:
        raise RecipeError(f"Recipe {recipe.name!r} is registered already, with other operands; choose another name.")
    _RECIPES[recipe.name] = recipe
    return recipe
