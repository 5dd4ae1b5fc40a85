"""Dynamo: what it raises, counts and skips, its caches, and how to compile apart from it all."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch

from ..process import process
from .imported import when_imported
from .installed import private


class Shortened(RuntimeError):
    """The first base of errors that `torch.compile` passes on as they are; any other becomes a `BackendCompilerFailed`.

    Dynamo knows such errors by a class of its own, which takes this one's place where Dynamo is loaded: see `shorten`.
    """

    def __init__(self, message: str, *, first_useful_frame: None) -> None:
        super().__init__(message)


def shorten(cls: type[Shortened]) -> None:
    """Make a class of errors that has `Shortened` as its first base one of Dynamo's, as soon as Dynamo is loaded."""

    def rebase(module: ModuleType) -> None:
        known = private(f"{module.__name__}:ShortenTraceback")
        cls.__bases__ = (known, *cls.__bases__[1:])

    when_imported("torch._dynamo.exc", rebase)


def is_not_compiled(error: BaseException) -> bool:
    """Whether Dynamo raised it under `fullgraph=True` for code that it would else run eagerly."""
    return isinstance(
        error, (private("torch._dynamo.exc:Unsupported"), private("torch._dynamo.exc:FailOnRecompileLimitHit"))
    )


@contextlib.contextmanager
def dynamo_sizes_restored() -> Iterator[None]:
    """Forget which sizes Dynamo saw change inside; it would make them dynamic at the next compilation."""
    state = private("torch._dynamo.pgo:get_code_state")()
    before = copy.deepcopy(dict(state))
    try:
        yield
    finally:
        state.clear()
        state.update(before)


def compile_apart(function: Callable, backend: Callable) -> Callable:
    """`torch.compile` without dynamic shapes whose recompilations don't count for other compilations of the same code
    (torch 2.12 and later; before, they count)."""
    apart: dict[str, Any] = (
        {"isolate_recompiles": True} if "isolate_recompiles" in inspect.signature(torch.compile).parameters else {}
    )
    return torch.compile(function, backend=backend, dynamic=False, **apart)


def compiled_forward(module: torch.nn.Module, **how: Any) -> Callable:
    """The module's class's forward, compiled for this module. Dynamo skips the code of torch's own modules at a frame's
    start, and inlines it into this frame."""
    forward = type(module).forward.__get__(module)
    if type(module).forward.__module__.startswith("torch.nn."):
        forward = private("torch._dynamo.external_utils:wrap_inline")(forward)
    return torch.compile(forward, **how)


def compilations_tried() -> int:
    """How many frames Dynamo has tried to compile in this process, failures and recompilations included."""
    return _counters()["frames"]["total"]


def stance() -> str:
    """What `torch.compiler.set_stance` says of compiled calls: "default", "force_eager", "eager_on_recompile", ..."""
    return private("torch._dynamo.eval_frame:_stance").stance


def reasons_not_compiled() -> dict[str, int]:
    """Why Dynamo could not compile something, in its own words, and how often so far."""
    return dict(_counters()["unimplemented"])


def _counters() -> dict[str, Any]:
    return private("torch._dynamo.utils:counters")


def is_at_limit(code: Any) -> bool:
    """Whether Dynamo has compiled a code object so often that it compiles nothing new for it."""
    config = private("torch._dynamo.config")
    entries = private("torch._C._dynamo.eval_frame")._debug_get_cache_entry_list(code)
    return len(entries) >= config.recompile_limit


def hides_errors() -> bool:
    """Whether Dynamo runs eagerly what a backend raises for (`torch._dynamo.config.suppress_errors`)."""
    return private("torch._dynamo.config").suppress_errors


_LIMITS = ("recompile_limit", "accumulated_recompile_limit")


def allow_variants(count: int) -> None:
    """Let Dynamo keep so many variants of a code object, each with as many entries as one had before.

    A code object that is at the limit already would run uncompiled what it has no entry for, which would be all of a
    new variant: Dynamo may compile it again.
    """
    config, frames = private("torch._dynamo.config"), private("torch._dynamo.convert_frame")
    for name in _LIMITS:
        one = process.limits.setdefault(name, getattr(config, name))
        setattr(config, name, max(getattr(config, name), one * count))
    c, types = private("torch._C._dynamo.eval_frame"), private("torch._dynamo.types")
    again = types.FrameExecStrategy(types.FrameAction.DEFAULT, types.FrameAction.DEFAULT)
    for code in (reference() for reference in frames.input_codes.seen):
        if code is not None and len(c._debug_get_cache_entry_list(code)) >= process.limits["recompile_limit"]:
            c.set_code_exec_strategy(code, again)
