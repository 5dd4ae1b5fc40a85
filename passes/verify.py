"""Check a rewritten graph before it goes on: a site with a mistake stays in high precision, instead of being trained on."""

from __future__ import annotations

from torch import fx

from .._compat import OpOverload, is_tagged_forward
from .graph import VerifyError, descendants, tangents


def verify(graph: fx.Graph, replaced: list[fx.Node]) -> None:
    """Raise `VerifyError` unless the graph is legal and nothing reads the replaced nodes any more."""
    graph.lint()
    for node in replaced:
        if node.users:
            raise VerifyError(f"a replaced matmul is still read: {node.format_node()}", node)
    backward = descendants(tangents(graph))
    for node in graph.nodes:
        if not (isinstance(node.target, OpOverload) and node.target.namespace == "quartet"):
            continue
        if "val" not in node.meta:
            raise VerifyError(f"{node.format_node()} has no fake value", node)
        if node in backward and is_tagged_forward(node):
            raise VerifyError(f"{node.format_node()} reads a gradient and is tagged as a forward node", node)
