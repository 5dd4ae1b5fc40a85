"""The options as keywords of a function, each with its type: for type checkers, editors and `help`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypedDict, TypeVar

from .recipe import Recipe

_F = TypeVar("_F", bound=Callable[..., Any])

RecipeOption = (
    str | Recipe | Mapping[str, str | Recipe] | list[tuple[str, str]] | list[tuple[str, Recipe]] | list[tuple[str, Any]]
)
"""A recipe's name, a TOML file, a `Recipe`, or globs with one of these each, of which the first match wins."""

Globs = list[str] | tuple[str, ...]
"""Globs over the names of modules."""


class Options(TypedDict, total=False):
    """What `backend="quartet"` can be told; `quartet_compile/config/options.py` says what each is."""

    recipe: RecipeOption
    include: Globs
    exclude: Globs
    scope: Literal["all", "marked"]
    policy: str
    strict: bool
    stats: bool
    wire: Literal["high", "quantized"]
    weight_cache: bool
    eval: RecipeOption | None
    mode: str | None
    inductor: Mapping[str, Any]


DEFAULTS: Mapping[str, object] = {
    "recipe": "quartet",
    "include": (),
    "exclude": (),
    "scope": "all",
    "policy": "all",
    "strict": False,
    "stats": False,
    "wire": "high",
    "weight_cache": False,
    "eval": None,
    "mode": None,
    "inductor": {},
}
"""What an option is that isn't given. An `eval` of None is the recipe itself."""


_TYPES = {name: getattr(kind, "__forward_arg__", kind) for name, kind in Options.__annotations__.items()}
"""The types as they are written above."""


def lists_options(function: _F) -> _F:
    """Let `help` and `inspect.signature` show each option with its type and default in the place of `**options`.

    At run time they are still `**options`, so that an unknown one gets the error that names the nearest.
    """
    signature = inspect.signature(function)
    kept = [parameter for parameter in signature.parameters.values() if parameter.kind is not parameter.VAR_KEYWORD]
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=_TYPES[name])
        for name, default in DEFAULTS.items()
    ]
    listed = signature.replace(parameters=[*kept, *options])
    function.__signature__ = listed  # type: ignore[attr-defined]
    return function
