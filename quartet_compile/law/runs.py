"""Tables of training runs, one run a row: how many parameters and tokens, in which precisions, to which loss.

    parameters,tokens,fprop,backward,loss
    30482560,750002176,bf16,bf16,3.41571
    30482560,750002176,mxfp4-quest,mxfp4-sr,3.50033

`parameters` are non-embedding, `loss` is the validation loss in nats a token at the end. `fprop` and `backward` name the
precision of the forward and of the backward GEMMs, in any words; a column `recipe` may stand for both, with a name
(of forward and backward alike) or `fprop:backward` in it. Further columns are ignored.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence

from ..config.presets import recipes
from ..config.recipe import Recipe
from ..errors import suggest
from .formula import LawError
from .table import positive, read_rows

DATA = pathlib.Path(__file__).parent / "data"
SHIPPED = DATA / "quartet_runs.csv"
"""The runs of arXiv 2505.14669 as its notebooks list them: C4 validation loss; see docs/law.md."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One finished run. parameters: non-embedding; tokens: seen in training; loss: validation, nats a token."""

    parameters: float
    tokens: float
    fprop: str
    backward: str
    loss: float

    @property
    def recipe(self) -> str:
        """`fprop:backward`."""
        return f"{self.fprop}:{self.backward}"


def read_runs(path: str | os.PathLike[str] = SHIPPED) -> tuple[Run, ...]:
    """The runs of a CSV file; by default, the published ones."""
    return tuple(_run(where, cells) for where, cells in read_rows(path, _columns))


def _columns(header: Sequence[str]) -> tuple[str, ...]:
    precision = (
        ("recipe",) if "recipe" in header and not {"fprop", "backward"} <= set(header) else ("fprop", "backward")
    )
    return ("parameters", "tokens", *precision, "loss")


def _run(where: str, cells: Mapping[str, str]) -> Run:
    numbers = {name: positive(where, name, cells[name]) for name in ("parameters", "tokens", "loss")}
    if "fprop" not in cells or "backward" not in cells:
        fprop, backward = split(cells["recipe"], where)
        return Run(fprop=fprop, backward=backward, **numbers)
    for column in ("fprop", "backward"):
        if ":" in cells[column]:
            raise LawError(f"{where}: {column} is {cells[column]!r}; expected one precision, as bf16 or mxfp4-quest.")
    return Run(fprop=cells["fprop"], backward=cells["backward"], **numbers)


def split(recipe: str, where: str = "") -> tuple[str, str]:
    """The forward and backward precision of `fprop:backward`, or of one name for both."""
    fprop, separator, backward = recipe.partition(":")
    if separator and (not fprop or not backward or ":" in backward):
        raise LawError(
            f"{where}{': ' if where else ''}recipe {recipe!r} is not of the form fprop:backward; expected a name, or two "
            "as mxfp4-quest:mxfp4-sr."
        )
    return (fprop, backward) if separator else (recipe, recipe)


def precisions(recipe: str, runs: Iterable[Run], *, baseline: str) -> tuple[str, str]:
    """The forward and backward precision that a recipe's name stands for among `runs`.

    `fprop:backward` as it is; a name that the runs know, of both; else a registered recipe of this package, by the
    quantizers of its first operands (`quartet` is `mxfp4-quest:mxfp4-sr`).
    """
    forward = {run.fprop for run in runs} | {baseline}
    backward = {run.backward for run in runs} | {baseline}
    registered = recipes()
    if ":" not in recipe and recipe not in forward & backward and recipe in registered:
        pair = _pair(registered[recipe], baseline)
    else:
        pair = split(recipe)
    for what, name, known in (("forward", pair[0], forward), ("backward", pair[1], backward)):
        if name not in known:
            raise LawError(
                f"Recipe {recipe!r} has the {what} precision {name!r}, of which there is no run{suggest(name, known)}; "
                f"expected one of {', '.join(sorted(known))}. Add runs with it to the table, or take a recipe that it has "
                f"runs of: {', '.join(_known(forward, backward, baseline)) or 'none of those registered'}."
            )
    return pair


def _pair(recipe: Recipe, baseline: str) -> tuple[str, str]:
    """The forward and backward precision of a registered recipe."""
    return recipe.fprop.a.name if recipe.fprop else baseline, recipe.dgrad.a.name if recipe.dgrad else baseline


def _known(forward: set[str], backward: set[str], baseline: str) -> list[str]:
    """The registered recipes with both passes among these precisions, one of them low at least."""
    pairs = {name: _pair(recipe, baseline) for name, recipe in recipes().items()}
    pairs = {name: (name, name) if name in forward & backward else pair for name, pair in pairs.items()}
    return [
        name for name, pair in pairs.items() if {*pair} != {baseline} and pair[0] in forward and pair[1] in backward
    ]
