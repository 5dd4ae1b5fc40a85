"""Convolutions whose windows don't overlap (1 x 1, patches) as matrix products of unfolded windows.

    x [B, C, H, W] -> [B * oh * ow, C * kh * kw]      y [B, N, oh, ow] <- [B * oh * ow, N]

Each spatial dimension is cut to `out` strides, of which the first `kernel` elements are the window. The same in reverse,
with zeros where no window reads, folds the gradient of x.
"""

from __future__ import annotations

import dataclasses

from torch import fx

from .graph import Builder, aten


@dataclasses.dataclass(frozen=True)
class Windows:
    """The geometry of a convolution, a list entry for each spatial dimension."""

    channels: int
    filters: int
    size: list
    kernel: list
    stride: list
    padding: list
    dilation: list
    transposed: bool
    groups: int

    @property
    def read(self) -> tuple:
        """What decides the values of the unfolded matrix of an input."""
        return tuple(map(tuple, (self.kernel, self.stride, self.padding, self.dilation)))

    @property
    def out(self) -> list:
        """The spatial size of the output."""
        return [(s - k) // t + 1 for s, k, t in zip(self.size, self.kernel, self.stride, strict=True)]

    @property
    def obstacle(self) -> str | None:
        """Why it isn't one matrix product of its windows; None if it is."""
        text = " x ".join(map(str, self.kernel))
        if self.transposed:
            return f"a transposed convolution of {text}"
        if self.groups != 1:
            return f"a convolution in {self.groups} groups"
        if any(self.padding):
            return f"a convolution of {text} with padding {self.padding[0]}"
        if any(d > 1 and k > 1 for d, k in zip(self.dilation, self.kernel, strict=True)):
            return f"a convolution of {text} with dilation {self.dilation[0]}"
        if any(k > t for k, t in zip(self.kernel, self.stride, strict=True)):
            return f"a convolution whose windows of {text} overlap (stride {self.stride[0]})"
        if not all(isinstance(size, int) for size in self.size):
            return "a convolution of dynamic spatial size"
        return None


def windows(node: fx.Node) -> Windows:
    """The geometry of an `aten.convolution`."""
    x, w = (operand.meta["val"].shape for operand in node.args[:2])
    stride, padding, dilation, transposed, _, groups = node.args[3:9]
    rank = len(w) - 2

    def full(values: list) -> list:
        return list(values) * (rank if len(values) == 1 else 1)

    return Windows(
        channels=w[1],
        filters=w[0],
        size=list(x[2:]),
        kernel=list(w[2:]),
        stride=full(stride),
        padding=full(padding),
        dilation=full(dilation),
        transposed=transposed,
        groups=groups,
    )


def is_product(node: fx.Node) -> bool:
    """Whether a convolution is one matrix product of its windows."""
    return windows(node).obstacle is None


def unfolded_shape(node: fx.Node) -> tuple:
    """`(M, N, K)` of the product."""
    geometry = windows(node)
    rows = node.args[0].meta["val"].shape[0]
    columns = geometry.channels
    for out, kernel in zip(geometry.out, geometry.kernel, strict=True):
        rows, columns = rows * out, columns * kernel
    return rows, geometry.filters, columns


def unfold(build: Builder, like: fx.Node, x: fx.Node, geometry: Windows) -> fx.Node:
    """`[B, C, *size]` as `[B * windows, C * kernel]`."""
    rank, out = len(geometry.kernel), geometry.out
    strides = [count * step for count, step in zip(out, geometry.stride, strict=True)]
    if strides != geometry.size:
        x = build.call(like, aten.constant_pad_nd.default, x, _padding(geometry.size, strides))
    split = [size for pair in zip(out, geometry.stride, strict=True) for size in pair]
    x = build.call(like, aten.reshape.default, x, [-1, geometry.channels, *split])
    for dim, (kernel, step) in enumerate(zip(geometry.kernel, geometry.stride, strict=True)):
        if kernel != step:
            x = build.call(like, aten.slice.Tensor, x, 3 + 2 * dim, 0, kernel)
    order = [0, *range(2, 2 + 2 * rank, 2), 1, *range(3, 3 + 2 * rank, 2)]
    x = build.call(like, aten.permute.default, x, order)
    return build.call(like, aten.reshape.default, x, [-1, _columns(geometry)])


def fold(build: Builder, like: fx.Node, x: fx.Node, geometry: Windows) -> fx.Node:
    """`[B * windows, C * kernel]` as `[B, C, *size]`, zero where no window reads."""
    rank, out = len(geometry.kernel), geometry.out
    x = build.call(like, aten.reshape.default, x, [-1, *out, geometry.channels, *geometry.kernel])
    order = [0, 1 + rank, *(dim for pair in range(rank) for dim in (1 + pair, 2 + rank + pair))]
    x = build.call(like, aten.permute.default, x, order)
    if geometry.kernel != geometry.stride:
        padding = [
            amount
            for kernel, step in reversed([*zip(geometry.kernel, geometry.stride, strict=True)])
            for amount in (0, step - kernel, 0, 0)
        ]
        x = build.call(like, aten.constant_pad_nd.default, x, padding)
    strides = [count * step for count, step in zip(out, geometry.stride, strict=True)]
    x = build.call(like, aten.reshape.default, x, [-1, geometry.channels, *strides])
    if strides != geometry.size:
        x = build.call(like, aten.constant_pad_nd.default, x, _padding(strides, geometry.size))
    return x


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


def _columns(geometry: Windows) -> int:
    columns = geometry.channels
    for kernel in geometry.kernel:
        columns *= kernel
    return columns


def _padding(before: list, after: list) -> list:
    """Padding (or, negative, cropping) at the end of each dimension, last dimension first."""
    return [amount for b, a in reversed([*zip(before, after, strict=True)]) for amount in (0, a - b)]
