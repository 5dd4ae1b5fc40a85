"""What our backend compiles inside of what another one does: Dynamo takes it into the outer graph, for the outer backend."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

from torch import nn

from .. import _compat
from ..compiled import innermost, slot_of_ours
from ..process import process


def parts_inside(function: Any, backend: Any) -> list[str]:
    """The names of the modules that our backend compiles by themselves, inside of a function or of a module's method that
    another backend was given."""
    owner = _compat.owner_of(function)
    if owner is not None:
        process.outer[owner] = backend
        named = list(owner.named_modules())[1:]
    elif inspect.isfunction(function):
        seen = inspect.getclosurevars(function)
        values = {**seen.globals, **seen.nonlocals}
        named = [(name, value) for name, value in values.items() if isinstance(value, nn.Module)]
    else:
        return []
    return [name for name, module in named if _is_compiled(module)]


def outer_of(module: Any) -> Any:
    """The other backend that was given a module around this one; None if there is none."""
    for outer, backend in list(process.outer.items()):
        if outer is not module and module in set(outer.modules()):
            return backend
    return None


def message(names: Iterable[str], backend: Any) -> str:
    """What to tell of parts that an outer backend takes in."""
    names = list(names)
    shown = ", ".join(map(repr, names[:6])) + " and more" * (len(names) > 6)
    return (
        f"{shown}, compiled with backend='quartet', runs inside of what torch.compile compiles with the backend "
        f"{_compat.backend_name(backend)!r}. The outer backend compiles all of it, in high precision. Compile the outer "
        "model or function with backend='quartet' too, or only the parts."
    )


def _is_compiled(module: nn.Module) -> bool:
    ways = (module, *map(innermost, _compat.own_calls(module).values()))
    return any(slot_of_ours(way) is not None for way in ways)
