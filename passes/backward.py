"""Rewrite the backward matmuls of each site that its recipe quantizes. Under `quartet` they read the saved codes:

Before:  dx = mm(dy, w)                          dw = mm(dy^T, x)
After:   dyr, dyc = quantize_pair(dy)            both directions from one read, fresh signs and noise
         wt = requantize(wq)                     the transpose of the saved codes, rotated along N
         xt = requantize(xq)                     the same along M, shared between the sites that share X
         dx = scaled_mm(dyr, wt), unrotated where the mask of x lets it pass
         dw = scaled_mm(dyc, xt), unrotated where the mask of w lets it pass

Other recipes quantize W^T or X^T from the tensor itself, or use the codes of square blocks transposed as they are.

Legal because both operands of each GEMM are rotated by the same signs along its contraction dimension, and what is
left, the rotation of the forward pass along K of an operand made of codes, is undone by the product's epilogue (arXiv
2505.14669, algorithm 1).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from torch import fx

from .._compat import recomputation
from ..config.recipe import Recipe
from ..kernels.numerics import philox
from ..kernels.quantizer import Quantizer
from ..kernels.schemas import Epilogue
from .graph import Builder, Matrix, aten
from .noise import drawn_alike
from .saved import Saved
from .share import Quantized, quartet
from .site import MatmulSite
from .work import Work


def apply(work: Work) -> None:
    """Rewrite the backward matmuls of each chosen site. Seeds are as many as sites, kept ones too, so that keeping one more
    doesn't change the noise of the others."""
    rewrite_backward(work.chosen, work.saved, work.recipes, work.build, len(work.sites), drawn_alike(work))


def rewrite_backward(
    sites: list[MatmulSite],
    saved: Mapping[int, Saved],
    recipes: Mapping[int, Recipe],
    build: Builder,
    seeds: int,
    shared_by: tuple[str, ...],
) -> None:
    """Rewrite the backward matmuls of every site in place. seeds: length of the seed vector, one for each site;
    shared_by: the process groups whose ranks draw the same seeds."""
    order = {node: position for position, node in enumerate(build.graph.nodes)}
    jobs = [_Job.of(site, saved[site.index], recipes[site.index]) for site in sites]
    jobs = sorted((job for job in jobs if job.nodes), key=lambda job: min(order[node] for node in job.nodes))
    if not jobs:
        return
    first_of_x: dict[tuple, int] = {}
    for job in sorted(jobs, key=lambda job: job.site.index):
        if job.wgrad is not None:
            first_of_x.setdefault(job.x_value, job.site.index)
    rewriter = _Rewriter(build, order, first_of_x)
    if any(job.seeded for job in jobs):
        rewriter.draw_seeds(jobs[0].nodes, seeds, shared_by)
    for job in jobs:
        build.working_on = job.site.index
        rewriter.rewrite(job)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Job:
    """The backward of one site: dgrad, wgrad are the matmuls to be rewritten, None for one that isn't."""

    site: MatmulSite
    saved: Saved
    recipe: Recipe
    dgrad: fx.Node | None
    wgrad: fx.Node | None

    @classmethod
    def of(cls, site: MatmulSite, saved: Saved, recipe: Recipe) -> _Job:
        dgrad = site.dgrad if recipe.dgrad else None
        return cls(site=site, saved=saved, recipe=recipe, dgrad=dgrad, wgrad=site.wgrad if recipe.wgrad else None)

    @property
    def nodes(self) -> list[fx.Node]:
        return [node for node in (self.dgrad, self.wgrad) if node is not None]

    @property
    def seeded(self) -> bool:
        """Whether any of its quantizers needs a seed."""
        gemms = [self.recipe.dgrad] * (self.dgrad is not None) + [self.recipe.wgrad] * (self.wgrad is not None)
        return any(quantizer.seeded for gemm in gemms for quantizer in (gemm.a, gemm.b))

    def epilogue(self, role: str, operand: Quantized | None) -> Epilogue | None:
        """What takes away what the codes of fprop leave in a gradient: their rotation, and what `operand` clipped."""
        mask = operand.mask if operand is not None else None
        if mask is None and self.recipe.source(role) == "original":
            return None
        rotation = self.recipe.fprop.a.rotation
        return Epilogue(mask, rotation, self.site.shape[2]) if rotation or mask is not None else None

    @property
    def x_value(self) -> tuple:
        """What X^T is made of and how: its values, wherever they are computed."""
        codes = None if self.recipe.x_from == "original" else self.recipe.fprop.a
        return self.saved.x_original.key, codes, self.recipe.x_from, self.recipe.wgrad.b

    @property
    def x_key(self) -> tuple:
        """The same in one recomputation: sites with the same key share the nodes."""
        return *self.x_value, *recomputation(self.site.node)


@dataclasses.dataclass
class _Rewriter:
    """order: position of each node. first_of_x: by the value of X^T, the first site that reads it; its seed gives the
    signs of wgrad, which every dY that meets this X must use. Recomputations don't count, so that they change no
    noise."""

    build: Builder
    order: dict[fx.Node, int]
    first_of_x: dict[tuple, int]

    def __post_init__(self) -> None:
        self._vector: fx.Node | None = None
        self._seeds: dict[int, fx.Node] = {}
        self._transposed_x: dict[tuple, Quantized] = {}

    def draw_seeds(self, nodes: list[fx.Node], count: int, shared_by: tuple[str, ...]) -> None:
        """One vector of seeds a backward pass; it stays in the backward graph, so no two passes share noise."""
        node = min(nodes, key=self.order.__getitem__)
        with self.build.graph.inserting_before(node):
            device = node.meta["val"].device
            self._vector = self.build.call(
                node, quartet.seed.default, count, device, list(shared_by), backward_only=True
            )

    def rewrite(self, job: _Job) -> None:
        first = min(job.nodes, key=self.order.__getitem__)
        site, form, recipe = job.site, job.saved.form, job.recipe
        with self.build.graph.inserting_before(first):
            seed = self._seed(site.index, first) if job.seeded else None
            x_seed = seed
            if job.seeded and job.wgrad is not None:
                x_seed = self._seed(self.first_of_x[job.x_value], first)
            dy = form.dy(first)
            rows, columns = self._quantize_dy(job, dy, first, seed, x_seed)
        if job.dgrad is not None:
            with self.build.graph.inserting_before(job.dgrad):
                wt = self._second(job, "dgrad", job.dgrad, seed)
                epilogue = job.epilogue("dgrad", job.saved.x)
                product = form.dgrad(rows, wt, recipe.dgrad, epilogue)
                self.build.replace(job.dgrad, form.dx(self._cropped(job, job.dgrad, product)))
        if job.wgrad is not None:
            with self.build.graph.inserting_before(job.wgrad):
                if job.x_key not in self._transposed_x:
                    self._transposed_x[job.x_key] = self._second(job, "wgrad", job.wgrad, x_seed)
                epilogue = job.epilogue("wgrad", job.saved.w)
                product = form.wgrad(columns, self._transposed_x[job.x_key], recipe.wgrad, epilogue)
                self.build.replace(job.wgrad, form.dw(self._cropped(job, job.wgrad, product)))
        form.finish(dy)

    def _seed(self, index: int, like: fx.Node) -> fx.Node:
        if index not in self._seeds:
            self._seeds[index] = self.build.call(like, aten.select.int, self._vector, 0, index, backward_only=True)
        return self._seeds[index]

    def _second(self, job: _Job, role: str, like: fx.Node, seed: fx.Node | None) -> Quantized:
        """W^T of dgrad or X^T of wgrad, from what the recipe says."""
        saved, recipe = job.saved, job.recipe
        if role == "dgrad":
            codes, original, stream = saved.w, saved.w_original, philox.DGRAD_W
        else:
            codes, original, stream = saved.x, saved.x_original, philox.WGRAD_X
        after, source = getattr(recipe, role).b, recipe.source(role)
        match source:
            case "original":
                return self._quantize(like, original.t, after, stream, seed, seed)
            case "codes":
                node = self.build.call(like, quartet.transposed.default, *codes[:3], after.name)
            case "requantized":
                before = recipe.fprop.b if role == "dgrad" else recipe.fprop.a
                seeds = (seed, seed) if after.seeded else (None, None)
                how = (before.name, after.name, stream, *seeds)
                node = self.build.call(like, quartet.requantize.default, *codes[:3], *how)
            case _:
                raise NotImplementedError(f"no pass makes an operand of {source!r}, an entry of SOURCES")
        return Quantized(*self.build.outputs(node), after.format)

    def _quantize_dy(
        self, job: _Job, dy: Matrix, like: fx.Node, seed: fx.Node | None, x_seed: fx.Node | None
    ) -> tuple[Quantized | None, Quantized | None]:
        dgrad = job.recipe.dgrad.a if job.dgrad is not None else None
        wgrad = job.recipe.wgrad.a if job.wgrad is not None else None
        if dgrad and wgrad and not dy.transposed and (dgrad.seeded or wgrad.seeded):
            node = self.build.call(like, quartet.quantize_pair.default, dy.node, dgrad.name, wgrad.name, seed, x_seed)
            outputs = self.build.outputs(node)
            return Quantized(*outputs[:3], dgrad.format), Quantized(*outputs[3:], wgrad.format)
        return (
            self._quantize(like, dy, dgrad, philox.DGRAD_DY, seed, seed) if dgrad else None,
            self._quantize(like, dy.t, wgrad, philox.WGRAD_DY, seed, x_seed) if wgrad else None,
        )

    def _quantize(
        self,
        like: fx.Node,
        x: Matrix,
        quantizer: Quantizer,
        stream: int,
        seed: fx.Node | None,
        sign_seed: fx.Node | None,
    ) -> Quantized:
        seeds = (seed, sign_seed) if quantizer.seeded else (None, None)
        node = self.build.call(
            like, quartet.quantize.default, x.node, quantizer.name, x.transposed, False, stream, *seeds
        )
        return Quantized(*self.build.outputs(node)[:3], quantizer.format)

    def _cropped(self, job: _Job, like: fx.Node, product: fx.Node) -> fx.Node:
        """The product without the padding that the codes of fprop left in it."""
        columns = job.site.shape[2]
        if product.meta["val"].shape[1] == columns:
            return product
        return self.build.call(like, aten.slice.Tensor, product, 1, 0, columns)
