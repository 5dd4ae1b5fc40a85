"""The way that a matrix took from where ranks gathered it: what puts its rows in another order, and casts.

A node on the way changes no element but by a cast, and leaves the last dimension of its input as it is: views, transposes of
the other dimensions, parts along them and what puts parts together. So the way can be gone again by whatever has something
for each row, such as its codes.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import fx

from .._compat import op_name
from .graph import CONVERSIONS, Builder, aten

GATHER, WAIT = "_c10d_functional::all_gather_into_tensor", "_c10d_functional::wait_tensor"

_SAME = (aten.alias.default, aten.detach.default, aten.clone.default)
_VIEWS = (aten.view.default, aten._unsafe_view.default, aten.reshape.default)
_PARTS = (aten.split.Tensor, aten.split_with_sizes.default)


class Way(NamedTuple):
    """wait, gather: the nodes it begins with. nodes: those after, in order; the last is the matrix. casts: those among them
    that each element goes through, in order."""

    wait: fx.Node
    gather: fx.Node
    nodes: tuple[fx.Node, ...]
    casts: tuple[fx.Node, ...]

    @property
    def part(self) -> fx.Node:
        """What each rank gives."""
        return self.gather.args[0]


def is_wait(node: fx.Node) -> bool:
    """Whether a node waits for a collective."""
    return _name(node) == WAIT


def way_to(node: fx.Node) -> Way | None:
    """The way of a matrix from the one gather that all of it comes from; None if there is no such."""
    casts: dict[fx.Node, tuple[fx.Node, ...]] = {}
    order: list[fx.Node] = []
    waits: set[fx.Node] = set()
    stack = [node]
    while stack:
        current = stack[-1]
        if current in casts:
            stack.pop()
            continue
        if is_wait(current):
            waits.add(current)
            casts[current] = ()
            continue
        sources = moved(current)
        if not sources:
            return None
        missing = [source for source in sources if source not in casts]
        if missing:
            stack += missing
            continue
        before = {casts[source] for source in sources}
        if len(before) > 1:
            return None
        casts[current] = (*before.pop(), *[current] * (current.target in CONVERSIONS))
        order.append(current)
    if len(waits) != 1:
        return None
    (wait,) = waits
    gather = wait.args[0]
    if not isinstance(gather, fx.Node) or _name(gather) != GATHER:
        return None
    return Way(wait, gather, tuple(order), casts[node])


def moved(node: fx.Node) -> list[fx.Node]:
    """The nodes whose rows a node has, each as it is up to a cast; none if it does anything else."""
    target, args = node.target, node.args
    if target is operator.getitem:
        return [args[0]] if args[0].target in _PARTS else []
    if target in _SAME or target in CONVERSIONS:
        return [args[0]]
    if target is aten.cat.default:
        sources = list(args[0])
        return sources if not _is_last(sources[0], _dimension(node, 1)) else []
    if target in _PARTS:
        return [args[0]] if not _is_last(args[0], _dimension(node, 2)) else []
    if target is aten.slice.Tensor:
        return [args[0]] if not _is_last(args[0], _dimension(node, 1)) else []
    if target in _VIEWS:
        return [args[0]] if _size(node) == _size(args[0]) else []
    if target is aten.permute.default:
        rank = len(args[1])
        return [args[0]] if args[1][-1] % rank == rank - 1 else []
    if target is aten.transpose.int:
        return [args[0]] if not any(_is_last(args[0], dim) for dim in args[1:]) else []
    if target is aten.unsqueeze.default:
        rank = args[0].meta["val"].dim()
        return [args[0]] if args[1] % (rank + 1) < rank else []
    if target in (aten.squeeze.dim, aten.squeeze.dims):
        dims = args[1] if isinstance(args[1], (list, tuple)) else [args[1]]
        return [args[0]] if not any(_is_last(args[0], dim) for dim in dims) else []
    return []


def gone_again(build: Builder, way: Way, gathered: fx.Node) -> fx.Node:
    """What becomes of `gathered`, which has something else for each row of `way.wait`, on the same way without its casts."""
    made: dict[fx.Node, Any] = {way.wait: gathered}
    width = gathered.meta["val"].shape[-1]
    for node in way.nodes:
        with build.graph.inserting_before(node):
            made[node] = _again(build, node, made, width)
    return made[way.nodes[-1] if way.nodes else way.wait]


def _again(build: Builder, node: fx.Node, made: dict[fx.Node, Any], width: int) -> Any:
    if node.target in CONVERSIONS:
        return made[node.args[0]]
    if node.target is operator.getitem:
        return made[node.args[0]][node.args[1]]
    args: Any = fx.map_arg(node.args, lambda n: made.get(n, n))
    if node.target in _VIEWS:
        args = (args[0], [*args[1][:-1], width])
    again = build.call(node, node.target, *args, kwargs=dict(node.kwargs))
    return build.outputs(again) if node.target in _PARTS else again


def origin(node: fx.Node) -> fx.Node:
    """The node whose rows a node has, here or gathered from all ranks."""
    *_, first = _back(node)
    return first


def route(node: fx.Node) -> tuple[str, ...]:
    """What moves rows between `origin(node)` and a node, without the sizes of the last dimension, and whatever sees the
    same bytes as another dtype."""
    *moving, _ = _back(node)
    return tuple(_moved_by(step) for step in moving if step.target is not aten.view.dtype)


def _back(node: fx.Node) -> Iterator[fx.Node]:
    """A node, and those on the way back to its origin."""
    yield node
    while sources := node.args[:1] if _is_sending(node) else moved(node):
        node = sources[0]
        yield node


def _moved_by(node: fx.Node) -> str:
    args = fx.map_arg(node.args, lambda n: "")
    if node.target in _VIEWS:
        args = (args[0], args[1][:-1])
    return f"{node.target}{args}{node.kwargs}"


def _is_sending(node: fx.Node) -> bool:
    return node.target is aten.view.dtype or _name(node) in (GATHER, WAIT)


def _name(node: fx.Node) -> str:
    return op_name(node.target) if node.op == "call_function" else ""


def _dimension(node: fx.Node, place: int) -> int:
    """The argument `dim`, which is 0 where it isn't given."""
    return node.args[place] if len(node.args) > place else node.kwargs.get("dim", 0)


def _is_last(node: fx.Node, dim: int) -> bool:
    rank = node.meta["val"].dim()
    return dim % rank == rank - 1


def _size(node: fx.Node) -> Any:
    """Of the last dimension; None of a scalar."""
    shape = node.meta["val"].shape
    return shape[-1] if shape else None
