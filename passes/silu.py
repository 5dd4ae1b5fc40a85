"""On a GPU, SiLU of 16-bit values by the sigmoid that its gradient takes too.

Before:  y = x / (1 + exp(-x));  ...  s = sigmoid(x), of older torch reciprocal(1 + exp(-x))
After:   y = x * sigmoid(x);     ...  s = sigmoid(x)

A SwiGLU and its gradient run at the end of a product, where the second exponential, in another form, would be as many
instructions again (docs/gpu.md). The two forms differ in the last bits of float32, of which rounding to 16 bits leaves
less than one of its own. A SiLU whose result stays float32, and a CPU's, are left as they are. Where a SiLU is rewritten, a
reciprocal of its `1 + exp(-x)` is taken for the gradient's, whatever reads it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from .graph import CONVERSIONS, aten
from .work import Work

_HALF = (torch.bfloat16, torch.float16)


def apply(work: Work) -> None:
    """Rewrite each SiLU that a GPU computes between two casts, and the sigmoid of its gradient."""
    build, sources = work.build, set[fx.Node]()
    for node in work.graph.find_nodes(op="call_function", target=aten.div.Tensor):
        x, below = node.args
        source = _widened(x)
        if source and node.meta["val"].device.type == "cuda" and _of_exponential(below) is x and _is_rounded(node):
            with work.graph.inserting_before(node):
                sigmoid = build.call(node, aten.sigmoid.default, x)
                build.replace(node, build.call(node, aten.mul.Tensor, x, sigmoid))
            sources.add(source)
    for node in work.graph.find_nodes(op="call_function", target=aten.reciprocal.default):
        x = _of_exponential(node.args[0])
        if _widened(x) in sources:
            with work.graph.inserting_before(node):
                build.replace(node, build.call(node, aten.sigmoid.default, x))


def _of_exponential(below: Any) -> fx.Node | None:
    """The x of `1 + exp(-x)`, as Inductor decomposes SiLU; None of anything else."""
    if not _calls(below, aten.add.Tensor) or below.kwargs:
        return None
    exps = [argument for argument in below.args if _calls(argument, aten.exp.default)]
    if not exps or 1 not in below.args or not _calls(exps[0].args[0], aten.neg.default):
        return None
    x: fx.Node = exps[0].args[0].args[0]
    return x


def _widened(x: Any) -> fx.Node | None:
    """The 16-bit node that `x` is in float32; None of anything else."""
    if not isinstance(x, fx.Node) or x.target not in CONVERSIONS or x.meta["val"].dtype != torch.float32:
        return None
    source: fx.Node = x.args[0]
    return source if source.meta["val"].dtype in _HALF else None


def _is_rounded(node: fx.Node) -> bool:
    """Whether every reader of a node makes a 16-bit value of it."""
    return all(user.target in CONVERSIONS and user.meta["val"].dtype in _HALF for user in node.users)


def _calls(argument: Any, target: Any) -> bool:
    return isinstance(argument, fx.Node) and argument.target is target
