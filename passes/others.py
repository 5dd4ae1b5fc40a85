"""Find the products that the pass never rewrites, so that the report has a line for each of them."""

from __future__ import annotations

import dataclasses

from torch import fx

from .graph import descendants, strip, tangents
from .products import BATCHED, CONVOLUTION, FALLBACK, GROUPED, factors, op_name
from .weights import ACTIVATIONS, Weights, without_weight
from .windows import windows

NOT_ONE = "only a convolution whose windows don't overlap is one matrix product"


@dataclasses.dataclass(frozen=True)
class OtherProduct:
    """A product that is never rewritten; shape is `(M, N, K)` where it has one. weight: the parameter that it reads."""

    node: fx.Node
    kind: str
    shape: tuple
    weight: fx.Node | None
    reason: str


def find_others(graph: fx.Graph, weights: Weights) -> list[OtherProduct]:
    """Every forward product but `mm` and `addmm`: batched and grouped products, attention, convolutions."""
    backward = descendants(tangents(graph))
    return [_other(node, weights) for node in graph.nodes if node not in backward and _is_other(node)]


def _is_other(node: fx.Node) -> bool:
    name = op_name(node)
    if name.startswith("quartet::"):
        return False
    known = node.target in (*BATCHED, *GROUPED) or name == FALLBACK
    return known or any(
        part in name for part in ("convolution", "dot_product", "grouped_mm", "_trilinear", "scaled_mm")
    )


def _other(node: fx.Node, weights: Weights) -> OtherProduct:
    name = op_name(node).partition("::")[2].lstrip("_")
    operands = [arg for arg in node.args if isinstance(arg, fx.Node)]
    weight = next((root for arg in operands if (root := strip(arg)) in weights.parameters), None)
    if node.target is CONVOLUTION:
        obstacle = windows(node).obstacle
        reason = f"{obstacle}; {NOT_ONE}" if obstacle else "a convolution whose filters are no parameter"
        return OtherProduct(node, name, ("", "", ""), weight, reason)
    if node.target in BATCHED:
        a, b = factors(node)
        (m, k), n = a.meta["val"].shape[-2:], b.meta["val"].shape[-1]
        return OtherProduct(node, name, (m, n, k), weight, without_weight(a, b, weights))
    if "dot_product" in name:
        return OtherProduct(node, name, ("", "", ""), weight, f"attention: {ACTIVATIONS}")
    reason = f"{name}; only mm, bmm, grouped_mm and convolutions are rewritten" if weight else ACTIVATIONS
    return OtherProduct(node, name, ("", "", ""), weight, reason)
