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
    gradients = _Gradients(graph)
    for site in sites:
        _pair_both(site, readers, gradients)
    taken = {node for site in sites for node in (site.dgrad, site.wgrad)}
    for site in sites:
        if site.dy is None and site.problem is None:
            _pair_one(site, readers, gradients, taken)
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


class _Gradients:
    """Which inputs get a gradient, and which node becomes it, through views, casts and sums.

    A graph that doesn't describe its outputs tells nothing: then every input counts as one that may get a gradient.
    """

    def __init__(self, graph: fx.Graph) -> None:
        (output,) = (node for node in graph.nodes if node.op == "output")
        descriptions = output.meta.get("desc")
        self.known = descriptions is not None
        self._ends_in: dict[fx.Node, set[fx.Node]] = defaultdict(set)
        self._differentiated: set[fx.Node] = set()
        sources = {node.meta.get("desc"): node for node in graph.nodes if node.op == "placeholder"}
        for description, result in zip(descriptions or (), output.args[0], strict=False):
            if isinstance(description, GradOutput) and isinstance(result, fx.Node):
                self._follow(result, sources.get(description.grad_of))

    def reaches(self, weight: fx.Node) -> bool:
        """Whether this input gets a gradient."""
        return not self.known or weight in self._differentiated

    def ends_in(self, node: fx.Node, weight: fx.Node) -> bool:
        """Whether the node is the gradient of this input, or a summand of it."""
        return weight in self._ends_in[node]

    def _follow(self, result: fx.Node, source: fx.Node) -> None:
        self._differentiated.add(source)
        stack = [result]
        while stack:
            node = stack.pop()
            if source in self._ends_in[node]:
                continue
            self._ends_in[node].add(source)
            if node.target in (*VIEWS, *CASTS):
                stack.append(node.args[0])
            elif node.target is aten.add.Tensor:
                stack.extend(arg for arg in node.args[:2] if isinstance(arg, fx.Node))


def _pair_both(site: MatmulSite, readers: dict[tuple, list[_Reader]], gradients: _Gradients) -> None:
    """Pair a site whose dgrad and wgrad read one dY."""
    wgrads = _wgrads(site, readers, gradients)
    dgrads = readers.get(site.w.key, [])
    pairs = [(d, w) for d in dgrads for w in wgrads if d.node is not w.node and d.other.key == w.other.t.key]
    if pairs:
        pair = _only(pairs, site)
        _give_up(site) if pair is None else _accept(site, *pair)


def _pair_one(
    site: MatmulSite, readers: dict[tuple, list[_Reader]], gradients: _Gradients, taken: set[fx.Node]
) -> None:
    """Pair a site that has only a dgrad (its weight is frozen) or only a wgrad (its input needs no gradient)."""
    dgrads = [r for r in readers.get(site.w.key, []) if r.node not in taken]
    wgrads = [r for r in _wgrads(site, readers, gradients) if r.node not in taken]
    if dgrads and (wgrads or gradients.reaches(site.weight)):
        return _give_up(site)
    if dgrads or wgrads:
        found = _only([(reader,) for reader in dgrads or wgrads], site)
        if found is None:
            return _give_up(site)
        _accept(site, *((found[0], None) if dgrads else (None, found[0])))


def _wgrads(site: MatmulSite, readers: dict[tuple, list[_Reader]], gradients: _Gradients) -> list[_Reader]:
    """The backward matmuls that read X; those that end in the gradient of the site's own weight, where that is known."""
    found = readers.get(site.x.key, [])
    if site.weight is None:
        return found
    if not gradients.reaches(site.weight):
        return []
    return [reader for reader in found if gradients.ends_in(reader.node, site.weight)] or found


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
