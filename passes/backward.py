"""Rewrite the two backward matmuls of each site, which then read the saved codes instead of X and W.

Before:  dx = mm(dy, w)                          dw = mm(dy^T, x)
After:   dyr, dyc = quantize_pair(dy)            both directions from one read, fresh signs and noise
         wt = requantize(wq)                     the transpose of the saved codes, rotated along N
         xt = requantize(xq)                     the same along M, shared between the sites that share X
         dx = unrotate(scaled_mm(dyr, wt), mask of x)
         dw = unrotate(scaled_mm(dyc, xt), mask of w)

Legal because both operands of each GEMM are rotated by the same signs along its contraction dimension, and what is
left, the rotation of the forward pass along K, is undone by `unrotate` (arXiv 2505.14669, algorithm 1).
"""

from __future__ import annotations

import dataclasses

from torch import fx

from ..formats import Quantizer
from ..kernels import philox
from ..recipe import Recipe
from .forward import Saved
from .graph import Builder, Matrix, aten
from .match import MatmulSite
from .share import Quantized, quartet


def rewrite_backward(
    sites: list[MatmulSite],
    saved: dict[int, Saved],
    recipe: Recipe,
    build: Builder,
    seeds: int,
    shared_by: tuple[str, ...],
) -> None:
    """Rewrite the backward matmuls of every site in place. seeds: length of the seed vector, one for each site;
    shared_by: the process groups whose ranks draw the same seeds."""
    order = {node: position for position, node in enumerate(build.graph.nodes)}
    sites = sorted((s for s in sites if s.backward), key=lambda s: min(order[n] for n in s.backward))
    if not sites:
        return
    first_of_x: dict[fx.Node, int] = {}
    for index in sorted(saved):
        first_of_x.setdefault(saved[index].x.codes, index)
    rewriter = _Rewriter(build, recipe, order, saved, first_of_x)
    rewriter.draw_seeds(sites[0], seeds, shared_by)
    for site in sites:
        rewriter.rewrite(site)


@dataclasses.dataclass
class _Rewriter:
    """order: position of each node. first_of_x: by the codes of X, the first site that shares them; its seed gives the
    signs of wgrad, which every dY that meets this X must use."""

    build: Builder
    recipe: Recipe
    order: dict[fx.Node, int]
    saved: dict[int, Saved]
    first_of_x: dict[fx.Node, int]

    def __post_init__(self) -> None:
        self._seeds: dict[int, fx.Node] = {}
        self._transposed_x: dict[fx.Node, Quantized] = {}

    def draw_seeds(self, first: MatmulSite, count: int, shared_by: tuple[str, ...]) -> None:
        """One vector of seeds a backward pass; it stays in the backward graph, so no two passes share noise."""
        node = min(first.backward, key=self.order.__getitem__)
        with self.build.graph.inserting_before(node):
            device = node.meta["val"].device
            self._vector = self.build.call(
                node, quartet.seed.default, count, device, list(shared_by), backward_only=True
            )

    def rewrite(self, site: MatmulSite) -> None:
        nodes = sorted(site.backward, key=self.order.__getitem__)
        saved = self.saved[site.index]
        form, x, w = saved.form, saved.x, saved.w
        with self.build.graph.inserting_before(nodes[0]):
            seed = self._seed(site.index, nodes[0])
            x_seed = self._seed(self.first_of_x[x.codes], nodes[0])
            dy = form.dy(nodes[0])
            rows, columns = self._quantize_dy(site, dy, nodes[0], seed, x_seed)
        if site.dgrad is not None:
            with self.build.graph.inserting_before(site.dgrad):
                wt = self._requantize(site.dgrad, w, self.recipe.fprop.b, self.recipe.dgrad.b, philox.DGRAD_W, seed)
                product = form.dgrad(rows, wt, self.recipe.dgrad)
                self.build.replace(site.dgrad, form.dx(self._unrotate(site, site.dgrad, product, x.mask)))
        if site.wgrad is not None:
            with self.build.graph.inserting_before(site.wgrad):
                xt = self._x_transposed(x, site.wgrad, x_seed)
                product = form.wgrad(columns, xt, self.recipe.wgrad)
                self.build.replace(site.wgrad, form.dw(self._unrotate(site, site.wgrad, product, w.mask)))
        form.finish(dy)

    def _seed(self, index: int, like: fx.Node) -> fx.Node:
        if index not in self._seeds:
            self._seeds[index] = self.build.call(like, aten.select.int, self._vector, 0, index, backward_only=True)
        return self._seeds[index]

    def _x_transposed(self, x: Quantized, like: fx.Node, seed: fx.Node) -> Quantized:
        """The re-quantized X^T, one for all sites that share X."""
        if x.codes not in self._transposed_x:
            self._transposed_x[x.codes] = self._requantize(
                like, x, self.recipe.fprop.a, self.recipe.wgrad.b, philox.WGRAD_X, seed
            )
        return self._transposed_x[x.codes]

    def _requantize(
        self, like: fx.Node, source: Quantized, before: Quantizer, after: Quantizer, stream: int, seed: fx.Node
    ) -> Quantized:
        node = self.build.call(
            like, quartet.requantize.default, *source[:3], before.name, after.name, stream, seed, seed
        )
        return Quantized(*self.build.outputs(node))

    def _quantize_dy(
        self, site: MatmulSite, dy: Matrix, like: fx.Node, seed: fx.Node, x_seed: fx.Node
    ) -> tuple[Quantized | None, Quantized | None]:
        dgrad, wgrad = self.recipe.dgrad.a, self.recipe.wgrad.a
        if site.dgrad is None:
            return None, self._quantize(like, dy.t, wgrad, philox.WGRAD_DY, seed, x_seed)
        if site.wgrad is None:
            return self._quantize(like, dy, dgrad, philox.DGRAD_DY, seed, seed), None
        if dy.transposed:
            return (
                self._quantize(like, dy, dgrad, philox.DGRAD_DY, seed, seed),
                self._quantize(like, dy.t, wgrad, philox.WGRAD_DY, seed, x_seed),
            )
        node = self.build.call(like, quartet.quantize_pair.default, dy.node, dgrad.name, wgrad.name, seed, x_seed)
        outputs = self.build.outputs(node)
        return Quantized(*outputs[:3]), Quantized(*outputs[3:])

    def _quantize(
        self, like: fx.Node, dy: Matrix, quantizer: Quantizer, stream: int, seed: fx.Node, sign_seed: fx.Node
    ) -> Quantized:
        node = self.build.call(
            like, quartet.quantize.default, dy.node, quantizer.name, dy.transposed, False, stream, seed, sign_seed
        )
        return Quantized(*self.build.outputs(node)[:3])

    def _unrotate(self, site: MatmulSite, like: fx.Node, product: fx.Node, mask: fx.Node | None) -> fx.Node:
        rotation, columns = self.recipe.fprop.a.rotation, site.shape[2]
        return self.build.call(like, quartet.unrotate.default, product, mask, rotation, columns)
