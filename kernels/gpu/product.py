"""One step of a product on tensor cores."""

import triton
import triton.language as tl

from .blocks import decoded
from .rounding import INTERPRETED
from .scales import e4m3_value


@triton.jit
def scaled_dot(a, a_scales, b, b_scales, acc, format: tl.constexpr):
    """`acc + a b^T`, float32[M, N], of codes of a format: "mxfp4", "nvfp4" or "mxfp8".

    Codes: uint8[rows, K / 2], two E2M1 a byte; for mxfp8 E4M3[rows, K]. Scales: uint8[rows, K / 32] E8M0; for nvfp4
    [rows, K / 16] E4M3, or uint8 of its bytes. Triton's interpreter reads E4M3 wrongly, so there it is decoded first.
    """
    tl.static_assert(format == "mxfp4" or format == "nvfp4" or format == "mxfp8", "no product of this operand format")
    if INTERPRETED and format != "mxfp4":
        left, right = decoded(a, a_scales, format), decoded(b, b_scales, format)
        return tl.dot(left, tl.trans(right), acc, input_precision="ieee")
    elif format == "mxfp8":
        return tl.dot_scaled(a, a_scales, "e4m3", tl.trans(b), b_scales, "e4m3", acc)
    elif format == "nvfp4":
        left, right = a_scales.to(tl.float8e4nv, bitcast=True), b_scales.to(tl.float8e4nv, bitcast=True)
        return tl.dot_scaled(a, left, "e2m1", tl.trans(b), right, "e2m1", acc)
    else:
        return tl.dot_scaled(a, a_scales, "e2m1", tl.trans(b), b_scales, "e2m1", acc)


@triton.jit
def decoded_dot(a, a_scales, b, b_scales, acc, format: tl.constexpr):
    """`scaled_dot` on bf16 tensor cores: bf16 holds every value of these formats from 2^-133 on."""
    left, right = decoded(a, a_scales, format), decoded(b, b_scales, format)
    if INTERPRETED:
        return tl.dot(left, tl.trans(right), acc, input_precision="ieee")
    return tl.dot(left.to(tl.bfloat16), tl.trans(right.to(tl.bfloat16)), acc)


@triton.jit
def fp8_dot(a, b, acc):
    """`acc + a b^T`, float32[M, N], of E4M3 `a: [M, K]` and `b: [N, K]`. Hopper's FP8 tensor cores keep about 14 bits of a
    sum: after every 128 products it goes into a float32."""
    if INTERPRETED:
        left, right = e4m3_value(a.to(tl.uint8, bitcast=True)), e4m3_value(b.to(tl.uint8, bitcast=True))
        return tl.dot(left, tl.trans(right), acc, input_precision="ieee")
    return tl.dot(a, tl.trans(b), acc, max_num_imprecise_acc=128)


@triton.jit
def in_parts(acc, count: tl.constexpr):
    """A tuple of `count` equal parts of the columns of `acc`, count a power of two: each comes from tensor memory when it is
    used, so that not all of them need registers."""
    rows: tl.constexpr = acc.shape[0]
    columns: tl.constexpr = acc.shape[1]
    if count == 1:
        return (acc,)
    else:
        left, right = tl.split(tl.permute(tl.reshape(acc, (rows, 2, columns // 2)), (0, 2, 1)))
        return in_parts(left, count // 2) + in_parts(right, count // 2)


@triton.jit
def kept_columns(x, words):
    """float32 `x: [M, 32]` where the bits of `words: uint32[M]` are set, else 0; column `c` has bit `c`."""
    bits = words[:, None] >> tl.arange(0, 32).to(tl.uint32)[None, :]
    return tl.where((bits & 1) != 0, x, 0.0)


@triton.jit
def rotated_rows(x):
    """float32[M, 32] `x @ H sqrt(32)` of bfloat16 or float16 `x: [M, 32]` on tensor cores: H's elements are 1 and -1, minus
    where the places have an odd number of bits in common."""
    common = tl.arange(0, 32)[:, None] & tl.arange(0, 32)[None, :]
    odd = common ^ (common >> 4)
    odd = odd ^ (odd >> 2)
    odd = (odd ^ (odd >> 1)) & 1
    matrix = tl.where(odd != 0, -1.0, 1.0)
    if INTERPRETED:
        return tl.dot(x.to(tl.float32), matrix, input_precision="ieee")
    return tl.dot(x, matrix.to(x.dtype))
