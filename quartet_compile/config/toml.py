"""Recipes as TOML files:

    name = "mine"
    trust_mask = true
    fprop = {a = "mxfp4-quest,scale_rounding=nearest", b = "mxfp4-quest,scale_rounding=nearest"}
    dgrad = "mxfp4-rtn"         # both operands
    wgrad = "high precision"

An operand is a quantizer's name, with fields changed after commas, or a table of fields.
"""

from __future__ import annotations

import json
import os
import pathlib
import sys
from typing import Any

from ..errors import QuantizerError, RecipeError, suggest
from ..kernels.quantizer import Quantizer, quantizer
from .recipe import HIGH_PRECISION, ROLES, Gemm, Recipe

_KEYS = ("name", *ROLES, "trust_mask", "w_from", "x_from")


def save_recipe(recipe: Recipe, path: str | os.PathLike[str]) -> None:
    """Write a recipe; `load_recipe` reads back an equal one."""
    lines = [f"name = {json.dumps(recipe.name)}"]
    for role in ROLES:
        gemm = getattr(recipe, role)
        lines.append(f"{role} = {json.dumps(HIGH_PRECISION) if gemm is None else _table(gemm)}")
    lines += [
        f"trust_mask = {json.dumps(recipe.trust_mask)}",
        f"w_from = {json.dumps(recipe.w_from)}",
        f"x_from = {json.dumps(recipe.x_from)}",
    ]
    pathlib.Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")


def load_recipe(path: str | os.PathLike[str]) -> Recipe:
    """Read a recipe. Raises `RecipeError`, which names the file, the key and what was expected."""
    try:
        data = _toml().loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"The recipe file {str(path)!r} can't be read: {error.strerror}.") from None
    except ValueError as error:
        raise RecipeError(f"The recipe file {str(path)!r} is not TOML: {error}.") from None
    try:
        return _recipe(data)
    except (RecipeError, QuantizerError) as error:
        raise RecipeError(f"{path}: {error}") from None


def _recipe(data: dict[str, Any]) -> Recipe:
    for key in data:
        if key not in _KEYS:
            raise RecipeError(f"Unknown key {key!r}{suggest(key, _KEYS)}; expected {', '.join(_KEYS)}.")
    missing = [key for key in ("name", *ROLES) if key not in data]
    if missing:
        raise RecipeError(
            f"No {', '.join(missing)}; expected the keys name, fprop, dgrad and wgrad. A GEMM that isn't quantized is "
            f"{missing[-1]} = {HIGH_PRECISION!r}."
        )
    for key, kind in (("name", str), ("trust_mask", bool), ("w_from", str), ("x_from", str)):
        if key in data and not isinstance(data[key], kind):
            raise RecipeError(f"{key} is {data[key]!r}; expected a {'string' if kind is str else 'boolean'}.")
    return Recipe(**{**data, **{role: _gemm(role, data[role]) for role in ROLES}})


def _gemm(role: str, value: Any) -> Gemm | None:
    if value == HIGH_PRECISION:
        return None
    if isinstance(value, str):
        return Gemm(a=quantizer(value), b=quantizer(value))
    if not isinstance(value, dict) or not {"a", "b"} <= set(value) <= {"a", "b", "output"}:
        raise RecipeError(
            f"{role} is {value!r}; expected a quantizer's name, {HIGH_PRECISION!r}, or a table with a, b and if need be "
            'output, as {a = "nvfp4-rtn", b = "nvfp4-rtn-2d"}.'
        )
    operands = {side: _quantizer(f"{role}.{side}", value[side]) for side in ("a", "b")}
    return Gemm(**{**value, **operands})


def _quantizer(where: str, value: Any) -> Quantizer:
    if isinstance(value, str):
        return quantizer(value)
    if not isinstance(value, dict):
        raise RecipeError(f"{where} is {value!r}; expected a quantizer's name or a table of its fields.")
    try:
        return Quantizer(**value)
    except TypeError:
        known = tuple(Quantizer.__dataclass_fields__)
        wrong = next(key for key in value if key not in known)
        raise RecipeError(
            f"{where} has the unknown field {wrong!r}{suggest(wrong, known)}; expected {', '.join(known)}."
        ) from None


def _table(gemm: Gemm) -> str:
    output = "" if gemm.output == "same" else f", output = {json.dumps(gemm.output)}"
    return f"{{a = {json.dumps(gemm.a.name)}, b = {json.dumps(gemm.b.name)}{output}}}"


def _toml() -> Any:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return tomllib
