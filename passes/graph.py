"""What every pass needs of an FX graph: the value that a node stands for, and the one door for new nodes."""

from __future__ import annotations

import contextlib
import dataclasses
import operator
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import fx

from .._compat import (
    descendants,
    expression,
    fake_like,
    fake_mode_of,
    is_autograds,
    is_tangent,
    keep_in_backward,
    module_stack,
    op_name,
    place_of,
    recomputation,
)
from ..config.names import clean

aten = torch.ops.aten

TRANSPOSES = (aten.permute.default, aten.t.default, aten.transpose.int)
VIEWS = (
    *TRANSPOSES,
    aten.view.default,
    aten._unsafe_view.default,
    aten.reshape.default,
    aten.alias.default,
    aten.detach.default,
    aten.expand.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.unsqueeze.default,
)
"""Ops that only rename the elements of a tensor."""

CONVERSIONS = (torch.ops.prims.convert_element_type.default, aten._to_copy.default)
"""Ops that give the elements of a tensor another dtype."""

CASTS = (*CONVERSIONS, aten.clone.default)
"""Ops that keep the elements of a tensor up to rounding."""


class VerifyError(AssertionError):
    """The pass made an illegal graph: a bug in Quartet Compile. Names the offending node."""

    def __init__(self, message: str, node: fx.Node | None = None) -> None:
        super().__init__(message)
        self.node = node


class Matrix(NamedTuple):
    """One operand of a matmul: a 2-D node, or a 3-D one that is a batch of matrices, read as it is or transposed.

    key: what value it is: the node at the end of the chain of views, and the sizes, strides and offset with which the
    logical `[rows, columns]` reads it. Two operands with one key hold the same numbers; a batch of one counts as 2-D.
    """

    node: fx.Node
    transposed: bool
    key: tuple

    @property
    def t(self) -> Matrix:
        """The transpose."""
        root, sizes, strides, offset = self.key
        return Matrix(self.node, not self.transposed, (root, _swapped(sizes), _swapped(strides), offset))

    @property
    def shape(self) -> tuple:
        """`(rows, columns)`, as ints or SymInts."""
        rows, columns = self.node.meta["val"].shape[-2:]
        return (columns, rows) if self.transposed else (rows, columns)

    @property
    def batch(self) -> int | torch.SymInt:
        """How many matrices it is."""
        shape = self.node.meta["val"].shape
        return shape[0] if len(shape) == 3 else 1


class Values:
    """Which nodes of one graph hold the same numbers. Views are followed by replaying them on a stand-in tensor."""

    def __init__(self) -> None:
        self._stand_ins: dict[fx.Node, tuple[fx.Node, torch.Tensor]] = {}

    def matrix(self, node: fx.Node) -> Matrix:
        """The operand that a 2-D or 3-D node is, with transposes of its matrices peeled off."""
        transposed = False
        key = self._key(node)
        while node.target in TRANSPOSES and _swaps(node):
            node, transposed = node.args[0], not transposed
        return Matrix(node, transposed, key)

    def whole(self, node: fx.Node) -> Matrix:
        """A node of any rank, as it is."""
        return Matrix(node, False, self._key(node, whole=True))

    def root(self, node: fx.Node) -> fx.Node:
        """The node at the end of the chain of views."""
        return self._stand_in(node)[0]

    def _key(self, node: fx.Node, whole: bool = False) -> tuple:
        root, stand_in = self._stand_in(node)
        sizes = tuple(map(expression, stand_in.shape))
        strides = tuple(
            0 if size == 1 else expression(stride) for size, stride in zip(sizes, stand_in.stride(), strict=True)
        )
        if len(sizes) == 3 and sizes[0] == 1 and not whole:
            sizes, strides = sizes[1:], strides[1:]
        return root, sizes, strides, expression(stand_in.storage_offset())

    def _stand_in(self, node: fx.Node) -> tuple[fx.Node, torch.Tensor]:
        found = self._stand_ins.get(node)
        if found is None:
            found = self._stand_ins[node] = self._replay(node) or (node, _same_layout(node))
        return found

    def _replay(self, node: fx.Node) -> tuple[fx.Node, torch.Tensor] | None:
        if node.target not in VIEWS:
            return None
        root, source = self._stand_in(node.args[0])
        target = aten.view.default if node.target is aten.reshape.default else node.target  # which may copy
        arguments = fx.map_arg(node.args[1:], lambda n: n.meta["val"])
        with _fake_mode(node) if _is_symbolic(node) else contextlib.nullcontext():
            try:
                return root, target(source, *arguments, **node.kwargs)
            except (RuntimeError, ValueError):
                return None


def strip(node: fx.Node, through: Iterable = (*VIEWS, *CASTS)) -> fx.Node:
    """The node at the start of a chain of views and casts."""
    while node.target in through:
        node = node.args[0]
    return node


def tangents(graph: fx.Graph) -> list[fx.Node]:
    """The placeholders that carry gradients into a joint graph; none in an inference graph."""
    return [node for node in graph.nodes if is_tangent(node)]


def backward_of(graph: fx.Graph) -> set[fx.Node]:
    """What depends on a gradient, or where whole steps are traced, what autograd computed; none of an inference graph."""
    return descendants(tangents(graph)) or {node for node in graph.nodes if is_autograds(node)}


@dataclasses.dataclass
class Builder:
    """The one door for new nodes: runs the op on fake tensors for `meta["val"]`, and copies where it belongs from the
    node that it stands in for: autograd sequence number, partitioner tag, recompute policy, module and annotation.

    edits: how often the graph was changed. before: the nodes that it had.
    made: the last node of each op that stands in for a node, by both.
    replaced: the nodes that were replaced, with what came in their place.
    working_on: the index of the site that is being rewritten; author: of the site that each new node was made for.
    """

    graph: fx.Graph
    working_on: int | None = None
    author: dict[fx.Node, int | None] = dataclasses.field(default_factory=dict)
    made: dict[tuple[fx.Node, Any], fx.Node] = dataclasses.field(default_factory=dict)
    _seen: dict[tuple, Any] = dataclasses.field(default_factory=dict)
    replaced: dict[fx.Node, fx.Node] = dataclasses.field(default_factory=dict)
    _once: dict[tuple, Any] = dataclasses.field(default_factory=dict)
    edits: int = 0

    def __post_init__(self) -> None:
        self.before = frozenset(self.graph.nodes)

    def call(
        self, like: fx.Node, target: Any, *args: Any, backward_only: bool = False, kwargs: dict | None = None
    ) -> fx.Node:
        """A new node `target(*args, **kwargs)`, placed where the graph inserts now.

        backward_only: forbid the partitioner to move it into the forward graph, though it reads no gradient.
        """
        args = fx.map_arg(args, lambda n: self.replaced.get(n, n))  # operands were found before anything was rewritten
        name = op_name(target).rpartition("::")[2]
        node = self.graph.create_node("call_function", target, args, kwargs, name=name)
        node.meta = place_of(like)
        if backward_only:
            keep_in_backward(node)
        self.author[node] = self.working_on
        self.edits += 1
        node.meta["val"] = self._run(like, target, args, kwargs or {})
        self.made[like, target] = node
        return node

    def once(self, like: fx.Node, key: Any, make: Callable[[], Any]) -> Any:
        """What `make` builds, built for the first site that asks for this key. Each recomputation has its own."""
        key = (key, *recomputation(like))
        if key not in self._once:
            self._once[key] = make()
        return self._once[key]

    def outputs(self, node: fx.Node) -> tuple[fx.Node, ...]:
        """One node for each output of a node with several."""
        items = []
        for index in range(len(node.meta["val"])):
            item = self.graph.call_function(operator.getitem, (node, index))
            item.meta = place_of(node)
            item.meta["val"] = node.meta["val"][index]
            self.author[item] = self.author.get(node)
            items.append(item)
        return tuple(items)

    def _run(self, like: fx.Node, target: Any, args: tuple, kwargs: dict) -> Any:
        """The op on fake tensors. Layers repeat the same few calls, and a fake call takes 1 to 2 ms: an op without
        views and with static shapes runs once for each kind of operands, and is copied from then on."""
        mode = _fake_mode(like)
        key = (target, fx.map_arg(args, _kind)) if target.namespace == "quartet" else None
        found = self._seen.get(key)
        if found is None:
            with mode:
                found = target(*fx.map_arg(args, lambda n: n.meta["val"]), **kwargs)
            if key is not None and all(map(_is_static, _tensors(found))):
                self._seen[key] = found
            return found
        copies = tuple(fake_like(mode, tensor) for tensor in _tensors(found))
        return copies if isinstance(found, (tuple, list)) else copies[0]

    def replace(self, old: fx.Node, new: fx.Node) -> None:
        """Give every user of `old` the node `new`, which must have its shape and dtype, in the layout of `old`, which views
        that read it may count on; called where `old` is."""
        before, after = old.meta["val"], new.meta["val"]
        if before.dtype != after.dtype or [*map(expression, before.shape)] != [*map(expression, after.shape)]:
            raise VerifyError(
                f"{old.format_node()} is {before.dtype}{list(before.shape)}, "
                f"its replacement {new.format_node()} is {after.dtype}{list(after.shape)}"
            )
        if _layout(before) != _layout(after):
            new = self._laid_out(old, new)
        old.replace_all_uses_with(new)
        self.replaced[old] = new
        self.edits += 1

    def read_instead(self, node: fx.Node, x: fx.Node, before: fx.Node) -> None:
        """Let a new node, which has several results, read `x` as its first operand, and come with them before another."""
        node.args = (x, *node.args[1:])
        node.meta["val"] = self._run(node, node.target, node.args, dict(node.kwargs))
        for moved in (node, *node.users):
            before.prepend(moved)
        for item in node.users:
            item.meta["val"] = node.meta["val"][item.args[1]]
        self.edits += 1

    def call_with(self, node: fx.Node, call: NamedTuple) -> None:
        """Let a new node that calls an op of ours be called with other arguments, which give the same."""
        node.args = (*call,)
        self.edits += 1

    def divert(self, node: fx.Node, copy: fx.Node) -> None:
        """Give every other reader of `node` its copy, which reads it."""
        node.replace_all_uses_with(copy, delete_user_cb=lambda user: user is not copy)
        self.edits += 1

    def _laid_out(self, old: fx.Node, new: fx.Node) -> fx.Node:
        """The values of `new` with the strides of `old`."""
        order = _dense_order(old.meta["val"])
        if order is None:
            raise VerifyError(
                f"{old.format_node()} has strides {[*old.meta['val'].stride()]}, which leave gaps or overlap; its "
                f"replacement {new.format_node()} has {[*new.meta['val'].stride()]}"
            )
        back = [order.index(dim) for dim in range(len(order))]
        new = self.call(old, aten.permute.default, new, order) if order != sorted(order) else new
        new = self.call(old, aten.clone.default, new, kwargs={"memory_format": torch.contiguous_format})
        return self.call(old, aten.permute.default, new, back) if order != sorted(order) else new


def snapshot(graph: fx.Graph) -> Callable[[], None]:
    """A function that gives a graph back the nodes that it has now, and to them what they read now."""
    before = [(node, node.args, node.kwargs) for node in graph.nodes]

    def restore() -> None:
        for node, args, kwargs in before:
            node.args, node.kwargs = args, kwargs
        known = {node for node, _, _ in before}
        for node in reversed([node for node in graph.nodes if node not in known]):
            graph.erase_node(node)

    return restore


def module_of(node: fx.Node) -> str:
    """The path of the innermost module that computes a node, as users write it; empty outside of modules."""
    stack = module_stack(node.meta)
    return clean(stack[-1][0]) if stack else ""


def _swaps(node: fx.Node) -> bool:
    """Whether a transposing op swaps the last two dimensions and leaves the others."""
    rank = node.meta["val"].dim()
    if node.target is aten.permute.default:
        order = [dim % rank for dim in node.args[1]]
    elif node.target is aten.transpose.int:
        order = list(range(rank))
        first, second = node.args[1] % rank, node.args[2] % rank
        order[first], order[second] = order[second], order[first]
    else:
        order = [1, 0]
    return order == [*range(rank - 2), rank - 1, rank - 2]


def _layout(value: torch.Tensor) -> list:
    """The strides that matter, of dimensions with more than one element."""
    return [
        expression(stride) for size, stride in zip(value.shape, value.stride(), strict=True) if expression(size) != 1
    ]


def _dense_order(value: torch.Tensor) -> list[int] | None:
    """The dimensions from the outermost to the innermost, where memory has them without gaps; else None."""
    sizes, strides = ([expression(item) for item in items] for items in (value.shape, value.stride()))
    left = [dim for dim, size in enumerate(sizes) if size != 1]
    order, expected = [], 1
    while left:
        inner = next((dim for dim in left if strides[dim] == expected), None)
        if inner is None:
            return None
        left.remove(inner)
        order.append(inner)
        expected = sizes[inner] * expected
    order += [dim for dim, size in reversed([*enumerate(sizes)]) if size == 1]
    return order[::-1]


def _swapped(dims: tuple) -> tuple:
    return (*dims[:-2], dims[-1], dims[-2])


def _fake_mode(node: fx.Node) -> Any:
    return fake_mode_of(_tensors(node.meta["val"])[0])


def _same_layout(node: fx.Node) -> torch.Tensor:
    value = node.meta["val"]
    with _fake_mode(node) if _is_symbolic(node) else contextlib.nullcontext():
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")


def _is_symbolic(node: fx.Node) -> bool:
    return not _is_static(node.meta["val"])


def _is_static(value: torch.Tensor) -> bool:
    return all(isinstance(size, int) for size in (*value.shape, *value.stride()))


def _kind(node: fx.Node) -> Any:
    """What a fake call depends on: of a tensor, all but its identity."""
    value = node.meta["val"]
    if not isinstance(value, torch.Tensor):
        return value
    sizes, strides = tuple(map(expression, value.shape)), tuple(map(expression, value.stride()))
    return _Operand(sizes, strides, value.dtype, value.device)


class _Operand(NamedTuple):
    sizes: tuple
    strides: tuple
    dtype: torch.dtype
    device: torch.device


def _tensors(value: Any) -> tuple[torch.Tensor, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)
