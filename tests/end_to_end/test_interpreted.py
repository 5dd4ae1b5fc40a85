"""The modules generated for a GPU compute what the CPU computes: forward and backward run kernel by kernel in Triton's
interpreter. What ran: Triton interpreter, CPU."""

from __future__ import annotations

import pytest
import torch
from interpreted_module import compile_interpreted, in_interpreter
from models import Attention, Block, gradients, relative


def distances(name, dtype, options, target):
    """How far output and gradients are from those of the CPU's compiled model."""
    torch.manual_seed(0)
    model, x = {
        "block": (Block(), torch.randn(32, 64)),
        "attention": (Attention(), torch.randn(2, 32, 64)),
    }[name]
    model, x = model.to(dtype), x.to(dtype)
    compiled = compile_interpreted(model, target, **options)
    y, made = gradients(model, x, function=compiled)
    expected, reference = gradients(model, x, function=torch.compile(model, backend="quartet", options=options))
    assert [module.graph for module in compiled.modules] == ["forward 0", "backward 0"]
    return [relative(y, expected), *(relative(made[key], reference[key]) for key in reference)]


CASES = {
    "attention in bfloat16, sm_90": ("attention", torch.bfloat16, {"recipe": "bf16"}, "sm_90"),
    "a block in FP4, sm_100": ("block", torch.float32, {"recipe": "quartet"}, "sm_100"),
}
BOUNDS = {torch.bfloat16: 2e-2, torch.float32: 1e-5}  # a rounding to bfloat16, or the order of a sum, apart


def all_distances():
    return {name: distances(*case) for name, case in CASES.items()}


@pytest.fixture(scope="module")
def measured(once):
    return once("interpreted", lambda: in_interpreter(f"{__file__}:all_distances"))


@pytest.mark.parametrize("case", CASES)
def test_forward_and_gradients(case, measured):
    assert len(measured[case]) > 3 and max(measured[case]) < BOUNDS[CASES[case][1]]
