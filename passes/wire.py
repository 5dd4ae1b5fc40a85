"""Send codes where ranks gather a matrix that is then quantized, for `wire="quantized"`: a step after the rewriting.

Before:  w = wait(all_gather(part));  y = rows(w)          x: [R, K] of all ranks, part: [R / ranks, K]
         codes, scales, _, mask = quantize(y)
After:   codes', scales', _, mask' = quantize(part)
         codes = rows(wait(all_gather(codes')))            and so scales and mask

A weight that is sharded by its rows (FSDP by DTensor), and an activation of which each rank has a part of the sequence, so
take 5.25 bits an element instead of 16, and each rank quantizes only what is its own.

Legal, and the same bits, because such a quantizer makes of a row what it makes of it among others, whatever the order of
rows; and because casts of elements can go before. The gather goes only if nothing else reads what it brings.

The second level of NVFP4's scales is of the largest magnitude of the whole matrix. Ranks agree on it first, and each
quantizes one row more, which holds it:

         largest = wait(all_reduce(max |part|));  codes' = quantize([part; largest 0 ... 0])[:-1]
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import fx

from ..kernels.numerics import philox
from ..kernels.quantizer import quantizer
from ..kernels.schemas import SCHEMAS, Quantize, arguments_of, op_of
from ..report.report import Gathered
from .graph import Builder, aten
from .rows import Way, gone_again, is_wait, way_to
from .work import Work

convert, collectives = torch.ops.prims.convert_element_type.default, torch.ops._c10d_functional

SENT = ("codes", "scales", "mask")
"""The results of `quantize` that have something for each row."""

_OPERANDS = {
    philox.FPROP_X: "X",
    philox.FPROP_W: "W",
    philox.DGRAD_DY: "dY",
    philox.DGRAD_W: "W^T",
    philox.WGRAD_DY: "dY^T",
    philox.WGRAD_X: "X^T",
}
"""By stream."""


class Candidate(NamedTuple):
    """What quantizes a matrix that ranks gather, and the way that the matrix took."""

    made: fx.Node
    way: Way


def apply(work: Work) -> None:
    """Gather codes instead of what they are made of, if the policy asks for it and where that is the same."""
    if work.policy.wire != "quantized":
        return
    found, live = find(work), _live(work.graph)
    first = {candidate.way.wait: candidate for candidate in reversed(found)}
    decided = [(candidate, _why_not(candidate, found, live)) for candidate in found if candidate in first.values()]
    names = {decision.site.index: decision.name for decision in work.decisions}
    work.gathered = tuple(_described(work, candidate, reason, names) for candidate, reason in decided)
    for candidate, reason in decided:
        if not reason:
            work.build.working_on = work.build.author[candidate.made]
            send(work.build, candidate)
            work.idle.add(candidate.way.wait)


def find(work: Work) -> list[Candidate]:
    """Every op of the rewritten graph that quantizes what ranks gather."""
    ops = [node for node in work.build.author if op_of(node) in ("quantize", "quantize_pair")]
    found = [Candidate(node, way) for node in ops if (way := way_to(node.args[0]))]
    order = {node: position for position, node in enumerate(work.graph.nodes)}
    return sorted(found, key=lambda candidate: order[candidate.made])


def send(build: Builder, candidate: Candidate) -> None:
    """Quantize the part, and gather what it gives."""
    made, way = candidate
    results = SCHEMAS["quantize"].results
    items = {results[item.args[1]]: item for item in made.users if item.users}
    readers = {name: list(items[name].users) for name in SENT if name in items}
    part, gather = way.part, way.gather
    with build.graph.inserting_before(gather):
        for cast in way.casts:
            part = build.call(cast, cast.target, part, *cast.args[1:], kwargs=dict(cast.kwargs))
        shape = [*part.meta["val"].shape]
        flat = part if len(shape) == 2 else build.call(gather, aten.reshape.default, part, [-1, shape[-1]])
        spec = quantizer(arguments_of(made).quantizer)
        given = _with_largest(build, flat, gather, spec.group) if spec.two_level else flat
    build.read_instead(made, given, before=gather)
    for name, users in readers.items():
        item = items[name]
        with build.graph.inserting_before(gather):
            width = item.meta["val"].shape[-1]
            rows = (
                build.call(gather, aten.slice.Tensor, item, 0, 0, flat.meta["val"].shape[0]) if spec.two_level else item
            )
            rows = rows if len(shape) == 2 else build.call(gather, aten.view.default, rows, [*shape[:-1], width])
            sent = build.call(gather, gather.target, _seen_as(build, rows, torch.uint8), *gather.args[1:])
        with build.graph.inserting_before(way.wait):
            gathered = _seen_as(build, build.call(way.wait, way.wait.target, sent), item.meta["val"].dtype)
        whole = gone_again(build, way, gathered)
        for user in users:
            user.replace_input_with(item, whole)


def _with_largest(build: Builder, rows: fx.Node, gather: fx.Node, columns: int) -> fx.Node:
    """Rows, and one more, with the largest magnitude of all ranks. Groups with a NaN or an infinity do not count."""
    value = rows.meta["val"]
    count, width = value.shape

    def call(op: Any, *args: Any, **kwargs: Any) -> fx.Node:
        return build.call(gather, op, *args, kwargs=kwargs)

    padded = call(aten.constant_pad_nd.default, call(aten.abs.default, rows), [0, -width % columns])
    groups = call(aten.amax.default, call(aten.view.default, padded, [count, -1, columns]), [-1])
    zero = call(aten.full.default, [], 0.0, dtype=value.dtype, device=value.device)
    finite = call(aten.where.self, call(aten.lt.Scalar, groups, math.inf), groups, zero)
    mine = call(convert, call(aten.amax.default, finite, [0, 1]), torch.float32)
    reduced = call(collectives.all_reduce.default, mine, "max", gather.args[2])
    largest = call(convert, call(collectives.wait_tensor.default, reduced), value.dtype)
    more = call(aten.constant_pad_nd.default, call(aten.view.default, largest, [1, 1]), [0, width - 1])
    return call(aten.cat.default, [rows, more])


def _seen_as(build: Builder, node: fx.Node, dtype: torch.dtype) -> fx.Node:
    """The same bytes: not every process group sends numbers of 8 bits."""
    return node if node.meta["val"].dtype == dtype else build.call(node, aten.view.dtype, node, dtype)


def _live(graph: fx.Graph) -> set[fx.Node]:
    """What the results of a graph depend on: the rewriting leaves the matmuls that it replaced to be removed at the end."""
    stack = [node for node in graph.nodes if node.is_impure() and not is_wait(node) and node.op != "placeholder"]
    found = set(stack)
    while stack:
        for source in stack.pop().all_input_nodes:
            if source not in found:
                found.add(source)
                stack.append(source)
    return found


def _why_not(candidate: Candidate, found: list[Candidate], live: set[fx.Node]) -> str:
    """Why a matrix is gathered as it is; empty where its codes can be."""
    made, way = candidate
    call = arguments_of(made)
    if not isinstance(call, Quantize):
        return "a gradient is quantized along its columns too, for which each rank has a part"
    if sum(other.way.wait is way.wait for other in found) > 1:
        return "it is quantized in several ways, or once for each checkpointed region"
    spec = quantizer(call.quantizer)
    if call.transpose:
        return "what is quantized together is what ranks have parts of: K is gathered"
    if spec.exact:
        return f"{spec.name} rounds nothing"
    if spec.two_level and spec.rotation:
        return f"{spec.name} has a scale of the whole tensor, of what is rotated"
    if spec.seeded:
        return f"{spec.name} draws random bits by the row of the whole tensor"
    if spec.group_rows > 1:
        return f"{spec.name} has blocks of {spec.group_rows} rows"
    if not all(isinstance(size, int) for node in (way.part, way.wait) for size in node.meta["val"].shape):
        return "its sizes are dynamic"
    inside = {way.wait, *way.nodes}
    readers = {user for node in inside for user in node.users if user in live} - {*inside, made}
    if readers:
        return f"it is read in high precision too, by {', '.join(sorted(map(str, readers))[:3])}"
    if _bytes_sent(candidate) >= _bytes(way.wait):
        return "its codes, scales and mask take as many bytes"
    return ""


def _described(work: Work, candidate: Candidate, reason: str, names: dict[int | None, str]) -> Gathered:
    made, way = candidate
    stream = getattr(arguments_of(made), "stream", philox.DGRAD_DY)
    return Gathered(
        matmul=names[work.build.author[made]],
        operand=_OPERANDS[stream],
        shape=tuple(size if isinstance(size, int) else str(size) for size in made.args[0].meta["val"].shape),
        ranks=way.gather.args[1],
        bytes_before=_bytes(way.wait),
        bytes_after=_bytes(way.wait) if reason else _bytes_sent(candidate),
        reason=reason,
    )


def _bytes(node: fx.Node) -> int:
    """Of a matrix, as all ranks have it once it is gathered; 0 where its sizes are dynamic."""
    size = node.meta["val"].nbytes
    return size if isinstance(size, int) else 0


def _bytes_sent(candidate: Candidate) -> int:
    """The same of what is made of it."""
    made, wait = candidate.made.meta["val"], candidate.way.wait.meta["val"]
    named = dict(zip(SCHEMAS["quantize"].results, made, strict=True))
    a_row = sum(named[name].shape[1] * named[name].itemsize for name in SENT)
    return wait.shape[:-1].numel() * a_row
