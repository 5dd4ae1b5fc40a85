"""Joint graphs written a node at a time, as AOTAutograd would make them: fake values, tags, sequence numbers, gradients that
come in; and their way through the passes."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable

import torch
from captured import compiled
from torch import fx, nn

from quartet_compile._compat import FakeTensorMode
from quartet_compile.config.options import configure
from quartet_compile.errors import QuartetError
from quartet_compile.passes import PIPELINE, joint
from quartet_compile.passes.inputs import Placeholders
from quartet_compile.passes.weights import Weights
from quartet_compile.passes.work import Work

aten = torch.ops.aten


class Joint:
    """A graph to which nodes are added. `linear` adds a product and `linear_backward` both of its gradients; they are
    paired by what they read, and carry the same sequence number."""

    def __init__(self) -> None:
        self.graph, self.mode = fx.Graph(), FakeTensorMode()
        self.parameters: dict[fx.Node, str] = {}
        self.inputs: list[fx.Node] = []
        self._numbers: dict[fx.Node, int] = {}

    def input(self, name: str, *shape: int) -> fx.Node:
        """A placeholder; `tangents_*` is a gradient that comes in."""
        node = self.graph.placeholder(name)
        with self.mode:
            node.meta["val"] = torch.empty(shape)
        self.inputs.append(node)
        return node

    def parameter(self, name: str, *shape: int) -> fx.Node:
        node = self.input(f"primals_{len(self.inputs)}", *shape)
        self.parameters[node] = name
        return node

    def call(self, op: object, *args: object, tag: str = "is_forward", number: int = 0) -> fx.Node:
        node = self.graph.call_function(op, args)
        with self.mode:
            node.meta["val"] = op(*fx.map_arg(args, lambda n: n.meta["val"]))
        node.meta.update(partitioner_tag=tag, seq_nr=number)
        return node

    def item(self, node: fx.Node, index: int) -> fx.Node:
        """A result of a node that has several."""
        found = self.graph.call_function(operator.getitem, (node, index))
        found.meta = {**node.meta, "val": node.meta["val"][index]}
        return found

    def linear(self, x: fx.Node, w: fx.Node) -> fx.Node:
        """`x w^T`."""
        number = len(self._numbers) + 1
        y = self.call(aten.mm.default, x, self.call(aten.t.default, w, number=number), number=number)
        self._numbers[y] = number
        return y

    def linear_backward(self, y: fx.Node, dy: fx.Node, x: fx.Node, w: fx.Node) -> tuple[fx.Node, fx.Node]:
        """The gradients of x and of w."""
        how = dict(tag="is_backward", number=self._numbers[y])
        dx = self.call(aten.mm.default, dy, w, **how)
        return dx, self.call(aten.mm.default, self.call(aten.t.default, dy, **how), x, **how)

    def weights(self) -> Weights:
        return Weights(self.graph, self.parameters, {})

    def work(self, *results: fx.Node, **options: object) -> Work:
        """The graph that returns these nodes, before any pass."""
        self.graph.output(results)
        known = Placeholders(self.parameters, {}, {}, dict(self.parameters))
        return Work(graph=self.graph, policy=configure(options).policy, inputs=known, weights=self.weights())


def two_linears(**options: object) -> Work:
    """A graph of `first` [48, 64] x [96, 64] and `second` [48, 96] x [64, 96], and their gradients."""
    joint = Joint()
    x, v, w = joint.input("primals_0", 48, 64), joint.parameter("first", 96, 64), joint.parameter("second", 64, 96)
    dz = joint.input("tangents_1", 48, 64)
    y = joint.linear(x, v)
    z = joint.linear(y, w)
    dy, dw = joint.linear_backward(z, dz, y, w)
    dx, dv = joint.linear_backward(y, dy, x, v)
    return joint.work(z, dx, dv, dw, **options)


def gathered_linear(way: Callable[[Joint, fx.Node], fx.Node], part: tuple[int, ...], **options: object) -> Work:
    """A graph of `first`, of which two ranks have a part each: it is gathered, and `way` makes of that the weight [N, K]."""
    ops = torch.ops._c10d_functional
    joint = Joint()
    given = joint.parameter("first", *part)
    wait = joint.call(ops.wait_tensor.default, joint.call(ops.all_gather_into_tensor.default, given, 2, "0"))
    w = way(joint, wait)
    n, k = w.meta["val"].shape
    x, dy = joint.input("primals_1", 48, k), joint.input("tangents_1", 48, n)
    y = joint.linear(x, w)
    return joint.work(y, *joint.linear_backward(y, dy, x, w), **options)


def rewrite(work: Work, skip: str = "") -> Work:
    """All passes, without the checks between them."""
    for step in PIPELINE:
        if step.name != skip:
            step.run(work)
    return work


def results(work: Work, seed: int = 0) -> list[torch.Tensor]:
    """What a graph returns of random inputs."""
    torch.manual_seed(seed)
    given = [torch.randn(node.meta["val"].shape) for node in work.graph.find_nodes(op="placeholder")]
    return list(fx.GraphModule(nn.Module(), work.graph)(*given))


def rewritten(model: nn.Module, *inputs: torch.Tensor, **options: object) -> Work:
    """The work of a model's joint graph after all passes, none of them checked."""
    works, plain = [], joint.run

    def keep(_: object, work: Work) -> dict[str, float]:
        works.append(rewrite(work))
        raise QuartetError("the graph is kept as it is now, instead of being partitioned")

    joint.run = keep
    try:
        function, _ = compiled(model, **options)
        with contextlib.suppress(QuartetError):
            function(*inputs)
    finally:
        joint.run = plain
    return works[0]
