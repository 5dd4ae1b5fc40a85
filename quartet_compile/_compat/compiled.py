"""What `torch.compile` makes: the slot that holds its backend, and what it was made of."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Iterator
from typing import Any

import torch

from .installed import missing, private

_BACKEND = "_torchdynamo_orig_backend"
_CALLS = ("_compiled_call_impl", "forward", "_call_impl")
"""The attributes of a Module through which it is called, those of which one may be compiled."""


def backend_slot(compiled: Any) -> Any | None:
    """The object inside of what `torch.compile` returned that holds its backend; None for anything else. Dynamo reads it
    at each call: it is what it compiles with, and what it tells the entries of its cache apart by."""
    if _is_optimized(compiled):
        slot = getattr(compiled.dynamo_ctx, "callback", None)
    else:
        slot = _variable(compiled, "callback")
    if not hasattr(slot, _BACKEND):
        if slot is not None and getattr(compiled, "_torchdynamo_wrapper_id", None) == id(compiled):
            raise missing(f"{_BACKEND} of a compiled object")
        return None
    return inner_slot(slot)


def _is_optimized(compiled: Any) -> bool:
    """Whether `torch.compile` made it of a Module."""
    return isinstance(compiled, private("torch._dynamo:OptimizedModule"))


def inner_slot(callback: Any) -> Any | None:
    """The innermost of Dynamo's callbacks around a backend, which holds it; None if none does."""
    slot = callback if hasattr(callback, _BACKEND) else None
    while slot is not None and hasattr(getattr(slot, _BACKEND), _BACKEND):
        slot = getattr(slot, _BACKEND)
    return slot


def slot_backend(slot: Any) -> Any:
    """What Dynamo knows the backend in a slot by."""
    return getattr(slot, _BACKEND)


def _variable(function: Any, name: str) -> Any:
    """A variable that a function has from the one around it; None if there is none."""
    names = getattr(getattr(function, "__code__", None), "co_freevars", ())
    with contextlib.suppress(ValueError):  # no such name, or it has no value yet
        index = names.index(name)
        return function.__closure__[index].cell_contents
    return None


def backend_in(slot: Any) -> tuple[Any, dict[str, Any], Any]:
    """The backend in a slot, as a function, its arguments, and the object by which Dynamo knows it."""
    held = getattr(slot, _BACKEND)
    return backend_function(held), getattr(held, "kwargs", {}), held


def backend_function(held: Any) -> Any:
    """A backend as a function, of what Dynamo holds of it."""
    held = getattr(held, _BACKEND, held)
    return getattr(held, "compiler_fn", held)


def other_backend(held: Any, function: Any, kwargs: dict[str, Any]) -> Any:
    """What `torch.compile` would have made of another backend under the same settings."""
    made = copy.copy(held)
    made.compiler_fn, made.kwargs = function, kwargs
    return made


def put_backend(slot: Any, held: Any) -> None:
    """Let a compiled object use another backend from its next call on."""
    setattr(slot, _BACKEND, held)


def backend_name(backend: Any) -> str:
    """What `torch.compile` calls a backend; of one that has no name, its class's."""
    return getattr(backend, "compiler_name", None) or getattr(backend, "__name__", None) or type(backend).__name__


def original_of(compiled: Any) -> Any:
    """What `torch.compile` was given to make this; the object itself if it was not made so."""
    if _is_optimized(compiled):
        return compiled._orig_mod
    return getattr(compiled, "_torchdynamo_orig_callable", compiled) if inspect.isfunction(compiled) else compiled


def original_call(model: Any) -> Any:
    """What to call instead of an instance of a Module class that `torch.compile` was given, which changes the class;
    anything else as it is."""
    call = getattr(type(model), "_call_impl", None)
    original = original_of(call)
    return model if original is call else original.__get__(model)


def owner_of(function: Any) -> torch.nn.Module | None:
    """The module that a function which `torch.compile` was given calls: a bound method's, or one with a frame around it."""
    inner = _variable(function, "fn")
    found = getattr(function, "__self__", None) if inner is None else getattr(inner, "__self__", inner)
    return found if isinstance(found, torch.nn.Module) else None


def calls_of(owner: Any) -> Iterator[Any]:
    """The methods of a Module or a Module class that may be compiled: by `module.compile()`, by a decorator of the class or
    of its forward; None for each that it has not."""
    return (getattr(owner, name, None) for name in _CALLS)


def own_calls(module: torch.nn.Module) -> dict[str, Any]:
    """The same of what was put on this very module, by the names of attributes."""
    return {name: vars(module)[name] for name in _CALLS if vars(module).get(name) is not None}


def put_call(module: torch.nn.Module, name: str, call: Any) -> None:
    """Put on a module what one of its compiled methods was made of; of that which `module.compile()` made, nothing."""
    vars(module)[name] = None if name == "_compiled_call_impl" else call


def is_whole_call(method: Any) -> bool:
    """Whether a Module's method is what `module.compile()` compiles: its call with all its hooks."""
    return method.__name__ == "_call_impl"
