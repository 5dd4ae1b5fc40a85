"""What a callable runs, and how to run it without a trace: on its modules, on gradients, or in Dynamo's memory."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import nn

from . import _compat


def modules_of(model: Callable) -> list[nn.Module]:
    """The modules that a callable runs, as far as can be seen: itself, a method's owner, a function's variables."""
    if isinstance(model, nn.Module):
        return [model]
    if inspect.ismethod(model):
        return [model.__self__] if isinstance(model.__self__, nn.Module) else []
    if not inspect.isfunction(model):
        return []
    seen = inspect.getclosurevars(model)
    values = (*seen.nonlocals.values(), *seen.globals.values())
    return [value for value in map(uncompiled, values) if isinstance(value, nn.Module)]


def uncompiled(model: Any) -> Any:
    """What `torch.compile` was given, if it was; else the model itself."""
    if isinstance(model, _compat.OptimizedModule):
        return model._orig_mod
    if inspect.isfunction(model):
        return getattr(model, "_quartet_original", getattr(model, "_torchdynamo_orig_callable", model))
    return model


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


@contextlib.contextmanager
def untouched(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Put back what the code inside assigns to the modules (a step counter, a cached table, a gradient), and what
    Dynamo has learnt of changing sizes."""
    inner = [module for root in modules for module in root.modules()]
    gradients = [(parameter, parameter.grad) for module in inner for parameter in module.parameters(recurse=False)]
    saved = [(box, copy.copy(box)) for module in inner for box in containers(module)]
    try:
        with _compat.dynamo_sizes_restored():
            yield
    finally:
        for box, before in saved:
            _restore(box, before)
        for parameter, gradient in gradients:
            parameter.grad = gradient


def containers(module: nn.Module) -> list[dict | list]:
    """A module's attributes, and the plain dicts and lists among them."""
    return [vars(module), *(value for value in vars(module).values() if type(value) in (dict, list))]


def _restore(box: dict | list, before: dict | list) -> None:
    if isinstance(box, list):
        if [*map(id, box)] != [*map(id, before)]:
            box[:] = before
    elif [*map(id, box.values())] != [*map(id, before.values())] or [*box] != [*before]:
        box.clear()
        box.update(before)
