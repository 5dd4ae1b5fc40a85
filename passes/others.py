"""Find the products that the pass never rewrites, so that the report has a line for each of them: those of activations,
attention, convolutions that are no product, and all that is inside of higher-order ops."""

from __future__ import annotations

import dataclasses

from torch import fx

from .graph import descendants, strip, tangents
from .plan import NESTED
from .products import BATCHED, CONVOLUTION, FALLBACK, GROUPED, MATMULS, factors, op_name
from .weights import ACTIVATIONS, Weights, without_weight
from .windows import unfolded_shape, windows


@dataclasses.dataclass(frozen=True)
class OtherProduct:
    """A product that is never rewritten; shape is `(M, N, K)` where it has one. weight: the parameter that it reads.
    inside: the node of the graph whose body it is in, if it is in one."""

    node: fx.Node
    kind: str
    shape: tuple
    weight: fx.Node | None
    reason: str
    inside: fx.Node | None = None


def find_others(graph: fx.Graph, weights: Weights) -> list[OtherProduct]:
    """Every forward product but `mm` and `addmm`: batched and grouped products, attention, convolutions, and each product
    of the bodies of higher-order ops."""
    backward = descendants(tangents(graph))
    found = []
    for node in graph.nodes:
        if node in backward:
            continue
        if _is_other(node):
            found.append(_other(node, weights))
        elif node.op == "get_attr" and not backward.issuperset(node.users):
            found += _inside(getattr(graph.owning_module, str(node.target), None), node)
    return found


def _inside(body: object, at: fx.Node) -> list[OtherProduct]:
    """The products of a body of a higher-order op; none of what isn't a graph."""
    if not isinstance(body, fx.GraphModule):
        return []
    found = []
    for node in body.graph.nodes:
        if node.op == "get_attr":
            found += _inside(getattr(body, str(node.target), None), at)
        elif node.target in MATMULS or _is_other(node):
            kind = op_name(node).partition("::")[2].lstrip("_")
            found.append(OtherProduct(node, kind, _shape(node), None, NESTED, at))
    return found


def _shape(node: fx.Node) -> tuple:
    if node.target is CONVOLUTION:
        return unfolded_shape(node)
    if node.target not in (*MATMULS, *BATCHED):
        return "", "", ""
    a, b = (operand.meta["val"].shape for operand in factors(node))
    return a[-2], b[-1], a[-1]


def _is_other(node: fx.Node) -> bool:
    name = op_name(node) or (str(node.target) if node.op == "call_function" else "")
    if name.startswith("quartet::"):
        return False
    known = node.target in (*BATCHED, *GROUPED) or name == FALLBACK
    return known or any(
        part in name
        for part in (
            "convolution",
            "dot_product",
            "grouped_mm",
            "_trilinear",
            "scaled_mm",
            "addbmm",
            "addmm_activation",
        )
    )


def _other(node: fx.Node, weights: Weights) -> OtherProduct:
    name = op_name(node).partition("::")[2].lstrip("_") or str(node.target)
    operands = [arg for arg in node.args if isinstance(arg, fx.Node)]
    weight = next((root for arg in operands if (root := strip(arg)) in weights.parameters), None)
    if node.target is CONVOLUTION:
        geometry = windows(node)
        reason = geometry.obstacle or f"{geometry.name} whose filters are no parameter"
        return OtherProduct(node, name, _shape(node), weight, reason)
    if node.target in BATCHED:
        return OtherProduct(node, name, _shape(node), weight, without_weight(*factors(node), weights))
    if "dot_product" in name or "flex_attention" in name:
        return OtherProduct(node, name, ("", "", ""), weight, f"attention: {ACTIVATIONS}")
    reason = f"{name}; only mm, bmm, grouped_mm and convolutions are rewritten" if weight else ACTIVATIONS
    return OtherProduct(node, name, ("", "", ""), weight, reason)
