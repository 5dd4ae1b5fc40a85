"""The recipes by name: each published method as data.

    quartet, quartet-rtn    "Quartet", arXiv 2505.14669, algorithm 1; its backward rounded stochastically or to nearest
    quartet2                "Quartet II", arXiv 2601.22813
    nvfp4, nvfp4-4over6     NVIDIA's NVFP4 training recipe, without and with four-over-six in fprop (arXiv 2601.22813)
    tetrajet2               TetraJet-v2, as compared in arXiv 2601.22813
    mxfp4-bwd               "Training LLMs with MXFP4" (Tseng et al.): backward in MXFP4, forward in high precision
    mxfp8                   OCP MXFP8 in all three GEMMs, each operand from its original, scales rounded up
    jetfire-fp4             Jetfire's square blocks of 32 with E2M1 elements, here with E8M0 scales
    exact, bf16             round nothing: with the rewriting and without it

Of the paper's other baselines, LUQ (levels that are powers of two under one scale a tensor, pruned at random), HALO-FP4
(one scale a tensor, and a rotation of the dimension that is not contracted) and LSS-INT4 (backward over sampled rows) are
no block quantizers of operands, so they are not data of this form.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

from ..errors import RecipeError, suggest
from ..kernels.quantizer import QUANTIZERS, quantizer
from ..process import process
from ..tables import aligned, html, ruled
from .recipe import ROLES, Gemm, Recipe, operands


def _pair(a: str, b: str | None = None) -> Gemm:
    return Gemm(a=quantizer(a), b=quantizer(b or a))


def _quartet(name: str, backward: str) -> Recipe:
    return Recipe(name=name, fprop=_pair("mxfp4-quest"), dgrad=_pair(backward), wgrad=_pair(backward), trust_mask=True)


def _nvfp4(name: str, activation: str, weight: str) -> Recipe:
    rotated = ",rotation=16,random_signs=True"
    return Recipe(
        name=name,
        fprop=_pair(activation, weight),
        dgrad=_pair("nvfp4-sr", weight),
        wgrad=_pair("nvfp4-sr" + rotated, "nvfp4-rtn" + rotated),
        w_from="codes",
        x_from="original",
    )


def _from_codes(name: str, forward: str, backward: str) -> Recipe:
    return Recipe(name=name, fprop=_pair(forward), dgrad=_pair(backward), wgrad=_pair(backward))


def _from_originals(name: str, forward: Gemm | None, backward: str) -> Recipe:
    gemm = _pair(backward)
    return Recipe(name=name, fprop=forward, dgrad=gemm, wgrad=gemm, w_from="original", x_from="original")


_square = _pair("mxfp4-rtn-2d")
_exact = _pair("exact-random")

_PRESETS = (
    _quartet("quartet", "mxfp4-sr"),
    _quartet("quartet-rtn", "mxfp4-rtn"),
    _from_codes("quartet2", "nvfp4-rtn-4over6", "nvfp4-eden"),
    _nvfp4("nvfp4", "nvfp4-rtn", "nvfp4-rtn-2d"),
    _nvfp4("nvfp4-4over6", "nvfp4-rtn-4over6", "nvfp4-rtn-2d-4over6"),
    _from_codes("tetrajet2", "nvfp4-rtn", "nvfp4-sr,rotation=32,random_signs=True"),
    _from_originals("mxfp4-bwd", None, "mxfp4-sr,rotation=64"),
    _from_originals("mxfp8", _pair("mxfp8"), "mxfp8"),
    Recipe(name="jetfire-fp4", fprop=_square, dgrad=_square, wgrad=_square, w_from="codes", x_from="codes"),
    Recipe(name="exact", fprop=_pair("exact-fixed"), dgrad=_exact, wgrad=_exact, trust_mask=True),
    Recipe(name="bf16", fprop=None, dgrad=None, wgrad=None),
)
PRESETS = tuple(preset.name for preset in _PRESETS)


class Recipes(Mapping[str, Recipe]):
    """Recipes by name, which print as a table: the quantizers of both operands of each GEMM."""

    def __init__(self, known: Mapping[str, Recipe]) -> None:
        self._known = dict(known)

    def __getitem__(self, name: str) -> Recipe:
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)

    def _rows(self) -> list[tuple[str, ...]]:
        head = ("recipe", "fprop  Y = X W^T", "dgrad  dX = dY W", "wgrad  dW = dY^T X")
        return [head, *((name, *(operands(getattr(self[name], role)) for role in ROLES)) for name in self)]

    def __str__(self) -> str:
        return "\n".join(ruled(aligned(self._rows())))

    def _repr_html_(self) -> str:
        return html(self._rows(), range(1 + len(ROLES)))


def recipes() -> Recipes:
    """Every recipe by name: the presets, and those registered so far."""
    return Recipes({preset.name: preset for preset in _PRESETS} | process.recipes)


def recipe(name: str | Recipe) -> Recipe:
    """The recipe with this name; a `Recipe` passes through. Raises `RecipeError` for an unknown one."""
    if isinstance(name, Recipe):
        return name
    if not isinstance(name, str):
        raise RecipeError(f"Got a recipe of type {type(name).__name__}; expected a name or a quartet_compile.Recipe.")
    known = recipes()
    if name not in known:
        raise RecipeError(
            f"Unknown recipe {name!r}{_meant(name)}. Registered: {', '.join(known)}; "
            "add one with quartet_compile.register_recipe(Recipe(...))."
        )
    return known[name]


_FORMATS = {"mxfp4": "quartet", "fp4": "quartet", "fp8": "mxfp8"}
"""The recipe to suggest for a number format that is no recipe's name."""


def _meant(name: str) -> str:
    """What a name that is no recipe's may stand for; empty if nothing is near."""
    if name.partition(",")[0].strip() in QUANTIZERS:
        users = [known.name for known in recipes().values() if _quantizes_by(known, name)]
        examples = f", as those of {' and '.join(map(repr, users[:2]))}" if users else ""
        return f", which is a quantizer: a recipe has one for each operand{examples}"
    near = _FORMATS.get(name.lower())
    return f" (did you mean {near!r}?)" if near else suggest(name, recipes())


def _quantizes_by(recipe: Recipe, name: str) -> bool:
    """Whether an operand of a recipe has the quantizer with this name."""
    return any(QUANTIZERS.get(name) in (gemm.a, gemm.b) for _, gemm in recipe.gemms())


def register_recipe(recipe: Recipe) -> Recipe:
    """Make a recipe known by its name. Raises `RecipeError` if the name is taken by a different recipe."""
    if not isinstance(recipe, Recipe):
        raise RecipeError(f"Got a {type(recipe).__name__}; expected a quartet_compile.Recipe.")
    known = recipes().get(recipe.name)
    if known is not None and known != recipe:
        raise RecipeError(f"Recipe {recipe.name!r} is registered already, with other operands; choose another name.")
    process.recipes[recipe.name] = recipe
    return recipe


_UNROTATED = {"mxfp4": "mxfp4-rtn-2d,group_rows=1"}
"""By the format of codes, how the forward pass quantizes without a rotation: by the largest magnitude, clipping nothing."""


def unrotated(of: str | Recipe) -> Recipe:
    """A recipe without the rotation of its forward pass, for weights whose codes are not rotated, as those of gpt-oss'
    files: `unrotated("quartet")` quantizes X and W by their largest magnitude, since QuEST's scale is for what a rotation
    made normal, and computes dgrad and wgrad as `quartet` does. Its name is that of the recipe with `-unrotated`.

    Raises `RecipeError` for an unknown recipe, and for one whose forward pass has no rotation.
    """
    found = recipe(of)
    name = _UNROTATED.get(found.fprop.b.format) if found.fprop is not None and found.fprop.b.rotation else None
    if name is None:
        what = "computes fprop in high precision" if found.fprop is None else f"has {found.fprop.b.name} in fprop"
        raise RecipeError(
            f"Recipe {found.name!r} {what}; expected MXFP4 with a rotation, as 'quartet'. Use it as it is."
        )
    return dataclasses.replace(found, name=f"{found.name}-unrotated", fprop=_pair(name), trust_mask=False)


def mix(name: str, *, fprop: str | Recipe, dgrad: str | Recipe, wgrad: str | Recipe) -> Recipe:
    """A recipe with each GEMM from another one: `mix("mine", fprop="bf16", dgrad="quartet", wgrad="quartet")`.

    The trust mask is that of fprop's recipe, and where fprop is in high precision, W^T and X^T are made of the originals.
    Raises `RecipeError` where the parts don't fit together.
    """
    parts = {role: recipe(given) for role, given in zip(ROLES, (fprop, dgrad, wgrad), strict=True)}
    gemms = {role: getattr(part, role) for role, part in parts.items()}
    forward = gemms["fprop"] is not None
    return Recipe(
        name=name,
        **gemms,
        trust_mask=parts["fprop"].trust_mask and (gemms["dgrad"] is not None or gemms["wgrad"] is not None),
        w_from=parts["dgrad"].w_from if forward else "original",
        x_from=parts["wgrad"].x_from if forward else "original",
    )
