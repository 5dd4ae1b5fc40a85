"""What a model is trained with, for its checkpoints: versions, recipe and the options that decide what is in FP4."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from typing import Any

import torch

from .compiled import compiled_by_us
from .config.recipe import ROLES, Recipe, operands
from .config.rules import Rules
from .errors import OptionError
from .warn import warn


def provenance(model: Any) -> dict[str, Any]:
    """What a compiled model computes with now, as plain data that JSON holds: keep it beside the weights.

    model: compiled by `backend="quartet"`, in whatever way. The keys: `quartet_compile` and `torch`, versions; `recipe` and
    `eval`, ordered pairs of a glob and a recipe, each with the quantizers of its GEMMs; `include`, `exclude`, `scope`,
    `policy`.
    `qc.set_recipe` changes it. Raises `OptionError` for a model of which no part is compiled so, or parts differently.
    """
    compiled = compiled_by_us(model)
    if compiled is None:
        raise OptionError(
            f"provenance got a {type(model).__name__} of which no part is compiled with backend='quartet'; expected a "
            "compiled model. Compile it first: model = quartet_compile.quartet(model)."
        )
    policy = compiled.config.policy
    return {
        "quartet_compile": importlib.metadata.version("quartet-compile"),
        "torch": str(torch.__version__),  # a class of torch's, which `torch.load` refuses
        "recipe": _rules(policy.recipe),
        "eval": _rules(policy.eval_recipe),
        "include": list(policy.include),
        "exclude": list(policy.exclude),
        "scope": policy.scope,
        "policy": policy.policy,
    }


def check_provenance(model: Any, before: Mapping[str, Any]) -> list[str]:
    """Compare what a model computes with to what `provenance` gave when its checkpoint was written, and warn of a difference
    (QC401). Returns the differences in words, none where it goes on as it was.

    A version of torch is not compared: it changes no code that Quartet Compile defines.
    """
    now = provenance(model)
    differences = [
        f"{key} was {_shown(before.get(key))}, now {_shown(now[key])}"
        for key in now
        if key != "torch" and before.get(key) != now[key]
    ]
    if differences:
        warn(
            "QC401",
            f"the run resumes with other settings than its checkpoint was trained with: {'; '.join(differences)}. Compile "
            "with those of before to go on as it was; after a wanted change there is nothing to do.",
        )
    return differences


def _rules(rules: Rules) -> list[list[Any]]:
    return [[glob, _plain(recipe)] for glob, recipe in rules]


def _plain(recipe: Recipe) -> dict[str, Any]:
    gemms = {role: operands(getattr(recipe, role)) for role in ROLES}
    return {
        "name": recipe.name,
        **gemms,
        "trust_mask": recipe.trust_mask,
        "w_from": recipe.w_from,
        "x_from": recipe.x_from,
    }


def _shown(value: Any) -> str:
    """Of rules, the names of the recipes."""
    if isinstance(value, list) and value and all(isinstance(pair, list) and len(pair) == 2 for pair in value):
        names = [recipe["name"] if glob == "*" else f"{recipe['name']} for {glob!r}" for glob, recipe in value]
        return ", ".join(names)
    return repr(value)
