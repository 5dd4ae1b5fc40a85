"""Check a rewritten graph before it goes on: a mistake here stops the compilation instead of training on it."""

from __future__ import annotations

from torch import fx

from .._compat import OpOverload
from .graph import VerifyError, descendants, tangents


def verify(graph: fx.Graph, replaced: list[fx.Node]) -> None:
    """Raise `VerifyError` unless the graph is legal and none of the replaced nodes is left."""
    graph.lint()
    left = set(replaced) & set(graph.nodes)
    if left:
        raise VerifyError(f"replaced matmuls are still in the graph: {[n.format_node() for n in left]}")
    backward = descendants(tangents(graph))
    for node in graph.nodes:
        if not (isinstance(node.target, OpOverload) and node.target.namespace == "quartet"):
            continue
        if "val" not in node.meta:
            raise VerifyError(f"{node.format_node()} has no fake value")
        if node in backward and node.meta.get("partitioner_tag") == "is_forward":
            raise VerifyError(f"{node.format_node()} reads a gradient and is tagged as a forward node")
