"""Operands are shared exactly where they are the same matrix: how a product reads its input is part of the key."""

from __future__ import annotations

import random
from collections import defaultdict

import pytest
import torch
import torch.nn.functional as F
from captured import compiled, sites
from rounding import assert_same_step
from torch import fx, nn

from quartet_compile.passes import backward, share


class Products(nn.Module):
    """The sums of several products of one input, `functions` each with the shape of its weight."""

    def __init__(self, *products):
        super().__init__()
        self.functions = [function for function, _ in products]
        self.weights = nn.ParameterList(nn.Parameter(torch.randn(shape) / 8) for _, shape in products)

    def forward(self, x):
        return torch.stack([f(x, w).square().sum() for f, w in zip(self.functions, self.weights, strict=True)]).sum()


def convolution(kernel, stride, filters=32, channels=32):
    return lambda x, w: F.conv2d(x, w, stride=stride), (filters, channels, *kernel)


def linear(x, w):
    return F.linear(x.flatten(2).transpose(1, 2), w)


def columns(x, w):
    """A linear map of the pixels of each channel."""
    return F.linear(x.flatten(2), w)


IMAGE = (2, 32, 8, 8)
ONE_INPUT = {
    "patches": ((2, 32, 8, 8), convolution((1, 4), (1, 4)), convolution((4, 1), (4, 1))),
    "strides": (IMAGE, convolution((1, 1), (1, 2)), convolution((1, 1), (2, 1))),
    "a ResNet's shortcut": (IMAGE, convolution((1, 1), 1), convolution((1, 1), 2)),
    "linear of the transpose": (
        (1, 32, 32),
        (F.conv1d, (32, 32, 1)),
        (F.linear, (32, 32)),
    ),
    "batched and plain": (
        (2, 32, 48),
        (lambda x, w: torch.bmm(x, w), (2, 48, 40)),
        (F.linear, (40, 48)),
        (lambda x, w: torch.bmm(x.view(4, 16, 48), w), (4, 48, 40)),
    ),
}


@pytest.mark.parametrize("name", ONE_INPUT)
def test_products_of_one_input_that_read_it_differently(name):
    shape, *products = ONE_INPUT[name]
    torch.manual_seed(0)
    model, x = Products(*products), torch.randn(shape, requires_grad=True)
    assert_exact(model, x, rewritten=len(products))


def assert_exact(model, x, rewritten):
    function, backend = compiled(model, recipe="exact", include=["*"])
    assert_same_step(model, x, function)
    assert sum(site.rewritten for site in sites(backend)) == rewritten


SHARED = {
    "1x1": (convolution((1, 1), 1), convolution((1, 1), 1)),
    "1x1 and a linear map": (convolution((1, 1), 1), (linear, (32, 32))),
    "patches": (convolution((2, 2), 2), convolution((2, 2), 2, filters=64)),
}


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", SHARED)
def test_products_that_read_the_same_windows_share_them(name, memory_format, monkeypatch):
    """But a linear map only where the windows are a view of the input."""
    x = torch.randn(IMAGE).contiguous(memory_format=memory_format)
    (first, _), _, (second, _), _ = _run(Products(*SHARED[name]), x, monkeypatch)
    assert (first == second) == (name != "1x1 and a linear map" or memory_format is torch.channels_last)


def _run(model, x, monkeypatch):
    """The operands that the forward GEMMs of a graph ask for, as (key, value); values are of random inputs, and of what
    sharing leaves unused too."""
    asked, copies = [], {}
    forward, rewrite_backward = share.Operands.forward, backward.rewrite_backward

    def asking(self, operand, *args):
        asked.append(operand)
        return forward(self, operand, *args)

    def copying(sites, saved, recipes, build, *args):
        rewrite_backward(sites, saved, recipes, build, *args)
        graph = fx.Graph()
        graph.output(graph.graph_copy(build.graph, copies))
        copies["module"] = fx.GraphModule(build.graph.owning_module, graph)

    with monkeypatch.context() as patch:
        patch.setattr(share.Operands, "forward", asking)
        patch.setattr(backward, "rewrite_backward", copying)
        function, _ = compiled(model, recipe="exact", include=["*"])
        function(x)
    interpreter = fx.Interpreter(copies["module"], garbage_collect_values=False)
    inputs = [node.meta["val"] for node in copies["module"].graph.nodes if node.op == "placeholder"]
    interpreter.run(*[torch.empty_strided(v.shape, v.stride()).normal_() for v in inputs])
    values = [(operand, interpreter.env[copies[operand.node]]) for operand in asked]
    return [(operand.key, value.t() if operand.transposed else value) for operand, value in values]


def _random_products(rng):
    for _ in range(7):
        kind = rng.choice(["convolution", "convolution", "linear", "columns", "1-D", "batched"])
        if kind == "convolution":
            kernel = rng.choice([(1, 1), (1, 2), (2, 1), (2, 2)])
            yield convolution(kernel, tuple(k * rng.choice([1, 2]) for k in kernel))
        elif kind == "1-D":
            size = rng.choice([1, 2])
            yield (lambda x, w, s=size: F.conv1d(x.flatten(2), w, stride=s)), (32, 32, size)
        elif kind == "batched":
            yield (lambda x, w: x.reshape(2, -1, 64) @ w), (2, 64, 40)
        else:
            yield (linear if kind == "linear" else columns), (32, 32 if kind == "linear" else 64)


@pytest.mark.parametrize("seed", range(12))
def test_operands_of_one_key_are_equal(seed, monkeypatch):
    rng = random.Random(seed)
    torch.manual_seed(seed)
    shape = (rng.choice([1, 2]), 32, 8, 8)
    x = torch.randn(shape).contiguous(memory_format=rng.choice([torch.contiguous_format, torch.channels_last]))
    asked = _run(Products(*_random_products(rng)), x, monkeypatch)
    assert len(asked) == 14
    by_key = defaultdict(list)
    for key, value in asked:
        by_key[key].append(value)
    for key, (first, *others) in by_key.items():
        assert all(torch.equal(first, other) for other in others), key
