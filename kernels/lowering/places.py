"""Places in tensors: of 32 bits or of 64. Inductor chooses for a template by its own inputs and output, before it fuses
anything into it; what reads larger tensors must stay out of one that counts in 32 bits."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

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
_FOUND = "quartet_spread_parts"
"""Of a graph module's notes: whether it has any."""


def are_short(sizes: Iterable[Any]) -> bool:
    """Whether places in tensors of these sizes have 32 bits, as Inductor decides it."""
    return all(map(expr_fits_within_32bit, sizes))


def keep_alone(product: Any, size: Iterable[Any]) -> None:
    """Fuse nothing into the template of a product of this size, whose places have 32 bits, where the graph has a part of a
    tensor, as a half of its columns, that lies further apart than these count."""
    if are_short([math.prod(size)]) and _has_spread_parts(V.graph.module):
        V.graph.no_fuse_buffer_names.add(product.get_name())


def _has_spread_parts(module: Any) -> bool:
    """Looked for once in a graph, not for each of its products."""
    if _FOUND not in module.meta:
        module.meta[_FOUND] = any(map(_is_spread, _parts(module.graph)))
    found: bool = module.meta[_FOUND]
    return found


def _parts(graph: Any) -> Iterable[torch.Tensor]:
    """The inputs of the graph and the parts of tensors that it reads."""
    nodes = [*graph.find_nodes(op="placeholder")]
    nodes += [node for target in _PARTS for node in graph.find_nodes(op="call_function", target=target)]
    for node in nodes:
        value = node.meta.get("val")
        yield from (part for part in (value if isinstance(value, (list, tuple)) else [value]) if _is_dense(part))


def _is_dense(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.layout is torch.strided


def _is_spread(part: torch.Tensor) -> bool:
    reach = part.storage_offset() + sum(
        (size - 1) * stride for size, stride in zip(part.shape, part.stride(), strict=True)
    )
    elements, reach = (sympy.sympify(_compat.expression(size)) for size in (part.numel(), reach))
    return are_short([elements]) and not are_short([reach])
