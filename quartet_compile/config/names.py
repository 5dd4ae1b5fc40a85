"""Module and parameter names as users write them: `layers.0.mlp.up_proj`, whatever Dynamo and wrappers made of it."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from .._compat import WRAPPERS, attributes


def clean(path: str) -> str:
    """A Dynamo source or module path without its root, its item syntax and the names of wrappers (a first `module` is
    that of data parallel wrappers; `parametrizations.weight.original` is `weight`)."""
    parts = [part for part in attributes(path) if part not in WRAPPERS]
    if parts[-3:-2] == ["parametrizations"] and parts[-1] == "original":
        parts[-3:] = [parts[-2]]
    return ".".join(parts[1:] if parts[:1] == ["module"] else parts)


def lineage(name: str) -> list[str]:
    """A dotted name and all its ancestors, the name first."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(len(parts), 0, -1)]


def matches(pattern: str, names: Iterable[str]) -> bool:
    """Whether a glob matches one of the names or an ancestor of one: `layers.0` covers `layers.0.mlp.up_proj`."""
    return any(fnmatch.fnmatchcase(ancestor, pattern) for name in names for ancestor in lineage(name))


def names_in(model: Any) -> dict[int, str]:
    """The names of all parameters, buffers and modules of a model, by `id`; of what has several, the first."""
    named = [*model.named_parameters(), *model.named_buffers(), *model.named_modules()]
    return {id(item): clean(name) for name, item in named}


def parameter_names(model: nn.Module) -> Mapping[int, str]:
    """The name of each parameter of a model, by `id`; a tied parameter has its first name."""
    return {id(parameter): clean(name) for name, parameter in model.named_parameters()}
