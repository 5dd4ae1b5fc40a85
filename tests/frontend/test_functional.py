"""Weights that are no Parameters of a module: those of functional_call, of a function of its weights, buffers."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from captured import compiled, decisions, reasons, sites
from models import Net, gradients
from rounding import assert_rounding
from torch import nn
from torch.func import functional_call

import quartet_compile as qc

X = torch.randn(2, 16, 64)


def leaves(model):
    return {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}


@pytest.mark.parametrize("recipe", ["exact", "quartet"])
def test_functional_call_is_the_module(recipe):
    model = Net()
    function, backend = compiled(model, recipe=recipe)
    _, expected = gradients(model, X, function=function)
    names = {site.name for site in sites(backend) if site.rewritten}
    parameters = leaves(model)
    function, backend = compiled(lambda p, x: functional_call(model, p, (x,)), recipe=recipe)
    torch.manual_seed(0)
    function(parameters, X).square().sum().backward()
    assert {site.name for site in sites(backend) if site.rewritten} == names and len(names) == 5
    assert all(torch.equal(parameters[name].grad, expected[name]) for name in expected)


def test_rules_see_the_names_of_the_dict():
    model = nn.ModuleDict({"up": nn.Linear(64, 64), "lm_head": nn.Linear(64, 64)})
    model.forward = lambda x: model["lm_head"](model["up"](x))
    report = qc.explain(lambda p, x: functional_call(model, p, (x,)), leaves(model), X)
    assert decisions(report) == {"up": True, "lm_head": False}
    report = qc.explain(lambda p, x: functional_call(model, p, (x,)), leaves(model), X, exclude=["up"])
    assert not any(decisions(report).values())


@pytest.mark.parametrize("as_list", [False, True])
def test_a_function_of_its_weights(as_list):
    w = [(torch.randn(shape) / 8).requires_grad_() for shape in ((64, 96), (96, 64))]
    run = (lambda x, w: torch.relu(x @ w[0]) @ w[1]) if as_list else (lambda x, a, b: torch.relu(x @ a) @ b)
    function, backend = compiled(run, recipe="exact")

    def grads(f):
        return dict(enumerate(torch.autograd.grad(f(X, *([w] if as_list else w)).square().sum(), w)))

    assert_rounding(grads(function), lambda: grads(run))
    assert [site.rewritten for site in sites(backend)] == [True, True]


def test_a_parameter_outranks_an_input_with_a_gradient():
    model, x = nn.Linear(64, 96), torch.randn(32, 64, requires_grad=True)
    report = qc.explain(model, x)
    assert report.sites[0].rewritten and report.sites[0].shape == (32, 96, 64)
    scaled = qc.explain(lambda x: F.linear(x, model.weight * 2), x)
    assert scaled.sites[0].rewritten and scaled.sites[0].shape == (32, 96, 64)


def test_two_leaves_and_leaves_that_are_no_matrices_are_kept():
    a, b = (torch.randn(32, 64, requires_grad=True) for _ in range(2))
    assert not any(decisions(qc.explain(lambda a, b: a @ b.t(), a, b)).values())
    heads, data = torch.randn(4, 32, 64, requires_grad=True), torch.randn(4, 32, 64)
    assert not any(decisions(qc.explain(lambda q, k: q @ k.transpose(1, 2), heads, data)).values())


def test_a_buffer_is_named():
    class Filters(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mel", torch.randn(64, 96))

        def forward(self, x):
            return x @ self.mel

    reason = next(iter(reasons(qc.explain(Filters(), X.clone().requires_grad_())).values()))
    assert reason == "its weight is the buffer 'mel'; a Parameter, also one without gradient, is rewritten"


def closure(module):
    forward = module.forward
    return lambda x: forward(x) * 1.0


def of_module(module):
    def forward(x):
        return module.down(torch.relu(module.up(x)))

    return forward


REPLACED = {
    "closure": closure,
    "of the module": of_module,
    "partial": lambda module: functools.partial(module.forward),
    "wrapped": lambda module: functools.wraps(module.forward)(lambda x: type(module).forward(module, x)),
}


@pytest.mark.parametrize("replace", REPLACED.values(), ids=REPLACED)
def test_a_forward_that_was_replaced_is_no_part_of_a_name(replace):
    model = Net()
    model.layers[0].forward = replace(model.layers[0])
    _, backend = run = compiled(model)
    run[0](X).sum().backward()
    assert {site.name for site in sites(backend)} == {
        *(f"layers.{block}.{part}" for block in (0, 1) for part in ("up", "down")),
        "out",
    }
