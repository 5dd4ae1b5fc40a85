"""Every recipe compiled for each GPU architecture, without a GPU: all its ops have kernels, none spills, and NVFP4 products
are FP4 instructions where there are any. Nothing here runs on a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import quartet_compile as qc

pytest.importorskip("triton")

NVFP4 = ("quartet2", "nvfp4", "nvfp4-4over6", "tetrajet2")
RECIPES = (*NVFP4, "mxfp8", "mxfp4-bwd", "jetfire-fp4")
TARGETS = {"sm_90": "", "sm_100": "tcgen05.mma.kind::mxf4nvf4", "sm_120": "mma.sync.m16n8k64.kind::mxf4nvf4"}
FAST = {("nvfp4", "sm_100"), ("quartet2", "sm_120"), ("mxfp8", "sm_90")}


@pytest.mark.parametrize(
    "recipe, target",
    [
        pytest.param(recipe, target, marks=() if (recipe, target) in FAST else pytest.mark.slow)
        for recipe in RECIPES
        for target in TARGETS
    ],
)
def test_every_op_of_a_recipe_has_a_kernel(recipe, target):
    """`cross_compile` raises where a kernel of ours spills, or a product has no FP4 instruction on a target with them."""
    linear = nn.Linear(256, 384, bias=False, device="meta", dtype=torch.bfloat16)
    x = torch.empty(512, 256, device="meta", dtype=torch.bfloat16, requires_grad=True)
    art = qc.cross_compile(linear, x, target=target, recipe=recipe)
    assert not [call.name for call in art.library_calls if call.name.startswith("quartet.") and "seed" not in call.name]
    assert [kernel.op for kernel in art.kernels if "quantize" in kernel.op]
    assert all(kernel.stack_bytes == 0 for kernel in art.kernels)
    if recipe in NVFP4 and TARGETS[target]:
        products = [kernel for kernel in art.kernels if kernel.op.startswith("scaled_mm")]
        assert sum(sum(kernel.launches.values()) for kernel in products) == 3
        assert all(any(kind.startswith(TARGETS[target]) for kind in kernel.mma) for kernel in products)
