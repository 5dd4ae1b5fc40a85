"""Check a graph after each pass that rewrote it: a site with a mistake stays in high precision, instead of being trained
on."""

from __future__ import annotations

from .._compat import OpOverload, is_tagged_forward
from .graph import VerifyError, descendants, tangents
from .work import Work


def verify(work: Work, complete: bool) -> None:
    """Raise `VerifyError` unless the graph is legal. complete: all passes have run."""
    graph, replaced = work.graph, work.build.replaced
    graph.lint()
    for node in work.replaced if complete else replaced:
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
