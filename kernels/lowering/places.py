"""Places in tensors: of 32 bits or of 64. Inductor chooses for a template by its own inputs and output, before it fuses
anything into it; what reads larger tensors must stay out of one that counts in 32 bits."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import sympy
import torch

from ... import _compat
from .inductor import V, expr_fits_within_32bit

aten = torch.ops.aten

_PARTS = (
    aten.slice.Tensor,
    aten.select.int,
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.unbind.int,
    aten.as_strided.default,
)
_FOUND = "quartet_reach_of_parts"
"""Of a graph module's notes: `_Reach`."""
MOST = 2**31 - 1
"""The last place that 32 bits count to."""


class _Reach(NamedTuple):
    """How far the parts of a graph's tensors lie apart. spread: one of them further than 32 bits count, though its elements
    are fewer. others: the places that the rest must not grow beyond, for that to stay as it is."""

    spread: bool
    others: tuple[Any, ...]


def are_short(sizes: Iterable[Any]) -> bool:
    """Whether places in tensors of these sizes have 32 bits, as Inductor decides it: of a dynamic size by the value that it
    has. What counts on it says so by `stay_short`."""
    return all(map(expr_fits_within_32bit, sizes))


def stay_short(sizes: Iterable[Any]) -> None:
    """Let the graph be compiled again where one of these sizes, which fit, grows beyond 32 bits."""
    for size in sizes:
        V.graph.sizevars.check_leq(sympy.sympify(size), sympy.Integer(MOST))


def keep_alone(product: Any, size: Iterable[Any]) -> None:
    """Fuse nothing into the template of a product of this size, whose places have 32 bits, where the graph has a part of a
    tensor, as a half of its columns, that lies further apart than these count."""
    if not are_short([math.prod(size)]):
        return
    reach = _reach_of_parts(V.graph.module)
    if reach.spread:
        V.graph.no_fuse_buffer_names.add(product.get_name())
    else:
        stay_short(reach.others)


def _reach_of_parts(module: Any) -> _Reach:
    """Looked for once in a graph, not for each of its products."""
    if _FOUND not in module.meta:
        found = [(_elements(part), _last_place(part)) for part in _parts(module.graph)]
        spread = any(are_short([elements]) and not are_short([last]) for elements, last in found)
        others = {last for elements, last in found if elements - 1 != last and are_short([last])}
        module.meta[_FOUND] = _Reach(spread, tuple(sorted(others, key=str)))
    reach: _Reach = module.meta[_FOUND]
    return reach


def _parts(graph: Any) -> Iterable[torch.Tensor]:
    """The inputs of the graph and the parts of tensors that it reads."""
    nodes = [*graph.find_nodes(op="placeholder")]
    nodes += [node for target in _PARTS for node in graph.find_nodes(op="call_function", target=target)]
    for node in nodes:
        value = node.meta.get("val")
        yield from (part for part in (value if isinstance(value, (list, tuple)) else [value]) if _is_dense(part))


def _is_dense(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.layout is torch.strided


def _elements(part: torch.Tensor) -> sympy.Expr:
    return sympy.sympify(_compat.expression(part.numel()))


def _last_place(part: torch.Tensor) -> sympy.Expr:
    steps = ((size - 1) * stride for size, stride in zip(part.shape, part.stride(), strict=True))
    return sympy.sympify(_compat.expression(part.storage_offset() + sum(steps)))
