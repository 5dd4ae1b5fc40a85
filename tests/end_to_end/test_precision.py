"""Autocast, loss scaling, and models that are bf16 or fp16 altogether."""

from __future__ import annotations

import copy

import pytest
import torch
from captured import compiled, sites
from models import Attention, Block, gradients, relative
from torch import nn


def net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(Attention(), Block(), nn.LayerNorm(64), nn.Linear(64, 40))


def under_autocast(model, x, dtype, function=None):
    with torch.autocast("cpu", dtype=dtype):
        return gradients(model, x, function=function)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype):
    """Products in the autocast dtype, gradients of parameters in theirs, as near to the untouched model as rounding."""
    model, x = net(), torch.randn(2, 24, 64)
    function, backend = compiled(model, recipe="exact")
    y, g = under_autocast(model, x, dtype, function)
    y0, g0 = under_autocast(model, x, dtype)
    found = sites(backend)
    assert [site.dtype for site in found if site.rewritten] == [str(dtype).removeprefix("torch.")] * 7
    assert y.dtype == y0.dtype
    bound = 16 * torch.finfo(dtype).eps
    assert relative(y, y0) < bound
    for name in g0:
        assert g[name].dtype == torch.float32
        assert relative(g[name], g0[name]) < bound, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("recipe", ["exact", "quartet"])
def test_a_model_of_a_dtype(dtype, recipe):
    model, x = net().to(dtype), torch.randn(2, 24, 64, dtype=dtype)
    function, backend = compiled(model, recipe=recipe)
    y, g = gradients(model, x, function=function)
    _, g0 = gradients(model, x)
    assert y.dtype == dtype and all(gradient.dtype == dtype for gradient in g.values())
    assert all(site.rewritten for site in sites(backend) if "attention" not in site.reason)
    a, b = (torch.cat([t.float().flatten() for t in grads.values()]) for grads in (g, g0))
    cosine = torch.nn.functional.cosine_similarity(a, b, dim=0)
    assert cosine > (0.999 if recipe == "exact" else 0.8)


@pytest.mark.parametrize("recipe", ["exact", "quartet"])
def test_an_overflow_in_a_scaled_loss_skips_the_step(recipe):
    """fp16 gradients that overflow must reach the scaler as infinities or NaN: it skips the step and halves the scale."""
    model, x = net(), torch.randn(2, 24, 64)
    function, _ = compiled(model, recipe=recipe)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40, growth_interval=1)
    before = copy.deepcopy(model.state_dict())
    scales = [scaler.get_scale()]
    for _ in range(40):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16):
            loss = function(x).float().square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
        if scales[-1] > scales[-2]:
            break
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert scales[1] == scales[0] / 2
    assert scales[-1] > scales[-2], "the scale never came down to a step without overflow"
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert len(changed) == len(before) and all(v.isfinite().all() for v in model.state_dict().values())
