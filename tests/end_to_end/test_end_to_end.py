"""A compiled model against an eager one made of the reference by module swap: same seeds, same bits, same gradients."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from models import Attention, Block, gradients
from module_swap import swap_linears
from rounding import assert_rounding, assert_same_step, step
from torch import nn

import quartet_compile as qc
from quartet_compile.capture.capture import Capture
from quartet_compile.config.options import configure


def rewritten(model, **options):
    """The model with the pass and the ops, but without Inductor."""
    torch._dynamo.reset()
    return torch.compile(model, backend=Capture(configure(options), text=False))


def assert_the_eager_step(model, x, recipe):
    """The compiled step is the swapped model's, but for rounding: that moves a value at the border of two codes to the
    other one. Other noise moves the gradients by 2 to 40 times as much."""

    def run():
        swapped = copy.deepcopy(model)
        swap_linears(swapped, qc.recipe(recipe))
        return step(swapped, x)

    ours = step(model, x, rewritten(model, recipe=recipe))
    assert_rounding(ours, run)


_QUARTET = qc.recipe("quartet")
MIXED = [
    qc.mix("forward only", fprop="quartet", dgrad="bf16", wgrad="bf16"),
    qc.mix("backward only", fprop="bf16", dgrad="quartet", wgrad="quartet-rtn"),
    qc.mix("dgrad only", fprop="bf16", dgrad="quartet2", wgrad="bf16"),
    qc.mix("wgrad in high precision", fprop="quartet", dgrad="quartet", wgrad="bf16"),
    qc.mix("NVFP4 forward, MXFP4 backward", fprop="nvfp4", dgrad="quartet", wgrad="mxfp4-bwd"),
    dataclasses.replace(
        _QUARTET, name="bf16 outputs", **{r: dataclasses.replace(g, output="bfloat16") for r, g in _QUARTET.gemms()}
    ),
]


@pytest.mark.parametrize("recipe", [*qc.recipes(), *MIXED], ids=lambda recipe: getattr(recipe, "name", recipe))
@pytest.mark.parametrize("shape", [(96, 64, 64), (100, 36, 31 + 64), (33, 1000, 65)], ids=str)
def test_linear_equals_the_eager_function(recipe, shape):
    n, k, m = shape
    torch.manual_seed(1)
    model, x = nn.Sequential(nn.Linear(k, n)), torch.randn(m, k, requires_grad=True)
    assert_the_eager_step(model, x, recipe)


@pytest.mark.parametrize("recipe", ["quartet2", "nvfp4", "mxfp4-bwd", "mxfp8", "jetfire-fp4"])
def test_attention_under_other_recipes_equals_the_eager_model(recipe):
    """q, k and v share X^T, and with it the signs of wgrad, whatever X^T is made of."""
    torch.manual_seed(2)
    model, x = nn.Sequential(Attention(), Block()), torch.randn(2, 50, 64, requires_grad=True)
    assert_the_eager_step(model, x, recipe)


def test_noise_differs_between_backward_passes_and_follows_the_seed():
    torch.manual_seed(1)
    model, x = nn.Linear(64, 96), torch.randn(64, 64)
    function = rewritten(model)
    _, first = gradients(model, x, function=function)
    _, again = gradients(model, x, function=function)
    _, other = gradients(model, x, function=function, seed=5)
    assert torch.equal(first["weight"], again["weight"])
    assert not torch.equal(first["weight"], other["weight"])
    model.zero_grad()
    (function(x) ** 2).sum().backward()
    assert not torch.equal(model.weight.grad, other["weight"])


def test_shared_operands_of_attention_equal_the_eager_model():
    torch.manual_seed(1)
    model, x = nn.Sequential(Attention(), Block()), torch.randn(2, 50, 64, requires_grad=True)
    assert_the_eager_step(model, x, "quartet")


def test_averaged_backward_converges_to_the_gradient_of_the_quantized_forward():
    """E[dW] is the exact gradient of the quantized forward, masked: the squared error falls as 1/B."""
    torch.manual_seed(1)
    model, x = nn.Linear(64, 64, bias=False), torch.randn(128, 64, requires_grad=True)
    dy = torch.randn(128, 64)
    function = rewritten(model)
    exact_dx, exact_dw = _exact_gradients(x, model.weight, dy)
    draws = []
    for seed in range(256):
        torch.manual_seed(seed)
        draws.append(torch.autograd.grad(function(x), (x, model.weight), dy))
    for exact, samples in ((exact_dx, [d[0] for d in draws]), (exact_dw, [d[1] for d in draws])):
        errors = {b: _mean_error(samples, b, exact) for b in (1, 4, 16, 64)}
        for b in (4, 16, 64):
            assert errors[1] / errors[b] == pytest.approx(b, rel=0.25), errors


def test_nearest_rounding_in_backward_has_a_plateau():
    """The same average under `quartet-rtn` stops falling: the test above can fail."""
    torch.manual_seed(1)
    model, x = nn.Linear(64, 64, bias=False), torch.randn(128, 64, requires_grad=True)
    dy = torch.randn(128, 64)
    function = rewritten(model, recipe="quartet-rtn")
    exact, _ = _exact_gradients(x, model.weight, dy)
    draws = []
    for seed in range(64):
        torch.manual_seed(seed)
        draws.append(torch.autograd.grad(function(x), x, dy)[0])
    assert _mean_error(draws, 1, exact) / _mean_error(draws, 64, exact) < 50


def _exact_gradients(x, w, dy):
    from quartet_compile.kernels.numerics import reference

    recipe = qc.recipe("quartet")
    xq, wq = (reference.quantize(t.detach(), recipe.fprop.a, mask=True) for t in (x, w))
    xv, wv = (reference.decode(q, recipe.fprop.a) for q in (xq, wq))
    dx = reference.unrotate(dy @ wv, xq.mask, 32, x.shape[1])
    dw = reference.unrotate(dy.t() @ xv, wq.mask, 32, x.shape[1])
    return dx, dw


def _mean_error(draws, size, exact):
    means = [torch.stack(draws[i : i + size]).mean(0) for i in range(0, len(draws) - size + 1, size)]
    return sum(((mean - exact) ** 2).sum().item() for mean in means) / len(means)


def test_a_recipe_without_a_trust_mask_passes_every_gradient():
    torch.manual_seed(1)
    plain = dataclasses.replace(qc.recipe("exact"), name="exact without a mask", trust_mask=False)
    model, x = nn.Linear(64, 96), torch.randn(50, 64, requires_grad=True)
    assert_same_step(model, x, rewritten(model, recipe=plain))
