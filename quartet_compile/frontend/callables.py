"""What a callable runs, and how to run it without a trace: on its modules, on gradients, or in Dynamo's memory."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

from .. import _compat


def modules_of(model: Callable) -> list[nn.Module]:
    """The modules that a callable runs, as far as can be seen: itself, a method's owner, a function's variables."""
    if isinstance(model, nn.Module):
        return [model]
    if inspect.ismethod(model):
        return [model.__self__] if isinstance(model.__self__, nn.Module) else []
    return [value for value in map(uncompiled, _variables(model)) if isinstance(value, nn.Module)]


def optimizers_of(model: Callable) -> list[torch.optim.Optimizer]:
    """The optimizers among a function's variables, as of a training step."""
    return [value for value in _variables(model) if isinstance(value, torch.optim.Optimizer)]


def _variables(function: Any) -> list[Any]:
    """What a function has from around it; nothing of anything else."""
    if not inspect.isfunction(function):
        return []
    seen = inspect.getclosurevars(function)
    return [*seen.nonlocals.values(), *seen.globals.values()]


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
def untouched(model: Callable) -> Iterator[None]:
    """Put back what the code inside assigns to the modules and optimizers of a callable (a step counter, a cached table, a
    gradient, a moment), and what Dynamo has learnt of changing sizes."""
    parameters = [parameter for module in modules_of(model) for parameter in module.parameters()]
    gradients = [(parameter, parameter.grad, parameter.requires_grad) for parameter in parameters]
    saved = [(box, copy.copy(box)) for box in containers(model)]
    try:
        with _compat.dynamo_sizes_restored():
            yield
    finally:
        for box, before in saved:
            _restore(box, before)
        for parameter, gradient, required in gradients:
            parameter.grad = gradient
            parameter.requires_grad = required


def containers(model: Callable) -> list[dict | list]:
    """The attributes of each module and optimizer of a callable, and the plain dicts and lists among them."""
    found: list[dict | list] = []
    for module in (inner for root in modules_of(model) for inner in root.modules()):
        found += [vars(module), *(value for value in vars(module).values() if type(value) in (dict, list))]
    for optimizer in optimizers_of(model):
        found += [vars(optimizer), optimizer.state, *optimizer.state.values()]
        found += [optimizer.param_groups, *optimizer.param_groups]
    return found


def values_of(box: dict | list) -> Iterable[Any]:
    """What a container holds."""
    return box.values() if isinstance(box, dict) else box


def _restore(box: dict | list, before: dict | list) -> None:
    if isinstance(box, list):
        if [*map(id, box)] != [*map(id, before)]:
            box[:] = before
    elif [*map(id, box.values())] != [*map(id, before.values())] or [*box] != [*before]:
        box.clear()
        box.update(before)
