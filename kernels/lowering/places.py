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
"""Ops whose results are places in what they are given."""
_PICKS = (
    aten.index.Tensor,
    aten._unsafe_index.Tensor,
    aten.index_select.default,
    aten.gather.default,
    aten.embedding.default,
    aten.constant_pad_nd.default,
)
"""Ops that read some places of their first argument."""
_FOUND = "quartet_reach_of_parts"
"""Of a graph module's notes: `_Reach`."""


class _Reach(NamedTuple):
    """How far apart the places lie that ops of a graph read. far: what those read of which one lies further than 32 bits
    count, though the elements of the result are fewer. others: the last places of the rest, which must not grow beyond for
    that to stay as it is."""

    far: tuple[Any, ...]
    others: tuple[Any, ...]


def are_short(sizes: Iterable[Any]) -> bool:
    """Whether places in tensors of these sizes have 32 bits, as Inductor decides it: of a dynamic size by the value that it
    has. What counts on it says so by `stay_short`."""
    return all(map(expr_fits_within_32bit, sizes))


def stay_short(sizes: Iterable[Any]) -> None:
    """Let the graph be compiled again where one of these sizes, which fit, grows beyond 32 bits."""
    for size in sizes:
        V.graph.sizevars.check_leq(size, torch.iinfo(torch.int32).max)


def keep_alone(product: Any, size: Iterable[Any]) -> None:
    """Fuse nothing into the template of the product that is lowered now, of this size, whose places have 32 bits, where the
    graph has a part of a tensor, as a half of its columns, that lies further apart than these count; unless the tensor is
    made of the product, so that what reads it comes after the product's kernel."""
    if not are_short([math.prod(size)]):
        return
    reach = _reach(V.graph.module)
    if reach.far and not _compat.descendants([V.graph.current_node]).issuperset(reach.far):
        V.graph.no_fuse_buffer_names.add(product.get_name())
    else:
        stay_short(reach.others)


def _reach(module: Any) -> _Reach:
    """Looked for once in a graph, not for each of its products."""
    if _FOUND not in module.meta:
        far, others = [], set()
        for source, elements, last in _reads(module.graph):
            if not are_short([last]):
                far += [source] if are_short([elements]) else []
            elif last != elements - 1:
                others.add(last)
        module.meta[_FOUND] = _Reach(tuple(far), tuple(sorted(others, key=str)))
    found: _Reach = module.meta[_FOUND]
    return found


def _reads(graph: Any) -> Iterable[tuple[Any, sympy.Expr, sympy.Expr]]:
    """The inputs of a graph, its parts of tensors and what is picked out of some: the node that is read, the elements of the
    result, and the last place of what is read."""
    for node in graph.find_nodes(op="placeholder"):
        yield from ((node, _elements(value), _last_place(value)) for value in _dense(node))
    for target in (*_PARTS, *_PICKS):
        for node in graph.find_nodes(op="call_function", target=target):
            source = node.args[0]
            for value in _dense(node):
                read = value if target in _PARTS else source.meta["val"]
                yield source, _elements(value), _last_place(read)


def _dense(node: Any) -> list[torch.Tensor]:
    """The tensors that a node stands for, but for those that have no strides."""
    value = node.meta.get("val")
    values = value if isinstance(value, (list, tuple)) else [value]
    return [one for one in values if isinstance(one, torch.Tensor) and one.layout is torch.strided]


def _elements(part: torch.Tensor) -> sympy.Expr:
    return sympy.sympify(_compat.expression(part.numel()))


def _last_place(part: torch.Tensor) -> sympy.Expr:
    steps = ((size - 1) * stride for size, stride in zip(part.shape, part.stride(), strict=True))
    return sympy.sympify(_compat.expression(part.storage_offset() + sum(steps)))
