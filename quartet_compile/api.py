"""`quartet`: the backend as a function and a decorator, for a model, a Module class, a method or a function.

Unlike a bare `backend="quartet"`, it sees the whole model: it checks include and exclude patterns before anything is
compiled, and knows every module's full name also where graph breaks, DDP or per-block compilation split the model.
"""

from __future__ import annotations

import fnmatch
import functools
import inspect
import re
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import fx, nn

from . import _compat
from .backend import compile_graph, warn_unmatched
from .config import Config, Policy, configure
from .errors import OptionError, PatternError, suggest
from .names import clean, lineage, matches
from .passes.plan import HEADS, ROUTERS
from .sandbox import argument_names, modules_of


def quartet(
    model: Any = None,
    *,
    fullgraph: bool = False,
    dynamic: bool | None = None,
    regions: Iterable[str] = (),
    **options: Any,
) -> Any:
    """Compile a model to train with FP4 matrix products: `torch.compile(model, backend="quartet", options=options)`.

    model: a Module, a function or a method; or a Module class, whose instances are then compiled at their first call.
    Without it, a decorator: `@quartet(recipe="quartet-rtn")`. A model's state_dict stays as it is: of a Module, train
    and save the original (both share their parameters). fullgraph and dynamic: as in `torch.compile`; with
    `strict=True`, fullgraph is always on. regions: globs over module names, as `["layers.*"]`; instead of the whole model,
    each module that one matches is compiled, in place; equal ones, for which the patterns decide the same, share their code;
    the model itself is returned.

    Raises, before anything is compiled, `OptionError`, `RecipeError`, and `PatternError` for a pattern that matches no
    module and no parameter of the model; for a function, of the modules that it is given or refers to.
    """
    config = configure(options)
    if isinstance(regions, str):
        raise OptionError(f"regions={regions!r}: expected a list of globs over module names, as [{regions!r}].")
    fullgraph = fullgraph or config.policy.strict
    how = dict(config=config, fullgraph=fullgraph, dynamic=dynamic, regions=list(regions))
    return functools.partial(_compile, **how) if model is None else _compile(model, **how)


class Backend:
    """A Dynamo backend with a validated configuration and the models whose parameters it knows by name."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.regions: list[str] = []  # names of the parts of a model that it compiles; empty: the whole
        self._models: weakref.WeakSet[nn.Module] = weakref.WeakSet()

    def learn(self, models: Iterable[nn.Module], arguments: Iterable[str] = ()) -> None:
        """Check the patterns against the models and the names of a function's arguments, and use the models' names from
        now on. Raises `PatternError`."""
        models = list(models)
        if all(model in self._models for model in models):
            return
        check_patterns(self.config.policy, models, arguments)
        self._models.update(models)

    def copy(self) -> Backend:
        """Another one with the same configuration and models: Dynamo shares no code between the two."""
        made = Backend(self.config)
        made._models.update(self._models)
        return made

    def __call__(self, gm: fx.GraphModule, example_inputs: list) -> Any:
        names = {}
        for model in self._models:
            names.update(parameter_names(model))
        compiled = compile_graph(gm, example_inputs, self.config, names)
        part = _part_of(gm, names)
        for model in self._models if part else ():
            self._warn_shared(part, {clean(name): module for name, module in model.named_modules()})
        if not self._models:
            warn_unmatched(self.config)
        return compiled

    def _warn_shared(self, part: str, modules: dict[str, nn.Module]) -> None:
        """Warn where Dynamo gives the code of this part of a model also to parts for which the rules decide otherwise."""
        policy, own = self.config.policy, modules.get(part)
        alike = (name for name, module in modules.items() if name != part and type(module) is type(own))
        if self.regions:
            alike = (name for name in alike if set(lineage(name)) & set(self.regions))
        others = [name for name in alike if _rules_for(name, modules[name], policy) != _rules_for(part, own, policy)]
        if others:
            region = re.sub(r"\b\d+\b", "*", part)
            warnings.warn(
                f"quartet: a graph break made {part!r} a graph of its own, whose code {type(own).__name__} modules share; "
                f"so what include and exclude say of {', '.join(map(repr, others[:3]))} and {part!r} can't differ. Remove "
                f"the graph break (torch.compile's fullgraph=True names it), or compile with regions=[{region!r}].",
                stacklevel=2,
            )


def _part_of(gm: fx.GraphModule, names: Mapping[int, str]) -> str:
    """The name of the module whose call a Dynamo graph is; empty for the whole model."""
    for node in gm.graph.nodes:
        argument = node.meta.get("grapharg") if node.op == "placeholder" else None
        name = names.get(id(argument.example)) if argument is not None else None
        if name:
            source = argument.source.name
            return name.removesuffix(clean(source() if callable(source) else source)).rstrip(".")
    return ""


def parameter_names(model: nn.Module) -> Mapping[int, str]:
    """The name of each parameter of a model, by `id`; a tied parameter has its first name."""
    return {id(parameter): clean(name) for name, parameter in model.named_parameters()}


def check_patterns(policy: Policy, models: list[nn.Module], arguments: Iterable[str] = ()) -> None:
    """Raise `PatternError` for a pattern that matches no module and no parameter of the models, and no argument."""
    names = {clean(name) for model in models for name, _ in model.named_modules(remove_duplicate=False)}
    names |= {clean(name) for model in models for name, _ in model.named_parameters(remove_duplicate=False)}
    names |= set(arguments)
    names.discard("")
    for option, pattern in policy.patterns:
        if not matches(pattern, names):
            known = {ancestor for name in names for ancestor in lineage(name)}
            linear = [name for m in models for name, inner in m.named_modules() if isinstance(inner, nn.Linear)]
            shown = [*dict.fromkeys([*filter(None, map(clean, linear)), *sorted(names)])][:6]
            raise PatternError(
                f"The {option} pattern {pattern!r} matches no module and no parameter of "
                f"{', '.join(type(model).__name__ for model in models)}{suggest(pattern, known)}. Patterns are globs "
                f"over names as in named_modules(), for instance: {', '.join(shown)}."
            )


def _compile(model: Any, *, config: Config, fullgraph: bool, dynamic: bool | None, regions: list[str]) -> Any:
    backend = Backend(config)
    if regions:
        return _compile_regions(model, regions, backend, fullgraph=fullgraph, dynamic=dynamic)
    compile_ = functools.partial(torch.compile, backend=backend, fullgraph=fullgraph, dynamic=dynamic)
    if isinstance(model, nn.Module):
        backend.learn([model])
        return compile_(model)
    if inspect.isclass(model) and issubclass(model, nn.Module):
        model.forward = _learning(model.forward, backend, compile_)
        return model
    if inspect.ismethod(model) and isinstance(model.__self__, nn.Module):
        backend.learn([model.__self__])
        return compile_(model)
    if callable(model) and not inspect.isclass(model):
        return _learning(model, backend, compile_)
    raise OptionError(
        f"quartet_compile.quartet got {model!r} of type {type(model).__name__}; expected a Module, a Module class, "
        "a function or a method. Options are given by name: quartet(model, recipe='quartet-rtn')."
    )


def _compile_regions(model: Any, regions: list[str], backend: Backend, **how: Any) -> Any:
    """Compile in place the outermost modules that a glob matches by its own name."""
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
    backends: dict[tuple, Backend] = {}
    for name in dict.fromkeys(chosen):
        if not any(ancestor in chosen for ancestor in lineage(name)[1:]):
            rules = _rules_for(name, modules[name], backend.config.policy)
            chooses = backends.setdefault(rules, backend.copy())
            chooses.regions.append(name)
            _compat.compile_in_place(modules[name], backend=chooses, **how)
    return model


def _rules_for(name: str, module: nn.Module, policy: Policy) -> tuple:
    """What the name of a region decides: the patterns that match its parts, and whether it is called as an output head or a
    router. Dynamo gives the code of one region to all that are alike, so those who differ here need backends of their own.
    """
    inside = [clean(f"{name}.{part}") for part, _ in (*module.named_modules(), *module.named_parameters())]
    found = {(part.removeprefix(name), rule) for part in inside for rule in policy.patterns if matches(rule[1], [part])}
    leaf = name.rpartition(".")[2]
    return frozenset(found), leaf if leaf in (*HEADS, *ROUTERS) else ""


def _learning(function: Callable, backend: Backend, compile_: Callable) -> Callable:
    """`function`, compiled; each call shows the backend the modules that it uses, before anything is compiled."""
    compiled = compile_(function)

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if not torch.compiler.is_compiling():
            models = [value for value in (*args, *kwargs.values()) if isinstance(value, nn.Module)]
            models += modules_of(function)
            if models:
                backend.learn(models, argument_names(function))
        return compiled(*args, **kwargs)

    wrapper._quartet_original = function
    return wrapper
