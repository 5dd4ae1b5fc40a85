"""Products that run outside of graphs, read as the passes read those of a graph: which operand may be the weight, M, N and
K, and what of its sizes would keep it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from .batched import Batched, few_rows
from .convolution import Convolution
from .fused import inside
from .grouped import Fallback, Grouped
from .kind import SMALLEST, op_name_of
from .plain import Plain
from .windows import geometry, product_shape

_MATRICES = {**Plain.operands, **Batched.operands}


@dataclasses.dataclass(frozen=True)
class Reading:
    """A product, if `weight` is its weight.

    shape: `(M, N, K)`; M counts the rows of all matrices of a batch, and those of all groups.
    obstacle: why no graph has it in low precision; unprofitable: why none has it unless `include` says so. None if nothing
    keeps it.
    """

    weight: torch.Tensor
    shape: tuple[int, int, int]
    obstacle: str | None = None
    unprofitable: str | None = None


def products(op: Any, args: tuple, result: Any) -> list[tuple[Reading, ...]]:
    """The products of an op that has run, each with the ways to read it: two of a matmul, one of any other. Most ops that
    have products have one; an op may hold several inside."""
    read = _READERS.get(op) or _READERS.get(op_name_of(op))
    if read is None:
        return [(_small(Reading(w, (rows, *w.shape))),) for w, rows in inside(op, args)]
    found = tuple(map(_small, read(op, args, result)))
    return [found] if found else []


def _matmul(op: Any, args: tuple, result: torch.Tensor) -> list[Reading]:
    a, b = args[_MATRICES[op]]
    matrices = a.shape[0] if a.dim() == 3 else 1
    m, n, k = a.shape[-2], b.shape[-1], a.shape[-1]
    return [
        Reading(weight, (matrices * rows, columns, k), few_rows(matrices, rows))
        for weight, rows, columns in ((b, m, n), (a, n, m))
    ]


def _convolution(op: Any, args: tuple, result: torch.Tensor) -> list[Reading]:
    x, w, _, *settings = args
    windows = geometry(x.shape, w.shape, result.shape, settings)
    return [Reading(w, product_shape(windows, x.shape[0]), windows.obstacle, windows.unprofitable)]


def _grouped(op: Any, args: tuple, result: torch.Tensor) -> list[Reading]:
    x, w = args[:2]
    return [Reading(w, (x.shape[0], w.shape[-1], x.shape[-1]))] if w.dim() == 3 else []


def _small(reading: Reading) -> Reading:
    m, n, k = reading.shape
    if min(n, k) < SMALLEST:
        return dataclasses.replace(reading, obstacle=reading.obstacle or f"N or K is below the group of {SMALLEST}")
    if m < SMALLEST // 2 and torch.is_grad_enabled():
        return dataclasses.replace(reading, unprofitable=reading.unprofitable or f"M is {m} in training")
    return reading


_READERS: dict[Any, Callable[[Any, tuple, Any], list[Reading]]] = {
    **dict.fromkeys(_MATRICES, _matmul),
    **dict.fromkeys(Convolution.operands, _convolution),
    **dict.fromkeys((*Grouped.operands, *Fallback.operands), _grouped),
}
