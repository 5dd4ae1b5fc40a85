"""`enable`: every later `torch.compile` of Inductor in this process rewrites, for trainers that call it by themselves.

The choice is made when `torch.compile` is called: what it then returns has the backend of a configuration, as
`backend="quartet"` has, and keeps it. So what was compiled before, or is after `disable`, is Inductor's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from torch import nn

from .. import _compat
from ..config.listed import lists_options
from ..config.options import Config, configure
from ..errors import OptionError
from ..process import process
from .api import Backend, check_patterns

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..config.listed import Options


class Enabled:
    """What is in force in the process: the options, and a backend for each set of Inductor's own. In a `with` statement it
    is in force inside, and afterwards what was before."""

    def __init__(self, config: Config, options: dict[str, Any]) -> None:
        self.config, self.options = config, options
        self._backend = Backend(config, options)
        self._before: list[Enabled | None] = []

    def learn(self, models: tuple[nn.Module, ...]) -> None:
        """Check the patterns against the models, and use their names from now on. Raises `PatternError`."""
        self._backend.learn(models)

    def backend_for(self, inductor: Mapping[str, Any]) -> Backend:
        """The backend of a `torch.compile` with these options of Inductor's own, which go before those of `enable`."""
        options = {**self.options, "inductor": {**dict(self.config.inductor), **inductor}}
        options.pop("mode", None)
        config = configure(options)
        return self._backend.variant(config, options)

    def __enter__(self) -> Enabled:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process.enabled = self._before.pop()


@lists_options
def enable(*models: nn.Module, **options: Unpack[Options]) -> Enabled:
    """Let every later `torch.compile` of Inductor, the default, compute in FP4: `qc.enable(recipe="quartet")`.

    It is what `backend="quartet"` with these options would be, for trainers that call `torch.compile` themselves. What was
    compiled before stays as it is, and what is compiled from now on stays so after `disable()`. Options that a
    `torch.compile` gives to Inductor go before those of `mode` and `inductor` here. As `with qc.enable(...):` it is in force
    inside of the block.

    models: those whose parts will be compiled; their parts then have their full names where blocks are compiled one by
    one. Without them, names start at what `torch.compile` is given. Raises, before anything is compiled, `OptionError`
    (also where other options are in force), `RecipeError`, and `PatternError` for a pattern that matches nothing in the
    models.
    """
    for model in models:
        if not isinstance(model, nn.Module):
            raise OptionError(
                f"enable got {model!r} of type {type(model).__name__}; expected Modules, whose names it uses. Options are "
                "given by name: enable(model, recipe='quartet-rtn')."
            )
    config, before = configure(options), process.enabled
    if before is not None and before.config != config:
        raise OptionError(
            f"enable got {_text(options)}, and {_text(before.options)} is in force in this process; expected the same "
            "options. Call quartet_compile.disable() first: what was compiled keeps its options."
        )
    if config.policy.patterns and models:
        check_patterns(config.policy, list(models))
    if before is None:
        if not process.replaces_inductor:
            _compat.replace_inductor(_backend_for)
            process.replaces_inductor = True
        process.enabled = Enabled(config, dict(options))
    process.enabled.learn(models)
    process.enabled._before.append(before)
    return process.enabled


def disable() -> None:
    """Let every later `torch.compile` of Inductor be Inductor's own again; what was compiled stays as it is."""
    process.enabled = None


def _backend_for(inductor: Mapping[str, Any]) -> Backend | None:
    return None if process.enabled is None else process.enabled.backend_for(inductor)


def _text(options: Mapping[str, Any]) -> str:
    return "enable(" + ", ".join(f"{key}={value!r}" for key, value in options.items()) + ")"
