"""Convolutions as matrix products of unfolded windows, and transposed ones as the same read backwards.

    x [B, C, *size] --unfold--> [B * windows, C * kernel]        y [B, N, *out] <- [B * windows, N]
    x [B, N, *out]  ----------> [B * windows, N]                 y [B, C, *size] <--fold-- [B * windows, C * kernel]

A transposed convolution is the gradient of a convolution from its output (wide) to its input (narrow), so `size` is that
of its output and `out` that of its input, and its filters lie as that convolution's: [N, C, *kernel].

`fold` is the transpose of `unfold`: it adds what the windows hold of each element. One dimension after the other, the
kernel is cut into chunks of one stride; the chunks at one position in their windows don't overlap, so each is a plain
reshape, and as many shifted copies are added as chunks overlap (3 for a kernel of 3 and a stride of 1, 1 for patches).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from torch import fx

from ..graph import Builder, aten

PAYS_FROM = 512
"""Filters from which on unfolding overlapping windows pays. What an unfolded element costs (copied, quantized, unrotated,
folded) doesn't depend on the filters; what FP4 saves on it, three products with each filter, grows with them. FP4 takes
3.40, 1.91, 1.09, 0.72 and 0.47 of the time of float32 for a 3x3 convolution with as many channels as filters, 64, 128,
256, 512 and 1024, and 0.81 and 0.65 with a stride of 2 (256, 512); a transposed 4x4 of stride 2, 0.89 (256). CPU Inductor,
one thread, examples/bench_convolution.py."""


@dataclasses.dataclass(frozen=True)
class Windows:
    """The geometry of a convolution; lists have an entry for each spatial dimension.

    channels, size: of the side that is unfolded; filters, out: of the other side, that has one element a window. Channels
    and filters are those of one group.
    """

    channels: int
    filters: int
    size: list
    out: list
    kernel: list
    stride: list
    padding: list
    dilation: list
    transposed: bool
    groups: int

    @property
    def read(self) -> tuple:
        """What decides the values of the unfolded matrix of a tensor."""
        return tuple(map(tuple, (self.out, self.kernel, self.stride, self.padding, self.dilation)))

    @property
    def extent(self) -> list:
        """The size of a window, with the gaps of its dilation."""
        return [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilation, strict=True)]

    @property
    def columns(self) -> int:
        """Of the unfolded matrix."""
        return self.channels * math.prod(self.kernel)

    @property
    def overlaps(self) -> bool:
        """Whether an element is in several windows."""
        return any(k > 1 and e > t for k, e, t in zip(self.kernel, self.extent, self.stride, strict=True))

    @property
    def unprofitable(self) -> str | None:
        """Why unfolding it costs more than FP4 saves; None if it doesn't."""
        if not self.overlaps or self.filters >= PAYS_FROM:
            return None
        kernel, side = " x ".join(map(str, self.kernel)), "input channels" if self.transposed else "filters"
        return (
            f"{self.name} whose windows of {kernel} overlap: unfolding them pays from {PAYS_FROM} {side} on, and it has "
            f"{self.filters}"
        )

    @property
    def obstacle(self) -> str | None:
        """Why it isn't one matrix product of its windows; None if it is."""
        if self.groups != 1:
            return f"{self.name} in {self.groups} groups, each a product of its own, whose sizes these are"
        if not all(isinstance(size, int) for size in (*self.size, *self.out)):
            return f"{self.name} of dynamic spatial size; mark it static with torch._dynamo.mark_static"
        return None

    @property
    def name(self) -> str:
        """In words, without its sizes."""
        return "a transposed convolution" if self.transposed else "a convolution"


def windows(node: fx.Node) -> Windows:
    """The geometry of an `aten.convolution`."""
    x, w, y = (operand.meta["val"].shape for operand in (*node.args[:2], node))
    return geometry(x, w, y, node.args[3:])


def geometry(x: Sequence, w: Sequence, y: Sequence, settings: Sequence) -> Windows:
    """The geometry of a convolution of these sizes. settings: what `aten.convolution` is given after its bias."""
    stride, padding, dilation, transposed, _, groups = settings
    rank = len(w) - 2

    def full(values: list) -> list:
        return list(values) * (rank if len(values) == 1 else 1)

    wide, narrow = (y, x) if transposed else (x, y)
    return Windows(
        channels=w[1],
        filters=w[0] // groups,
        size=list(wide[2:]),
        out=list(narrow[2:]),
        kernel=list(w[2:]),
        stride=full(stride),
        padding=full(padding),
        dilation=full(dilation),
        transposed=transposed,
        groups=groups,
    )


def unfolded_shape(node: fx.Node) -> tuple:
    """`(M, N, K)` of the product, or of the product of one group."""
    return product_shape(windows(node), node.args[0].meta["val"].shape[0])


def product_shape(geometry: Windows, batch: int) -> tuple:
    """The same of a geometry."""
    rows = batch
    for out in geometry.out:
        rows = rows * out
    n, k = geometry.filters, geometry.columns
    return (rows, k, n) if geometry.transposed else (rows, n, k)


def unfold(build: Builder, like: fx.Node, x: fx.Node, geometry: Windows) -> fx.Node:
    """`[B, C, *size]` as `[B * windows, C * kernel]`."""
    rank = len(geometry.kernel)
    steps = list(zip(geometry.out, geometry.stride, geometry.extent, strict=True))
    used = [(out - 1) * stride + extent for out, stride, extent in steps]
    x = _padded(build, like, x, geometry.padding, geometry.size, used)
    for dim, (_, stride, extent) in enumerate(steps):
        if extent == stride == 1:
            x = build.call(like, aten.unsqueeze.default, x, -1)
        else:
            x = build.call(like, aten.unfold.default, x, 2 + dim, extent, stride)
    for dim, (extent, dilation) in enumerate(zip(geometry.extent, geometry.dilation, strict=True)):
        if dilation > 1 and extent > 1:
            x = build.call(like, aten.slice.Tensor, x, 2 + rank + dim, 0, extent, dilation)
    x = build.call(like, aten.permute.default, x, [0, *range(2, 2 + rank), 1, *range(2 + rank, 2 + 2 * rank)])
    return build.call(like, aten.reshape.default, x, [-1, geometry.columns])


def fold(build: Builder, like: fx.Node, x: fx.Node, geometry: Windows) -> fx.Node:
    """`[B * windows, C * kernel]` as `[B, C, *size]`: the sum of what the windows hold of each element, or zero."""
    rank = len(geometry.kernel)
    x = build.call(like, aten.reshape.default, x, [-1, *geometry.out, geometry.channels, *geometry.kernel])
    order = [0, 1 + rank, *(dim for pair in range(rank) for dim in (1 + pair, 2 + rank + pair))]
    x = build.call(like, aten.permute.default, x, order)
    for dim in range(rank):
        x = _fold_dim(build, like, x, geometry, dim)
    sizes = list(x.meta["val"].shape[2:])
    return _padded(build, like, x, [-p for p in geometry.padding], sizes, geometry.size)


def channels_last(build: Builder, like: fx.Node, y: fx.Node) -> fx.Node:
    """`[B, N, *out]` as `[B * windows, N]`."""
    rank, filters = y.meta["val"].dim() - 2, y.meta["val"].shape[1]
    y = build.call(like, aten.permute.default, y, [0, *range(2, 2 + rank), 1])
    return build.call(like, aten.reshape.default, y, [-1, filters])


def channels_first(build: Builder, like: fx.Node, y: fx.Node, geometry: Windows) -> fx.Node:
    """`[B * windows, N]` as `[B, N, *out]`."""
    rank = len(geometry.out)
    y = build.call(like, aten.reshape.default, y, [-1, *geometry.out, geometry.filters])
    return build.call(like, aten.permute.default, y, [0, 1 + rank, *range(1, 1 + rank)])


def _fold_dim(build: Builder, like: fx.Node, x: fx.Node, geometry: Windows, dim: int) -> fx.Node:
    """Windows and kernel of one dimension, at 2 + dim and 3 + dim, as one dimension of `chunks - 1` strides more than
    there are windows."""
    at, out, kernel, stride = 2 + dim, geometry.out[dim], geometry.kernel[dim], geometry.stride[dim]
    extent, dilation = geometry.extent[dim], geometry.dilation[dim]
    if dilation > 1 and kernel > 1:
        x = build.call(like, aten.unsqueeze.default, x, at + 2)
        x = _extended(build, like, x, at + 2, 0, dilation - 1)
        x = _reshaped(build, like, x, at + 1, 2, [kernel * dilation])
        kernel *= dilation
    chunks = -(-extent // stride)
    x = _extended(build, like, x, at + 1, 0, chunks * stride - kernel)
    if chunks == 1:
        return _reshaped(build, like, x, at, 2, [out * stride])
    x = _reshaped(build, like, x, at + 1, 1, [chunks, stride])
    total = None
    for chunk in range(chunks):
        part = build.call(like, aten.select.int, x, at + 1, chunk)
        part = _reshaped(build, like, part, at, 2, [out * stride])
        part = _extended(build, like, part, at, chunk * stride, (chunks - 1 - chunk) * stride)
        total = part if total is None else build.call(like, aten.add.Tensor, total, part)
    return total


def _reshaped(build: Builder, like: fx.Node, x: fx.Node, at: int, count: int, sizes: list) -> fx.Node:
    """`count` dimensions from `at` on as dimensions of these sizes. The batch may be dynamic."""
    shape = list(x.meta["val"].shape)
    shape[at : at + count] = sizes
    return build.call(like, aten.reshape.default, x, [-1, *shape[1:]])


def _extended(build: Builder, like: fx.Node, x: fx.Node, at: int, before: int, after: int) -> fx.Node:
    """Zeros (cropping, where negative) before and after one dimension."""
    if before == after == 0:
        return x
    behind = x.meta["val"].dim() - 1 - at
    return build.call(like, aten.constant_pad_nd.default, x, [0, 0] * behind + [before, after])


def _padded(build: Builder, like: fx.Node, x: fx.Node, before: list, sizes: list, wanted: list) -> fx.Node:
    """Zeros (cropping, where negative) before each spatial dimension, and after it up to the wanted size."""
    for dim, (pad, size, want) in enumerate(zip(before, sizes, wanted, strict=True)):
        x = _extended(build, like, x, 2 + dim, pad, want - size - pad)
    return x
