"""`set_recipe`: another recipe for a compiled model, between two steps.

What `torch.compile` returns holds its backend, and Dynamo keeps what it compiled by backend. A switch puts a backend with
the other recipe in its place, and nothing else: parameters, optimizer, random state and guards are not touched. The next
call finds nothing compiled by it and compiles; after a switch back, calls find what the earlier backend compiled.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn

from .. import _compat
from ..backend import NamedBackend
from ..compiled import candidates
from ..config.listed import RecipeOption
from ..config.options import Config, Policy, configure
from ..config.recipe import Recipe
from ..config.rules import EVERYTHING, Rules, rules
from ..config.served import evaluation_rules
from ..errors import OptionError
from ..process import process
from ..ranks import agree
from .api import Backend, check_patterns


def set_recipe(
    model: Any, recipe: RecipeOption, *, eval: RecipeOption | None = None
) -> Recipe | list[tuple[str, Recipe]] | None:
    """Compute with another recipe from the next call on, as `qc.set_recipe(model, "bf16")`. Returns the one until now, to
    go back to; None if parts of the model had different ones.

    model: what `qc.quartet` or `torch.compile(..., backend="quartet")` returned, or a model that is compiled in place or
    contains what is: blocks, or the model inside of DDP. recipe and eval: as the options of these names; without `eval`,
    an eval recipe that was given before stays, and else evaluation follows `recipe`. All other options stay.

    Each recipe is compiled once, at the first call under it. A forward that ran before the switch has its own backward.

    Of several ranks, all have to call it, between the same two steps: else each raises `OptionError`, at one of the next
    steps of its optimizer. With `wire="quantized"` it waits for the others; where one doesn't come, the recipe stays until
    that error.

    Raises `OptionError`, `RecipeError` and `PatternError`, before anything is changed.
    """
    training = rules("recipe", recipe)
    chosen = {"recipe": training} | ({} if eval is None else {"eval": evaluation_rules(training, eval)})
    parts = _parts(model)
    _check_patterns(chosen, [part for part in parts if not part.backend])
    switches = [part.switch({option: _as_option(given) for option, given in chosen.items()}) for part in parts]
    before = [part.state.config.policy.recipe for part in parts]
    configs = [state.config for state in switches]
    if not any(config.policy.wire == "quantized" for config in configs) or agree(configs):
        _switch(parts, switches)
    return _as_option(before[0]) if before.count(before[0]) == len(before) else None


def _switch(parts: list[_Part], switches: list[_State]) -> None:
    _compat.allow_variants(_variants(parts, switches))
    for part, state in zip(parts, switches, strict=True):
        process.switched[part.slot] = state
        _compat.put_backend(part.slot, state.variants[state.config])


@dataclasses.dataclass(frozen=True, kw_only=True)
class _State:
    """What is in force in one compiled object. variants: what Dynamo knows each configuration's backend by."""

    options: dict[str, Any]
    config: Config
    variants: dict[Config, Any]

    @property
    def first(self) -> Config:
        """What it was compiled with before any switch."""
        return next(iter(self.variants))


"""What backends that were given by name were switched between: their variants are told apart by it alone."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Part:
    """One object that `torch.compile` made with our backend, and the modules that it runs.

    backend: None if it was given by its name, and not by `qc.quartet`.
    """

    slot: Any
    modules: list[nn.Module]
    backend: Backend | None

    @property
    def state(self) -> _State:
        if self.slot not in process.switched:
            function, given, held = _compat.backend_in(self.slot)
            if self.backend:
                options, config = self.backend.options, self.backend.config
            else:
                config = configure(function.options(given.get("options")), given.get("mode"))
                options = {"mode": given.get("mode"), **function.options(given.get("options"))}
            process.switched[self.slot] = _State(options=options, config=config, variants={config: held})
        found: _State = process.switched[self.slot]
        return found

    def switch(self, chosen: dict[str, Any]) -> _State:
        """The state under other options, with a backend for them, which isn't in its place yet."""
        options = {**self.state.options, **chosen}
        config, variants = configure(options), self.state.variants
        if config not in variants:
            function, given, held = _compat.backend_in(self.slot)
            if self.backend:
                made = _compat.other_backend(held, self.backend.variant(config, options), {})
            else:
                made = _compat.other_backend(held, function, {**given, "options": options})
            variants = {**variants, config: made}
        return _State(options=options, config=config, variants=variants)


def _parts(model: Any) -> list[_Part]:
    """Everything in a model that our backend compiles. Raises `OptionError` if there is nothing."""
    found: dict[int, _Part] = {}
    others: dict[str, None] = {}
    for compiled, modules in candidates(model):
        slot = _compat.backend_slot(compiled)
        if slot is None or id(slot) in found:
            continue
        function, _, held = _compat.backend_in(slot)
        if isinstance(function, (Backend, NamedBackend)):
            backend = function if isinstance(function, Backend) else None
            found[id(slot)] = _Part(slot=slot, modules=modules, backend=backend)
        else:
            others[_compat.backend_name(held)] = None
    if not found:
        by = f"is compiled by {', '.join(map(repr, others))}" if others else "is not compiled, nor a part of it"
        raise OptionError(
            f"set_recipe got {_describe(model)}, which {by}; expected what qc.quartet(model) or torch.compile(model, "
            "backend='quartet') returned. These leave the original model as it is; model.compile(backend='quartet') and "
            "qc.quartet(model, regions=[...]) compile it in place."
        )
    return list(found.values())


def _variants(parts: list[_Part], switches: list[_State]) -> int:
    """How many backends there are at most for one code object, these ones included."""
    for part, state in zip(parts, switches, strict=True):
        if part.backend is None:
            process.configs.update(state.variants)
    return max([len(process.configs), *(part.backend.kinds for part in parts if part.backend)])


def _check_patterns(chosen: dict[str, Rules], parts: list[_Part]) -> None:
    """Raise `PatternError` for a new pattern that matches nothing in any of the parts, where their modules are known."""
    modules = [module for part in parts for module in part.modules]
    if parts and all(part.modules for part in parts):
        policy = Policy(recipe=chosen["recipe"], eval_recipe=chosen.get("eval", chosen["recipe"]))
        check_patterns(policy, modules)


def _as_option(given: Rules) -> Recipe | list[tuple[str, Recipe]]:
    """The rules as the option `recipe` takes them."""
    pairs = list(given)
    return pairs[0][1] if [glob for glob, _ in pairs] == [EVERYTHING] else pairs


def _describe(model: Any) -> str:
    if isinstance(model, nn.Module):
        return f"a {type(model).__name__}"
    return f"{getattr(model, '__qualname__', None) or repr(model)} of type {type(model).__name__}"
