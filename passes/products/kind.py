"""What the passes ask of a kind of product. Each file beside this one answers for one kind."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from torch import fx

from ... import _compat
from ..graph import Matrix, Values, strip
from ..site import MatmulSite
from ..weights import ACTIVATIONS, Weights

if TYPE_CHECKING:
    from .form import Form

SMALLEST = 32
"""Below it, in K or N, a group of 32 is mostly padding."""


class Kind:
    """A kind of product: the plain matmul, where a kind says nothing else.

    operands:     its forward ops, or their names, each with the place of its two factors among the arguments.
    priced:       the time of such a product can be predicted from its sizes (profit.py).
    by_structure: its backward matmuls are products of such a kind too, and are found by what they read. Otherwise one op,
                  named as the forward one with `_backward`, gives both gradients.
    """

    operands: ClassVar[Mapping[Any, slice]] = {}
    by_structure = True
    priced = False

    def factors(self, node: fx.Node) -> tuple[fx.Node, fx.Node]:
        """The two operands that a product multiplies."""
        return node.args[self.operands[node.target]]

    def ends(self, node: fx.Node) -> fx.Node | None:
        """Where each group of rows ends; None for what has no groups."""
        return None

    def shape(self, node: fx.Node) -> tuple:
        """`(M, N, K)`, or `("", "", "")` if only the data knows it; for the report of what is no site."""
        a, b = (operand.meta["val"].shape for operand in self.factors(node))
        return a[-2], b[-1], a[-1]

    def site(self, index: int, node: fx.Node, values: Values, weights: Weights) -> MatmulSite | None:
        """The site of a forward product, without its backward; None if it is none."""
        left, right = self.factors(node)
        weight = weights.pick(left, right)
        if not self.is_site(node, weight):
            return None
        a, b = (values.matrix(operand) for operand in (left, right))
        swapped = weight is not None and weight is left
        x, w = (b.t, a) if swapped else (a, b.t)
        return MatmulSite(
            index=index,
            node=node,
            kind=self,
            x=x,
            w=w,
            shape=(x.batch * x.shape[0], w.shape[0], x.shape[1]),
            matrices=w.batch,
            swapped=swapped,
            weight=weight,
            sources=weights.sources(weight) if weight is not None else (),
        )

    def is_site(self, node: fx.Node, weight: fx.Node | None) -> bool:
        """Whether a product with this weight, or with none, is one that a recipe may apply to. One of two activations is a
        site where this says so, and then kept."""
        return weight is not None

    def backward_ops(self, node: fx.Node) -> list[fx.Node]:
        """The ops that compute all gradients of a product of the operands of `node` at once."""
        name = op_name(node) + "_backward"
        operands = set(node.args[:2])
        found = dict.fromkeys(user for operand in node.args[:2] for user in operand.users if op_name(user) == name)
        return [user for user in found if operands <= set(user.args)]

    def accept(self, site: MatmulSite, op: fx.Node, values: Values) -> None:
        """Pair a site with the op that gives both its gradients."""
        raise NotImplementedError(f"{type(self).__name__} has no op that gives both gradients")

    def obstacle(self, site: MatmulSite) -> str | None:
        """Why a site of this kind can't run in low precision, besides its N and K; None if it can."""
        return None

    def unprofitable(self, site: MatmulSite) -> str | None:
        """Why low precision would be slower; None if it wouldn't."""
        return None

    def form(self, site: MatmulSite) -> type[Form]:
        """How a site reads as products of 2-D matrices."""
        raise NotImplementedError(f"{type(self).__name__} has no form")

    def noun(self, site: MatmulSite) -> str:
        """What the report calls a rewritten one."""
        return "matmul"

    def reason(self, node: fx.Node, weights: Weights) -> str:
        """Why a product of this kind that is no site stays in high precision."""
        return ACTIVATIONS


def op_name(node: fx.Node) -> str:
    """The qualified name of an op, `aten::mm`; empty for what is no op."""
    return op_name_of(node.target)


def op_name_of(target: Any) -> str:
    """The same of what a node calls."""
    return _compat.op_name(target)


def output(node: fx.Node, index: int) -> fx.Node | None:
    """The node that takes one output of an op with several; None if nobody does."""
    items = [user for user in node.users if user.target is operator.getitem and user.args[1] == index]
    return items[0] if items else None


def gradients_of(op: fx.Node, dy: Matrix) -> tuple[fx.Node | None, fx.Node | None, Matrix]:
    """dgrad and wgrad, the first two outputs of an op, and dY."""
    return output(op, 0), output(op, 1), dy


def only_known(node: fx.Node, weights: Weights) -> str:
    """Why an op that no kind knows, or not in this form, stays: the reason names it where it reads a parameter."""
    name = op_name(node).partition("::")[2].lstrip("_") or str(node.target)
    if parameter_of(node, weights) is None:
        return ACTIVATIONS
    return f"{name}; only mm, bmm, grouped_mm and convolutions are rewritten"


def parameter_of(node: fx.Node, weights: Weights) -> fx.Node | None:
    """The first parameter among the operands of an op, through views and casts."""
    operands = (arg for arg in node.args if isinstance(arg, fx.Node))
    return next((root for arg in operands if (root := strip(arg)) in weights.parameters), None)
