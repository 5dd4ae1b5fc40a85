"""`quartet`: the backend as a function and a decorator, for a model, a Module class, a method or a function.

Unlike a bare `backend="quartet"`, it sees the whole model: it checks include and exclude patterns before anything is
compiled, and knows every module's full name also where graph breaks, DDP or per-block compilation split the model.
"""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn

from .backend import compile_graph, warn_unmatched
from .config import Config, Policy, configure
from .errors import OptionError, PatternError, suggest
from .names import clean, lineage, matches


def quartet(model: Any = None, *, fullgraph: bool = False, dynamic: bool | None = None, **options: Any) -> Any:
    """Compile a model to train with FP4 matrix products: `torch.compile(model, backend="quartet", options=options)`.

    model: a Module, a function or a method; or a Module class, whose instances are then compiled at their first call.
    Without it, a decorator: `@quartet(recipe="quartet-rtn")`. fullgraph and dynamic: as in `torch.compile`; with
    `strict=True`, fullgraph is always on.

    Raises, before anything is compiled, `OptionError`, `RecipeError`, and `PatternError` for a pattern that matches no
    module and no parameter of the model.
    """
    config = configure(options)
    fullgraph = fullgraph or config.policy.strict
    if model is None:
        return functools.partial(_compile, config=config, fullgraph=fullgraph, dynamic=dynamic)
    return _compile(model, config=config, fullgraph=fullgraph, dynamic=dynamic)


class Backend:
    """A Dynamo backend with a validated configuration and the models whose parameters it knows by name."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._models: weakref.WeakSet[nn.Module] = weakref.WeakSet()

    def learn(self, model: nn.Module) -> None:
        """Check the patterns against a model, and use its names from now on. Raises `PatternError`."""
        if model not in self._models:
            check_patterns(self.config.policy, model)
            self._models.add(model)

    def __call__(self, gm: fx.GraphModule, example_inputs: list) -> Any:
        names = {}
        for model in self._models:
            names.update(parameter_names(model))
        compiled = compile_graph(gm, example_inputs, self.config, names)
        if not self._models:
            warn_unmatched(self.config)
        return compiled


def parameter_names(model: nn.Module) -> Mapping[int, str]:
    """The name of each parameter of a model, by `id`; a tied parameter has its first name."""
    return {id(parameter): clean(name) for name, parameter in model.named_parameters()}


def check_patterns(policy: Policy, model: nn.Module) -> None:
    """Raise `PatternError` for a pattern that matches no module and no parameter."""
    names = {clean(name) for name, _ in model.named_modules()}
    names |= {clean(name) for name, _ in model.named_parameters(remove_duplicate=False)}
    names.discard("")
    for option, pattern in policy.patterns:
        if not matches(pattern, names):
            known = {ancestor for name in names for ancestor in lineage(name)}
            shown = ", ".join(sorted(name for name, module in model.named_modules() if isinstance(module, nn.Linear))[:6])
            raise PatternError(
                f"The {option} pattern {pattern!r} matches no module and no parameter of "
                f"{type(model).__name__}{suggest(pattern, known)}. Patterns are globs over names as in "
                f"named_modules(), for instance: {shown or ', '.join(sorted(names)[:6])}."
            )


def _compile(model: Any, *, config: Config, fullgraph: bool, dynamic: bool | None) -> Any:
    backend = Backend(config)
    compile_ = functools.partial(torch.compile, backend=backend, fullgraph=fullgraph, dynamic=dynamic)
    if isinstance(model, nn.Module):
        backend.learn(model)
        return compile_(model)
    if inspect.isclass(model) and issubclass(model, nn.Module):
        return _compile_class(model, backend, compile_)
    if callable(model) and not inspect.isclass(model):
        return compile_(model)
    raise OptionError(
        f"quartet_compile.quartet got {model!r} of type {type(model).__name__}; expected a Module, a Module class, "
        "a function or a method. Options are given by name: quartet(model, recipe='quartet-rtn')."
    )


def _compile_class(cls: type[nn.Module], backend: Backend, compile_: Callable) -> type[nn.Module]:
    compiled = compile_(cls.forward)

    @functools.wraps(cls.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not torch.compiler.is_compiling():
            backend.learn(self)
        return compiled(self, *args, **kwargs)

    cls.forward = forward
    return cls
