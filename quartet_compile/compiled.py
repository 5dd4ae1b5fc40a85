"""What our backend has compiled of a model: the parts, and the options that each has now."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from . import _compat
from .callables import modules_of, uncompiled, variables_of
from .config.names import clean
from .config.options import Config, configure
from .errors import OptionError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compiled:
    """Options as they were given, and the configuration that they make.

    within: the names of the modules that are compiled, where the model as a whole isn't; else empty.
    """

    options: Mapping[str, Any]
    config: Config
    within: tuple[str, ...] = ()


def compiled_by_us(model: Any) -> Compiled | None:
    """The options that a model is compiled with by our backend, in whatever way; None if no part of it is.

    Raises `OptionError` where parts have different ones, or patterns over other names than those in this model.
    """
    found: dict[str, tuple[dict[str, Any], Config]] = {}
    for compiled, modules in _used_by(model):
        slot = slot_of_ours(compiled)
        if slot is not None:
            function, given, _ = _compat.backend_in(slot)
            name, (options, config) = _name_in(model, modules), _options(function, given)
            if name and config.policy.patterns and _names_of(function).get(id(modules[0])) != name:
                raise OptionError(
                    f"{name!r} is compiled by itself with {_shown(options)}: its patterns see the names inside of it, which "
                    "are others in the whole model. Give the part that is compiled, and its inputs."
                )
            found[name] = options, config
    if not found:
        return None
    (name, (options, config)), *others = found.items()
    for other, (different, known) in others:
        if known != config:
            raise OptionError(
                f"Parts of the model are compiled with different options: {name!r} with {_shown(options)}, {other!r} with "
                f"{_shown(different)}. Give one part, or the original model with the options of interest."
            )
    return Compiled(options=options, config=config, within=() if "" in found else tuple(found))


def same_options(compiled: Compiled, options: Mapping[str, Any]) -> Config:
    """The configuration of a compiled model, for a user who also gave options. Raises `OptionError` if they say something
    else."""
    configure(options)  # what is wrong by itself has a better message
    if configure({**compiled.options, **options}) != compiled.config:
        raise OptionError(
            f"The options given are {_shown(options)}, and the model is compiled with {_shown(compiled.options)}. Leave "
            "them out, and those of the compiled model are taken; or give the original model, from before it was compiled."
        )
    return compiled.config


def uncompile_parts(model: nn.Module) -> None:
    """Let the parts of a model that our backend has compiled by themselves run what `torch.compile` was given. Who asks for
    it puts the modules' attributes back."""
    for module in model.modules():
        for name, call in _compat.own_calls(module).items():
            if slot_of_ours(innermost(call)) is not None:
                _compat.put_call(module, name, uncompiled(innermost(call)))


def is_ours(backend: Any) -> bool:
    """Whether a backend runs our pass."""
    return getattr(backend, "is_quartet", False)


def slot_of_ours(compiled: Any) -> Any | None:
    """The object that holds the backend of what `torch.compile` returned, if it is ours; else None."""
    slot = _compat.backend_slot(compiled)
    return slot if slot is not None and is_ours(_compat.backend_in(slot)[0]) else None


def _used_by(model: Any) -> Iterator[tuple[Any, list[nn.Module]]]:
    """The candidates in a model, and those that a function, which isn't compiled itself, calls."""
    yield from candidates(model)
    if _compat.backend_slot(innermost(model)) is None:
        for value in variables_of(model):
            yield from candidates(value)


def candidates(model: Any) -> Iterator[tuple[Any, list[nn.Module]]]:
    """What `torch.compile` may have made, with the modules that it runs: the model itself, parts, their methods."""
    if isinstance(model, nn.Module):
        for module in model.modules():
            yield module, [module]
            for method in _methods(module):
                yield method, [module]
    elif inspect.isclass(model):
        yield from ((method, []) for method in _methods(model))
    else:
        yield innermost(model), modules_of(uncompiled(model))


def innermost(function: Any) -> Any:
    """The function that `torch.compile` made, where others are around it."""
    function = getattr(function, "__func__", function)
    while (inspect.isfunction(function) or hasattr(function, "_quartet_compiled")) and not _compat.backend_slot(
        function
    ):
        inside = getattr(function, "_quartet_compiled", getattr(function, "__wrapped__", None))
        if inside is None:
            break
        function = inside
    return function


def _methods(owner: Any) -> Iterator[Any]:
    """The methods that may be compiled: by `module.compile()`, by a decorator of the class or of its forward."""
    return map(innermost, _compat.calls_of(owner))


def _options(function: Any, given: Mapping[str, Any]) -> tuple[dict[str, Any], Config]:
    """The options and the configuration of a backend. given: its arguments, where it was named and not made."""
    if hasattr(function, "config"):
        return dict(getattr(function, "options", {})), function.config
    mode = {} if given.get("mode") is None else {"mode": given["mode"]}
    options = {**mode, **function.options(given.get("options"))}
    return options, configure(options)


def _names_of(function: Any) -> dict[int, str]:
    """The names that a backend knows modules by, by `id`: those in the model that `quartet` was given."""
    full_names = getattr(function, "full_names", None)
    return full_names() if full_names else {}


def _name_in(model: Any, modules: list[nn.Module]) -> str:
    """The name of a part of a Module; empty for the whole of it, and for what is no Module."""
    if not isinstance(model, nn.Module) or not modules:
        return ""
    return next(clean(name) for name, module in model.named_modules() if module is modules[0])


def _shown(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in options.items()) or "the defaults"
