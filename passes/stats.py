"""Statistics inside the graph, for `stats=True`: a step after the rewriting, which adds nodes and changes no other.

Before:  codes, scales, ts = quantize(x, q)               g = scaled_mm(dy, wt)
After:   codes, scales, ts = quantize(x, q)               g = scaled_mm(dy, wt)
         scales' = observe(x, codes, scales, ts, q)       g' = observe_gradient(g, dY, W^T)

An op writes one row of the graph's table and returns a copy of `scales` (of `g`), which every reader now reads instead:
so nothing removes it as dead code, and it needs no effect token. Legal because the copy has the same bits; and a
recomputed op writes the same row again. dY, W and X of a gradient are what they were before any quantization, so X and W
are saved for the backward pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import fx

from ..config.recipe import Recipe
from ..kernels.schemas import (
    Observe,
    ObserveGradient,
    ObserveRequantized,
    Requantize,
    ScaledGroupedMM,
    arguments_of,
    op_of,
)
from ..report.report import Observed
from .graph import Builder
from .rewritten import Product, Traced, products
from .share import quartet
from .site import MatmulSite
from .work import Work

OPERANDS = {"fprop": ("X", "W"), "dgrad": ("dY", "W^T"), "wgrad": ("dY^T", "X^T")}
GRADIENTS = {"dgrad": "dX", "wgrad": "dW"}
TRANSPOSED = "the codes of fprop, transposed as they are"
UNMEASURED = {
    "transposed": TRANSPOSED,
    "decode": "the codes of a packed weight, as they are",
    "gathered": "the codes that ranks gathered, as they are",
}
"""The ops whose operands have no row of their own, and why."""


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
    made = [product for site in sites for product in products(build, site, recipes[site.index])]
    row_of = _rows(made)
    observed = []
    for product in made:
        described = dict(matmul=measure.names[product.site.index], gemm=product.role)
        gemm = getattr(recipes[product.site.index], product.role)
        labels = zip(product.operands, OPERANDS[product.role], (gemm.a.name, gemm.b.name), strict=True)
        for operand, letter, quantizer in labels:
            row = row_of.get(operand.blocks.codes)
            reason = UNMEASURED[op_of(operand.made)] if row is None else ""
            observed.append(Observed(**described, operand=letter, quantizer=quantizer, row=row, reason=reason))
        if product.role in GRADIENTS:
            observed.append(Observed(**described, operand=GRADIENTS[product.role], row=row_of[product.result]))
    places = {node: (measure.graph, row, len(row_of)) for node, row in row_of.items()}
    for product in made:
        for operand in product.operands:
            if operand.blocks.codes in places:
                _observe_operand(build, operand, places.pop(operand.blocks.codes))
        if product.role in GRADIENTS:
            _observe_gradient(build, product, places.pop(product.result))
    return tuple(observed)


def _rows(made: list[Product]) -> dict[fx.Node, int]:
    """A row for each operand, by its codes, and for each gradient. Codes that are taken as they are have none."""
    nodes = {}
    for product in made:
        for operand in product.operands:
            if op_of(operand.made) not in UNMEASURED:
                nodes[operand.blocks.codes] = None
        if product.role in GRADIENTS:
            nodes[product.result] = None
    return {node: row for row, node in enumerate(nodes)}


def _observe_operand(build: Builder, operand: Traced, place: tuple[str, int, int]) -> None:
    made, blocks = arguments_of(operand.made), operand.blocks
    codes, scales, tensor_scale = blocks.codes, blocks.scales, blocks.tensor_scale
    how = (codes, scales, tensor_scale, operand.quantizer, operand.stream, operand.sign_seed, *place)
    with build.graph.inserting_after(tensor_scale):  # the last of the three
        if isinstance(made, Requantize):
            source = (made.codes, made.scales, made.tensor_scale, made.source)
            copy = build.call(scales, quartet.observe_requantized.default, *ObserveRequantized(*source, *how))
        else:
            copy = build.call(scales, quartet.observe.default, *Observe(operand.matrix, operand.transposed, *how))
    build.divert(scales, copy)


def _observe_gradient(build: Builder, product: Product, place: tuple[str, int, int]) -> None:
    a, b = product.operands
    call, result = product.call, product.result
    grouped = (call.ends, call.matrices, call.gemm) if isinstance(call, ScaledGroupedMM) else (None, 1, "")
    how = ObserveGradient(result, a.matrix, a.transposed, b.matrix, b.transposed, *grouped, *place)
    with build.graph.inserting_after(result):
        copy = build.call(result, quartet.observe_gradient.default, *how)
    build.divert(result, copy)
