"""Which backend `torch.compile` takes: names in torch's registry, and another one in the place of Inductor."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from .compiled import inner_slot, put_backend, slot_backend
from .installed import private


def known_backends() -> list[str]:
    """The names that `torch.compile` takes as a backend, those of entry points included."""
    return list(private("torch._dynamo.backends.registry:list_backends")(exclude_tags=()))


def register_backend(function: Callable, name: str) -> None:
    """Let `torch.compile(backend=name)` find a backend."""
    private("torch._dynamo.backends.registry:register_backend")(compiler_fn=function, name=name)


def replace_inductor(backend_for: Callable[[dict[str, Any]], Any]) -> None:
    """From now on, ask at each `torch.compile` of Inductor which backend to use instead; None for Inductor.

    `backend_for` gets Inductor's options that the call has, those of its mode included. What was compiled before stays as it
    is, also where a copy of it is made later; so does ahead-of-time Inductor.
    """
    wrapper, context = (
        private("torch:_TorchCompileInductorWrapper"),
        private("torch._dynamo.eval_frame:OptimizeContext"),
    )
    made, entered = wrapper.__init__, context.__init__

    @functools.wraps(made)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        made(self, *args, **kwargs)
        self._quartet_backend = backend_for(dict(self.config)) if type(self) is wrapper else None

    @functools.wraps(entered)
    def enter(self: Any, *args: Any, **kwargs: Any) -> None:
        entered(self, *args, **kwargs)
        slot = inner_slot(self.callback)
        held: Any = None if slot is None else slot_backend(slot)
        backend = getattr(held, "_quartet_backend", None)
        if backend is not None:
            put_backend(slot, private("torch:_TorchCompileWrapper")(backend, None, None, held.dynamic))

    wrapper.__init__, context.__init__ = init, enter
