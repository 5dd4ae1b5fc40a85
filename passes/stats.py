"""Statistics inside the graph, for `stats=True`: a step after the rewriting, which adds nodes and changes no other.

Before:  codes, scales, ts = quantize(x, q)               g = unrotate(scaled_mm(dy, wt))
After:   codes, scales, ts = quantize(x, q)               g = unrotate(scaled_mm(dy, wt))
         scales' = observe(x, codes, scales, ts, q)       g' = observe_gradient(g, dY, W^T)

An op writes one row of the graph's table and returns a copy of `scales` (of `g`), which every reader now reads instead:
so nothing removes it as dead code, and it needs no effect token. Legal because the copy has the same bits; and a
recomputed op writes the same row again. dY, W and X of a gradient are what they were before any quantization, so X and W
are saved for the backward pass.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from torch import fx

from ..config.recipe import Recipe
from ..kernels.numerics import philox
from ..kernels.schemas import (
    SCHEMAS,
    Observe,
    ObserveGradient,
    ObserveRequantized,
    Operand,
    QuantizePair,
    Requantize,
    ScaledGroupedMM,
    Transposed,
    arguments_of,
    op_of,
    operands_of,
)
from ..report.report import Observed
from .graph import Builder
from .share import quartet
from .site import MatmulSite, quantized
from .work import Work

OPERANDS = {"fprop": ("X", "W"), "dgrad": ("dY", "W^T"), "wgrad": ("dY^T", "X^T")}
GRADIENTS = {"dgrad": "dX", "wgrad": "dW"}
TRANSPOSED = "the codes of fprop, transposed as they are"


@dataclasses.dataclass(frozen=True)
class _Operand:
    """A quantized operand: its blocks; the op that made them; and the high-precision matrix that
    they were made of, which is `source` or the transpose of it."""

    blocks: Operand
    made: fx.Node
    source: fx.Node
    transposed: bool


@dataclasses.dataclass(frozen=True)
class _Product:
    """A rewritten GEMM. result: what it gave, brought back from the rotated space. operands: each with its letter and
    its quantizer."""

    site: MatmulSite
    role: str
    node: fx.Node
    result: fx.Node
    operands: tuple[tuple[_Operand, str, str], ...]


class Measure(NamedTuple):
    """Where the statistics go: the key of the graph's table, and the names of its sites by their index."""

    graph: str
    names: Mapping[int, str]


def apply(work: Work) -> None:
    """Make the graph measure itself, if the policy asks for it."""
    if work.policy.stats:
        names = {decision.site.index: decision.name for decision in work.decisions}
        work.observed = observe(work.build, work.chosen, work.recipes, Measure(work.table, names))


def observe(
    build: Builder, sites: list[MatmulSite], recipes: Mapping[int, Recipe], measure: Measure
) -> tuple[Observed, ...]:
    """Make a rewritten graph measure its operands and gradients. Returns what the rows of its table are of; operands that
    several matmuls share have one row."""
    products = [product for site in sites for product in _products(build, site, recipes[site.index])]
    row_of = _rows(products)
    observed = []
    for product in products:
        described = dict(matmul=measure.names[product.site.index], gemm=product.role)
        for operand, letter, quantizer in product.operands:
            row = row_of.get(operand.blocks.codes)
            reason = TRANSPOSED if row is None else ""
            observed.append(Observed(**described, operand=letter, quantizer=quantizer, row=row, reason=reason))
        if product.role in GRADIENTS:
            observed.append(Observed(**described, operand=GRADIENTS[product.role], row=row_of[product.result]))
    places = {node: (measure.graph, row, len(row_of)) for node, row in row_of.items()}
    for product in products:
        for operand, _, _ in product.operands:
            if operand.blocks.codes in places:
                _observe_operand(build, operand, places.pop(operand.blocks.codes))
        if product.role in GRADIENTS:
            _observe_gradient(build, product, places.pop(product.result))
    return tuple(observed)


def _products(build: Builder, site: MatmulSite, recipe: Recipe) -> Iterator[_Product]:
    """The GEMMs of a site."""
    for role, replaced in quantized(site, recipe).items():
        node = build.made.get((replaced, quartet.scaled_mm.default))
        node = node or build.made[replaced, quartet.scaled_grouped_mm.default]
        result = build.made.get((replaced, quartet.unrotate.default), node)
        gemm = getattr(recipe, role)
        made = map(_operand, operands_of(arguments_of(node)))
        operands = zip(made, OPERANDS[role], (gemm.a.name, gemm.b.name), strict=True)
        yield _Product(site, role, node, result, tuple(operands))


def _operand(blocks: Operand | Requantize | Transposed) -> _Operand:
    """What the argument of a product is, from the op that made it."""
    made, index = blocks.codes.args
    call, op = arguments_of(made), op_of(made)
    if op == "quantize":
        return _Operand(blocks, made, call.x, call.transpose)
    if op == "quantize_pair":
        return _Operand(blocks, made, call.dy, SCHEMAS[op].results[index] == "column_codes")
    source = _operand(call)
    return _Operand(blocks, made, source.source, not source.transposed)


def _rows(products: list[_Product]) -> dict[fx.Node, int]:
    """A row for each operand, by its codes, and for each gradient. Codes that were transposed as they are have none."""
    nodes = {}
    for product in products:
        for operand, _, _ in product.operands:
            if op_of(operand.made) != "transposed":
                nodes[operand.blocks.codes] = None
        if product.role in GRADIENTS:
            nodes[product.result] = None
    return {node: row for row, node in enumerate(nodes)}


def _observe_operand(build: Builder, operand: _Operand, place: tuple[str, int, int]) -> None:
    made, blocks = arguments_of(operand.made), operand.blocks
    codes, scales, tensor_scale = blocks.codes, blocks.scales, blocks.tensor_scale
    how = (codes, scales, tensor_scale, *_rounding(operand), *place)
    with build.graph.inserting_after(tensor_scale):  # the last of the three
        if isinstance(made, Requantize):
            source = (made.codes, made.scales, made.tensor_scale, made.source)
            copy = build.call(scales, quartet.observe_requantized.default, *ObserveRequantized(*source, *how))
        else:
            copy = build.call(scales, quartet.observe.default, *Observe(operand.source, operand.transposed, *how))
    _substitute(scales, copy)


def _rounding(operand: _Operand) -> tuple[str, int, fx.Node | None]:
    """Quantizer, stream and seed of the signs of an operand."""
    made = arguments_of(operand.made)
    if not isinstance(made, QuantizePair):
        return made.quantizer, made.stream, made.sign_seed
    if operand.transposed:
        return made.column_quantizer, philox.WGRAD_DY, made.sign_seed
    return made.row_quantizer, philox.DGRAD_DY, made.seed


def _observe_gradient(build: Builder, product: _Product, place: tuple[str, int, int]) -> None:
    (a, *_), (b, *_) = product.operands
    call, result = arguments_of(product.node), product.result
    grouped = (call.ends, call.matrices, call.gemm) if isinstance(call, ScaledGroupedMM) else (None, 1, "")
    how = ObserveGradient(result, a.source, a.transposed, b.source, b.transposed, *grouped, *place)
    with build.graph.inserting_after(result):
        copy = build.call(result, quartet.observe_gradient.default, *how)
    _substitute(result, copy)


def _substitute(node: fx.Node, copy: fx.Node) -> None:
    """Give the readers of a node its copy."""
    node.replace_all_uses_with(copy, delete_user_cb=lambda user: user is not copy)
