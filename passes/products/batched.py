"""Batched matmuls: bmm and baddbmm, `[E, M, K] [E, K, N]`, with a weight for each matrix."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch
from torch import fx

from ...kernels.quantizer import padded
from ..graph import Builder, Matrix, aten
from ..share import quartet
from ..site import MatmulSite
from ..weights import Weights, without_weight
from . import affine
from .form import Form
from .grouped import RowGroups
from .groups import Groups
from .kind import SMALLEST, Kind


class Batched(Kind):
    """A batch of one is a plain matmul."""

    priced = True
    operands: ClassVar = {aten.bmm.default: slice(0, 2), aten.baddbmm.default: slice(1, 3)}

    def obstacle(self, site: MatmulSite) -> str | None:
        found = affine.obstacle(site.node)
        if found or site.matrices == 1:
            return found
        if not isinstance(site.matrices, int):
            return f"its number of matrices is dynamic ({site.matrices}); mark it static with torch._dynamo.mark_static"
        return few_rows(site.matrices, site.x.shape[0])

    def form(self, site: MatmulSite) -> type[Form]:
        if site.matrices == 1:
            return Form
        return Stacked if isinstance(site.x.shape[0], int) else Dynamic

    def reason(self, node: fx.Node, weights: Weights) -> str:
        return without_weight(*self.factors(node), weights)


def few_rows(matrices: int, rows: int | torch.SymInt) -> str | None:
    """Why so many matrices of so many rows each are kept; None if they aren't."""
    if matrices > 1 and isinstance(rows, int) and rows < SMALLEST // 2:
        return f"each of its {matrices} matrices multiplies {rows} row{'s' * (rows > 1)}, and groups have {SMALLEST}"
    return None


@dataclasses.dataclass
class Stacked(Groups):
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
class Dynamic(RowGroups):
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


def _arange(build: Builder, like: fx.Node, start: int, end: int, step: int) -> fx.Node:
    options: dict[str, Any] = {"dtype": torch.int32, "device": like.meta["val"].device}
    return build.call(like, aten.arange.start_step, start, end, step, kwargs=options)
