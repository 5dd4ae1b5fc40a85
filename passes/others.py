"""Find the products that the pass never rewrites, so that the report has a line for each of them: those of activations,
attention, convolutions that are no product, and all that is inside of higher-order ops."""

from __future__ import annotations

from torch import fx

from .graph import backward_of
from .plan import NESTED
from .products import PLAIN, kind_of
from .products.kind import only_known, op_name, parameter_of
from .site import OtherProduct
from .weights import ACTIVATIONS, Weights
from .work import Work


def apply(work: Work) -> None:
    """Find the products that are never rewritten."""
    work.others = find_others(work.graph, work.weights)


def find_others(graph: fx.Graph, weights: Weights) -> list[OtherProduct]:
    """Every forward product but `mm` and `addmm`: batched and grouped products, attention, convolutions, and each product
    of the bodies of higher-order ops."""
    backward = backward_of(graph)
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
        elif kind_of(node) is PLAIN or _is_other(node):
            kind = op_name(node).partition("::")[2].lstrip("_")
            found.append(OtherProduct(node, kind, _shape(node), None, NESTED, at))
    return found


def _shape(node: fx.Node) -> tuple:
    kind = kind_of(node)
    return kind.shape(node) if kind else ("", "", "")


_NAMES = (
    "convolution",
    "dot_product",
    "grouped_mm",
    "_trilinear",
    "scaled_mm",
    "addbmm",
    "addmm_activation",
)
"""Parts of the names of other ops that multiply matrices."""


def _is_other(node: fx.Node) -> bool:
    kind = kind_of(node)
    if kind is not None:
        return kind is not PLAIN
    name = op_name(node) or (str(node.target) if node.op == "call_function" else "")
    return not name.startswith("quartet::") and any(part in name for part in _NAMES)


def _other(node: fx.Node, weights: Weights) -> OtherProduct:
    kind, name = kind_of(node), op_name(node).partition("::")[2].lstrip("_") or str(node.target)
    if kind is not None:
        reason = kind.reason(node, weights)
    elif "dot_product" in name or "flex_attention" in name:
        reason = f"attention: {ACTIVATIONS}"
    else:
        reason = only_known(node, weights)
    return OtherProduct(node, name, _shape(node), parameter_of(node, weights), reason)
