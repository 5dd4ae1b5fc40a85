"""Every spelling of a matmul under recipes of another make than Quartet's: other blocks, other sources, single GEMMs.

Those of exact formats must give the untouched model's output and gradients; those that round, nearly.
"""

from __future__ import annotations

import pytest
import torch
from captured import compiled, sites
from models import gradients
from rounding import assert_same_step
from spellings import ALL, ENDS, KEPT, Experts, Spelled

import quartet_compile as qc


def gemm(name):
    return qc.Gemm(a=qc.quantizer(name), b=qc.quantizer(name))


FIXED, RANDOM, NONE = gemm("exact-fixed,rotation=64"), gemm("exact-random,rotation=128"), gemm("exact-fixed,rotation=0")
ORIGINALS = {"w_from": "original", "x_from": "original"}
EXACT = {
    "blocks of 128": qc.Recipe(name="128", fprop=FIXED, dgrad=RANDOM, wgrad=RANDOM, trust_mask=True),
    "from originals": qc.Recipe(name="originals", fprop=FIXED, dgrad=RANDOM, wgrad=RANDOM, **ORIGINALS),
    "backward only": qc.Recipe(name="backward", fprop=None, dgrad=RANDOM, wgrad=NONE, **ORIGINALS),
    "forward only": qc.Recipe(name="forward", fprop=FIXED, dgrad=None, wgrad=None),
    "wgrad only, no rotation": qc.Recipe(name="wgrad", fprop=NONE, dgrad=None, wgrad=RANDOM),
}
ROUNDING = ["quartet2", "nvfp4", "mxfp4-bwd", "mxfp8", "jetfire-fp4"]
GROUPED = [name for name in ALL if name.startswith(("bmm", "batched", "einsum, a matrix", "patches", "1x1"))]


def exact(model, x, recipe):
    function, backend = compiled(model, recipe=recipe)
    assert_same_step(model, x, function)
    assert any(site.rewritten for site in sites(backend))


def both(model, x, recipe):
    y0, g0 = gradients(model, x)
    dx0, x.grad = x.grad, None
    function, backend = compiled(model, recipe=recipe)
    y1, g1 = gradients(model, x, function=function)
    assert any(site.rewritten for site in sites(backend))
    return [(y1, y0), (x.grad, dx0), *((g1[name], g0[name]) for name in g0)]


def spelled(name):
    spell, shapes = ALL[name]
    torch.manual_seed(1)
    return Spelled(spell, **shapes), torch.randn(2, 48, 64, requires_grad=True)


@pytest.mark.parametrize("recipe", EXACT)
@pytest.mark.parametrize("name", [name for name in ALL if name not in KEPT])
def test_exact(name, recipe):
    exact(*spelled(name), EXACT[recipe])


@pytest.mark.parametrize("recipe", EXACT)
@pytest.mark.parametrize("ends", ENDS)
def test_exact_experts(ends, recipe):
    """Groups of rows start at blocks of 128 where the recipe's rotation is that long."""
    pytest.importorskip("transformers.integrations.moe")
    torch.manual_seed(1)
    model = Experts(torch.ops.transformers.grouped_mm_fallback, ENDS[ends])
    exact(model, torch.randn(96, 64, requires_grad=True), EXACT[recipe])


@pytest.mark.parametrize("recipe", ROUNDING)
@pytest.mark.parametrize("name", ["linear", "used twice", "sliced", *GROUPED])
def test_rounded(name, recipe):
    for ours, theirs in both(*spelled(name), recipe):
        cosine = torch.nn.functional.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0)
        assert cosine > (0.9 if recipe == "jetfire-fp4" else 0.95 if name == "used twice" else 0.97), cosine


@pytest.mark.parametrize("recipe", ROUNDING)
def test_rounded_experts(recipe):
    pytest.importorskip("transformers.integrations.moe")
    torch.manual_seed(1)
    model = Experts(torch.ops.transformers.grouped_mm_fallback, ENDS["odd"])
    for ours, theirs in both(model, torch.randn(96, 64, requires_grad=True), recipe):
        assert torch.nn.functional.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0) > 0.9
