"""Find the products that the pass never rewrites, so that the report has a line for each of them."""

from __future__ import annotations

import dataclasses

from torch import fx

from .._compat import OpOverload
from .graph import descendants, strip, tangents
from .match import BATCHED, factors


@dataclasses.dataclass(frozen=True)
class OtherProduct:
    """A product that is never rewritten; shape is `(M, N, K)` where it has one."""

    node: fx.Node
    kind: str
    shape: tuple
    weight: fx.Node | None


def find_others(graph: fx.Graph, parameters: set[fx.Node]) -> list[OtherProduct]:
    """Every forward product that is not an `mm` or `addmm`: batched products, attention, convolutions."""
    backward = descendants(tangents(graph))
    return [_other(node, parameters) for node in graph.nodes if node not in backward and _is_other(node)]


def _is_other(node: fx.Node) -> bool:
    name = node.target._schema.name if isinstance(node.target, OpOverload) else ""
    return node.target in BATCHED or "convolution" in name or "dot_product" in name or "grouped_mm" in name


def _other(node: fx.Node, parameters: set[fx.Node]) -> OtherProduct:
    name = node.target._schema.name.partition("::")[2]
    operands = [arg for arg in node.args if isinstance(arg, fx.Node)]
    weight = next((root for arg in operands if (root := strip(arg)) in parameters), None)
    if node.target in BATCHED:
        a, b = (operand.meta["val"].shape for operand in factors(node))
        return OtherProduct(node, "batched product", (a[1], b[2], a[2]), weight)
    return OtherProduct(node, "attention" if "dot_product" in name else name.lstrip("_"), ("", "", ""), weight)
