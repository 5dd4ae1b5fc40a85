"""Which ranks draw the same random numbers: those that compute the same gradient each for itself.

Under tensor parallelism ranks have parts of one model and the same tokens, so what they compute alike has to be alike, bit
for bit. Where ranks have the same distributed parameters and different tokens (SimpleFSDP), gradients are summed over them,
and noise that they had in common would not average out: with equal seeds, that of two ranks has a correlation of up to .19
(quartet2, a linear on inputs whose mean isn't zero).
"""

from __future__ import annotations

import torch
from torch import fx

from .._compat import GradOutput, description_of, descriptions_of, gradient_of, op_name
from .work import Work

_SUMS = ("_c10d_functional::reduce_scatter_tensor", "_c10d_functional::all_reduce")
"""The collectives that add up what ranks have; the last argument is the process group."""


def drawn_alike(work: Work) -> tuple[str, ...]:
    """The process groups whose ranks draw the same: those that a parameter is distributed over, but where the gradient of
    each trained parameter is a sum over the ranks."""
    gradients = _gradients(work)
    summed = [_groups_of_sums(node) for node in gradients]
    return tuple(group for group in work.shared_by if not summed or any(group not in groups for groups in summed))


def _gradients(work: Work) -> list[fx.Node]:
    """The results of a graph that are gradients of parameters, or what ranks have of them; none of a graph that doesn't
    describe its results. (A DTensor's mesh is a result too.)"""
    (output,) = (node for node in work.graph.nodes if node.op == "output")
    parameters = {description_of(node) for node in work.inputs.parameters}
    described = zip(descriptions_of(output) or (), output.args[0], strict=False)
    return [
        result
        for description, result in described
        if isinstance(description, GradOutput) and gradient_of(description) in parameters and _is_tensor(result)
    ]


def _is_tensor(result: object) -> bool:
    return isinstance(result, fx.Node) and isinstance(result.meta.get("val"), torch.Tensor)


def _groups_of_sums(node: fx.Node) -> set[str]:
    """The groups over which a gradient is added up last, before anything else than views, casts and factors."""
    found: set[str] = set()
    while node.op == "call_function" and len(node.all_input_nodes) == 1:
        if op_name(node.target) in _SUMS:
            found.add(node.args[-1])
        (node,) = node.all_input_nodes
    return found
