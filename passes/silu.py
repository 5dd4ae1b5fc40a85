"""On a GPU, SiLU of 16-bit values by the sigmoid that its gradient takes too.

Before:  y = x / (1 + exp(-x));  ...  s = sigmoid(x)
After:   y = x * sigmoid(x);     ...  s = sigmoid(x)

A SwiGLU and its gradient run at the end of a product, where the second exponential, in another form, would be as many
instructions again (docs/gpu.md). The two forms differ in the last bits of float32, of which rounding to 16 bits leaves
less than one of its own; where the result stays float32, and on CPUs, nothing changes.
"""

from __future__ import annotations

import torch
from torch import fx

from .graph import CONVERSIONS, aten
from .work import Work

_HALF = (torch.bfloat16, torch.float16)


def apply(work: Work) -> None:
    """Rewrite each SiLU that a GPU computes between two casts."""
    for node in work.graph.find_nodes(op="call_function", target=aten.div.Tensor):
        if node.meta["val"].device.type == "cuda" and _is_silu(node) and _is_between_casts(node):
            x = node.args[0]
            with work.graph.inserting_before(node):
                sigmoid = work.build.call(node, aten.sigmoid.default, x)
                work.build.replace(node, work.build.call(node, aten.mul.Tensor, x, sigmoid))


def _is_silu(node: fx.Node) -> bool:
    """Whether a quotient is `x / (1 + exp(-x))`, as Inductor decomposes SiLU."""
    x, below = node.args
    if not _calls(below, aten.add.Tensor) or below.kwargs or sum(_calls(a, aten.exp.default) for a in below.args) != 1:
        return False
    one, exp = sorted(below.args, key=lambda argument: _calls(argument, aten.exp.default))
    return one == 1 and _calls(exp.args[0], aten.neg.default) and exp.args[0].args[0] is x


def _is_between_casts(node: fx.Node) -> bool:
    """Whether it reads what was a 16-bit value, in float32, and every reader makes one of it."""
    x = node.args[0]
    widened = x.target in CONVERSIONS and x.args[0].meta["val"].dtype in _HALF and x.meta["val"].dtype == torch.float32
    return widened and all(user.target in CONVERSIONS and user.meta["val"].dtype in _HALF for user in node.users)


def _calls(argument: object, target: object) -> bool:
    return isinstance(argument, fx.Node) and argument.target is target
