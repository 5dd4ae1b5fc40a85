"""One quantize for each distinct operand: X for q, k and v, and for gate and up; W once.

q, k and v each have their own view of X, so the key is the value that the view reads (`Matrix.key`), not the node.
Operands of different activation checkpoints are not shared: the partitioner recomputes each by itself.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch
from torch import fx

from .._compat import recomputation
from ..kernels.quantizer import Quantizer
from .graph import Builder, Matrix

quartet = torch.ops.quartet


class Quantized(NamedTuple):
    """The nodes of a quantized operand, in the order in which products take them; and its trust mask."""

    codes: fx.Node
    scales: fx.Node
    tensor_scale: fx.Node
    format: str
    mask: fx.Node | None = None


@dataclasses.dataclass
class Operands:
    """The quantized operands of the forward GEMMs of one graph, each made at its first use.

    masked: keys of the operands whose gradient needs a trust mask.
    """

    build: Builder
    masked: set[tuple]

    def __post_init__(self) -> None:
        self._made: dict[tuple, Quantized] = {}

    def forward(self, operand: Matrix, quantizer: Quantizer, stream: int, like: fx.Node) -> Quantized:
        """The quantized operand of a forward GEMM; a new one is placed where the graph inserts now."""
        key = (operand.key, quantizer, *recomputation(like))
        found = self._made.get(key)
        if found is None:
            masked = operand.key in self.masked
            node = self.build.call(
                like,
                quartet.quantize.default,
                operand.node,
                quantizer.name,
                operand.transposed,
                masked,
                stream,
                None,
                None,
            )
            codes, scales, tensor_scale, mask = self.build.outputs(node)
            found = self._made[key] = Quantized(codes, scales, tensor_scale, quantizer.format, mask if masked else None)
        return found
