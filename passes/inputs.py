"""What is known of a graph's inputs: which are parameters, buffers, other matrices that get a gradient; and their names."""

from __future__ import annotations

import dataclasses

from torch import fx

from .._compat import BufferInput, ParamInput, PlainInput, description_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraphInputs:
    """What Dynamo knows of a graph's inputs, by position: the parameters' names, every input's name, which are buffers, and
    which are other matrices that get a gradient.

    shared_by: the process groups over which inputs are distributed, as in tensor parallelism.
    """

    parameters: dict[int, str]
    names: dict[int, str]
    state: frozenset[int] = frozenset()
    leaves: frozenset[int] = frozenset()
    shared_by: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Placeholders:
    """The names of the placeholders of a graph: parameters, buffers, other matrices that get a gradient, and all inputs."""

    parameters: dict[fx.Node, str]
    state: dict[fx.Node, str]
    leaves: dict[fx.Node, str]
    names: dict[fx.Node, str]


def placeholders_of(graph: fx.Graph, inputs: GraphInputs) -> Placeholders:
    """The placeholders that AOTAutograd describes, or that Dynamo knows by their position."""
    found = Placeholders({}, {}, {}, {})
    for node in graph.nodes:
        description = description_of(node) if node.op == "placeholder" else None
        name = None
        if isinstance(description, ParamInput):
            name = found.parameters[node] = description.target
        elif isinstance(description, BufferInput):
            name = found.state[node] = description.target
        elif isinstance(description, PlainInput):
            index = description.idx
            name = inputs.names.get(index, "")
            if index in inputs.parameters:
                found.parameters[node] = inputs.parameters[index]
            if index in inputs.state:
                found.state[node] = name
            if index in inputs.leaves:
                found.leaves[node] = name
        if name:
            found.names[node] = name
    return found


def is_nested(graph: fx.Graph) -> bool:
    """Whether a graph is the body of a higher-order op: AOTAutograd describes the inputs of all others."""
    return not any(description_of(node) for node in graph.nodes)
