"""Every way to write a matmul with a parameter, and which of them are kept, with the reason."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class Spelled(nn.Module):
    """`spell(self, x)` with parameters of the given shapes."""

    def __init__(self, spell, **shapes):
        super().__init__()
        self.spell = spell
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape) / 8))

    def forward(self, x):
        return self.spell(self, x)


def _image(x):
    return x.reshape(2, 3, 32, 32)


def _channels(x):
    return x.transpose(1, 2).reshape(2, 64, 6, 8)


ALL = {
    "linear": (lambda s, x: F.linear(x, s.w), {"w": (96, 64)}),
    "x @ w": (lambda s, x: x @ s.w, {"w": (64, 96)}),
    "matmul of four dimensions": (lambda s, x: x.view(2, 2, 24, 64) @ s.w, {"w": (64, 96)}),
    "w.T": (lambda s, x: F.linear(x, s.w.t()), {"w": (64, 96)}),
    "tensordot": (lambda s, x: torch.tensordot(x, s.w, dims=1), {"w": (64, 96)}),
    "inner": (lambda s, x: torch.inner(x, s.w), {"w": (96, 64)}),
    "addmm": (lambda s, x: torch.addmm(s.b, x.flatten(0, 1), s.w, beta=2), {"w": (64, 96), "b": (96,)}),
    "einsum": (lambda s, x: torch.einsum("bsd,df->bsf", x, s.w), {"w": (64, 96)}),
    "einsum, heads out": (lambda s, x: torch.einsum("bsd,hdf->bhsf", x, s.w), {"w": (4, 64, 32)}),
    "einsum, heads in": (lambda s, x: torch.einsum("bshd,hdf->bsf", x.view(2, 48, 2, 32), s.w), {"w": (2, 32, 64)}),
    "einsum, w on the left": (lambda s, x: torch.einsum("df,bsd->bfs", s.w, x), {"w": (64, 96)}),
    "einsum, a matrix a head": (
        lambda s, x: torch.einsum("bshd,hde->bshe", x.view(2, 48, 2, 32), s.w),
        {"w": (2, 32, 64)},
    ),
    "bmm": (lambda s, x: torch.bmm(x, s.w), {"w": (2, 64, 96)}),
    "bmm, odd sizes": (lambda s, x: torch.bmm(x[:, :41, :60], s.w), {"w": (2, 60, 35)}),
    "bmm, w on the left": (lambda s, x: torch.bmm(s.w, x.transpose(1, 2)), {"w": (2, 96, 64)}),
    "bmm, stored transposed": (lambda s, x: torch.bmm(x, s.w.transpose(1, 2)), {"w": (2, 96, 64)}),
    "bmm, expanded": (lambda s, x: torch.bmm(x, s.w.expand(2, 64, 96)), {"w": (64, 96)}),
    "bmm of one": (lambda s, x: torch.bmm(x[:1], s.w), {"w": (1, 64, 96)}),
    "baddbmm": (lambda s, x: torch.baddbmm(s.b, x, s.w, alpha=0.5), {"w": (2, 64, 96), "b": (2, 1, 96)}),
    "batched matmul": (lambda s, x: x.unflatten(1, (2, 24)) @ s.w, {"w": (2, 64, 40)}),
    "1x1 convolution": (lambda s, x: F.conv2d(_channels(x), s.w, s.b), {"w": (96, 64, 1, 1), "b": (96,)}),
    "1x1 convolution, stride 2": (lambda s, x: F.conv2d(_channels(x)[..., :7], s.w, stride=2), {"w": (96, 64, 1, 1)}),
    "1-D convolution": (lambda s, x: F.conv1d(x.transpose(1, 2), s.w), {"w": (96, 64, 1)}),
    "patches": (lambda s, x: F.conv2d(_image(x), s.w, s.b, stride=8), {"w": (96, 3, 8, 8), "b": (96,)}),
    "patches, cropped": (lambda s, x: F.conv2d(_image(x), s.w, stride=(5, 7)), {"w": (96, 3, 5, 7)}),
    "patches, 3-D": (lambda s, x: F.conv3d(x.view(2, 3, 4, 16, 16), s.w, stride=(2, 8, 4)), {"w": (48, 3, 2, 8, 4)}),
    "sliced": (lambda s, x: F.linear(x, s.w[8:56]), {"w": (96, 64)}),
    "one of a stack": (lambda s, x: F.linear(x[0], s.w[0]) + F.linear(x[1], s.w[1]), {"w": (2, 64, 64)}),
    "chunks": (
        lambda s, x: sum(f(F.linear(x, w)) for f, w in zip((torch.sin, torch.cos), s.w.chunk(2), strict=True)),
        {"w": (96, 64)},
    ),
    "concatenated": (lambda s, x: F.linear(x, torch.cat([s.a, s.b])), {"a": (64, 64), "b": (32, 64)}),
    "scaled": (lambda s, x: F.linear(x, s.w * 0.5), {"w": (96, 64)}),
    "cast": (lambda s, x: F.linear(x.double(), s.w.double()).float().bfloat16().float(), {"w": (96, 64)}),
    "sum of low rank": (lambda s, x: F.linear(x, s.w + s.b @ s.a), {"w": (64, 64), "a": (8, 64), "b": (64, 8)}),
    "kron": (lambda s, x: x @ torch.kron(s.a, s.b), {"a": (8, 8), "b": (8, 8)}),
    "used twice": (lambda s, x: F.linear(torch.relu(F.linear(x, s.w)), s.w), {"w": (64, 64)}),
    "tied": (lambda s, x: F.linear(x + F.embedding(torch.arange(48), s.w), s.w), {"w": (96, 64)}),
    "learned queries": (lambda s, x: F.linear(torch.tanh(s.q), s.w) * x.sum(), {"q": (48, 64), "w": (96, 64)}),
    "two parameters": (lambda s, x: x[0] * (s.a @ s.b), {"a": (48, 64), "b": (64, 64)}),
    "two activations": (lambda s, x: x @ x.transpose(1, 2) * s.b, {"b": (48,)}),
    "two activations, 2-D": (lambda s, x: x[0] @ x[1].t() * s.b, {"b": (48,)}),
    "an expert by number": (lambda s, x: x[0] @ s.w[(x.sum((1, 2)) > 0).long()][0], {"w": (2, 64, 64)}),
    "experts by number": (lambda s, x: torch.bmm(x, s.w[(x.sum((1, 2)) > 0).long()]), {"w": (2, 64, 64)}),
    "few rows a matrix": (lambda s, x: torch.bmm(x.view(24, 4, 64), s.w), {"w": (24, 64, 64)}),
    "3x3 convolution": (lambda s, x: F.conv2d(_channels(x), s.w, padding=1), {"w": (96, 64, 3, 3)}),
    "3x3 convolution, no padding": (lambda s, x: F.conv2d(_channels(x), s.w), {"w": (96, 64, 3, 3)}),
    "dilated convolution": (
        lambda s, x: F.conv2d(_channels(x), s.w, dilation=(2, 1), stride=(3, 2)),
        {"w": (96, 64, 2, 2)},
    ),
    "depthwise convolution": (lambda s, x: F.conv2d(_channels(x), s.w, groups=64), {"w": (64, 1, 1, 1)}),
    "transposed convolution": (lambda s, x: F.conv_transpose2d(_channels(x), s.w, stride=2), {"w": (64, 96, 2, 2)}),
    "bilinear": (lambda s, x: F.bilinear(x, x, s.w), {"w": (32, 64, 64)}),
}


KEPT = {
    "cast": ["dtype float64; FP4 replaces float32, bfloat16 and float16 only"],
    "tied": ["output head: its weight is an embedding table too; include=['*'] rewrites it too"],
    "two parameters": ["product of two parameters"],
    "two activations": ["product of two activations"],
    "two activations, 2-D": ["product of two activations"],
    "an expert by number": ["its weight is a part of 'w' that the data selects"],
    "experts by number": ["its weight is a part of 'w' that the data selects"],
    "few rows a matrix": ["each of its 24 matrices multiplies 4 rows, and groups have 32"],
    "3x3 convolution": [
        "a convolution whose windows of 3 x 3 overlap: unfolding them pays from 512 filters on, and it has"
    ],
    "3x3 convolution, no padding": ["a convolution whose windows of 3 x 3 overlap"],
    "depthwise convolution": ["a convolution in 64 groups, each a product of its own, whose sizes these are"],
    "bilinear": ["trilinear; only"],
}


class Experts(nn.Module):
    """Two grouped products over rows sorted by expert: no row, rows of one block and rows of several, and rows of none."""

    def __init__(self, multiply, ends, dtype=torch.float32):
        super().__init__()
        self.multiply = multiply
        self.up = nn.Parameter((torch.randn(4, 64, 96) / 8).to(dtype))
        self.down = nn.Parameter((torch.randn(4, 40, 96) / 8).to(dtype))
        self.register_buffer("ends", torch.tensor(ends, dtype=torch.int32))

    def forward(self, x):
        hidden = torch.relu(self.multiply(x, self.up, self.ends))
        return self.multiply(hidden, self.down.transpose(1, 2), self.ends)


ENDS = {"odd": [10, 43, 43, 96], "rest": [0, 32, 64, 90], "one": [96, 96, 96, 96], "a row": [0, 0, 0, 1]}
