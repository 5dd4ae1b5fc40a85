"""One product computed twice, once with and once without a gradient (a teacher, a target): both are rewritten, and every
gradient is the untouched model's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from captured import compiled, sites
from rounding import assert_same_step
from torch import nn

PRODUCTS = {
    "linear": (lambda x, w, b: F.linear(x, w, b), (64, 64), (64,)),
    "matmul": (lambda x, w, b: x @ w, (64, 64), ()),
    "addmm": (lambda x, w, b: torch.addmm(b, x.flatten(0, 1), w).view(x.shape), (64, 64), (64,)),
    "bmm": (lambda x, w, b: torch.bmm(x, w), (2, 64, 64), ()),
    "convolution": (lambda x, w, b: F.conv1d(x.transpose(1, 2), w, b), (64, 64, 1), (64,)),
}


def without(function, *args):
    with torch.no_grad():
        return function(*args)


TWINS = {
    "second": lambda f, x, w, b: (f(x, w, b), without(f, x, w, b)),
    "first": lambda f, x, w, b: (without(f, x, w, b), f(x, w, b))[::-1],
    "before and after": lambda f, x, w, b: (without(f, x, w, b), f(x, w, b), without(f, x, w, b))[1:],
    "output detached": lambda f, x, w, b: (f(x, w, b), f(x, w, b).detach()),
    "output detached, first": lambda f, x, w, b: (f(x, w, b).detach(), f(x, w, b))[::-1],
    "x detached": lambda f, x, w, b: (f(x, w, b), f(x.detach(), w, b)),
    "x detached, first": lambda f, x, w, b: (f(x.detach(), w, b), f(x, w, b))[::-1],
    "w detached": lambda f, x, w, b: (f(x, w, b), f(x, w.detach(), b)),
    "w detached, first": lambda f, x, w, b: (f(x, w.detach(), b), f(x, w, b))[::-1],
    "both detached": lambda f, x, w, b: (f(x, w, b), f(x.detach(), w.detach(), b)),
}
LOSSES = {"products": lambda y, t: y * torch.tanh(t), "sum": lambda y, t: y + t}


class Model(nn.Module):
    def __init__(self, product: str, twins: str, loss: str) -> None:
        super().__init__()
        self.product, w, b = PRODUCTS[product]
        self.twins, self.loss = TWINS[twins], LOSSES[loss]
        self.w, self.b = nn.Parameter(torch.randn(w) / 8), nn.Parameter(torch.randn(b))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.loss(*self.twins(self.product, x, self.w, self.b))


def check(model: nn.Module, x: torch.Tensor) -> None:
    function, backend = compiled(model, recipe="exact")
    assert_same_step(model, x, function)
    assert [site.reason for site in sites(backend) if not site.rewritten] == []


@pytest.mark.parametrize(
    "product", ["linear", *(pytest.param(name, marks=pytest.mark.slow) for name in PRODUCTS if name != "linear")]
)
@pytest.mark.parametrize("twins", TWINS)
def test_a_product_and_its_twin(twins, product):
    """A sum gives both products one gradient."""
    for loss in LOSSES:
        for needs_dx in (False, True):
            torch.manual_seed(1)
            check(Model(product, twins, loss), torch.randn(2, 48, 64, requires_grad=needs_dx))


class SelfTeacher(nn.Module):
    """A network that predicts its own output for the same input, layers of one after those of the other."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 64))
        self.last = nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.net(x)
        with torch.no_grad():
            target, other = self.net(x), self.last(x)
        return (self.last(y) - target - other) ** 2


class AverageTeacher(nn.Module):
    """Student and teacher share their first layer; the teacher's others are averages, which get no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.student, self.teacher = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64)
        self.teacher.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            target = self.teacher(torch.relu(self.first(x)))
        return (self.student(torch.relu(self.first(x))) - target) ** 2


@pytest.mark.parametrize("needs_dx", [False, True], ids=["", "dx"])
@pytest.mark.parametrize("build", [SelfTeacher, AverageTeacher])
def test_a_teacher_in_the_same_graph(build, needs_dx):
    torch.manual_seed(1)
    check(build(), torch.randn(2, 48, 64, requires_grad=needs_dx))
