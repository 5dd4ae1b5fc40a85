"""Matmul sites, what is decided of each, and the products that are never rewritten."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from torch import fx

from ..config.recipe import Recipe
from .graph import Matrix

if TYPE_CHECKING:
    from .products.kind import Kind
    from .reads import Read


@dataclasses.dataclass(kw_only=True)
class MatmulSite:
    """A forward matmul, with its backward ones.

    index: position among all forward matmuls of the graph; it picks the seed.
    node:  computes `X W^T` as [M, N], or if `swapped`, `W X^T`; of a batch, one for each matrix.
    kind:  of the product.
    x, w:  the activation [M, K] and the weight [N, K], both logical; of two activations, the left and the right one. Of a
           convolution, its input and its filters as they are.
    shape: `(M, N, K)`, as ints or SymInts; M counts the rows of all matrices of a batch.
    matrices: how many weight matrices it has: 1, or the size of a batch or the number of groups.
    weight: the operand that comes from parameters, None if it isn't exactly one; sources: those parameters.
    dgrad, wgrad: the backward matmuls, None where no gradient is needed; `*_transposed` if they compute dX^T or dW^T.
    dy: the gradient [M, N] that both read.
    packed: the node that computes W of codes that a module holds, and nothing else; None of an ordinary weight.
    read: how it reads the one parameter that its weight is; None of a weight that is computed.
    problem: why the backward could not be paired; None if it was, or if there is none.
    """

    index: int
    node: fx.Node
    kind: Kind
    x: Matrix
    w: Matrix
    shape: tuple
    matrices: int = 1
    swapped: bool = False
    weight: fx.Node | None = None
    sources: tuple[fx.Node, ...] = ()
    dgrad: fx.Node | None = None
    dgrad_transposed: bool = False
    wgrad: fx.Node | None = None
    wgrad_transposed: bool = False
    dy: Matrix | None = None
    packed: fx.Node | None = None
    read: Read | None = None
    problem: str | None = None

    @property
    def backward(self) -> list[fx.Node]:
        """The backward matmuls that there are."""
        return [node for node in (self.dgrad, self.wgrad) if node is not None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decision:
    """What happens to one forward matmul.

    names: what patterns see: the module that computes it and the parameter it reads.
    recipe: of the rule that matches it, None if none does.
    eligible: the policy wants it in low precision; `strict` makes a kept eligible matmul an error.
    """

    site: MatmulSite
    name: str
    names: tuple[str, ...]
    recipe: Recipe | None
    rewrite: bool
    reason: str
    eligible: bool


@dataclasses.dataclass(frozen=True)
class OtherProduct:
    """A product that is never rewritten; shape is `(M, N, K)` where it has one. weight: the parameter that it reads.
    inside: the node of the graph whose body it is in, if it is in one."""

    node: fx.Node
    kind: str
    shape: tuple
    weight: fx.Node | None
    reason: str
    inside: fx.Node | None = None


def quantized(site: MatmulSite, recipe: Recipe) -> dict[str, fx.Node]:
    """The matmuls of a site that its recipe quantizes, by role. Of one whose backward isn't paired, that is not known."""
    nodes = {"fprop": site.node, "dgrad": site.dgrad, "wgrad": site.wgrad}
    unpaired = site.problem is not None
    return {role: nodes[role] or site.node for role, _ in recipe.gemms() if nodes[role] is not None or unpaired}
