"""The options of `torch.compile(..., backend="quartet", options=...)`, validated and frozen."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from .. import _compat
from ..errors import OptionError, suggest
from ..machines.targets import find_target
from .listed import DEFAULTS
from .names import matches
from .rules import Rules, rules
from .served import evaluation_rules

SCOPES = ("all", "marked")
WIRES = ("high", "quantized")
ALL, PROFITABLE = "all", "profitable"
RESERVED = "joint_custom_pre_pass"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Policy:
    """Which matmuls are rewritten, and how.

    recipe:  which recipe a matmul gets, in graphs that compute gradients.
    eval_recipe: the same for graphs that don't (`no_grad`, `inference_mode`).
    include: if not empty, only matmuls that one of these globs matches; it overrides the rules for heads and routers.
    exclude: matmuls that one of these globs matches are kept; it wins over everything.
    scope:   `"all"`, or `"marked"`: only what is marked by `quartet_compile.fp4`.
    strict:  a matmul that should be rewritten and can't, is an error.
    stats:   graphs measure how well they quantize.
    wire:    what ranks gather of a matrix that is then quantized: `"high"`, the matrix; `"quantized"`, its codes.
    weight_cache: what is made of a weight is kept while its values are the same; of weights on the CPU alone.
    policy:  `"all"`; or `"profitable"`: a matmul that doesn't pay is kept, on the GPU that runs it, or, of
             `"profitable:b200"`, on that chip.
    within:  if not empty, only these modules are compiled, which an explanation of the whole model has to say.
    """

    recipe: Rules
    eval_recipe: Rules
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    scope: str = "all"
    strict: bool = False
    stats: bool = False
    wire: str = "high"
    weight_cache: bool = False
    policy: str = ALL
    within: tuple[str, ...] = dataclasses.field(default=(), compare=False)

    @property
    def patterns(self) -> tuple[tuple[str, str], ...]:
        """Every pattern with the option that it was given by."""
        given = {
            "include": self.include,
            "exclude": self.exclude,
            "recipe": self.recipe.patterns,
            "eval": self.eval_recipe.patterns if self.eval_recipe != self.recipe else (),
        }
        return tuple((option, glob) for option, globs in given.items() for glob in globs)

    def leaves_out(self, names: Sequence[str]) -> bool:
        """Whether these are names of what is in none of the parts that are compiled, where the model as a whole isn't."""
        return bool(self.within) and not any(matches(part, names) for part in self.within)


OUTSIDE = "in no part of the model that is compiled"
"""The reason of what a policy leaves out."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A validated set of options: the policy, and what is passed on to Inductor."""

    policy: Policy
    inductor: tuple[tuple[str, Any], ...] = dataclasses.field(default=(), hash=False)  # values may be lists


OPTIONS: Mapping[str, str] = {
    "recipe": "a recipe's name, a Recipe, or a list of (glob, recipe) where the first match wins (default 'quartet')",
    "include": "a list of globs over module names",
    "exclude": "a list of globs over module names",
    "scope": "'all' or 'marked'",
    "policy": "'all', or 'profitable' to keep what doesn't pay on the GPU that runs it, or 'profitable:b200' on that chip",
    "strict": "True or False",
    "stats": "True or False",
    "wire": "'high' or 'quantized'",
    "weight_cache": "True or False",
    "eval": "the recipe of graphs without gradients, or 'served-w4a16' and the like (default: the same)",
    "mode": "a mode of torch.compile",
    "inductor": "a dict of Inductor's configuration, as {'max_autotune': True}",
}


def configure(options: Mapping[str, Any] | None = None, mode: str | None = None) -> Config:
    """Validate options. Raises `OptionError` or `RecipeError`, which say what was expected."""
    if options is not None and not isinstance(options, Mapping):
        raise OptionError(f"options is {options!r}; expected a dict, as options={{'recipe': 'quartet'}}.")
    options = dict(options or {})
    for key in options:
        if key not in OPTIONS:
            raise OptionError(
                f"Unknown option {key!r}{suggest(key, OPTIONS)}. The options of backend='quartet' are: "
                f"{', '.join(OPTIONS)}. Inductor's own go into options={{'inductor': {{{key!r}: ...}}}}."
            )
    given = {**DEFAULTS, "mode": mode, **options}
    training, evaluation = rules("recipe", given["recipe"]), given["eval"]
    policy = Policy(
        recipe=training,
        eval_recipe=training if evaluation is None else evaluation_rules(training, evaluation),
        include=_globs("include", given["include"]),
        exclude=_globs("exclude", given["exclude"]),
        scope=_choice("scope", given["scope"], SCOPES),
        strict=_switch("strict", given["strict"]),
        stats=_switch("stats", given["stats"]),
        wire=_choice("wire", given["wire"], WIRES),
        weight_cache=_switch("weight_cache", given["weight_cache"]),
        policy=_policy(given["policy"]),
    )
    return Config(policy=policy, inductor=_inductor(given["mode"], given["inductor"]))


def _choice(option: str, value: Any, choices: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in choices:
        raise OptionError(f"Option {option!r} is {value!r}{suggest(value, choices)}; expected {OPTIONS[option]}.")
    return value


def _policy(value: Any) -> str:
    if value == ALL:
        return ALL
    name, _, chip = value.partition(":") if isinstance(value, str) else ("", "", "")
    if name != PROFITABLE or value == f"{PROFITABLE}:":
        raise OptionError(
            f"Option 'policy' is {value!r}{suggest(value, (ALL, PROFITABLE))}; expected {OPTIONS['policy']}."
        )
    if chip and find_target(chip).amd:
        raise OptionError(f"Option 'policy' is {value!r}, and no times are predicted on {chip}; leave the option out.")
    return str(value)


def _switch(option: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise OptionError(f"Option {option!r} is {value!r}; expected {OPTIONS[option]}.")
    return value


def _globs(option: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) and item for item in value):
        raise OptionError(
            f"Option {option!r} is {value!r}; expected {OPTIONS[option]}, as {option}=['*.router', 'layers.0.*']."
        )
    return tuple(value)


def _inductor(mode: Any, patches: Any) -> tuple[tuple[str, Any], ...]:
    modes = _compat.known_modes()
    if mode is not None and mode not in modes:
        raise OptionError(f"Unknown mode {mode!r}{suggest(mode, modes)}; the modes are {', '.join(modes)}.")
    if not isinstance(patches, Mapping):
        raise OptionError(f"Option 'inductor' is {patches!r}; expected {OPTIONS['inductor']}.")
    merged = _compat.mode_options(mode) if mode and mode != "default" else {}
    known = _compat.inductor_options() if patches else {}
    for key, value in patches.items():
        name = str(key).replace("-", "_")
        if name not in known:
            raise OptionError(f"Unknown Inductor option {key!r}{suggest(name, known)}; see torch._inductor.config.")
        if name == RESERVED:
            raise OptionError(f"The Inductor option {key!r} is what backend='quartet' itself uses; leave it out.")
        kind = known[name]
        if kind and not isinstance(value, kind):
            raise OptionError(f"Inductor option {key!r} is {value!r}; expected a value of type {kind.__name__}.")
        merged[name] = value
    return tuple(sorted(merged.items()))
