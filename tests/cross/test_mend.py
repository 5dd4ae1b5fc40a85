"""What mends a library's product in FP8, which Triton compiles at its first launch: compiled for Hopper here."""

from __future__ import annotations

import pytest

pytest.importorskip("triton")
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from quartet_compile.cross.binary import resource_usage
from quartet_compile.kernels.gpu.mend import mend_kernel

POINTERS = {"A": "*u8", "A_SCALES": "*u8", "A_BEYOND": "*i32", "B": "*u8", "B_SCALES": "*u8", "B_BEYOND": "*i32"}


def test_it_multiplies_on_tensor_cores_without_a_stack():
    kinds = {**POINTERS, "OUT": "*bf16", "FACTOR": "constexpr"}
    signature = {name: kinds.get(name, "i32") for name in mend_kernel.arg_names}
    made = compile(ASTSource(mend_kernel, signature, {"FACTOR": 16 / 9}), GPUTarget("cuda", 90, 32), {"num_warps": 4})
    _, stack, _ = resource_usage(made.asm["cubin"])
    assert stack == 0
    assert "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16" in made.asm["ptx"]
