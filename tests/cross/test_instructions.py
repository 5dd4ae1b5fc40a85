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
    "sm_90": {"quantize": 26.7, "quantize_pair": 37.7, "requantize": 26.8, "decode_fp8": 6.4},
    "sm_100": {"quantize": 14.9, "quantize_pair": 34.0, "requantize": 23.9},
    "sm_120": {"quantize": 17.2, "quantize_pair": 37.8, "requantize": 26.8},
}
"""By target and op, of the recipe `quartet` with bfloat16 inputs: to nearest with QuEST's scale and mask; both directions of
dY; X^T and W^T."""


@pytest.mark.parametrize("target", BOUNDS)
def test_instructions_an_element(target):
    linear = nn.Linear(1024, 1024, bias=False, device="meta", dtype=torch.bfloat16)
    x = torch.empty(1024, 1024, device="meta", dtype=torch.bfloat16, requires_grad=True)
    art = qc.cross_compile(linear, x, target=target)
    most = {}
    for kernel in art.kernels:
        if kernel.op and not kernel.op.startswith("scaled_mm"):
            most[kernel.op] = max(most.get(kernel.op, 0.0), kernel.instructions_an_element)
    assert most.keys() == BOUNDS[target].keys()
    assert {op: count for op, count in most.items() if count > BOUNDS[target][op]} == {}
