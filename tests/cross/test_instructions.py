"""Instructions an element of what quantizes, counted in what was compiled for each target: upper bounds, which may only
fall. Nothing here runs on a GPU.

    python -m pytest tests/cross/test_instructions.py --durations=0
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

import quartet_compile as qc

pytest.importorskip("triton")

BOUNDS = {
    "sm_90": {"quantize": 26.7, "quantize_pair": 27.4, "requantize": 22.8, "decode_fp8": 6.4},
    "sm_100": {"quantize": 11.6, "quantize_pair": 18.0, "requantize": 10.9},
    "sm_120": {"quantize": 16.8, "quantize_pair": 23.7, "requantize": 21.1},
}
"""By target and op, of the recipe `quartet` with bfloat16 inputs: to nearest with QuEST's scale and mask; both directions of
dY; X^T and W^T."""
TWO_FACTORS = "931149696"
"""Of bfloat16, both 2^-16 (0x3780): what the first butterfly of dY multiplies by on Blackwell, but for signs."""
PRODUCTS = {"sm_90": 22.7, "sm_100": 5.0, "sm_120": 18.8}
"""Instructions for each thousand of a product's multiply-adds, epilogue included."""


@pytest.mark.parametrize("target", BOUNDS)
def test_instructions_an_element(target):
    linear = nn.Linear(4096, 4096, bias=False, device="meta", dtype=torch.bfloat16)
    x = torch.empty(32768, 4096, device="meta", dtype=torch.bfloat16, requires_grad=True)
    art = qc.cross_compile(linear, x, target=target)
    most, of_products = {}, []
    for kernel in art.kernels:
        if kernel.op.startswith("scaled_mm"):
            of_products.append(2000 * kernel.instructions / kernel.operations)
        elif kernel.op:
            assert kernel.stack_bytes == 0
            if kernel.op == "quantize_pair" and target != "sm_90":
                assert TWO_FACTORS in kernel.ptx
            most[kernel.op] = max(most.get(kernel.op, 0.0), kernel.instructions_an_element)
    assert most.keys() == BOUNDS[target].keys()
    assert {op: count for op, count in most.items() if count > BOUNDS[target][op]} == {}
    assert len(of_products) == 3 and max(of_products) <= PRODUCTS[target]
