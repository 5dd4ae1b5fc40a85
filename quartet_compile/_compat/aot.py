"""AOTAutograd: tracing and partitioning, and what it says of the inputs and outputs of a joint graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from .installed import private


def aot_module_simplified(gm: torch.fx.GraphModule, inputs: list, **compilers: Any) -> Any:
    """AOTAutograd on a Dynamo graph with the given compilers."""
    return private("torch._functorch.aot_autograd:aot_module_simplified")(gm, inputs, **compilers)


def make_boxed(function: Any) -> Any:
    """Wrap a function of many arguments as AOTAutograd calls compiled graphs."""
    return private("functorch.compile:make_boxed_func")(function)


def mark_boxed(function: Any) -> None:
    """Let AOTAutograd call a function with one list, which is its only argument."""
    function._boxed_call = True


def default_partition(*args: Any, **kwargs: Any) -> Any:
    """The min-cut partitioner, as Inductor calls it."""
    partition = private("torch._functorch.partitioners:min_cut_rematerialization_partition")
    return partition(*args, compiler="inductor", **kwargs)


def is_tracing() -> bool:
    """Whether Dynamo or AOTAutograd is tracing now."""
    return private("torch._guards:TracingContext").try_get() is not None


def is_tangent(node: fx.Node) -> bool:
    """Whether a node is an input that carries a gradient into a joint graph."""
    return node.op == "placeholder" and "tangents" in str(node.target)


def description_of(node: fx.Node) -> Any:
    """What AOTAutograd says of an input: None inside of a higher-order op, whose inputs it doesn't describe."""
    return _whole(node.meta.get("desc"))


def descriptions_of(output: fx.Node) -> list[Any] | None:
    """The same of each result of a graph, by its output node."""
    found = output.meta.get("desc")
    return None if found is None else [_whole(one) for one in found]


def describe(node: fx.Node, description: Any) -> None:
    """Say of an input, or as a list of the results of an output node, what AOTAutograd would."""
    node.meta["desc"] = description


def _whole(described: Any) -> Any:
    """Of a part of a tensor subclass (a DTensor's shard), the description of the whole."""
    while hasattr(described, "base"):
        described = described.base
    return described


def gradient_of(description: Any) -> Any:
    """The description of the input whose gradient an output is; None of any other output."""
    return getattr(description, "grad_of", None)


def update_of(description: Any) -> Any:
    """The description of the input whose new value an output is; None of any other output."""
    return getattr(description, "mutated_input", None)


def output_of(description: Any) -> Any:
    """The description of the output whose gradient a tangent is; None of anything else."""
    return getattr(description, "output", None)
