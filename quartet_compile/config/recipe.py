"""Recipes: which quantizer each operand of the three GEMMs of a linear layer gets. Data, not code.

For `Y = X W^T` with `X: [M, K]`, `W: [N, K]` and the gradient `dY: [M, N]`:

    fprop   Y  = X  W^T     contracts K
    dgrad   dX = dY W       contracts N
    wgrad   dW = dY^T X     contracts M

The presets are in `presets.py`; `register_recipe` adds one's own, `toml.py` reads and writes TOML.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from ..errors import RecipeError
from ..kernels.quantizer import Quantizer
from ..tables import aligned, html, html_lines, ruled

ROLES = ("fprop", "dgrad", "wgrad")
SOURCES = ("requantized", "original", "codes")
HIGH_PRECISION = "high precision"
"""What the GEMMs that are not quantized run in, in reports and files."""

OUTPUTS = ("same", "float32", "bfloat16", "float16")


def differing(a: Quantizer, b: Quantizer) -> Iterator[tuple[str, Any, Any]]:
    """The fields with their values that keep two operands from being multiplied."""
    formats = () if a.exact or b.exact else ("elements", "scale_format")  # what rounds nothing goes with any format
    for field in (*formats, "group", "rotation", "random_signs"):
        left, right = getattr(a, field), getattr(b, field)
        if left != right:
            yield field, left, right


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gemm:
    """The quantizers of one GEMM's operands; both contract along their columns after transposition. One may round nothing
    (`elements="float32"`): the product is then in float32.

    output: the dtype that the product is rounded to: `"same"`, that of the matmul it replaces, or a dtype's name; the
            graph goes on in its own dtype. Sums are float32 everywhere.
    """

    a: Quantizer
    b: Quantizer
    output: str = "same"

    def __post_init__(self) -> None:
        for side in ("a", "b"):
            if not isinstance(getattr(self, side), Quantizer):
                raise RecipeError(
                    f"Gemm operand {side!r} is {getattr(self, side)!r}; expected a quartet_compile.Quantizer, as "
                    "quartet_compile.quantizer('mxfp4-sr')."
                )
        if self.output not in OUTPUTS:
            raise RecipeError(f"Gemm output is {self.output!r}; expected one of {', '.join(map(repr, OUTPUTS))}.")

    @property
    def gain(self) -> float:
        """What the product is multiplied by, to undo the shrink of both operands."""
        return self.a.gain * self.b.gain

    def check(self, role: str) -> None:
        """Raise `RecipeError` if the two operands can't be multiplied."""
        for field, left, right in differing(self.a, self.b):
            raise RecipeError(
                f"Recipe operands of {role} differ in {field!r}: {left!r} and {right!r}. Both operands of a GEMM "
                f"need the same {field}, or the product is not the product of the originals."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """A method of training in low precision. A GEMM that is None stays in high precision.

    fprop: operands X and W, along K.
    dgrad: operands dY and W^T, along N.
    wgrad: operands dY^T and X^T, along M.
    trust_mask: gradients of X and W pass only where the forward quantizer did not clip, in the GEMMs that are quantized.
    w_from, x_from: what W^T of dgrad and X^T of wgrad are made of: `"requantized"`, from their codes of fprop, which are
        all that is saved; `"original"`, from the tensor itself, which is saved; `"codes"`, the codes of fprop as they are,
        which needs square blocks.
    """

    name: str
    fprop: Gemm | None
    dgrad: Gemm | None
    wgrad: Gemm | None
    trust_mask: bool = False
    w_from: str = "requantized"
    x_from: str = "requantized"

    def __post_init__(self) -> None:
        for role, gemm in self.gemms():
            if not isinstance(gemm, Gemm):
                raise RecipeError(
                    f"Recipe {self.name!r} has {gemm!r} as {role}; expected a quartet_compile.Gemm(a=..., b=...), or None "
                    "for high precision."
                )
            gemm.check(f"{self.name!r} {role}")
        if self.fprop:
            self._check_forward(self.fprop)
        for role, source in (("dgrad", "w_from"), ("wgrad", "x_from")):
            if getattr(self, source) not in SOURCES:
                raise RecipeError(
                    f"Recipe {self.name!r} has {source}={getattr(self, source)!r}; expected one of "
                    f"{', '.join(map(repr, SOURCES))}."
                )
            if getattr(self, role):
                self._check_backward(role, getattr(self, role), source)
        if self.trust_mask:
            self._check_mask()

    def gemms(self) -> Iterator[tuple[str, Gemm]]:
        """The GEMMs that are quantized, with their roles."""
        return ((role, gemm) for role in ROLES if (gemm := getattr(self, role)) is not None)

    @property
    def rewrites(self) -> bool:
        """Whether any matmul changes under this recipe."""
        return any(True for _ in self.gemms())

    @property
    def block(self) -> int:
        """What sizes along contractions are padded to: the largest block of any operand, at least 32."""
        return max([32, *(q.block for _, gemm in self.gemms() for q in (gemm.a, gemm.b))])

    def source(self, role: str) -> str:
        """What the second operand of a backward GEMM is made of."""
        return {"dgrad": self.w_from, "wgrad": self.x_from}[role]

    def _check_forward(self, gemm: Gemm) -> None:
        for operand in (gemm.a, gemm.b):
            if operand.seeded:
                raise RecipeError(
                    f"Recipe {self.name!r} has a random quantizer ({operand.name}) in fprop; a forward pass that is "
                    "recomputed must give the same bits: use a deterministic one, as mxfp4-quest."
                )

    def _check_backward(self, role: str, gemm: Gemm, field: str) -> None:
        source = getattr(self, field)
        if gemm.a.clips or gemm.b.clips:
            raise RecipeError(
                f"Recipe {self.name!r} has a quantizer that clips in {role}; QuEST must not be used in backward "
                "(its gradients misalign down to .49, arXiv 2505.14669), and no other clipping either: use mxfp4-sr or "
                "mxfp4-rtn."
            )
        fresh = (gemm.a,) if source == "codes" else (gemm.a, gemm.b)
        if any(q.scale == "four-over-six" for q in fresh) and any(q.noisy for q in (gemm.a, gemm.b)):
            raise RecipeError(
                f"Recipe {self.name!r} combines four-over-six with random rounding in {role}: the choice of the scale "
                "looks at the values, so the gradient is biased (its average stops at a relative squared error of .11, "
                "arXiv 2601.22813). Use nvfp4-rtn beside nvfp4-sr."
            )
        if source == "original":
            return
        if self.fprop is None:
            raise RecipeError(
                f"Recipe {self.name!r} has {field}={source!r} and no fprop, so there are no codes: set {field}='original'."
            )
        operand = self.fprop.b if role == "dgrad" else self.fprop.a
        if source == "codes" and not (operand.square and gemm.b == operand):
            raise RecipeError(
                f"Recipe {self.name!r} has {field}='codes', which uses the codes of fprop transposed as they are: "
                f"fprop has {operand.name}, {role} has {gemm.b.name}; expected the same quantizer with square blocks in "
                f"both, as nvfp4-rtn-2d. Or set {field}='requantized'."
            )

    def _check_mask(self) -> None:
        if self.fprop is None or not all(q.clips or q.exact for q in (self.fprop.a, self.fprop.b)):
            raise RecipeError(
                f"Recipe {self.name!r} has trust_mask=True, and fprop clips nothing that a mask could mark; leave it out, "
                "or use a quantizer that clips, as mxfp4-quest."
            )
        for role in ("dgrad", "wgrad"):
            if getattr(self, role) and self.source(role) == "original" and self.fprop.a.rotation:
                raise RecipeError(
                    f"Recipe {self.name!r} has trust_mask=True with {role} from the original operand: the mask belongs to "
                    "the rotated space of fprop, where that product is not. Set w_from and x_from to 'requantized'."
                )

    def __str__(self) -> str:
        return "\n".join([_title(self), *ruled(aligned(_rows(self)))])

    def _repr_html_(self) -> str:
        return f"<div>{html_lines([_title(self)])}{html(_rows(self), range(len(_COLUMNS)))}</div>"


def operands(gemm: Gemm | None) -> str:
    """The quantizers of a GEMM in a few words."""
    if gemm is None:
        return HIGH_PRECISION
    return gemm.a.name if gemm.a == gemm.b else f"{gemm.a.name}; {gemm.b.name}"


_COLUMNS = ("GEMM", "operand", "made of", "quantizer", "elements", "group", "rotation", "scale", "rounding", "output")


def _rows(recipe: Recipe) -> list[tuple[str, ...]]:
    """The six operands of a recipe, a line each, after a head."""
    rows: list[tuple[str, ...]] = [_COLUMNS]
    names = {"fprop": ("X", "W"), "dgrad": ("dY", "W^T"), "wgrad": ("dY^T", "X^T")}
    for role in ROLES:
        gemm = getattr(recipe, role)
        if gemm is None:
            rows.append((role, "both", "original", HIGH_PRECISION, *[""] * 6))
            continue
        sources = ("original", "original" if role == "fprop" else recipe.source(role))
        for operand, source, q in zip(names[role], sources, (gemm.a, gemm.b), strict=True):
            group = f"{q.group_rows}x{q.group}"
            rotation = f"{'random' if q.random_signs else 'fixed'} {q.rotation}" if q.rotation else "none"
            scale = f"{q.scale}, {q.scale_format}" + f" {q.scale_rounding}" * (not q.two_level)
            rows.append((role, operand, source, q.name, q.elements, group, rotation, scale, q.rounding, gemm.output))
    return rows


def _title(recipe: Recipe) -> str:
    mask = "gradients pass where fprop did not clip" if recipe.trust_mask else "no trust mask"
    return f"Recipe {recipe.name!r}; {mask}."
