"""Grouped products: consecutive rows, up to `ends[e]`, go with matrix e, as in a mixture of experts.

_grouped_mm           [T, K] [E, K, N], or [M, T] [T, N]: the same rows contracted, as [E, M, N]
grouped_mm_fallback   transformers' op for the first form, whose backward is one op for both gradients
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from torch import fx

from ..graph import Matrix, Values, aten
from ..share import quartet
from ..site import MatmulSite
from ..weights import Weights
from .form import Form
from .groups import Groups
from .kind import Kind, gradients_of, only_known, op_name


class Grouped(Kind):
    """torch's `_grouped_mm`, without a bias inside and without another output dtype."""

    operands: ClassVar = {aten._grouped_mm.default: slice(0, 2)}

    def ends(self, node: fx.Node) -> fx.Node | None:
        return node.args[2] if len(node.args) > 2 else None

    def shape(self, node: fx.Node) -> tuple:
        return "", "", ""

    def site(self, index: int, node: fx.Node, values: Values, weights: Weights) -> MatmulSite | None:
        plain = len(node.args) == 3 and not any(node.kwargs.values())
        return super().site(index, node, values, weights) if plain else None

    def is_site(self, node: fx.Node, weight: fx.Node | None) -> bool:
        return weight is not None and weight is self.factors(node)[1]  # a stack of weights

    def form(self, site: MatmulSite) -> type[Form]:
        return RowGroups

    def reason(self, node: fx.Node, weights: Weights) -> str:
        return only_known(node, weights)


class Fallback(Grouped):
    """transformers' `grouped_mm_fallback`, which is there once transformers is imported."""

    operands: ClassVar = {"transformers::grouped_mm_fallback": slice(0, 2)}
    by_structure = False

    def factors(self, node: fx.Node) -> tuple[fx.Node, fx.Node]:
        return node.args[self.operands[op_name(node)]]

    def site(self, index: int, node: fx.Node, values: Values, weights: Weights) -> MatmulSite | None:
        return Kind.site(self, index, node, values, weights)

    def accept(self, site: MatmulSite, op: fx.Node, values: Values) -> None:
        site.dgrad, site.wgrad, site.dy = gradients_of(op, values.matrix(op.args[3]))
        site.wgrad_transposed = True


@dataclasses.dataclass
class RowGroups(Groups):
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
        return self.site.kind.ends(self.site.node)

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
