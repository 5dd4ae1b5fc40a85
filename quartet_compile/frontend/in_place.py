"""Compile modules of a model by themselves, in place: what `quartet(model, regions=[...])` does.

What is compiled is a module's forward, inside of its hooks. The hooks of FSDP2, which can't be in a graph, then run
around the graph, and don't break it. The compiled forward is an attribute of the module; the state dict stays as it is.
"""

from __future__ import annotations

import copy
import fnmatch
import functools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from torch import nn

from .. import _compat
from ..config.names import clean, lineage
from ..errors import OptionError, PatternError, suggest

if TYPE_CHECKING:
    from .api import Backend


class CompiledForward:
    """The compiled forward of one module. A deep copy or a pickle of the module has its own, compiled alike.

    name: of the module in its model.
    """

    def __init__(self, module: nn.Module, name: str, backend: Backend, how: dict[str, Any]) -> None:
        self._module, self._name, self._backend, self._how = module, name, backend, how
        backend.learn_part(module, name)
        compiled = _compat.compiled_forward(module, backend=backend, **how)
        functools.update_wrapper(self, compiled, updated=())
        self._quartet_compiled = compiled

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._quartet_compiled(*args, **kwargs)

    def __reduce__(self) -> tuple:
        return type(self), (self._module, self._name, self._backend, self._how)

    def __deepcopy__(self, memo: dict) -> CompiledForward:
        return type(self)(*(copy.deepcopy(part, memo) for part in self.__reduce__()[1]))


def compile_in_place(module: nn.Module, name: str, backend: Backend, how: dict[str, Any]) -> None:
    """Compile one module. One whose forward was replaced by a function of its own is compiled with its hooks, as
    `module.compile` does."""
    if "forward" in vars(module) and not isinstance(module.forward, CompiledForward):
        backend.learn_part(module, name)
        module.compile(backend=backend, **how)
    else:
        module.forward = CompiledForward(module, name, backend, how)


class CopiesToo:
    """What a module that `module.compile(backend="quartet")` compiled carries, so that a deep copy is compiled alike: torch
    leaves what it made out of copies. A pickle of the module is not compiled, and doesn't need this package."""

    ATTRIBUTE = "_quartet_copies"

    def __init__(self, module: nn.Module, how: Callable[[], dict[str, Any]]) -> None:
        self._module, self._how = module, how

    def __deepcopy__(self, memo: dict) -> CopiesToo | None:
        module = memo.get(id(self._module))
        if module is None:
            return None
        module.compile(**self._how())
        return vars(module)[self.ATTRIBUTE]

    def __reduce__(self) -> tuple:
        return type(None), ()


def compile_regions(model: Any, regions: list[str], backend: Backend, **how: Any) -> Any:
    """Compile the outermost modules that a glob matches by its own name. Returns the model."""
    if not isinstance(model, nn.Module):
        raise OptionError(f"regions={regions!r} needs a Module, whose parts they name; got {model!r}.")
    backend.learn([model])
    modules = {clean(name): module for name, module in model.named_modules() if clean(name)}
    chosen: list[str] = []
    for pattern in regions:
        found = [name for name in modules if fnmatch.fnmatchcase(name, pattern)]
        if not found:
            raise PatternError(
                f"The region {pattern!r} matches no module of {type(model).__name__}{suggest(pattern, modules)}. Regions "
                f"are globs over names as in named_modules(), for instance: {', '.join(list(modules)[:6])}."
            )
        chosen += found
    kinds = set()
    for name in dict.fromkeys(chosen):
        if not any(ancestor in chosen for ancestor in lineage(name)[1:]):
            kinds.add(part := backend.of_region(name, modules[name]))
            compile_in_place(modules[name], name, part, how)
    _compat.allow_variants(len(kinds))
    return model


def unbroken_parts(model: nn.Module) -> list[str]:
    """The largest modules of a model in which no hook of FSDP2 runs, by name; none for a model without such hooks.

    The hooks run around each module that `fully_shard` was given, and no graph goes over them.
    """
    sharded = {module for module in model.modules() if _compat.is_fully_sharded(module)}
    return list(_parts("", model, sharded)) if sharded else []


def _parts(name: str, module: nn.Module, sharded: set[nn.Module]) -> Iterable[str]:
    inside = any(inner in sharded for inner in module.modules() if inner is not module)
    if inside or not _has_forward(module):
        for child_name, child in module.named_children():
            yield from _parts(f"{name}.{child_name}".strip("."), child, sharded)
    elif name and any(True for _ in module.parameters()):
        yield name


def _has_forward(module: nn.Module) -> bool:
    return not isinstance(module, (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict))
