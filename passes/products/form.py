"""How a product reads as products of 2-D matrices, which are all that the quantized ops know.

A form gives the operands X [M, K], W [N, K] and dY [M, N] of a site as 2-D nodes, says which op multiplies them, and
brings the products Y, dX and dW back to the shape of the nodes that they replace. The form here is that of a plain
matmul; the other kinds have theirs in their files.

A block is what the recipe's quantizers handle together, the larger of group and rotation. Padding is with zeros, which
add nothing to any of the three products.

What a form makes of an operand is made once for everything that decides it, and its key is that of the new node: so two
sites share a quantized operand exactly if they read the same matrix.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from ...config.recipe import Gemm
from ...kernels.schemas import Epilogue
from ..graph import Builder, Matrix, Values, aten
from ..share import Quantized, quartet
from ..site import MatmulSite
from .affine import affine, convert, is_scaled


@dataclasses.dataclass
class Form:
    """The plain form. x, w: inserted where the forward matmul is; dy: where the first backward matmul is. block: of the
    recipe. values: of the graph."""

    site: MatmulSite
    build: Builder
    block: int
    values: Values

    def x(self) -> Matrix:
        return self._matrix(self.site.x, self.site.node)

    def w(self) -> Matrix:
        return self._matrix(self.site.w, self.site.node)

    def dy(self, like: fx.Node) -> Matrix:
        return self._matrix(self.site.dy, like)

    def fprop(self, x: Quantized, w: Quantized, gemm: Gemm) -> fx.Node:
        """Y, as the forward node gives it."""
        a, b = (w, x) if self.site.swapped else (x, w)
        product = self._like(self.site.node, scaled_mm(self.build, self.site.node, a, b, gemm))
        return affine(self.build, self.site.node, product)

    def dgrad(self, dy: Quantized, wt: Quantized, gemm: Gemm, epilogue: Epilogue | None) -> fx.Node:
        """dX [M, K]. epilogue: what takes away the rotation along K that the codes of fprop left."""
        return scaled_mm(self.build, self.site.dgrad, dy, wt, gemm, epilogue)

    def wgrad(self, dy: Quantized, xt: Quantized, gemm: Gemm, epilogue: Epilogue | None) -> fx.Node:
        """dW [N, K], likewise."""
        return scaled_mm(self.build, self.site.wgrad, dy, xt, gemm, epilogue)

    def dx(self, result: fx.Node) -> fx.Node:
        return self._oriented(self.site.dgrad, result, self.site.dgrad_transposed)

    def dw(self, result: fx.Node) -> fx.Node:
        return self._oriented(self.site.wgrad, result, self.site.wgrad_transposed)

    def finish(self, dy: Matrix) -> None:
        """Replace what else the backward nodes computed."""

    def _once(self, key: tuple, make: Callable[[], fx.Node]) -> Matrix:
        """A matrix made of an operand of the forward matmul; `key` is all that decides its values and its shape."""
        return self.values.matrix(self.build.once(self.site.node, key, make))

    def _matrix(self, operand: Matrix, like: fx.Node) -> Matrix:
        if operand.node.meta["val"].dim() == 2:
            return operand
        return operand._replace(node=self.build.call(like, aten.squeeze.dim, operand.node, 0))

    def _oriented(self, like: fx.Node, result: fx.Node, transposed: bool) -> fx.Node:
        if transposed:
            result = self.build.call(like, aten.permute.default, result, [1, 0])
        return self._like(like, result)

    def _like(self, like: fx.Node, result: fx.Node) -> fx.Node:
        return self.build.call(like, aten.unsqueeze.default, result, 0) if like.meta["val"].dim() == 3 else result


def scaled_mm(
    build: Builder, like: fx.Node, a: Quantized, b: Quantized, gemm: Gemm, epilogue: Epilogue | None = None
) -> fx.Node:
    """A node `a b^T` in the dtype of `like`."""
    return product(build, like, quartet.scaled_mm.default, (*a[:4], *b[:4]), gemm, epilogue)


def product(
    build: Builder, like: fx.Node, op: Any, arguments: tuple, gemm: Gemm, epilogue: Epilogue | None = None
) -> fx.Node:
    """A product by one of our ops in the dtype of `like`, or for what multiplies it next. An epilogue is the op's own,
    unless the product has to be cast before it."""
    dtype = _output_dtype(like, gemm)
    wanted = dtype if is_scaled(like) else like.meta["val"].dtype
    own = epilogue if epilogue is not None and dtype == wanted else ()
    node = convert(build, like, build.call(like, op, *arguments, gemm.gain, dtype, *own), wanted)
    return node if epilogue is None or own else build.call(like, quartet.unrotate.default, node, *epilogue)


def _output_dtype(like: fx.Node, gemm: Gemm) -> torch.dtype:
    """What a product is rounded to. One that `alpha` multiplies next is not rounded before, as torch's isn't."""
    if gemm.output != "same":
        return getattr(torch, gemm.output)
    return torch.float32 if is_scaled(like) else like.meta["val"].dtype
