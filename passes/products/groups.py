"""What a batch and groups of rows share: one GEMM for all matrices, with W stacked as [E * N, K]."""

from __future__ import annotations

import dataclasses

from torch import fx

from ...config.recipe import Gemm
from ...kernels.quantizer import padded
from ...kernels.schemas import Epilogue
from ..graph import Matrix, aten
from ..share import Quantized, quartet
from .affine import affine
from .form import Form, product


@dataclasses.dataclass
class Groups(Form):
    """What a batch and groups of rows share: one GEMM for all of them, and W stacked as [E * N, K]."""

    def fprop(self, x: Quantized, w: Quantized, gemm: Gemm) -> fx.Node:
        y = self._unstacked_y(self._product(self.site.node, x, w, gemm, "fprop"))
        return affine(self.build, self.site.node, y)

    def dgrad(self, dy: Quantized, wt: Quantized, gemm: Gemm, epilogue: Epilogue | None) -> fx.Node:
        return self._product(self.site.dgrad, dy, wt, gemm, "dgrad", epilogue)

    def wgrad(self, dy: Quantized, xt: Quantized, gemm: Gemm, epilogue: Epilogue | None) -> fx.Node:
        return self._product(self.site.wgrad, dy, xt, gemm, "wgrad", epilogue)

    def w(self) -> Matrix:
        return self._stack(self.site.w)

    def dw(self, result: fx.Node) -> fx.Node:
        return self._unstacked(self.site.wgrad, result, self.site.w.shape[0], self.site.wgrad_transposed)

    def _product(
        self, like: fx.Node, a: Quantized, b: Quantized, gemm: Gemm, role: str, epilogue: Epilogue | None = None
    ) -> fx.Node:
        arguments = (*a[:4], *b[:4], self._ends(), self.site.matrices, role)
        return product(self.build, like, quartet.scaled_grouped_mm.default, arguments, gemm, epilogue)

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
