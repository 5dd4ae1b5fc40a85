"""Convolutions, transposed ones too: a product of unfolded windows (windows.py), where they have one group.

convolution              X is unfolded, dX folded
transposed convolution   Y is folded, dY unfolded
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from torch import fx

from ...config.recipe import Gemm
from ..graph import Matrix, Values, aten
from ..share import Quantized
from ..site import MatmulSite
from ..weights import Weights
from .form import Form, scaled_mm
from .kind import Kind, gradients_of, output
from .windows import channels_first, channels_last, fold, unfold, unfolded_shape, windows


class Convolution(Kind):
    """`aten.convolution`; its one backward op gives both gradients, and that of its bias."""

    operands: ClassVar = {aten.convolution.default: slice(0, 2)}
    by_structure = False

    def shape(self, node: fx.Node) -> tuple:
        return unfolded_shape(node)

    def site(self, index: int, node: fx.Node, values: Values, weights: Weights) -> MatmulSite | None:
        x, w = self.factors(node)
        if weights.pick(x, w) is not w or windows(node).obstacle:
            return None
        return MatmulSite(
            index=index,
            node=node,
            kind=self,
            x=values.whole(x),
            w=values.whole(w),
            shape=unfolded_shape(node),
            weight=w,
            sources=weights.sources(w),
        )

    def accept(self, site: MatmulSite, op: fx.Node, values: Values) -> None:
        site.dgrad, site.wgrad, site.dy = gradients_of(op, values.whole(op.args[0]))

    def unprofitable(self, site: MatmulSite) -> str | None:
        return windows(site.node).unprofitable

    def form(self, site: MatmulSite) -> type[Form]:
        return Transposed if windows(site.node).transposed else Filters

    def noun(self, site: MatmulSite) -> str:
        return windows(site.node).name.removeprefix("a ")

    def reason(self, node: fx.Node, weights: Weights) -> str:
        geometry = windows(node)
        return geometry.obstacle or f"{geometry.name} whose filters are no parameter"


@dataclasses.dataclass
class Filters(Form):
    """A convolution: X is unfolded and dX folded, Y and dY have their channels last."""

    def __post_init__(self) -> None:
        self.windows = windows(self.site.node)

    def x(self) -> Matrix:
        return self._unfolded(self.site.x)

    def w(self) -> Matrix:
        like, w = self.site.node, self.site.w
        shape = [self.windows.filters, -1]
        return self._once(("filters", w.key), lambda: self.build.call(like, aten.reshape.default, w.node, shape))

    def dy(self, like: fx.Node) -> Matrix:
        return self.values.matrix(channels_last(self.build, like, self.site.dy.node))

    def fprop(self, x: Quantized, w: Quantized, gemm: Gemm) -> fx.Node:
        like, bias = self.site.node, self.site.node.args[2]
        y = scaled_mm(self.build, like, x, w, gemm)
        if bias is not None:
            y = self.build.call(like, aten.add.Tensor, y, bias)
        return channels_first(self.build, like, y, self.windows)

    def dx(self, result: fx.Node) -> fx.Node:
        return fold(self.build, self.site.dgrad, result, self.windows)

    def dw(self, result: fx.Node) -> fx.Node:
        shape = list(self.site.wgrad.meta["val"].shape)
        return self.build.call(self.site.wgrad, aten.reshape.default, result, shape)

    def finish(self, dy: Matrix) -> None:
        bias = output(self.site.backward[0].args[0], 2)
        if bias is not None:
            gradient = self.site.dy.node
            dims = [dim for dim in range(gradient.meta["val"].dim()) if dim != 1]
            with self.build.graph.inserting_before(bias):
                self.build.replace(bias, self.build.call(bias, aten.sum.dim_IntList, gradient, dims))

    def _unfolded(self, operand: Matrix) -> Matrix:
        like, key = self.site.node, ("unfolded", operand.key, self.windows.read)
        return self._once(key, lambda: unfold(self.build, like, operand.node, self.windows))


@dataclasses.dataclass
class Transposed(Filters):
    """A transposed convolution: Y is folded and dY unfolded, X and dX have their channels last."""

    def x(self) -> Matrix:
        like, x = self.site.node, self.site.x
        return self._once(("channels last", x.key), lambda: channels_last(self.build, like, x.node))

    def w(self) -> Matrix:
        return super().w().t

    def dy(self, like: fx.Node) -> Matrix:
        return self.values.matrix(unfold(self.build, like, self.site.dy.node, self.windows))

    def fprop(self, x: Quantized, w: Quantized, gemm: Gemm) -> fx.Node:
        like, bias = self.site.node, self.site.node.args[2]
        y = fold(self.build, like, scaled_mm(self.build, like, x, w, gemm), self.windows)
        if bias is None:
            return y
        bias = self.build.call(like, aten.reshape.default, bias, [-1, *[1] * len(self.windows.size)])
        return self.build.call(like, aten.add.Tensor, y, bias)

    def dx(self, result: fx.Node) -> fx.Node:
        return channels_first(self.build, self.site.dgrad, result, self.windows)

    def dw(self, result: fx.Node) -> fx.Node:
        return super().dw(self.build.call(self.site.wgrad, aten.permute.default, result, [1, 0]))
