"""What replaces a matmul has its strides: later views, and whoever reads the graph's outputs, may count on them."""

from __future__ import annotations

import pytest
import torch
from captured import compiled, sites
from rounding import assert_rounding
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from quartet_compile.passes.graph import Builder, VerifyError


class Focal(nn.Module):
    """Patches of an image whose channels are last in memory: the gradient of the image is viewed as rows (FocalNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.h, self.g = nn.Linear(64, 64), nn.Conv2d(64, 96, 2, stride=2), nn.Linear(96, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.h(self.f(x.view(2, 6, 8, 64)).permute(0, 3, 1, 2))
        return self.g(y.permute(0, 2, 3, 1))


class Left(nn.Module):
    """Weights on the left: their products, and gradients of them, are transposed ones."""

    def __init__(self, flatten: bool) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(96, 64) / 8), nn.Parameter(torch.randn(64, 96) / 8)
        self.flatten = flatten

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.a @ x.view(96, 64).t())
        z = self.b @ y
        return z.view(-1) if self.flatten else z


class Right(nn.Module):
    """A weight `[K, N]` whose gradient goes on as one row, as of a flattened parameter."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.flat = nn.Parameter(torch.randn(columns * 96) / 8)
        self.columns = columns

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[..., : self.columns] @ self.flat.view(self.columns, 96)


class Batched(nn.Module):
    """A batched product whose left operand is permuted before and after."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(2, 32, 40) / 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = x.view(96, 2, 32).transpose(0, 1)
        return torch.bmm(heads, self.w).transpose(0, 1).reshape(96, 80)


MODELS = {
    "channels last": Focal,
    "weights on the left": lambda: Left(False),
    "weights on the left, flattened": lambda: Left(True),
    "flattened weight": lambda: Right(64),
    "flattened weight, padded": lambda: Right(60),
    "batched": Batched,
}


def run(model: nn.Module, function, x: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    x = x.clone().requires_grad_()
    y = function(x)
    torch.sin(3 * y).sum().backward()
    return [y.detach(), x.grad, *(p.grad for p in model.parameters())]


@pytest.mark.parametrize("dynamic", [False, True], ids=["", "dynamic"])
@pytest.mark.parametrize("name", MODELS)
def test_views_of_what_is_rewritten(name, dynamic):
    torch.manual_seed(0)
    model, x = MODELS[name](), torch.randn(2, 48, 64)
    function, backend = compiled(model, recipe="exact")
    if dynamic:
        torch._dynamo.mark_dynamic(x, 0)
        function = torch.compile(model, backend=backend, dynamic=None)
    ours = run(model, function, x)
    assert all(site.rewritten for site in sites(backend)) and len(backend.graphs) == 1
    for mine, torchs in zip(ours, run(model, model, x), strict=True):
        assert mine.stride() == torchs.stride()
    assert_rounding(dict(enumerate(ours)), lambda: dict(enumerate(run(model, model, x))))


@pytest.mark.parametrize("recipe", ["jetfire-fp4", "tetrajet2"])
@pytest.mark.parametrize("name", MODELS)
def test_views_under_recipes_without_a_rotation(name, recipe):
    """What they leave of the padding of K is cut off, which leaves gaps."""
    torch.manual_seed(0)
    model, x = MODELS[name](), torch.randn(2, 48, 64)
    function, backend = compiled(model, recipe=recipe)
    ours = run(model, function, x)
    assert all(site.rewritten for site in sites(backend))
    for mine, torchs in zip(ours, run(model, model, x), strict=True):
        assert mine.stride() == torchs.stride() and mine.isfinite().all()


def node(graph: fx.Graph, value: torch.Tensor) -> fx.Node:
    made = graph.placeholder("value")
    made.meta["val"] = value
    return made


STRIDES = [
    ((2, 3, 4, 5), (60, 1, 15, 3)),
    ((2, 3, 4, 5), (1, 2, 6, 24)),
    ((2, 1, 4), (4, 7, 1)),
    ((1, 6, 4), (99, 1, 6)),
    ((6, 4), (1, 6)),
]


@pytest.mark.parametrize("shape, strides", STRIDES, ids=str)
def test_any_dense_layout_is_restored(shape, strides):
    with FakeTensorMode():
        graph = fx.Graph()
        old = node(graph, torch.empty_strided(shape, strides))
        new = node(graph, torch.empty(shape))
        graph.output((old,))
        with graph.inserting_before(next(iter(reversed(graph.nodes)))):
            Builder(graph).replace(old, new)
    (result,) = next(iter(reversed(graph.nodes))).args[0]
    significant = [(a, b) for size, a, b in zip(shape, result.meta["val"].stride(), strides, strict=True) if size > 1]
    assert result is not old and all(a == b for a, b in significant)


def test_a_layout_with_gaps_is_an_error():
    with FakeTensorMode():
        graph = fx.Graph()
        old, new = node(graph, torch.empty_strided((4, 6), (8, 1))), node(graph, torch.empty(4, 6))
        with pytest.raises(VerifyError, match=r"strides \[8, 1\], which leave gaps"):
            Builder(graph).replace(old, new)
