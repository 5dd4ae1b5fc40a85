"""Pairing of forward and backward matmuls: certain, or left alone. Each rewritten case must also be right, which the
recipe `exact` shows: every gradient equals the untouched model's."""

from __future__ import annotations

import pytest
import torch
from models import ByFunction, LinearFunction, Unequal
from rounding import assert_rounding, assert_same_step
from torch import nn

import quartet_compile as qc
from quartet_compile.capture.capture import Capture
from quartet_compile.config.options import configure
from quartet_compile.passes.match import AMBIGUOUS, ELEMENTWISE
from quartet_compile.passes.plan import NESTED
from quartet_compile.report import records


class TwiceTheSameWeight(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(64, 64)

    def forward(self, x):
        return self.a(torch.relu(self.a(x)))


class TwiceTheSameCall(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(64, 64, bias=False)

    def forward(self, x):
        return torch.sin(self.a(x)) + torch.cos(self.a(x))


class SumOfTwo(nn.Module):
    """y = x W1^T + x W2^T: both weights get the gradient from equal matmuls."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False)

    def forward(self, x):
        return self.a(x) + self.b(x)


class ParallelResidual(nn.Module):
    """GPT-J: attention-like and MLP branches read one x and their outputs are added."""

    def __init__(self):
        super().__init__()
        self.i, self.o = nn.Linear(64, 96), nn.Linear(96, 64)
        self.p, self.q = nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x):
        return x + self.o(torch.relu(self.i(x))) + self.q(torch.tanh(self.p(x)))


class WeightOnTheLeft(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(96, 64) / 8)

    def forward(self, x):
        return (self.w @ x.flatten(0, -2).t()).t()


class WeightOnTheRight(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(64, 96) / 8)

    def forward(self, x):
        return x @ self.w


class Lora(nn.Module):
    def __init__(self):
        super().__init__()
        self.base = nn.Linear(64, 64)
        self.base.requires_grad_(False)
        self.down, self.up = nn.Linear(64, 32, bias=False), nn.Linear(32, 64, bias=False)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


class FrozenTwice(nn.Module):
    def __init__(self):
        super().__init__()
        self.i = nn.Linear(64, 64)
        self.a = nn.Linear(64, 64)
        self.a.requires_grad_(False)

    def forward(self, x):
        return self.a(torch.relu(self.a(self.i(x))))


class ScaledAddmm(nn.Module):
    def __init__(self):
        super().__init__()
        self.w, self.b = nn.Parameter(torch.randn(64, 96) / 8), nn.Parameter(torch.randn(96))

    def forward(self, x):
        return torch.addmm(self.b, x.flatten(0, -2), self.w, beta=0.5, alpha=2.0)


class BothParameters(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(64, 64) / 8), nn.Parameter(torch.randn(64, 64) / 8)

    def forward(self, x):
        return x @ (self.a @ self.b)


REWRITTEN = {
    "weight used twice": (TwiceTheSameWeight, 2),
    "same call twice": (TwiceTheSameCall, 2),
    "parallel residual": (ParallelResidual, 4),
    "weight on the left": (WeightOnTheLeft, 1),
    "weight on the right": (WeightOnTheRight, 1),
    "lora": (Lora, 3),
    "frozen weight used twice": (FrozenTwice, 3),
    "addmm with alpha and beta": (ScaledAddmm, 1),
    "custom autograd function": (lambda: ByFunction(LinearFunction), 2),
}


@pytest.mark.parametrize("needs_dx", [False, True], ids=["", "dx"])
@pytest.mark.parametrize("case", REWRITTEN)
def test_rewritten_with_right_gradients(case, needs_dx):
    build, count = REWRITTEN[case]
    torch.manual_seed(0)
    model, x = build(), torch.randn(2, 50, 64, requires_grad=needs_dx)
    report = qc.explain(model, x)
    assert sum(site.rewritten for site in report.sites) == count, str(report)
    _check_exact(model, x)


def _check_exact(model, x):
    torch._dynamo.reset()
    assert_same_step(model, x, torch.compile(model, backend=Capture(configure({"recipe": "exact"}))))


def test_unequal_gradients_are_left_alone():
    torch.manual_seed(0)
    model, x = ByFunction(Unequal), torch.randn(2, 50, 64, requires_grad=True)
    report = qc.explain(model, x)
    assert {site.reason for site in report.sites} == {AMBIGUOUS}
    _check_exact(model, x)


@pytest.mark.parametrize("needs_dx", [False, True], ids=["", "dx"])
@pytest.mark.parametrize("options", [{}, {"include": ["*"]}], ids=["", "included"])
def test_a_product_of_one_row_whose_gradient_is_no_matmul_says_so(needs_dx, options):
    model, x = OneRow(), torch.randn(1, 64, requires_grad=needs_dx)
    assert {site.reason for site in qc.explain(model, x, **options).sites} == {ELEMENTWISE}
    _check_exact(model, x)
    with torch.no_grad():
        assert [site.rewritten for site in qc.explain(model, x).sites] == [True]


def test_sum_of_two_is_right_whatever_is_decided():
    torch.manual_seed(0)
    model, x = SumOfTwo(), torch.randn(2, 50, 64, requires_grad=True)
    _check_exact(model, x)


def test_a_product_of_parameters_is_kept_and_what_it_computes_is_a_weight():
    model, x = BothParameters(), torch.randn(2, 50, 64)
    report = qc.explain(model, x)
    assert [site.rewritten for site in report.sites] == [False, True]
    _check_exact(model, x)


def test_sites_are_numbered_over_kept_ones_too():
    """Excluding one layer leaves the noise of the others as it was."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64)), torch.randn(32, 64)

    def gradient_of_the_last(**options):
        torch._dynamo.reset()
        function = torch.compile(model, backend=Capture(configure(options)))
        model.zero_grad()
        torch.manual_seed(3)
        y = function(x)
        y.backward(torch.linspace(-1, 1, y.numel()).view_as(y))
        return model[2].weight.grad.clone(), y

    first, y = gradient_of_the_last(exclude=["1"])
    hidden = model[1](model[0](x)).detach()
    assert not torch.equal(first, torch.zeros_like(first)) and hidden.shape == y.shape
    again, _ = gradient_of_the_last(exclude=["1"])
    assert torch.equal(first, again)


class OneRow(nn.Module):
    """A batched product of one row, as einsum writes it: torch computes dW as `x * dy`."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(64, 64))

    def forward(self, x):
        return torch.einsum("bk,kn->bn", x, self.w)


class InsideCond(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(64, 64) for _ in range(3))

    def forward(self, x):
        x = self.c(x)
        return torch.cond(x.sum() > 0, lambda x: self.a(x), lambda x: self.b(x), (x,))


def test_a_matmul_in_a_higher_order_op_is_kept_with_its_reason(monkeypatch):
    torch.manual_seed(0)
    model, x = InsideCond(), torch.randn(2, 50, 64)
    reports = []
    monkeypatch.setattr(records, "writer", lambda uuid: reports.append)
    with torch.no_grad():
        torch._dynamo.reset()
        inductor = {"fx_graph_cache": False}
        function = torch.compile(model, backend="quartet", options={"recipe": "exact", "inductor": inductor})
        assert_rounding({"y": function(x)}, lambda: {"y": model(x)})
    sites = [site for report in reports for site in report.sites]
    assert {site.reason for site in sites if not site.rewritten} == {NESTED}
    assert [site.name for site in sites if site.rewritten] == ["c"]


def test_a_pass_of_the_users_own_is_not_lost_silently():
    torch._dynamo.reset()
    own = torch._inductor.config.patch(joint_custom_pre_pass=lambda graph: None)
    with own, pytest.raises(Exception, match="joint_custom_post_pass"):
        torch.compile(nn.Linear(64, 64), backend="quartet")(torch.randn(4, 64))
