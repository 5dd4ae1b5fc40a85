"""How each kind of matmul reads as products of 2-D matrices, which are all that the quantized ops know.

A form gives the operands X [M, K], W [N, K] and dY [M, N] of a site as 2-D nodes, says which op multiplies them, and
brings the products Y, dX and dW back to the shape of the nodes that they replace:

    Plain     mm, addmm, and a batch of one
    Stacked   a batch: its matrices one below the other, each padded to whole blocks of rows
    Grouped   rows in groups whose sizes only the data knows: moved apart, so that no block spans two groups
    Dynamic   a batch of matrices whose number of rows is dynamic: each is a group
    Filters   a convolution: X is unfolded, dX folded
    Transposed  a transposed convolution: Y is folded, dY unfolded

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

from ..config.recipe import Gemm
from ..kernels.quantizer import padded
from .graph import Builder, Matrix, Values, aten
from .match import MatmulSite
from .products import CONVOLUTION, ends, is_scaled, output
from .share import Quantized, quartet
from .windows import channels_first, channels_last, fold, unfold, windows


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
        a, b = (w, x) if self.site.swapped else (x, w)
        return self._like(self.site.node, scaled_mm(self.build, self.site.node, a, b, gemm))

    def dgrad(self, dy: Quantized, wt: Quantized, gemm: Gemm) -> fx.Node:
        """dX, still rotated along K."""
        return scaled_mm(self.build, self.site.dgrad, dy, wt, gemm)

    def wgrad(self, dy: Quantized, xt: Quantized, gemm: Gemm) -> fx.Node:
        """dW, still rotated along K."""
        return scaled_mm(self.build, self.site.wgrad, dy, xt, gemm)

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


@dataclasses.dataclass
class _Groups(Form):
    """What a batch and groups of rows share: one GEMM for all of them, and W stacked as [E * N, K]."""

    def fprop(self, x: Quantized, w: Quantized, gemm: Gemm) -> fx.Node:
        return self._unstacked_y(self._product(self.site.node, x, w, gemm, "fprop"))

    def dgrad(self, dy: Quantized, wt: Quantized, gemm: Gemm) -> fx.Node:
        return self._product(self.site.dgrad, dy, wt, gemm, "dgrad")

    def wgrad(self, dy: Quantized, xt: Quantized, gemm: Gemm) -> fx.Node:
        return self._product(self.site.wgrad, dy, xt, gemm, "wgrad")

    def w(self) -> Matrix:
        return self._stack(self.site.w)

    def dw(self, result: fx.Node) -> fx.Node:
        return self._unstacked(self.site.wgrad, result, self.site.w.shape[0], self.site.wgrad_transposed)

    def _product(self, like: fx.Node, a: Quantized, b: Quantized, gemm: Gemm, role: str) -> fx.Node:
        matrices = self.site.matrices
        operands = (*a[:4], *b[:4])
        dtype = _output(like, gemm)
        product = self.build.call(
            like, quartet.scaled_grouped_mm.default, *operands, self._ends(), matrices, role, gemm.gain, dtype
        )
        return _cast(self.build, like, product)

    def _stack(self, operand: Matrix) -> Matrix:
        """X or W, stacked."""
        key = ("stacked", operand.key, operand.batch, self.block)
        return self._once(key, lambda: self._stacked(self.site.node, operand))

    def _stacked(self, like: fx.Node, operand: Matrix) -> fx.Node:
        """A batch [E, rows, columns] as [E * rows, columns], the rows of each matrix padded to whole groups."""
        node = operand.node
        if operand.transposed:
            node = self.build.call(like, aten.permute.default, node, [0, 2, 1])
        rows, columns = operand.shape
        if rows % self.block:
            node = self.build.call(like, aten.constant_pad_nd.default, node, [0, 0, 0, padded(rows, self.block) - rows])
        return self.build.call(like, aten.reshape.default, node, [-1, columns])

    def _unstacked(self, like: fx.Node, result: fx.Node, rows: int, transposed: bool) -> fx.Node:
        """The reverse, as [E, rows, columns], or as the transposes of those matrices."""
        columns = result.meta["val"].shape[1]
        result = self.build.call(like, aten.reshape.default, result, [self.site.matrices, -1, columns])
        if rows % self.block:
            result = self.build.call(like, aten.slice.Tensor, result, 1, 0, rows)
        return self.build.call(like, aten.permute.default, result, [0, 2, 1]) if transposed else result

    def _wide(self, like: fx.Node, dy: fx.Node) -> fx.Node:
        """dY with its columns padded like the rows of W."""
        columns = dy.meta["val"].shape[1]
        if columns % self.block == 0:
            return dy
        return self.build.call(like, aten.constant_pad_nd.default, dy, [0, padded(columns, self.block) - columns])

    def _narrow(self, like: fx.Node, y: fx.Node) -> fx.Node:
        """Y without the columns that the padded rows of W made."""
        n = self.site.shape[1]
        return self.build.call(like, aten.slice.Tensor, y, 1, 0, n) if n % self.block else y


@dataclasses.dataclass
class Stacked(_Groups):
    """A batched matmul of static sizes."""

    def x(self) -> Matrix:
        self._ends()  # here, before all that reads it, also where a recipe quantizes only the backward
        return self._stack(self.site.x)

    def dy(self, like: fx.Node) -> Matrix:
        return self.values.matrix(self._wide(like, self._stacked(like, self.site.dy)))

    def dx(self, result: fx.Node) -> fx.Node:
        return self._unstacked(self.site.dgrad, result, self.site.x.shape[0], self.site.dgrad_transposed)

    def _unstacked_y(self, y: fx.Node) -> fx.Node:
        y = self._narrow(self.site.node, y)
        return self._unstacked(self.site.node, y, self.site.x.shape[0], self.site.swapped)

    def _ends(self) -> fx.Node:
        step = padded(self.site.x.shape[0], self.block)
        return self.build.once(
            self.site.node,
            ("ends", step, self.site.matrices),
            lambda: _arange(self.build, self.site.node, step, step * self.site.matrices + 1, step),
        )


@dataclasses.dataclass
class Grouped(_Groups):
    """Groups of rows, whose ends are data. `index` is the row of X that each row of the moved matrix holds, `back` the
    moved row of each row of X."""

    def x(self) -> Matrix:
        operand = self.site.x
        key = ("rows", operand.key, self._offsets(), self.block)
        return self._once(key, lambda: self._apart(self.site.node, operand))

    def dy(self, like: fx.Node) -> Matrix:
        return self.values.matrix(self._wide(like, self._apart(like, self.site.dy)))

    def dx(self, result: fx.Node) -> fx.Node:
        return self._together(self.site.dgrad, result, self.site.dgrad_transposed)

    def _unstacked_y(self, y: fx.Node) -> fx.Node:
        return self._together(self.site.node, self._narrow(self.site.node, y), False)

    def _offsets(self) -> fx.Node:
        return ends(self.site.node)

    def _ends(self) -> fx.Node:
        return self._moves()[2]

    def _moves(self) -> tuple[fx.Node, ...]:
        """index, back and the new ends; one op for all products with these groups."""
        site, build = self.site, self.build
        key = ("moves", self._offsets(), str(site.x.shape[0]), site.matrices, self.block)
        return build.once(site.node, key, lambda: build.outputs(self._separate()))

    def _separate(self) -> fx.Node:
        x = self._upright(self.site.node, self.site.x)
        return self.build.call(self.site.node, quartet.separate_groups.default, self._offsets(), x, self.block)

    def _apart(self, like: fx.Node, operand: Matrix) -> fx.Node:
        """The rows of [T, columns] with each group starting a new block, zeros between them."""
        index = self._moves()[0]
        zero = self.build.call(like, aten.constant_pad_nd.default, self._upright(like, operand), [0, 0, 0, 1])
        return self.build.call(like, aten.index.Tensor, zero, [index])

    def _together(self, like: fx.Node, result: fx.Node, transposed: bool) -> fx.Node:
        result = self.build.call(like, aten.index.Tensor, result, [self._moves()[1]])
        return self.build.call(like, aten.permute.default, result, [1, 0]) if transposed else result

    def _upright(self, like: fx.Node, operand: Matrix) -> fx.Node:
        return self.build.call(like, aten.permute.default, operand.node, [1, 0]) if operand.transposed else operand.node


@dataclasses.dataclass
class Dynamic(Grouped):
    """A batched matmul with a symbolic number of rows."""

    def _offsets(self) -> None:
        return None

    def _separate(self) -> fx.Node:
        x = self._upright(self.site.node, self.site.x)
        return self.build.call(self.site.node, quartet.separate_matrices.default, x, self.block)

    def _apart(self, like: fx.Node, operand: Matrix) -> fx.Node:
        index = self._moves()[0]
        rows = self.build.call(like, aten.reshape.default, self._upright(like, operand), [-1, operand.shape[1]])
        zero = self.build.call(like, aten.constant_pad_nd.default, rows, [0, 0, 0, 1])
        return self.build.call(like, aten.index.Tensor, zero, [index])

    def _together(self, like: fx.Node, result: fx.Node, transposed: bool) -> fx.Node:
        rows = self.build.call(like, aten.index.Tensor, result, [self._moves()[1]])
        columns = rows.meta["val"].shape[1]
        rows = self.build.call(like, aten.reshape.default, rows, [self.site.matrices, -1, columns])
        return self.build.call(like, aten.permute.default, rows, [0, 2, 1]) if transposed else rows

    def _unstacked_y(self, y: fx.Node) -> fx.Node:
        return self._together(self.site.node, self._narrow(self.site.node, y), self.site.swapped)

    def _upright(self, like: fx.Node, operand: Matrix) -> fx.Node:
        if not operand.transposed:
            return operand.node
        return self.build.call(like, aten.permute.default, operand.node, [0, 2, 1])


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


def form_of(site: MatmulSite, build: Builder, block: int, values: Values) -> Form:
    """The form of a site, for quantizers that handle `block` elements together."""
    return _kind(site)(site, build, block, values)


def _kind(site: MatmulSite) -> type[Form]:
    if site.node.target is CONVOLUTION:
        return Transposed if windows(site.node).transposed else Filters
    if ends(site.node) is not None:
        return Grouped
    if site.matrices == 1:
        return Form
    return Stacked if isinstance(site.x.shape[0], int) else Dynamic


def scaled_mm(build: Builder, like: fx.Node, a: Quantized, b: Quantized, gemm: Gemm) -> fx.Node:
    """A node `a b^T` in the dtype of `like`."""
    product = build.call(like, quartet.scaled_mm.default, *a[:4], *b[:4], gemm.gain, _output(like, gemm))
    return _cast(build, like, product)


def convert(build: Builder, like: fx.Node, value: fx.Node, dtype: torch.dtype) -> fx.Node:
    """A value in another dtype; itself if it has that."""
    if value.meta["val"].dtype == dtype:
        return value
    return build.call(like, torch.ops.prims.convert_element_type.default, value, dtype)


def _output(like: fx.Node, gemm: Gemm) -> torch.dtype:
    """What a product is rounded to. One that `alpha` multiplies next is not rounded before, as torch's isn't."""
    if gemm.output != "same":
        return getattr(torch, gemm.output)
    return torch.float32 if is_scaled(like) else like.meta["val"].dtype


def _cast(build: Builder, like: fx.Node, product: fx.Node) -> fx.Node:
    """The product in the dtype of the graph, or for what multiplies it next."""
    return product if is_scaled(like) else convert(build, like, product, like.meta["val"].dtype)


def _arange(build: Builder, like: fx.Node, start: int, end: int, step: int) -> fx.Node:
    options: dict[str, Any] = {"dtype": torch.int32, "device": like.meta["val"].device}
    return build.call(like, aten.arange.start_step, start, end, step, kwargs=options)
