"""Find the matmuls of a joint graph, and for each one the two matmuls of its backward.

The forward matmul of `Y = X W^T` and its backward ones read, through any views:

    fprop   mm(X, W^T)                 or, transposed,  mm(W, X^T)
    dgrad   mm(dY, W)                  or               mm(W^T, dY^T)
    wgrad   mm(dY^T, X)                or               mm(X^T, dY)

A pairing is certain when exactly one dY is read together with W in one backward matmul and together with X in another.
Where several fit, autograd's sequence number decides if it points at exactly one; else the matmul is left alone.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from typing import NamedTuple

from torch import fx

from .._compat import GradOutput
from .graph import CASTS, VIEWS, Matrix, Values, aten, descendants, strip, tangents

MATMULS = (aten.mm.default, aten.addmm.default)
BATCHED = (aten.bmm.default, aten.baddbmm.default)

AMBIGUOUS = "its backward matmuls can't be told apart from others"


@dataclasses.dataclass(kw_only=True)
class MatmulSite:
    """A forward matmul, with its backward ones.

    index: position among all forward matmuls of the graph; it picks the seed.
    node:  computes `X W^T` as [M, N], or if `swapped`, `W X^T`.
    x, w:  the activation [M, K] and the weight [N, K], both logical; of two activations, the left and the right one.
    weight: the placeholder of the parameter; None if no operand comes from exactly one parameter.
    dgrad, wgrad: the backward matmuls, None where no gradient is needed; `*_transposed` if they compute dX^T or dW^T.
    dy: the gradient [M, N] that both read.
    problem: why the backward could not be paired; None if it was, or if there is none.
    """

    index: int
    node: fx.Node
    x: Matrix
    w: Matrix
    swapped: bool
    weight: fx.Node | None
    dgrad: fx.Node | None = None
    dgrad_transposed: bool = False
    wgrad: fx.Node | None = None
    wgrad_transposed: bool = False
    dy: Matrix | None = None
    problem: str | None = None

    @property
    def shape(self) -> tuple:
        """`(M, N, K)`, as ints or SymInts."""
        return self.x.shape[0], self.w.shape[0], self.x.shape[1]


class _Reader(NamedTuple):
    """A backward matmul `other @ operand`, or if `transposed`, its transpose."""

    node: fx.Node
    other: Matrix
    transposed: bool


def find_sites(graph: fx.Graph, parameters: set[fx.Node]) -> list[MatmulSite]:
    """Every forward `mm` and `addmm` of the graph, in order, paired with its backward matmuls.

    parameters: the placeholders that hold parameters.
    """
    values = Values()
    backward = descendants(tangents(graph))
    forward_nodes = [n for n in graph.nodes if n.target in MATMULS and n not in backward]
    sites = [_site(index, node, values, parameters) for index, node in enumerate(forward_nodes)]
    if backward:
        _pair(sites, [n for n in graph.nodes if n.target in MATMULS + BATCHED and n in backward], values, graph)
    return sites


def factors(node: fx.Node) -> tuple[fx.Node, fx.Node]:
    """The two operands that an `mm` or `addmm` multiplies."""
    return node.args[-2:]


def _site(index: int, node: fx.Node, values: Values, parameters: set[fx.Node]) -> MatmulSite:
    a, b = (values.matrix(operand) for operand in factors(node))
    from_parameter = [strip(operand.node) in parameters for operand in (a, b)]
    swapped = from_parameter == [True, False]
    x, w = (b.t, a) if swapped else (a, b.t)
    weight = strip(w.node) if from_parameter.count(True) == 1 else None
    return MatmulSite(index=index, node=node, x=x, w=w, swapped=swapped, weight=weight)


def _pair(sites: list[MatmulSite], backward: list[fx.Node], values: Values, graph: fx.Graph) -> None:
    readers = _index_readers(backward, values)
    reached = _gradients(graph)
    for site in sites:
        _pair_site(site, readers, reached)
    claims = defaultdict(list)
    for site in sites:
        for node in {site.dgrad, site.wgrad} - {None}:
            claims[node].append(site)
    for claimants in claims.values():
        if len(claimants) > 1:
            for site in claimants:
                _give_up(site)
    for site in sites:
        if site.problem is None and (site.dgrad is None or site.wgrad is None):
            _check_nothing_missed(site, backward, claims, values)


def _index_readers(backward: list[fx.Node], values: Values) -> dict[tuple, list[_Reader]]:
    """For each operand of a backward matmul, by key: who reads it, and with what."""
    readers = defaultdict(list)
    for node in backward:
        if node.target in MATMULS:
            a, b = (values.matrix(operand) for operand in factors(node))
            readers[b.key].append(_Reader(node, a, False))
            readers[a.t.key].append(_Reader(node, b.t, True))
    return readers


def _gradients(graph: fx.Graph) -> dict[fx.Node, set[int]]:
    """For each node, through views, casts and sums: the inputs (by position) whose gradient it becomes or joins."""
    (output,) = (node for node in graph.nodes if node.op == "output")
    descriptions = output.meta.get("desc") or ()
    results = output.args[0]
    placeholders = {node.meta.get("desc"): node for node in graph.nodes if node.op == "placeholder"}
    reached = defaultdict(set)
    for description, result in zip(descriptions, results, strict=False):
        if not isinstance(description, GradOutput) or not isinstance(result, fx.Node):
            continue
        source = placeholders.get(description.grad_of)
        stack = [result]
        while stack:
            node = stack.pop()
            if source in reached[node]:
                continue
            reached[node].add(source)
            if node.target in (*VIEWS, *CASTS):
                stack.append(node.args[0])
            elif node.target is aten.add.Tensor:
                stack.extend(arg for arg in node.args[:2] if isinstance(arg, fx.Node))
    return reached


def _pair_site(site: MatmulSite, readers: dict[tuple, list[_Reader]], reached: dict[fx.Node, set]) -> None:
    dgrads, wgrads = readers.get(site.w.key, []), readers.get(site.x.key, [])
    if site.weight is not None:
        own = [r for r in wgrads if site.weight in reached[r.node]]
        wgrads = own or wgrads
    pairs = [(d, w) for d in dgrads for w in wgrads if d.node is not w.node and d.other.key == w.other.t.key]
    if pairs:
        pairs = _only(pairs, site)
        if pairs is None:
            return _give_up(site)
        return _accept(site, *pairs)
    if dgrads and wgrads:
        return _give_up(site)
    if dgrads and not _has_gradient(site.weight, reached):
        dgrad = _only([(d,) for d in dgrads], site)
        return _accept(site, dgrad[0], None) if dgrad else _give_up(site)
    if dgrads:
        return _give_up(site)
    if wgrads:
        wgrad = _only([(w,) for w in wgrads], site)
        return _accept(site, None, wgrad[0]) if wgrad else _give_up(site)


def _has_gradient(weight: fx.Node | None, reached: dict[fx.Node, set]) -> bool:
    return any(weight in sources for sources in reached.values())


def _only(choices: list[tuple], site: MatmulSite) -> tuple | None:
    """The one choice, or the one whose nodes carry the site's sequence number."""
    if len(choices) > 1:
        number = site.node.meta.get("seq_nr")
        choices = [c for c in choices if all(r.node.meta.get("seq_nr") == number is not None for r in c)]
    return choices[0] if len(choices) == 1 else None


def _accept(site: MatmulSite, dgrad: _Reader | None, wgrad: _Reader | None) -> None:
    if dgrad is not None:
        site.dgrad, site.dgrad_transposed, site.dy = dgrad.node, dgrad.transposed, dgrad.other
    if wgrad is not None:
        site.wgrad, site.wgrad_transposed, site.dy = wgrad.node, wgrad.transposed, wgrad.other.t


def _give_up(site: MatmulSite) -> None:
    site.dgrad = site.wgrad = site.dy = None
    site.problem = AMBIGUOUS


def _check_nothing_missed(site: MatmulSite, backward: list[fx.Node], claims: dict, values: Values) -> None:
    """Without a dgrad (or a wgrad), no unexplained backward matmul may read the weight (or the activation)."""
    missing = [matrix for matrix, found in ((site.w, site.dgrad), (site.x, site.wgrad)) if found is None]
    roots = {values.root(matrix.node) for matrix in missing}
    for node in backward:
        if node in claims:
            continue
        operands = factors(node)
        if any(values.root(operand) in roots for operand in operands):
            return _give_up(site)
