"""Places in tensors: of 32 bits or of 64. Inductor chooses for a template by its own inputs and output, before it fuses
anything into it; what reads larger tensors must stay out of one that counts in 32 bits."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import sympy
import torch

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


def are_short(sizes: Iterable[Any]) -> bool:
    """Whether places in tensors of these sizes have 32 bits, as Inductor decides it."""
    return all(map(expr_fits_within_32bit, sizes))


def keep_alone(product: Any, size: Iterable[Any]) -> None:
    """Fuse nothing into the template of a product of this size where the graph has a part of a tensor, as a half of its
    columns, that is smaller than the product may be and lies further apart than 32 bits count."""
    if are_short([math.prod(size)]) and any(map(_is_spread, _parts())):
        V.graph.no_fuse_buffer_names.add(product.get_name())


def _parts() -> Iterable[torch.Tensor]:
    """The inputs of the graph and the parts of tensors that it reads."""
    graph = V.graph.graph
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
    return are_short([_expression(part.numel())]) and not are_short([_expression(reach)])


def _expression(size: int | torch.SymInt) -> sympy.Expr:
    return size.node.expr if isinstance(size, torch.SymInt) else sympy.Integer(size)
