"""The kinds of products that a joint graph may hold, a file each.

    plain         mm, addmm
    batched       bmm, baddbmm
    grouped       _grouped_mm, and transformers' grouped_mm_fallback
    convolution   convolutions and transposed convolutions, as products of their windows

A new kind is a subclass of `Kind` in a file here, and an entry of `KINDS`.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from .batched import Batched
from .convolution import Convolution
from .grouped import Fallback, Grouped
from .kind import Kind, op_name
from .plain import Plain

PLAIN, BATCHED, GROUPED, FALLBACK, CONVOLUTION = Plain(), Batched(), Grouped(), Fallback(), Convolution()
KINDS: tuple[Kind, ...] = (PLAIN, BATCHED, GROUPED, FALLBACK, CONVOLUTION)

_BY_OP: dict[Any, Kind] = {op: kind for kind in KINDS for op in kind.operands}


def kind_of(node: fx.Node) -> Kind | None:
    """The kind of a product; None for any other node."""
    return _BY_OP.get(node.target) or _BY_OP.get(op_name(node))


def is_paired_by_structure(node: fx.Node) -> bool:
    """Whether a node is a product whose backward matmuls are products too."""
    kind = kind_of(node)
    return kind is not None and kind.by_structure
