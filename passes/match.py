"""Find the matmuls of a joint graph, and for each one the two matmuls of its backward.

The forward matmul of `Y = X W^T` and its backward ones read, through any views:

    fprop   mm(X, W^T)                 or, transposed,  mm(W, X^T)
    dgrad   mm(dY, W)                  or               mm(W^T, dY^T)
    wgrad   mm(dY^T, X)                or               mm(X^T, dY)

and the same of batched and grouped matmuls. A pairing is certain when exactly one dY is read together with W in one
backward matmul and together with X in another. Where several fit, autograd's sequence number decides if it points at
exactly one; else the matmul is left alone. A convolution has one backward op, which reads both.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from torch import fx

from .._compat import GradOutput, description_of, descriptions_of, gradient_of, sequence_number
from .graph import Matrix, Values, descendants, tangents
from .products import (
    BATCHED,
    CONVOLUTION,
    FALLBACK,
    MATMULS,
    PRODUCTS,
    backward_of,
    ends,
    factors,
    is_plain,
    op_name,
    output,
)
from .weights import Weights
from .windows import unfolded_shape, windows

AMBIGUOUS = "its backward matmuls can't be told apart from others"


@dataclasses.dataclass(kw_only=True)
class MatmulSite:
    """A forward matmul, with its backward ones.

    index: position among all forward matmuls of the graph; it picks the seed.
    node:  computes `X W^T` as [M, N], or if `swapped`, `W X^T`; of a batch, one for each matrix.
    x, w:  the activation [M, K] and the weight [N, K], both logical; of two activations, the left and the right one. Of a
           convolution, its input and its filters as they are.
    shape: `(M, N, K)`, as ints or SymInts; M counts the rows of all matrices of a batch.
    weight: the operand that comes from parameters, None if it isn't exactly one; sources: those parameters.
    dgrad, wgrad: the backward matmuls, None where no gradient is needed; `*_transposed` if they compute dX^T or dW^T.
    dy: the gradient [M, N] that both read.
    problem: why the backward could not be paired; None if it was, or if there is none.
    """

    index: int
    node: fx.Node
    x: Matrix
    w: Matrix
    shape: tuple
    swapped: bool = False
    weight: fx.Node | None = None
    sources: tuple[fx.Node, ...] = ()
    dgrad: fx.Node | None = None
    dgrad_transposed: bool = False
    wgrad: fx.Node | None = None
    wgrad_transposed: bool = False
    dy: Matrix | None = None
    problem: str | None = None

    @property
    def matrices(self) -> int:
        """How many weight matrices it has: 1, or the size of a batch or the number of groups."""
        return self.w.batch if self.node.target is not CONVOLUTION else 1

    @property
    def backward(self) -> list[fx.Node]:
        """The backward matmuls that there are."""
        return [node for node in (self.dgrad, self.wgrad) if node is not None]


class _Reader(NamedTuple):
    """A backward matmul `other @ operand`, or if `transposed`, its transpose."""

    node: fx.Node
    other: Matrix
    transposed: bool


def find_sites(graph: fx.Graph, weights: Weights) -> list[MatmulSite]:
    """Every forward `mm` and `addmm` of the graph, and the other products that have a weight, in order, paired with their
    backward matmuls."""
    values = Values()
    backward = descendants(tangents(graph))
    sites: list[MatmulSite] = []
    for node in graph.nodes:
        if node not in backward:
            site = _site(len(sites), node, values, weights)
            sites += [site] * (site is not None)
    if backward:
        by_structure = [site for site in sites if site.node.target in PRODUCTS]
        _pair(by_structure, [n for n in graph.nodes if n.target in PRODUCTS and n in backward], values, graph)
        _pair_by_op([site for site in sites if site.node.target not in PRODUCTS], values, graph)
    return sites


def _site(index: int, node: fx.Node, values: Values, weights: Weights) -> MatmulSite | None:
    if node.target is CONVOLUTION:
        return _convolution(index, node, values, weights)
    if not (node.target in PRODUCTS or op_name(node) == FALLBACK) or not is_plain(node):
        return None
    left, right = factors(node)
    weight = weights.pick(left, right)
    if node.target not in MATMULS:
        # a batch of activations is no site, nor is a grouped product whose one operand isn't a stack of weights
        if weight is None or node.target not in BATCHED and weight is not right:
            return None
    a, b = (values.matrix(operand) for operand in (left, right))
    swapped = weight is not None and weight is left
    x, w = (b.t, a) if swapped else (a, b.t)
    shape = (x.batch * x.shape[0], w.shape[0], x.shape[1])
    sources = weights.sources(weight) if weight is not None else ()
    return MatmulSite(index=index, node=node, x=x, w=w, shape=shape, swapped=swapped, weight=weight, sources=sources)


def _convolution(index: int, node: fx.Node, values: Values, weights: Weights) -> MatmulSite | None:
    x, w = node.args[:2]
    if weights.pick(x, w) is not w or windows(node).obstacle:
        return None
    return MatmulSite(
        index=index,
        node=node,
        x=values.whole(x),
        w=values.whole(w),
        shape=unfolded_shape(node),
        weight=w,
        sources=weights.sources(w),
    )


def _pair_by_op(sites: list[MatmulSite], values: Values, graph: fx.Graph) -> None:
    """Pair sites whose gradients are outputs of one op: the one with their number, or the only one that there is."""
    gradients = _Gradients(graph, [source for site in sites for source in site.sources])
    candidates = {site.index: backward_of(site.node, "_backward") for site in sites}
    taken: set[fx.Node] = set()
    for by_number in (True, False):
        for site in sites:
            found = [op for op in candidates[site.index] if op not in taken]
            if by_number:
                found = [op for op in found if _number(op) == _number(site.node)]
            rivals = [other for other in sites if other is not site and other.dy is None]
            contested = any(op in candidates[other.index] for op in found for other in rivals)
            if site.dy is None and len(found) == 1 and (by_number or not contested):
                _accept_op(site, found[0], values)
                taken.add(found[0])
    owned = {_number(op) for op in taken}
    for site in sites:
        if site.dy is not None:
            continue
        number, found = _number(site.node), candidates[site.index]
        without = number is not None and (number in owned or not gradients.has_number(site, number))
        if not taken.issuperset(found) or not found and gradients.reaches(site) and not without:
            _give_up(site)


def _accept_op(site: MatmulSite, op: fx.Node, values: Values) -> None:
    convolution = site.node.target is CONVOLUTION
    site.dgrad, site.wgrad, site.wgrad_transposed = output(op, 0), output(op, 1), not convolution
    site.dy = values.whole(op.args[0]) if convolution else values.matrix(op.args[3])


def _pair(sites: list[MatmulSite], backward: list[fx.Node], values: Values, graph: fx.Graph) -> None:
    readers = _index_readers(backward, values)
    gradients = _Gradients(graph, [source for site in sites for source in site.sources])
    taken: set[fx.Node] = set()
    for site in sites:
        _pair_by_number(site, sites, readers, gradients, taken)
        taken.update(site.backward)
    for pair in (_pair_both, _pair_one):
        for site in sites:
            if site.dy is None and site.problem is None:
                pair(site, readers, gradients, taken)
        taken = {node for site in sites for node in site.backward}
    claims = defaultdict(list)
    for site in sites:
        for node in site.backward:
            claims[node].append(site)
    for claimants in claims.values():
        if len(claimants) > 1:
            for site in claimants:
                _give_up(site)
    for site in sites:
        if site.problem is None and (site.dgrad is None or site.wgrad is None):
            _check_nothing_missed(site, backward, claims, values)


def _index_readers(backward: list[fx.Node], values: Values) -> dict[tuple, list[_Reader]]:
    """For each operand of a backward matmul, by key: who reads it, and with what. Of grouped matmuls, with which ends."""
    readers = defaultdict(list)
    for node in backward:
        a, b = (values.matrix(operand) for operand in factors(node))
        readers[b.key, ends(node)].append(_Reader(node, a, False))
        readers[a.t.key, ends(node)].append(_Reader(node, b.t, True))
    return readers


class _Gradients:
    """Which of some inputs get a gradient, and which matmuls it is computed by last.

    A graph that doesn't describe its outputs tells nothing: then every input counts as one that may get a gradient.
    """

    def __init__(self, graph: fx.Graph, inputs: Iterable[fx.Node]) -> None:
        (output,) = (node for node in graph.nodes if node.op == "output")
        descriptions = descriptions_of(output)
        self.known = descriptions is not None
        self._backward = descendants(tangents(graph))
        self._ends_in: dict[fx.Node, set[fx.Node]] = defaultdict(set)
        self._differentiated: set[fx.Node] = set()
        sources = {description_of(node): node for node in inputs}
        for description, result in zip(descriptions or (), output.args[0], strict=False):
            source = sources.get(gradient_of(description))
            if isinstance(description, GradOutput) and isinstance(result, fx.Node) and source is not None:
                self._follow(result, source)

    def reaches(self, site: MatmulSite) -> bool:
        """Whether the site's weight gets a gradient."""
        return not self.known or any(source in self._differentiated for source in site.sources)

    def ends_in(self, node: fx.Node, site: MatmulSite) -> bool:
        """Whether no other matmul comes between this one and the gradient of a parameter of the site's weight."""
        return not self._ends_in[node].isdisjoint(site.sources)

    def may_end_in(self, node: fx.Node, site: MatmulSite) -> bool:
        """The same, as far as is known."""
        return not self.known or self.ends_in(node, site)

    def has_number(self, site: MatmulSite, number: int | None) -> bool:
        """Whether the backward of this sequence number goes into the gradient of the site's weight, as far as is known."""
        return not self.known or any(_number(n) == number and self.ends_in(n, site) for n in self._backward)

    def _follow(self, result: fx.Node, source: fx.Node) -> None:
        self._differentiated.add(source)
        stack = [result]
        while stack:
            node = stack.pop()
            if source not in self._ends_in[node]:
                self._ends_in[node].add(source)
                if node.target not in PRODUCTS:
                    stack.extend(node.all_input_nodes)


def _pair_by_number(
    site: MatmulSite,
    sites: list[MatmulSite],
    readers: dict[tuple, list[_Reader]],
    gradients: _Gradients,
    taken: set[fx.Node],
) -> None:
    """Pair a site with the matmuls that carry its sequence number, where they tell it from all others.

    Of sites with the same operands and number, it is the first one's: autograd counts when it records a matmul, and what
    is computed next without gradient (`no_grad`, a teacher) has the number of what was recorded last.
    """
    number = _number(site.node)
    dgrads, wgrads = (
        [r for r in found if _number(r.node) == number is not None and r.node not in taken]
        for found in (readers.get((site.w.key, ends(site.node)), []), _wgrads(site, readers, gradients))
    )
    pairs = _of_one_gradient(dgrads, wgrads)
    same = [other for other in sites if _number(other.node) == number and other is not site]
    if len(pairs) == 1:
        _accept(site, *pairs[0])
    elif len(wgrads) == 1 and not dgrads:
        rivals = [other for other in same if other.x.key == site.x.key and other.w.key != site.w.key]
        if not any(gradients.may_end_in(wgrads[0].node, other) for other in rivals):
            _accept(site, None, wgrads[0])
    elif len(dgrads) == 1 and not wgrads and site.weight is not None:
        rivals = [other for other in same if other.w.key == site.w.key and other.x.key != site.x.key]
        if not rivals and not (gradients.reaches(site) and gradients.has_number(site, number)):
            _accept(site, dgrads[0], None)


def _of_one_gradient(dgrads: list[_Reader], wgrads: list[_Reader]) -> list[tuple[_Reader, _Reader]]:
    """The dgrads and wgrads that read one dY."""
    return [(d, w) for d in dgrads for w in wgrads if d.node is not w.node and d.other.key == w.other.t.key]


def _pair_both(
    site: MatmulSite, readers: dict[tuple, list[_Reader]], gradients: _Gradients, taken: set[fx.Node]
) -> None:
    """Pair a site whose dgrad and wgrad read one dY."""
    dgrads = [r for r in readers.get((site.w.key, ends(site.node)), []) if r.node not in taken]
    wgrads = [r for r in _wgrads(site, readers, gradients) if r.node not in taken]
    pairs = _of_one_gradient(dgrads, wgrads)
    if pairs:
        pair = _only(pairs, site)
        _give_up(site) if pair is None else _accept(site, *pair)


def _pair_one(
    site: MatmulSite, readers: dict[tuple, list[_Reader]], gradients: _Gradients, taken: set[fx.Node]
) -> None:
    """Pair a site that has only a dgrad (its weight is frozen) or only a wgrad (its input needs no gradient)."""
    dgrads = [r for r in readers.get((site.w.key, ends(site.node)), []) if r.node not in taken]
    wgrads = [r for r in _wgrads(site, readers, gradients) if r.node not in taken]
    if dgrads and (wgrads or gradients.reaches(site)):
        return _give_up(site)
    if dgrads or wgrads:
        found = _only([(reader,) for reader in dgrads or wgrads], site)
        if found is None:
            return _give_up(site)
        _accept(site, *((found[0], None) if dgrads else (None, found[0])))


def _wgrads(site: MatmulSite, readers: dict[tuple, list[_Reader]], gradients: _Gradients) -> list[_Reader]:
    """The backward matmuls that read X; those that end in the gradient of the site's own weight, where that is known."""
    found = readers.get((site.x.key, ends(site.node)), [])
    if site.weight is None:
        return found
    if not gradients.reaches(site):
        return []
    return [reader for reader in found if gradients.ends_in(reader.node, site)] or found


def _only(choices: list[tuple], site: MatmulSite) -> tuple | None:
    """The one choice, or the one whose nodes carry the site's sequence number."""
    if len(choices) > 1:
        number = _number(site.node)
        choices = [c for c in choices if all(_number(r.node) == number is not None for r in c)]
    return choices[0] if len(choices) == 1 else None


def _number(node: fx.Node) -> int | None:
    """Autograd's sequence number, which a forward op and its backward have in common."""
    return sequence_number(node)


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
