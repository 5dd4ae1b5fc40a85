"""What a rewritten graph computes: its products, and what each of their quantized operands was made of."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from torch import fx

from ..config.recipe import Recipe
from ..kernels.numerics import philox
from ..kernels.quantizer import Quantizer, quantizer
from ..kernels.schemas import (
    SCHEMAS,
    Operand,
    Quantize,
    QuantizePair,
    Requantize,
    ScaledGroupedMM,
    ScaledMM,
    Transposed,
    arguments_of,
    operands_of,
)
from .graph import Builder
from .rows import origin
from .share import quartet
from .site import MatmulSite, quantized

QUANTIZING = ("quantize", "quantize_pair", "requantize", "transposed")
"""The ops that give codes, scales and a tensor scale."""


class Traced(NamedTuple):
    """A quantized operand, traced back to the matrix that it stands for.

    blocks: its nodes, with the format in which they are read. made: the op that made them.
    matrix: the high-precision node that it stands for, or if `transposed`, whose transpose.
    quantizer: its name. stream: None where the op draws nothing. seed, sign_seed: None where the quantizer needs none.
    source: the operand of whose codes it was made; None if of the matrix itself.
    """

    blocks: Operand | Requantize | Transposed
    made: fx.Node
    matrix: fx.Node
    transposed: bool
    quantizer: str
    stream: int | None = None
    seed: fx.Node | None = None
    sign_seed: fx.Node | None = None
    source: Traced | None = None

    @property
    def spec(self) -> Quantizer:
        """The quantizer."""
        return quantizer(self.quantizer)


class Product(NamedTuple):
    """A rewritten GEMM. call: its arguments. result: what it gave, brought back from the rotated space. operands: in the
    order of the recipe, X and W, or the gradient and the other."""

    site: MatmulSite
    role: str
    node: fx.Node
    call: ScaledMM | ScaledGroupedMM
    result: fx.Node
    operands: tuple[Traced, Traced]


def trace(
    blocks: Operand | Requantize | Transposed,
    packed: fx.Node | None = None,
    arguments: Callable[[fx.Node], Any] = arguments_of,
) -> Traced:
    """Where an operand comes from. packed: the site's packed weight, whose codes nothing in the graph makes. arguments:
    those of a node of ours; whoever asks often can hand on a memory of them."""
    codes = origin(blocks.codes)
    if packed is not None and codes.target is not operator.getitem:
        return Traced(blocks, packed, packed, False, arguments(packed).quantizer, philox.FPROP_W)
    made, index = codes.args
    call = arguments(made)
    if isinstance(call, Quantize):
        drawn = call.stream, call.seed, call.sign_seed
        return Traced(blocks, made, call.x, call.transpose, call.quantizer, *drawn)
    if isinstance(call, QuantizePair):
        if SCHEMAS["quantize_pair"].results[index] == "column_codes":
            return Traced(
                blocks, made, call.dy, True, call.column_quantizer, philox.WGRAD_DY, call.seed, call.sign_seed
            )
        return Traced(blocks, made, call.dy, False, call.row_quantizer, philox.DGRAD_DY, call.seed, call.seed)
    source = trace(call, packed, arguments)
    how = source.matrix, not source.transposed, call.quantizer
    if isinstance(call, Requantize):
        return Traced(blocks, made, *how, call.stream, call.seed, call.sign_seed, source)
    return Traced(blocks, made, *how, source=source)


def product_nodes(build: Builder, site: MatmulSite, recipe: Recipe) -> Iterator[tuple[str, fx.Node, fx.Node]]:
    """The products that were made for a site so far: each with its role, and the matmul whose place it takes."""
    for role, replaced in quantized(site, recipe).items():
        node = build.made.get((replaced, quartet.scaled_mm.default))
        node = node or build.made.get((replaced, quartet.scaled_grouped_mm.default))
        if node is not None:
            yield role, node, replaced


def products(
    build: Builder, site: MatmulSite, recipe: Recipe, arguments: Callable[[fx.Node], Any] = arguments_of
) -> Iterator[Product]:
    """The same, traced back. arguments: as for `trace`."""
    for role, node, replaced in product_nodes(build, site, recipe):
        call = arguments(node)
        first, second = (trace(operand, site.packed, arguments) for operand in operands_of(call))
        if first.stream == philox.FPROP_W:  # W X^T
            first, second = second, first
        result = build.made.get((replaced, quartet.unrotate.default), node)
        yield Product(site, role, node, call, result, (first, second))
