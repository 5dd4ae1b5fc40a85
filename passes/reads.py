"""Which parameter the weight of a product is, and which way it lies there: so whether codes of the parameter are those that
the product is computed with."""

from __future__ import annotations

import math
import operator
from typing import NamedTuple

import torch
from torch import fx

from ..report.report import COLUMNS, ROWS
from .graph import CASTS, VIEWS, aten, strip
from .rows import is_wait
from .site import MatmulSite

_PARTS = (aten.slice.Tensor, aten.select.int, aten.split.Tensor, aten.split_with_sizes.default, operator.getitem)


class Read(NamedTuple):
    """A weight `[N, K]`, or one for each matrix, whose elements are those of one parameter, up to casts.

    outputs: whether its N outputs are `"rows"` of the parameter, `[..., N, K]`, each of them whole; or `"columns"`,
    `[..., K, N]`; empty of filters and what else isn't matrices. part: whether the parameter has others too.
    """

    parameter: fx.Node
    outputs: str = ""
    part: bool = False


def read_of(site: MatmulSite) -> Read | None:
    """How a site reads its parameter; None if its weight is computed, or put together in another way."""
    if len(site.sources) != 1:
        return None
    (parameter,) = site.sources
    matrices = _matrices(site, parameter) if site.w.shape == tuple(site.shape[1:]) else None
    return matrices or (Read(parameter) if strip(site.weight) is parameter else None)


def _matrices(site: MatmulSite, parameter: fx.Node) -> Read | None:
    steps, node = [], site.w.node
    while node is not parameter and not _is_gathered(node, parameter):
        if node.target not in (*VIEWS, *CASTS, *_PARTS):
            return None
        steps.append(node)
        node = node.args[0]
    shape = tuple(node.meta["val"].shape)
    found = _replay(shape, steps)
    outputs = None if found is None else _outputs(found.mT if site.w.transposed else found, shape)
    if found is None or outputs is None:
        return None
    different = math.prod(size for size, stride in zip(found.shape, found.stride(), strict=True) if stride)
    return Read(parameter, outputs, part=different < math.prod(shape))


def _is_gathered(node: fx.Node, parameter: fx.Node) -> bool:
    """Whether a node is the parameter whose part each rank has."""
    return is_wait(node) and strip(node.args[0].args[0]) is parameter


def _replay(shape: tuple, steps: list[fx.Node]) -> torch.Tensor | None:
    """What becomes of a contiguous tensor of this shape on the way back, whose strides then say which elements are where."""
    if not all(isinstance(size, int) for size in shape):
        return None
    value = torch.empty(shape, dtype=torch.uint8, device="meta")
    for node in reversed(steps):
        if node.target in CASTS:
            continue
        target = aten.view.default if node.target is aten.reshape.default else node.target  # which may copy
        if any(source is not node.args[0] for source in node.all_input_nodes):
            return None
        try:
            value = target(value, *node.args[1:], **node.kwargs)
        except (RuntimeError, ValueError):
            return None
    return value


def _outputs(weight: torch.Tensor, shape: tuple[int, ...]) -> str | None:
    """Which dimension of a parameter of this shape the N of a view `[..., N, K]` is."""
    if len(shape) < 2 or weight.dim() < 2:
        return None
    rows, columns = shape[-2:]
    *others, n, k = zip(weight.shape, weight.stride(), strict=True)
    apart = [stride for size, stride in others if size > 1]
    first = weight.storage_offset()
    if k == (columns, 1) and not any(stride % columns for stride in (*apart, n[1], first)):
        return ROWS
    matrix = rows * columns
    if k == (rows, columns) and n[1] == 1 and not any(s % matrix for s in apart) and first % matrix < columns:
        return COLUMNS
    return None
