"""What a library's product in FP8 got wrong, computed again: the tiles of rows that E4M3 with a scale a row can't hold."""

import triton
import triton.language as tl

from .product import decoded_dot

BLOCK = tl.constexpr(64)
"""Rows and columns of a tile."""


@triton.jit
def mend_kernel(
    A,
    A_SCALES,
    A_BEYOND,
    B,
    B_SCALES,
    B_BEYOND,
    OUT,
    M,
    N,
    K,
    stride_a,
    stride_a_row,
    stride_a_group,
    stride_b,
    stride_b_row,
    stride_b_group,
    FACTOR: tl.constexpr,
):
    """`OUT[M, N] = FACTOR a b^T` of MXFP4 codes, in the tiles that have a row of `a` or of `b` that isn't exact in FP8; the
    others stay as they are. A, B: uint8[rows, K / 2]; A_SCALES, B_SCALES: uint8[rows, K / 32]; A_BEYOND,
    B_BEYOND: int32[rows], not 0 of such rows."""
    tiles_n = (N + BLOCK - 1) // BLOCK
    rm = (tl.program_id(0) // tiles_n).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    rn = (tl.program_id(0) % tiles_n).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    am, bn = (rm % M)[:, None], (rn % N)[:, None]
    beyond = tl.max(tl.load(A_BEYOND + rm % M), axis=0) | tl.max(tl.load(B_BEYOND + rn % N), axis=0)
    if beyond != 0:
        acc = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
        at_c = tl.arange(0, 16)[None, :]
        for group in tl.range(0, K // 32):
            a = tl.load(A + am * stride_a + group * 16 + at_c)
            b = tl.load(B + bn * stride_b + group * 16 + at_c)
            a_scale = tl.load(A_SCALES + am * stride_a_row + group * stride_a_group)
            b_scale = tl.load(B_SCALES + bn * stride_b_row + group * stride_b_group)
            acc = decoded_dot(a, a_scale, b, b_scale, acc, "mxfp4")
        inside = (rm < M)[:, None] & (rn < N)[None, :]
        tl.store(OUT + rm[:, None] * N + rn[None, :], (acc * FACTOR).to(OUT.dtype.element_ty), mask=inside)
