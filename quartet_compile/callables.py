"""What a callable runs: its modules, its variables, its arguments; what `torch.compile` was given; which way a module
keeps its weight."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from . import _compat


def modules_of(model: Callable) -> list[nn.Module]:
    """The modules that a callable runs, as far as can be seen: itself, a method's owner, a function's variables."""
    if isinstance(model, nn.Module):
        return [model]
    if inspect.ismethod(model):
        return [model.__self__] if isinstance(model.__self__, nn.Module) else []
    return [value for value in map(uncompiled, variables_of(model)) if isinstance(value, nn.Module)]


def variables_of(function: Any) -> list[Any]:
    """What a function has from around it; nothing of anything else."""
    if not inspect.isfunction(function):
        return []
    seen = inspect.getclosurevars(function)
    return [*seen.nonlocals.values(), *seen.globals.values()]


def uncompiled(model: Any) -> Any:
    """What `torch.compile` was given, if it was; else the model itself."""
    if inspect.isfunction(model) and hasattr(model, "_quartet_original"):
        return model._quartet_original
    return _compat.original_of(model)


def signature_of(model: Callable) -> list[inspect.Parameter]:
    """The arguments of a module's forward, or of a function; none for a callable without a signature."""
    try:
        return list(inspect.signature(model.forward if isinstance(model, nn.Module) else model).parameters.values())
    except (TypeError, ValueError):
        return []


def argument_names(model: Callable) -> list[str]:
    """The names of the arguments that may be given by position."""
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [parameter.name for parameter in signature_of(model) if parameter.kind in positional]


def is_transposed(module: object) -> bool | None:
    """Whether a module of transformers has its weights as [K, N]; None of one that doesn't say."""
    said = type(module).__name__ == "Conv1D" or getattr(module, "is_transposed", None)
    return said if isinstance(said, bool) else None
