"""Sizes that no block divides, and sizes that change: exact, and compiled once."""

from __future__ import annotations

import itertools

import pytest
import torch
from accumulation import bound
from captured import compiled, sites
from models import Attention, Block, gradients
from rounding import assert_rounding, assert_same_step, step
from torch import nn
from torch._dynamo.utils import counters

from quartet_compile.capture.capture import Capture
from quartet_compile.config.options import configure


@pytest.mark.parametrize("rows", [1, 31, 33, 100, 1000])
def test_any_sizes_are_exact(rows):
    """Every N and K of 33, 100 and 1000 with every M, in one model; N or K below 32 is kept (test_bad_input.py)."""
    torch.manual_seed(1)
    layers = nn.ModuleDict({f"{n} by {k}": nn.Linear(k, n) for n, k in itertools.product((33, 100, 1000), repeat=2)})

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = layers

        def forward(self, x):
            return sum(layer(x[:, : layer.in_features]).sum(-1) for layer in self.layers.values())

    model, x, dy = Model(), torch.randn(rows, 1000, requires_grad=True), torch.randn(rows)
    parameters = dict(model.named_parameters())

    def run(function) -> list[torch.Tensor]:
        y = function(x)
        return [y, *torch.autograd.grad(y, [x, *parameters.values()], dy)]

    function, backend = compiled(model, recipe="exact", include=["*"])
    for name, ours, plain in zip(("y", "x", *parameters), run(function), run(model), strict=True):
        distance, allowed = (ours.double() - plain.double()).norm(), allowance(name, layers, x, dy)
        assert distance <= allowed, f"{name}: {distance:.3g} apart; expected at most {allowed:.3g}"
    assert all(site.rewritten for site in sites(backend)) and len(sites(backend)) == 9


def allowance(name: str, layers: nn.ModuleDict, x: torch.Tensor, dy: torch.Tensor) -> float:
    """How far the order of sums may move `y = sum over layers and n of x W^T + b`, or a gradient for the cotangent `dy`."""
    of_y, of_x = 0.0, 0.0
    for key, layer in layers.items():
        n, k = layer.weight.shape
        dys, one = dy[:, None].expand(-1, n), torch.ones(len(x), 1)
        of_y += n**0.5 * (bound(x[:, :k], layer.weight, k + n + 9) + bound(one, layer.bias, n + 9))
        of_x += bound(dys, layer.weight, n + 9)
        if name == f"layers.{key}.weight":
            return bound(dys, x[:, :k], len(x))
        if name == f"layers.{key}.bias":
            return bound(dys, one, len(x))
    return {"y": of_y, "x": of_x}[name]


@pytest.mark.parametrize("recipe", ["exact", "quartet"])
def test_a_dynamic_number_of_tokens_is_one_graph(recipe):
    """Batch and length both symbolic: the padded sizes are expressions of them. The same bits as compiled for the size."""
    torch.manual_seed(1)
    model = nn.Sequential(Attention(), Block())
    backend = Capture(configure({"recipe": recipe}), text=False)
    torch._dynamo.reset()
    function = torch.compile(model, backend=backend, dynamic=True)
    found = []
    for batch, length in ((2, 24), (3, 17), (5, 40), (2, 31)):
        x = torch.randn(batch, length, 64)
        found.append((x, step(model, x, function)))
    assert len(backend.graphs) == 1
    assert sum(site.rewritten for site in sites(backend)) == 6
    assert all(isinstance(site.shape[0], str) for site in sites(backend) if site.rewritten)
    for x, ours in found:
        static, _ = compiled(model, recipe=recipe)
        assert_rounding(ours, lambda x=x, static=static: step(model, x, static))


def test_no_recompilation_for_each_length_under_inductor():
    torch.manual_seed(1)
    model = nn.Sequential(Block(), Block())
    torch._dynamo.reset()
    counters.clear()
    function = torch.compile(model, backend="quartet", dynamic=True, options={"recipe": "exact"})
    for length in (48, 33, 100, 64, 31):
        x = torch.randn(2, length, 64)
        assert_same_step(model, x, function)
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("recipe", ["exact", "quartet"])
def test_no_tokens_after_some(recipe):
    """An empty batch, as an expert without tokens has, where any length is compiled: gradients of weights are zeros."""
    model = nn.Sequential(Block(), Block())
    backend = Capture(configure({"recipe": recipe, "include": ["*"]}), text=False)
    torch._dynamo.reset()
    function = torch.compile(model, backend=backend, dynamic=True)
    for rows in (48, 0, 33):
        y, g = gradients(model, torch.randn(rows, 64), function=function)
        assert y.shape == (rows, 64) and len(g) == 6
        assert all(bool(gradient.any()) == (rows > 0) for gradient in g.values())
    assert all(site.rewritten for site in sites(backend))
