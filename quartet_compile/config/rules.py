"""Which recipe a matmul gets: an ordered list of globs over names, the first that matches wins."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ..errors import OptionError, RecipeError
from .names import matches
from .presets import recipe
from .recipe import Recipe
from .toml import load_recipe

EVERYTHING = "*"


@dataclasses.dataclass(frozen=True)
class Rules:
    """Ordered pairs of a glob and a recipe. A single recipe for all is one pair, of `"*"`."""

    rules: tuple[tuple[str, Recipe], ...]

    def of(self, names: Iterable[str]) -> Recipe | None:
        """The recipe of a matmul with these names, None if no rule matches."""
        names = list(names)
        return next((chosen for glob, chosen in self if glob == EVERYTHING or matches(glob, names)), None)

    @property
    def name(self) -> str:
        """The recipes' names, each once."""
        return ", ".join(dict.fromkeys(chosen.name for _, chosen in self))

    @property
    def patterns(self) -> tuple[str, ...]:
        """The globs that have to match something."""
        return tuple(glob for glob, _ in self if glob != EVERYTHING)

    def __iter__(self) -> Iterator[tuple[str, Recipe]]:
        return iter(self.rules)


def rules(option: str, value: Any) -> Rules:
    """The rules that an option gives: a recipe's name, a `Recipe`, the path of a TOML file, or pairs of a glob and one of
    these, as a dict or a list. Raises `RecipeError` or `OptionError`."""
    if isinstance(value, Mapping):
        value = list(value.items())
    if not isinstance(value, (list, tuple)):
        return Rules(((EVERYTHING, _recipe(option, value)),))
    pairs = []
    for pair in value:
        if not (isinstance(pair, (list, tuple)) and len(pair) == 2 and isinstance(pair[0], str) and pair[0]):
            raise OptionError(
                f"Option {option!r} has the rule {pair!r}; expected pairs of a glob and a recipe, the first that matches "
                f"wins, as {option}=[('layers.0.*', 'bf16'), ('*', 'quartet')]."
            )
        pairs.append((pair[0], _recipe(option, pair[1])))
    if not pairs:
        raise OptionError(f"Option {option!r} has no rules; expected at least one, as {option}=[('*', 'quartet')].")
    globs = [glob for glob, _ in pairs]
    unreachable = globs[globs.index(EVERYTHING) + 1 :] if EVERYTHING in globs else []
    if unreachable:
        raise OptionError(
            f"Option {option!r} has the rule {unreachable[0]!r} after '*', which matches everything before it; move '*' to "
            "the end."
        )
    return Rules(tuple(pairs))


def _recipe(option: str, value: Any) -> Recipe:
    try:
        if isinstance(value, str) and value.endswith(".toml"):
            return load_recipe(value)
        return recipe(value)
    except RecipeError as error:
        raise RecipeError(f"Option {option!r}: {error}") from None
