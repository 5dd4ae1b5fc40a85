"""An export of a sharded model: rank 0 writes, and all ranks gather each weight with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch

from .. import _compat
from ..errors import ExportError
from ..held import Held
from .source import Source

_T = TypeVar("_T")


class _Gathered:
    """The tensors of a source, each of which every rank has to ask for: also after an error, or the others wait."""

    def __init__(self, source: Source) -> None:
        self._left = source.tensors()

    def tensors(self) -> Iterator[tuple[str, torch.Tensor | Held]]:
        for each in self._left:  # noqa: UP028  `yield from` would close what is left when its reader ends early
            yield each

    def finish(self) -> None:
        for _ in self._left:
            pass


def on_first_rank(source: Source, write: Callable[[Iterator[tuple[str, torch.Tensor | Held]]], _T]) -> _T:
    """What `write` makes of the tensors, on rank 0 if the source is sharded; its result, or its error, on every rank."""
    gathered = _Gathered(source)
    if not source.sharded:
        return write(gathered.tensors())
    done: Any = None
    failed: Exception | None = None
    if _compat.rank() == 0:
        try:
            done = write(gathered.tensors())
        except Exception as error:  # noqa: BLE001  it is raised when the other ranks have what they wait for
            failed = error
    gathered.finish()
    made: _T
    made, why = _compat.from_first_rank((done, None if failed is None else str(failed)))
    if failed is not None:
        raise failed
    if why is not None:
        raise ExportError(f"Rank 0 could not export: {why}")
    return made
