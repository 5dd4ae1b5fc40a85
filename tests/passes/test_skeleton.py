"""The rewriting alone is exact: under the recipe `exact`, which rotates, pads, shares and masks but rounds nothing,
every set-up gives the untouched model's output and gradients."""

from __future__ import annotations

import pytest
import torch
from models import Net, gradients, relative

from quartet_compile.capture.capture import Capture
from quartet_compile.config.options import configure

TOLERANCE = 2e-5


def compiled(model, dynamic=None, **options):
    """The whole way, through Inductor."""
    torch._dynamo.reset()
    return torch.compile(model, backend="quartet", dynamic=dynamic, options={"recipe": "exact", **options})


def rewritten(model, **options):
    """The pass and the ops without Inductor, in milliseconds."""
    torch._dynamo.reset()
    return torch.compile(model, backend=Capture(configure({"recipe": "exact", **options}), text=False))


@pytest.mark.parametrize("kwargs", [{}, {"checkpointing": True}, {"break_graph": True}], ids=str)
def test_equals_the_untouched_model(kwargs):
    torch.manual_seed(0)
    model, x = Net(**kwargs), torch.randn(2, 50, 64)
    y0, g0 = gradients(model, x)
    y1, g1 = gradients(model, x, function=compiled(model))
    assert relative(y1, y0) < TOLERANCE
    assert g1.keys() == g0.keys() == dict(model.named_parameters()).keys()
    assert max(relative(g1[name], g0[name]) for name in g0) < TOLERANCE


@pytest.mark.parametrize("checkpointing", [False, True])
def test_dropout_masks_are_those_of_plain_inductor(checkpointing):
    torch.manual_seed(0)
    model, x = Net(dropout=0.3, checkpointing=checkpointing), torch.randn(2, 50, 64)
    torch._dynamo.reset()
    y0, g0 = gradients(model, x, function=torch.compile(model))
    y1, g1 = gradients(model, x, function=compiled(model))
    assert relative(y1, y0) < TOLERANCE
    assert max(relative(g1[name], g0[name]) for name in g0) < TOLERANCE


@pytest.mark.parametrize("shape", [(1, 1), (3, 31), (1, 33), (5, 20)])
def test_token_counts_that_fill_no_group(shape):
    torch.manual_seed(0)
    model, x = Net(blocks=1), torch.randn(*shape, 64)
    y0, g0 = gradients(model, x)
    y1, g1 = gradients(model, x, function=rewritten(model))
    assert relative(y1, y0) < TOLERANCE
    assert max(relative(g1[name], g0[name]) for name in g0) < TOLERANCE


@pytest.mark.parametrize("out_features, in_features", [(33, 100), (100, 33), (1000, 63)])
def test_widths_that_fill_no_group(out_features, in_features):
    torch.manual_seed(0)
    model, x = torch.nn.Linear(in_features, out_features), torch.randn(37, in_features, requires_grad=True)
    y0, g0 = gradients(model, x)
    x0, x.grad = x.grad, None
    y1, g1 = gradients(model, x, function=rewritten(model))
    assert relative(y1, y0) < TOLERANCE
    assert relative(x.grad, x0) < TOLERANCE
    assert max(relative(g1[name], g0[name]) for name in g0) < TOLERANCE


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    if dtype == torch.float16 and torch.__version__ < "2.12":
        pytest.skip("torch 2.11 itself takes the cached graph of the other dtype")
    torch.manual_seed(0)
    model, x = Net(blocks=1), torch.randn(4, 32, 64)
    with torch.autocast("cpu", dtype):
        y0, g0 = gradients(model, x)
        y1, g1 = gradients(model, x, function=compiled(model))
    assert y1.dtype == y0.dtype
    bound = 4 * torch.finfo(dtype).eps
    assert relative(y1, y0) < bound
    assert max(relative(g1[name], g0[name]) for name in g0) < 2 * bound


def test_dynamic_length():
    torch.manual_seed(0)
    model = Net(blocks=1)
    function = compiled(model, dynamic=True)
    for length in (7, 32, 45):
        x = torch.randn(2, length, 64)
        y0, g0 = gradients(model, x)
        y1, g1 = gradients(model, x, function=function)
        assert relative(y1, y0) < TOLERANCE
        assert max(relative(g1[name], g0[name]) for name in g0) < TOLERANCE


def test_frozen_weight_and_input_gradient():
    torch.manual_seed(0)
    model, x = Net(blocks=1), torch.randn(2, 50, 64, requires_grad=True)
    model.layers[0].up.weight.requires_grad_(False)
    _, g0 = gradients(model, x)
    x0, x.grad = x.grad, None
    _, g1 = gradients(model, x, function=rewritten(model, strict=True))
    assert relative(x.grad, x0) < TOLERANCE
    assert g0.keys() == g1.keys()
    assert max(relative(g1[name], g0[name]) for name in g0) < TOLERANCE


def test_inference_and_training_from_one_model():
    torch.manual_seed(0)
    model, x = Net(), torch.randn(2, 50, 64)
    function = compiled(model)
    with torch.no_grad():
        assert relative(function(x), model(x)) < TOLERANCE
    y0, _ = gradients(model, x)
    y1, _ = gradients(model, x, function=function)
    assert relative(y1, y0) < TOLERANCE
    with torch.inference_mode():
        assert relative(function(x), model(x)) < TOLERANCE
