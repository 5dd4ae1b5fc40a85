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

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from torch import fx

from .._compat import GradOutput, description_of, descriptions_of, gradient_of, sequence_number
from .graph import Matrix, Values, backward_of
from .packed import described_input, whole
from .products import is_paired_by_structure, kind_of
from .reads import read_of
from .site import MatmulSite
from .weights import Weights
from .work import Work

AMBIGUOUS = "its backward matmuls can't be told apart from others"
ELEMENTWISE = "M is 1, and torch computes the gradient of its weight by elementwise products"


class _Reader(NamedTuple):
    """A backward matmul `other @ operand`, or if `transposed`, its transpose."""

    node: fx.Node
    other: Matrix
    transposed: bool


def apply(work: Work) -> None:
    """Find the sites of a graph."""
    work.backward = frozenset(backward_of(work.graph))
    work.sites = find_sites(work.graph, work.weights, work.backward)


def find_sites(graph: fx.Graph, weights: Weights, backward: frozenset[fx.Node]) -> list[MatmulSite]:
    """Every forward `mm` and `addmm` of the graph, and the other products that have a weight, in order, paired with their
    backward matmuls. backward: what depends on a gradient."""
    values = Values()
    sites: list[MatmulSite] = []
    for node in graph.nodes:
        kind = kind_of(node) if node not in backward else None
        site = kind.site(len(sites), node, values, weights) if kind else None
        if site is not None and weights.packed:
            site.packed = whole(values, site.w)
        if site is not None:
            site.read = read_of(site)
            sites.append(site)
    if backward:
        gradients = _Gradients(graph, [source for site in sites for source in site.sources], backward)
        by_structure = [site for site in sites if site.kind.by_structure]
        _pair(by_structure, [n for n in graph.nodes if n in backward and is_paired_by_structure(n)], values, gradients)
        _pair_by_op([site for site in sites if not site.kind.by_structure], values, gradients)
    return sites


def _pair_by_op(sites: list[MatmulSite], values: Values, gradients: _Gradients) -> None:
    """Pair sites whose gradients are outputs of one op: the one with their number, or the only one that there is."""
    candidates = {site.index: site.kind.backward_ops(site.node) for site in sites}
    taken: set[fx.Node] = set()
    for by_number in (True, False):
        for site in sites:
            found = [op for op in candidates[site.index] if op not in taken]
            if by_number:
                found = [op for op in found if sequence_number(op) == sequence_number(site.node)]
            rivals = [other for other in sites if other is not site and other.dy is None]
            contested = any(op in candidates[other.index] for op in found for other in rivals)
            if site.dy is None and len(found) == 1 and (by_number or not contested):
                site.kind.accept(site, found[0], values)
                taken.add(found[0])
    owned = {sequence_number(op) for op in taken}
    for site in sites:
        if site.dy is not None:
            continue
        number, found = sequence_number(site.node), candidates[site.index]
        without = number is not None and (number in owned or not gradients.hassequence_number(site, number))
        if not taken.issuperset(found) or (not found and gradients.reaches(site) and not without):
            _give_up(site)


def _pair(sites: list[MatmulSite], backward: list[fx.Node], values: Values, gradients: _Gradients) -> None:
    readers = _index_readers(backward, values)
    taken: set[fx.Node] = set()
    for site in sites:
        _pair_bysequence_number(site, sites, readers, gradients, taken)
        taken.update(site.backward)
    for pair in (_pair_both, _pair_one):
        for site in sites:
            if site.dy is None and site.problem is None:
                pair(site, readers, gradients, taken)
        taken = {node for site in sites for node in site.backward}
    for site in sites:
        rows = site.x.shape[0]
        if site.wgrad is None and isinstance(rows, int) and rows == 1 and gradients.trains(site):
            _give_up(site, ELEMENTWISE)
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
        kind = kind_of(node)
        (a, b), ends = (values.matrix(operand) for operand in kind.factors(node)), kind.ends(node)
        readers[b.key, ends].append(_Reader(node, a, False))
        readers[a.t.key, ends].append(_Reader(node, b.t, True))
    return readers


class _Gradients:
    """Which of some inputs get a gradient, and which matmuls it is computed by last.

    A graph that doesn't describe its outputs tells nothing: then every input counts as one that may get a gradient.
    """

    def __init__(self, graph: fx.Graph, inputs: Iterable[fx.Node], backward: frozenset[fx.Node]) -> None:
        (output,) = (node for node in graph.nodes if node.op == "output")
        descriptions = descriptions_of(output)
        self.known = descriptions is not None
        self._backward = backward
        self._ends_in: dict[fx.Node, set[fx.Node]] = defaultdict(set)
        self._differentiated: set[fx.Node] = set()
        sources = {description_of(described_input(node)): node for node in inputs}
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

    def hassequence_number(self, site: MatmulSite, number: int | None) -> bool:
        """Whether the backward of this sequence number goes into the gradient of the site's weight, as far as is known."""
        return not self.known or any(sequence_number(n) == number and self.ends_in(n, site) for n in self._backward)

    def trains(self, site: MatmulSite) -> bool:
        """Whether this very product, not only another one of its weight, is known to go into the weight's gradient."""
        number = sequence_number(site.node)
        return self.known and self.reaches(site) and number is not None and self.hassequence_number(site, number)

    def _follow(self, result: fx.Node, source: fx.Node) -> None:
        self._differentiated.add(source)
        stack = [result]
        while stack:
            node = stack.pop()
            if source not in self._ends_in[node]:
                self._ends_in[node].add(source)
                if not is_paired_by_structure(node):
                    stack.extend(node.all_input_nodes)


def _pair_bysequence_number(
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
    number = sequence_number(site.node)
    dgrads, wgrads = (
        [r for r in found if sequence_number(r.node) == number is not None and r.node not in taken]
        for found in (_dgrads(site, readers), _wgrads(site, readers, gradients))
    )
    pairs = _of_one_gradient(dgrads, wgrads)
    same = [other for other in sites if sequence_number(other.node) == number and other is not site]
    if len(pairs) == 1:
        _accept(site, *pairs[0])
    elif len(wgrads) == 1 and not dgrads:
        rivals = [other for other in same if other.x.key == site.x.key and other.w.key != site.w.key]
        if not any(gradients.may_end_in(wgrads[0].node, other) for other in rivals):
            _accept(site, None, wgrads[0])
    elif len(dgrads) == 1 and not wgrads and site.weight is not None:
        rivals = [other for other in same if other.w.key == site.w.key and other.x.key != site.x.key]
        if not rivals and not (gradients.reaches(site) and gradients.hassequence_number(site, number)):
            _accept(site, dgrads[0], None)


def _of_one_gradient(dgrads: list[_Reader], wgrads: list[_Reader]) -> list[tuple[_Reader, _Reader]]:
    """The dgrads and wgrads that read one dY."""
    return [(d, w) for d in dgrads for w in wgrads if d.node is not w.node and d.other.key == w.other.t.key]


def _pair_both(
    site: MatmulSite, readers: dict[tuple, list[_Reader]], gradients: _Gradients, taken: set[fx.Node]
) -> None:
    """Pair a site whose dgrad and wgrad read one dY."""
    dgrads = [r for r in _dgrads(site, readers) if r.node not in taken]
    wgrads = [r for r in _wgrads(site, readers, gradients) if r.node not in taken]
    pairs = _of_one_gradient(dgrads, wgrads)
    if pairs:
        pair = _only(pairs, site)
        _give_up(site) if pair is None else _accept(site, *pair)


def _pair_one(
    site: MatmulSite, readers: dict[tuple, list[_Reader]], gradients: _Gradients, taken: set[fx.Node]
) -> None:
    """Pair a site that has only a dgrad (its weight is frozen) or only a wgrad (its input needs no gradient)."""
    dgrads = [r for r in _dgrads(site, readers) if r.node not in taken]
    wgrads = [r for r in _wgrads(site, readers, gradients) if r.node not in taken]
    if dgrads and (wgrads or gradients.reaches(site)):
        _give_up(site)
    elif dgrads or wgrads:
        found = _only([(reader,) for reader in dgrads or wgrads], site)
        if found is None:
            _give_up(site)
        else:
            _accept(site, *((found[0], None) if dgrads else (None, found[0])))


def _dgrads(site: MatmulSite, readers: dict[tuple, list[_Reader]]) -> list[_Reader]:
    """The backward matmuls that read W."""
    return readers.get((site.w.key, site.kind.ends(site.node)), [])


def _wgrads(site: MatmulSite, readers: dict[tuple, list[_Reader]], gradients: _Gradients) -> list[_Reader]:
    """The backward matmuls that read X; those that end in the gradient of the site's own weight, where that is known."""
    found = readers.get((site.x.key, site.kind.ends(site.node)), [])
    if site.weight is None:
        return found
    if not gradients.reaches(site):
        return []
    return [reader for reader in found if gradients.ends_in(reader.node, site)] or found


def _only(choices: list[tuple], site: MatmulSite) -> tuple | None:
    """The one choice, or the one whose nodes carry the site's sequence number."""
    if len(choices) > 1:
        number = sequence_number(site.node)
        choices = [c for c in choices if all(sequence_number(r.node) == number is not None for r in c)]
    return choices[0] if len(choices) == 1 else None


def _accept(site: MatmulSite, dgrad: _Reader | None, wgrad: _Reader | None) -> None:
    if dgrad is not None:
        site.dgrad, site.dgrad_transposed, site.dy = dgrad.node, dgrad.transposed, dgrad.other
    if wgrad is not None:
        site.wgrad, site.wgrad_transposed, site.dy = wgrad.node, wgrad.transposed, wgrad.other.t


def _give_up(site: MatmulSite, why: str = AMBIGUOUS) -> None:
    site.dgrad = site.wgrad = site.dy = None
    site.problem = why


def _check_nothing_missed(site: MatmulSite, backward: list[fx.Node], claims: dict, values: Values) -> None:
    """Without a dgrad (or a wgrad), no unexplained backward matmul may read the weight (or the activation)."""
    missing = [matrix for matrix, found in ((site.w, site.dgrad), (site.x, site.wgrad)) if found is None]
    roots = {values.root(matrix.node) for matrix in missing}
    for node in backward:
        if node in claims:
            continue
        if any(values.root(operand) in roots for operand in kind_of(node).factors(node)):
            _give_up(site)
            return
