"""The call that is to be captured: a model with its inputs, as users give them."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch

from .. import _compat
from ..callables import argument_names, modules_of, signature_of, uncompiled
from ..compiled import compiled_by_us, same_options
from ..config.names import parameter_names
from ..config.options import OPTIONS, Config, configure
from ..errors import OptionError


@dataclasses.dataclass(frozen=True)
class Call:
    """`model(*inputs, **kwargs)`."""

    model: Callable
    inputs: tuple = ()
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def map(self, function: Callable[[str, torch.Tensor], Any]) -> Call:
        """The same call with `function(name, tensor)` for every tensor of the inputs. Names are those of the model's
        signature and of the keywords: `x`, `batch['ids']`, `input[2]` where the signature has none."""
        names = argument_names(self.model)
        names += [f"input[{index}]" for index in range(len(names), len(self.inputs))]
        inputs = tuple(_compat.map_tensors(function, n, v) for n, v in zip(names, self.inputs, strict=False))
        kwargs = {name: _compat.map_tensors(function, name, value) for name, value in self.kwargs.items()}
        return Call(self.model, inputs, kwargs)

    def parameter_names(self) -> dict[int, str]:
        """The full names of the model's parameters, by `id`."""
        return {key: name for module in modules_of(self.model) for key, name in parameter_names(module).items()}


def call_of(
    model: Callable, inputs: tuple, kwargs: Mapping[str, Any] | None, options: Mapping[str, Any]
) -> tuple[Call, Config]:
    """A call and the configuration, both validated; of a model that our backend has compiled, that of the model. Raises
    `OptionError`, which says so where an option that there isn't is an argument of the model, or where a compiled model has
    other options; and `RecipeError`."""
    original, compiled = uncompiled(model), compiled_by_us(model)
    kwargs = {} if kwargs is None else kwargs
    if not isinstance(kwargs, Mapping) or not all(isinstance(key, str) for key in kwargs):
        raise OptionError(
            f"kwargs is {kwargs!r}; expected the keyword arguments of the model, as kwargs={{'attention_mask': mask}}."
        )
    for key in options:
        if key not in OPTIONS and key in _keywords(original):
            raise OptionError(
                f"Unknown option {key!r}, which is an argument of the model: pass it in kwargs={{{key!r}: ...}}. The "
                f"options of backend='quartet' are: {', '.join(OPTIONS)}."
            )
    call = Call(original, inputs, dict(kwargs))
    if compiled is None:
        return call, configure(options)
    config = same_options(compiled, options)
    return call, dataclasses.replace(config, policy=dataclasses.replace(config.policy, within=compiled.within))


def batch_hint(call: Call) -> str:
    """What to do where the only input is a dict, or like one, that the model takes as keywords; else empty."""
    if len(call.inputs) != 1 or call.kwargs or not isinstance(call.inputs[0], Mapping):
        return ""
    keys = [key for key in call.inputs[0] if key in _keywords(call.model)]
    if not keys:
        return ""
    kind = type(call.inputs[0]).__name__
    return f"The only input is a {kind} with keys that are arguments of the model ({', '.join(keys)}): pass it as kwargs=..."


def _keywords(model: Callable) -> list[str]:
    """The names of the arguments that may be given by keyword."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [parameter.name for parameter in signature_of(model) if parameter.kind in kinds]
