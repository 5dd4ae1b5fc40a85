"""Every recipe compiled for each GPU architecture, without a GPU: all its ops have kernels, none spills, and products are
the instructions of their format where there are any. Nothing here runs on a GPU."""

from __future__ import annotations

import pytest
import torch
from models import MetaExperts
from torch import nn

import quartet_compile as qc

pytest.importorskip("triton")

NVFP4 = ("quartet2", "nvfp4", "nvfp4-4over6", "tetrajet2")
RECIPES = (*NVFP4, "mxfp8", "mxfp4-bwd", "jetfire-fp4")
TARGETS = ("sm_90", "sm_100", "sm_120")
INSTRUCTIONS = {
    ("nvfp4", "sm_100"): "tcgen05.mma.kind::mxf4nvf4.block_scale.block16",
    ("nvfp4", "sm_120"): "mma.sync.m16n8k64.kind::mxf4nvf4.block_scale.block16",
    ("mxfp8", "sm_100"): "tcgen05.mma.kind::mxf8f6f4.block_scale.block32",
    ("mxfp8", "sm_120"): "mma.sync.m16n8k32.kind::mxf8f6f4.block_scale.block32",
}
GROUPED_FAST = {("nvfp4", "sm_120"), ("mxfp8", "sm_100")}
FAST = {("quartet2", "sm_100"), ("mxfp8", "sm_90")}


@pytest.mark.parametrize(
    "recipe, target",
    [
        pytest.param(recipe, target, marks=() if (recipe, target) in FAST else pytest.mark.slow)
        for recipe in RECIPES
        for target in TARGETS
    ],
)
def test_every_op_of_a_recipe_has_a_kernel(recipe, target):
    """`cross_compile` raises where a kernel of ours spills, or a product hasn't its format's instructions on Blackwell."""
    linear = nn.Linear(256, 384, bias=False, device="meta", dtype=torch.bfloat16)
    x = torch.empty(512, 256, device="meta", dtype=torch.bfloat16, requires_grad=True)
    art = qc.cross_compile(linear, x, target=target, recipe=recipe)
    assert not [call.name for call in art.library_calls if call.name.startswith("quartet.") and "seed" not in call.name]
    assert [kernel.op for kernel in art.kernels if "quantize" in kernel.op]
    assert all(kernel.stack_bytes == 0 for kernel in art.kernels)
    instruction = INSTRUCTIONS.get(("nvfp4" if recipe in NVFP4 else recipe, target))
    if instruction is not None:
        products = [kernel for kernel in art.kernels if kernel.op.startswith("scaled_mm")]
        assert sum(sum(kernel.launches.values()) for kernel in products) == 3
        assert all(any(kind.startswith(instruction) for kind in kernel.mma) for kernel in products)


@pytest.mark.parametrize(
    "recipe, target",
    [
        pytest.param(recipe, target, marks=() if (recipe, target) in GROUPED_FAST else pytest.mark.slow)
        for recipe in ("nvfp4", "quartet2", "mxfp8")
        for target in TARGETS
    ],
)
def test_grouped_products_of_a_recipe_have_kernels(recipe, target):
    x = torch.empty(256, 128, device="meta", dtype=torch.bfloat16, requires_grad=True)
    ends = torch.empty(4, device="meta", dtype=torch.int32)
    art = qc.cross_compile(MetaExperts(), x, ends, target=target, recipe=recipe)
    assert {call.name for call in art.library_calls} <= {"quartet.separate_groups", "quartet.seed"}
    products = [kernel for kernel in art.kernels if kernel.op == "scaled_grouped_mm"]
    assert sum(sum(kernel.launches.values()) for kernel in products) == 3
    instruction = INSTRUCTIONS.get(("mxfp8" if recipe == "mxfp8" else "nvfp4", target), "wgmma.m64n64k16.bf16")
    for kernel in products:
        assert kernel.stack_bytes == 0 and any(kind.startswith(instruction) for kind in kernel.mma)
