"""Check a graph after each pass that rewrote it (spec.py): a site with a mistake stays in high precision, instead of being
trained on."""

from __future__ import annotations

from torch import fx

from .graph import VerifyError
from .spec import AT_THE_END, SPEC, Rewritten
from .work import Work


def verify(work: Work, finished: bool = False) -> None:
    """Raise `VerifyError` unless the graph is legal, with the row that says what is, the node at fault and its site.
    finished: the last pass has run, and the graph was checked after it."""
    graph = Rewritten(work)
    for row in AT_THE_END if finished else SPEC:
        for node, offence in row.offences(graph):
            where = f"{node.format_node()}{_site(work, node)}: " if node is not None else ""
            raise VerifyError(f"{where}{offence}; row {row.name!r}: {row.sentence}", node)


def _site(work: Work, node: fx.Node) -> str:
    index = work.build.author.get(node, work.replaced.get(node))
    names = [decision.name for decision in work.decisions if decision.site.index == index]
    return f", of the site {names[0]!r}" if names else ""
