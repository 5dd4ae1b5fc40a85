"""Which values of a forward graph are weights: parameters, what is computed from parameters alone, and, where neither is
there, a plain tensor that gets a gradient of its own."""

from __future__ import annotations

import enum
from collections.abc import Mapping

from torch import fx

from .graph import aten, strip

_SELECTIONS = (aten.select.int, aten.slice.Tensor, aten.index.Tensor, aten.index_select.default, aten.embedding.default)


ACTIVATIONS = "product of two activations"


class _Origin(enum.IntEnum):
    CONSTANT = 0
    PARAMETER = 1
    DATA = 2


class Weights:
    """Where the values of a graph come from.

    parameters, state, leaves: the names of the placeholders that hold parameters; buffers; and matrices that are neither,
    and that a gradient ends in, as those of a function of its weights. packed: the names of the nodes that compute packed
    weights, which count as parameters.
    """

    def __init__(
        self,
        graph: fx.Graph,
        parameters: Mapping[fx.Node, str],
        state: Mapping[fx.Node, str],
        leaves: Mapping[fx.Node, str] | None = None,
        packed: Mapping[fx.Node, str] | None = None,
    ) -> None:
        self.packed = packed or {}
        inside = {source for node in self.packed for source in node.all_input_nodes}
        self.parameters = {node: name for node, name in {**parameters, **self.packed}.items() if node not in inside}
        self.state = state
        self._leaves = leaves or {}
        self.names = {**self._leaves, **self.parameters}
        fixed = {**dict.fromkeys(state, _Origin.CONSTANT), **dict.fromkeys(self.parameters, _Origin.PARAMETER)}
        self._origin: dict[fx.Node, _Origin] = {}
        for node in graph.nodes:
            if node.op == "placeholder":
                origin = fixed.get(node, _Origin.DATA)
            elif node in self.packed:
                origin = _Origin.PARAMETER
            else:
                origin = max((self._origin[source] for source in node.all_input_nodes), default=_Origin.CONSTANT)
            self._origin[node] = origin

    def pick(self, a: fx.Node, b: fx.Node) -> fx.Node | None:
        """Which of two operands is the weight: the only one that is a parameter itself, through views and casts, or else
        one that is computed from parameters and meets data, or else the only leaf. None if there is no such operand, or
        there are two."""
        direct = [operand for operand in (a, b) if strip(operand) in self.parameters]
        if direct:
            return direct[0] if len(direct) == 1 else None
        for operand, other in ((a, b), (b, a)):
            if self.is_computed(operand) and self._origin[other] is _Origin.DATA:
                return operand
        leaves = [operand for operand in (a, b) if strip(operand) in self._leaves]
        return leaves[0] if len(leaves) == 1 else None

    def is_computed(self, node: fx.Node) -> bool:
        """Whether a value depends on parameters and on nothing that changes with the data."""
        return self._origin[node] is _Origin.PARAMETER

    def is_fixed(self, node: fx.Node) -> bool:
        """Whether a value doesn't change with the data."""
        return self._origin[node] is not _Origin.DATA

    def sources(self, node: fx.Node) -> tuple[fx.Node, ...]:
        """The parameters (or the leaf) that a value is computed from, in the order in which they are read."""
        seen, stack, found = {node}, [node], []
        while stack:
            current = stack.pop()
            if current in self.names:
                found.append(current)
            for source in reversed(current.all_input_nodes):
                if source not in seen:
                    seen.add(source)
                    stack.append(source)
        return tuple(found)

    def selected(self, node: fx.Node) -> fx.Node | None:
        """The parameter that a value is a part of, the part being picked by data (an expert's matrix); else None."""
        node = strip(node)
        while node.target in _SELECTIONS:
            node = strip(node.args[0])
        return node if node in self.parameters else None


def without_weight(a: fx.Node, b: fx.Node, weights: Weights) -> str:
    """Why no operand of a product, or each of them, is a weight."""
    if weights.is_fixed(a) and weights.is_fixed(b):
        return "product of two parameters"
    for operand in (a, b):
        parameter = weights.selected(operand)
        if parameter is not None:
            return f"its weight is a part of {weights.parameters[parameter]!r} that the data selects"
    for operand in (a, b):
        buffer = weights.state.get(strip(operand))
        if buffer is not None:
            return f"its weight is the buffer {buffer!r}; a Parameter, also one without gradient, is rewritten"
    return ACTIVATIONS
