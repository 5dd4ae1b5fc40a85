"""The calls of what `torch.compile` makes, watched from outside, and from inside when Dynamo takes one into a graph."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable
from typing import Any, Protocol

import torch

from ..process import process
from .compiled import backend_function, backend_slot
from .imported import when_imported
from .installed import private


class Watcher(Protocol):
    """What is told of the calls of one compiled object."""

    def __call__(self) -> contextlib.AbstractContextManager | None:
        """What the next call runs in, None for nothing."""

    def inlined(self, backend: Any) -> None:
        """Dynamo compiles a function that calls the object, and takes its code into the graph for this backend."""


def watch_calls(watcher_of: Callable[[Any, Any, dict[str, Any]], Watcher | None]) -> None:
    """From now on, tell of each call of what `torch.compile` makes; `watcher_of` gives the watcher for a slot (see
    `backend_slot`), the function that is compiled, and the arguments of `torch.compile` besides the backend; or None.

    A backend's own `backend_ctx_ctor` is no place for it: a dispatch mode that is entered there is still half active
    afterwards, since `torch.compile` saves the dispatch keys after it and puts them back.
    """
    when_imported("torch._dynamo.eval_frame", lambda module: _watch(module.OptimizeContext, watcher_of))


def _watch(context: Any, watcher_of: Callable[[Any, Any, dict[str, Any]], Watcher | None]) -> None:
    original = context.__call__

    @functools.wraps(original)
    def call(self: Any, function: Any) -> Any:
        made = original(self, function)
        slot = None if isinstance(made, (torch.nn.Module, type)) else backend_slot(made)
        how = {"dynamic": self._dynamic, "fullgraph": self.fullgraph}
        watcher = watcher_of(slot, function, how) if slot is not None else None
        return made if watcher is None else _watched(made, watcher, _forward_of(function))

    context.__call__ = call


def _watched(made: Callable, watcher: Watcher, forward: Callable | None) -> Callable:
    """The compiled function with its calls watched. forward: what a Module's call runs, whose signature it then has:
    trainers choose the columns of a batch by it."""

    @functools.wraps(made)
    def watched(*args: Any, **kwargs: Any) -> Any:
        context = watcher()
        if context is None:
            return made(*args, **kwargs)
        with context:
            return made(*args, **kwargs)

    comptime, number = private("torch._dynamo.comptime:comptime"), next(process.numbers)
    inline = made._torchdynamo_inline

    def inlined(*args: Any, **kwargs: Any) -> Any:
        inlined_number = number  # noqa: F841  `_tell_inlined` reads it
        comptime(_tell_inlined)
        return inline(*args, **kwargs)

    if forward is not None:
        with contextlib.suppress(TypeError, ValueError):
            watched.__signature__ = inspect.signature(forward)
    process.watchers[number] = watcher
    watched._torchdynamo_inline = inlined
    watched._torchdynamo_wrapper_id = id(watched)  # it stands for `made`, whose attributes it has
    watched._quartet_compiled = made
    private("torch._dynamo.eval_frame:skip_code")(watched.__code__)
    return watched


def _forward_of(function: Any) -> Callable | None:
    """What the call of a Module runs; None for another function."""
    owner, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
    return (
        owner.forward if isinstance(owner, torch.nn.Module) and name in ("_wrapped_call_impl", "_call_impl") else None
    )


def _tell_inlined(context: Any) -> None:
    """Called by Dynamo while it takes a watched function into a graph."""
    watcher = process.watchers.get(context.get_local("inlined_number").as_python_constant())
    translator = context._i_will_not_complain_if_bc_breaks_InstructionTranslator()
    if watcher is not None:
        watcher.inlined(backend_function(translator.output.compiler_fn))


def is_watched_call(frame: Any) -> bool:
    """Whether a frame is the outermost one of a call that `watch_calls` runs something around."""
    return frame.f_code.co_name == "watched" and frame.f_code.co_filename == __file__
