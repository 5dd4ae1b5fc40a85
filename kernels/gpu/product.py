"""One step of an FP4 product on tensor cores."""

import triton
import triton.language as tl

from .blocks import dequantize_nvfp4
from .rounding import INTERPRETED
from .scales import e4m3_value


@triton.jit
def scaled_dot(a, a_scales, b, b_scales, acc, nvfp4: tl.constexpr):
    """`acc + a b^T`, float32[M, N], of packed codes uint8[M, K / 2] and uint8[N, K / 2].

    Scales: uint8[rows, K / 32] E8M0; for `nvfp4` [rows, K / 16] E4M3, or uint8 of its bytes. Triton's interpreter reads
    E4M3 scales wrongly, so there NVFP4 is decoded first.
    """
    if nvfp4 and INTERPRETED:
        left = dequantize_nvfp4(a, a_scales.to(tl.uint8, bitcast=True))
        right = dequantize_nvfp4(b, b_scales.to(tl.uint8, bitcast=True))
        return tl.dot(left, tl.trans(right), acc, input_precision="ieee")
    if nvfp4:
        a_scales = a_scales.to(tl.float8e4nv, bitcast=True)
        b_scales = b_scales.to(tl.float8e4nv, bitcast=True)
    return tl.dot_scaled(a, a_scales, "e2m1", tl.trans(b), b_scales, "e2m1", acc)


@triton.jit
def fp8_dot(a, b, acc):
    """`acc + a b^T`, float32[M, N], of E4M3 `a: [M, K]` and `b: [N, K]`. Hopper's FP8 tensor cores keep about 14 bits of a
    sum: after every 128 products it goes into a float32."""
    if INTERPRETED:
        left, right = e4m3_value(a.to(tl.uint8, bitcast=True)), e4m3_value(b.to(tl.uint8, bitcast=True))
        return tl.dot(left, tl.trans(right), acc, input_precision="ieee")
    return tl.dot(a, tl.trans(b), acc, max_num_imprecise_acc=128)


@triton.jit
def bf16_dot(a, b, acc):
    """`acc + a b^T`, float32[M, N], of float32 values that bf16 holds exactly."""
    if INTERPRETED:
        return tl.dot(a, tl.trans(b), acc, input_precision="ieee")
    return tl.dot(a.to(tl.bfloat16), tl.trans(b.to(tl.bfloat16)), acc)
