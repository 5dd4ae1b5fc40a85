"""`quartet`: the backend as a function and a decorator, for a model, a Module class, a method or a function.

Unlike a bare `backend="quartet"`, it sees the whole model: it checks include and exclude patterns before anything is
compiled, and knows every module's full name also where graph breaks, DDP or per-block compilation split the model.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, overload

import torch
from torch import fx, nn

from .. import _compat
from ..backend import compile_graph, warn_unmatched
from ..callables import argument_names, modules_of
from ..config.listed import lists_options
from ..config.names import clean, lineage, matches, names_in
from ..config.options import Config, Policy, configure
from ..errors import OptionError, PatternError, suggest
from ..gathers.fsdp import gather
from ..passes.plan import HEADS, ROUTERS
from ..process import process
from ..ranks import check_ranks, say_gathers
from ..warn import warn
from .in_place import compile_regions, unbroken_parts

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..config.listed import Options

_T = TypeVar("_T", bound=Callable[..., Any])


@overload
def quartet(
    model: None = None,
    *,
    fullgraph: bool = False,
    dynamic: bool | None = None,
    regions: Iterable[str] = (),
    **options: Unpack[Options],
) -> Callable[[_T], _T]: ...


@overload
def quartet(
    model: _T,
    *,
    fullgraph: bool = False,
    dynamic: bool | None = None,
    regions: Iterable[str] = (),
    **options: Unpack[Options],
) -> _T: ...


@lists_options
def quartet(
    model: Any = None,
    *,
    fullgraph: bool = False,
    dynamic: bool | None = None,
    regions: Iterable[str] = (),
    **options: Unpack[Options],
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
    how: dict[str, Any] = dict(
        config=config, options=options, fullgraph=fullgraph, dynamic=dynamic, regions=list(regions)
    )
    return functools.partial(_compile, **how) if model is None else _compile(model, **how)


class _Family:
    """What the backends of one model share, whatever their regions and recipes: the modules whose names they know, each
    with its name (empty for a whole model), modules that they compile whose names in a model aren't known (yet), the names
    of a function's arguments, and the keys by which Dynamo tells the backends apart. A deep copy of a model stays in the
    family; a pickle doesn't keep the modules alive, nor names them.
    """

    def __init__(self) -> None:
        self.models: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()
        self.unplaced: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self.arguments: set[str] = set()
        self.keys: set[tuple[Any, ...]] = set()

    def __deepcopy__(self, memo: dict[int, Any]) -> _Family:
        for model, name in list(self.models.items()):
            if id(model) in memo:
                self.models[memo[id(model)]] = name
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()

    @property
    def whole(self) -> list[nn.Module]:
        """The whole models among the modules."""
        return [model for model, name in self.models.items() if not name]

    def place(self) -> None:
        """Take the names of modules that FSDP2 knows by now."""
        for module in list(self.unplaced):
            name = _compat.sharded_name(module)
            if name:
                self.models[module] = name
                self.unplaced.discard(module)


class Backend:
    """A Dynamo backend with a validated configuration and the models whose parameters it knows by name.

    options: what the configuration was made of. Backends of one model's regions are equal, so that Dynamo shares what
    they compile, where every pattern matches the same names inside of both. region: the name of the module that it
    compiles, with the names inside of it; empty for all of the model.
    """

    is_quartet = is_watched = True

    def __init__(
        self,
        config: Config,
        options: Mapping[str, Any],
        family: _Family | None = None,
        region: str = "",
        names: tuple[str, ...] = (),
    ) -> None:
        self.config, self.options = config, dict(options)
        self._family = family or _Family()
        self._region, self._names = region, names
        self._key = (self._family, config, _rules_for(region, names, config.policy))
        self._family.keys.add(self._key)
        self._variants = {config: self}

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Backend) and self._key == other._key)

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def kinds(self) -> int:
        """How many different backends there are of this model."""
        return len(self._family.keys)

    def learn(self, models: Iterable[nn.Module], arguments: Iterable[str] = ()) -> None:
        """Check the patterns against the models and the names of a function's arguments, and use the models' names from
        now on. Raises `PatternError`."""
        models = list(models)
        if all(model in self._family.models for model in models):
            return
        for variant in self._variants.values():
            check_patterns(variant.config.policy, models, arguments)
        self._family.models.update((model, "") for model in models)
        self._family.arguments.update(arguments)

    def learn_part(self, module: nn.Module, name: str) -> None:
        """Use the names of a module that has this name in its model."""
        self._family.models[module] = name

    def of_region(self, name: str, module: nn.Module) -> Backend:
        """The backend of one module of the model, which is compiled by itself."""
        return Backend(self.config, self.options, self._family, name, _names_inside(module))

    def of_module(self, module: nn.Module) -> Backend:
        """The backend of a module that is compiled by itself: of a region, where it is a part of a known model."""
        if self._region or module in self._family.models:
            return self
        for model in self._family.whole:
            for name, inner in model.named_modules():
                if inner is module:
                    self.learn_part(module, clean(name))
                    return self.of_region(clean(name), module)
        self._family.unplaced.add(module)
        return self

    def variant(self, config: Config, options: Mapping[str, Any]) -> Backend:
        """The backend of the same models under another configuration, one for each. Raises `PatternError`."""
        if config not in self._variants:
            whole = self._family.whole
            if whole and all(config != known for _, known, _ in self._family.keys):
                check_patterns(config.policy, whole, self._family.arguments)
            made = Backend(config, options, self._family, self._region, self._names)
            made._variants = self._variants
            self._variants[config] = made
        return self._variants[config]

    def full_names(self) -> dict[int, str]:
        """The names of the modules and parameters that it knows, by `id`."""
        self._family.place()
        found: dict[int, str] = {}
        for model, prefix in [*self._family.models.items(), *((module, "") for module in self._family.unplaced)]:
            found = {key: f"{prefix}.{name}".strip(".") for key, name in names_in(model).items()} | found
        return found

    def __call__(self, gm: fx.GraphModule, example_inputs: list[Any]) -> Any:
        names = self.full_names()
        with process.running.reported():
            compiled = compile_graph(gm, example_inputs, self.config, names)
        part, whole = _part_of(gm, names), self._family.whole
        for model in whole if part else ():
            self._warn_shared(part, {clean(name): module for name, module in model.named_modules()})
        if not whole:
            self._warn_shared(part, {name: module for module, name in self._family.models.items()})
            warn_unmatched(self.config)
        return compiled

    def _warn_shared(self, part: str, modules: dict[str, nn.Module]) -> None:
        """Warn where Dynamo gives the code of this part of a model also to parts for which the rules decide otherwise.
        modules: those of the model by name, or, where no model is known, the blocks that were compiled one by one."""
        policy, own = self.config.policy, modules.get(part)
        alike = [name for name, module in modules.items() if name != part and type(module) is type(own)]
        if self._region:  # other regions share this one's code only where the rules agree
            alike = [name for name in alike if self._region in lineage(name)]
        rules = _rules_for(part, _names_inside(own), policy) if own is not None and alike else frozenset()
        others = [name for name in alike if _rules_for(name, _names_inside(modules[name]), policy) != rules]
        if others:
            region = re.sub(r"\b\d+\b", "*", part)
            cause, remedy = (
                (
                    "a graph break made {} a graph of its own",
                    "Remove the graph break (fullgraph=True names it)",
                )
                if self._family.whole
                else (
                    "{} was compiled by itself",
                    "Give quartet_compile.enable(model, ...) the model before it is compiled",
                )
            )
            warn(
                "QC104",
                f"{cause.format(repr(part))}, whose code {type(own).__name__} modules share; so what include and "
                f"exclude say of {', '.join(map(repr, others[:3]))} and {part!r} can't differ. {remedy}, or compile with "
                f"regions=[{region!r}].",
            )


def _part_of(gm: fx.GraphModule, names: Mapping[int, str]) -> str:
    """The name of the module whose call a Dynamo graph is; empty for the whole model."""
    for example, source in _compat.arguments(gm).values():
        name = names.get(id(example))
        if name:
            return name.removesuffix(clean(source)).rstrip(".")
    return ""


def _names_inside(module: nn.Module) -> tuple[str, ...]:
    """The names of the parts of a module and of its parameters, itself included as an empty one."""
    names = [name for name, _ in (*module.named_modules(), *module.named_parameters())]
    return tuple(dict.fromkeys(map(clean, names)))


def _rules_for(region: str, names: Iterable[str], policy: Policy) -> frozenset[Any]:
    """What decides on the matmuls of a region with these names inside: the patterns that match them, and whether it is
    called as an output head or a router. Regions that agree in it can share their code."""
    full = {name: f"{region}.{name}".strip(".") for name in names}
    found = {(*given, name) for given in policy.patterns for name in full if matches(given[1], [full[name]])}
    leaf = region.rpartition(".")[2]
    return frozenset(found | ({leaf} if leaf in (*HEADS, *ROUTERS) else set()))


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


def _compile(
    model: Any,
    *,
    config: Config,
    options: Mapping[str, Any],
    fullgraph: bool,
    dynamic: bool | None,
    regions: list[str],
) -> Any:
    backend = Backend(config, options)
    how: dict[str, Any] = dict(fullgraph=fullgraph, dynamic=dynamic)
    compile_ = functools.partial(torch.compile, backend=backend, **how)
    if isinstance(model, nn.Module):
        return _compile_module(model, regions or unbroken_parts(model), backend, compile_, how)
    if regions:
        return compile_regions(model, regions, backend, **how)
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


def _compile_module(
    model: nn.Module, regions: list[str], backend: Backend, compile_: Callable[..., Any], how: dict[str, Any]
) -> Any:
    """A model, or its regions in place; what FSDP2 gathers of its weights is what the options say."""
    sharded = any(map(_compat.is_fully_sharded, model.modules()))
    if sharded:  # before anything is gathered
        check_ranks(backend.config, _compat.fsdp_ranks(model))
        say_gathers(backend.config.policy if backend.config.policy.wire == "quantized" else None)
    backend.learn([model])
    compiled = compile_regions(model, regions, backend, **how) if regions else compile_(model)
    if sharded and backend.config.policy.wire == "quantized":
        gather(model, dataclasses.replace(backend.config.policy, within=tuple(regions)))
    return compiled


def _learning(function: Callable[..., Any], backend: Backend, compile_: Callable[..., Any]) -> Callable[..., Any]:
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

    vars(wrapper).update(_quartet_original=function, _quartet_compiled=compiled)
    return wrapper
