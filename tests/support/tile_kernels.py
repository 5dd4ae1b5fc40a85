"""Kernels that run the tile functions of kernels/gpu by themselves, in Triton's interpreter (see interpreted_module)."""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl

from quartet_compile.kernels.gpu import blocks, fp8, product, random, rotation, rounding, scales


@triton.jit
def _nearest(X, OUT, PACKED, n: tl.constexpr):
    y = tl.load(X + tl.arange(0, n))
    tl.store(OUT + tl.arange(0, n), rounding.nearest(y))
    packed = rounding.pack_nearest(tl.trans(tl.reshape(y, (n // 32, 32))), tl.arange(0, n // 32) >= 0, True)
    tl.store(PACKED + tl.arange(0, n // 2), tl.reshape(tl.trans(packed), (n // 2,)).to(tl.uint8))


@triton.jit
def _stochastic(X, BITS, OUT, n: tl.constexpr):
    at = tl.arange(0, n)
    tl.store(OUT + at, rounding.stochastic(tl.load(X + at), tl.load(BITS + at).to(tl.uint32)))


@triton.jit
def _stochastic_halves(X, BITS, OUT, n: tl.constexpr):
    at = tl.arange(0, n)
    y = tl.load(X + at) * rounding.TO_HALVES
    tl.store(OUT + at, rounding.stochastic_halves(y, tl.load(BITS + at).to(tl.uint32)))


@triton.jit
def _below(X, OUT, n: tl.constexpr):
    y = tl.trans(tl.reshape(tl.load(X + tl.arange(0, n)), (n // 32, 32)))
    packed = tl.trans(rounding.pack_below(y, 6.0, True).to(tl.uint8))
    tl.store(OUT + tl.arange(0, n // 8), tl.reshape(packed, (n // 8,)))


@triton.jit
def _values(PACKED, OUT, n: tl.constexpr):
    packed = tl.reshape(tl.load(PACKED + tl.arange(0, n // 2)), (n // 32, 16))
    tl.store(OUT + tl.arange(0, n), tl.reshape(rounding.values(packed), (n,)))


@triton.jit
def _bits(KEEP, PACKED, OUT, n: tl.constexpr):
    keep = tl.reshape(tl.load(KEEP + tl.arange(0, n)), (n // 32, 32)) != 0
    packed = tl.trans(rounding.pack_bits(tl.trans(keep)).to(tl.uint8))
    tl.store(PACKED + tl.arange(0, n // 8), tl.reshape(packed, (n // 8,)))
    tl.store(OUT + tl.arange(0, n), tl.reshape(rounding.unpack_bits(packed), (n,)).to(tl.uint8))


@triton.jit
def _e4m3(X, OUT, VALUE, n: tl.constexpr):
    byte = scales.e4m3_encode(tl.load(X + tl.arange(0, n)))
    tl.store(OUT + tl.arange(0, n), byte)
    tl.store(VALUE + tl.arange(0, n), scales.e4m3_value(byte))


@triton.jit
def _e4m3_elements(X, BITS, OUT, ROUNDED, n: tl.constexpr):
    x = tl.load(X + tl.arange(0, n))
    tl.store(OUT + tl.arange(0, n), scales.e4m3_code(x))
    bits = tl.load(BITS + tl.arange(0, n)).to(tl.uint32)
    tl.store(ROUNDED + tl.arange(0, n), scales.e4m3_stochastic(tl.abs(x), bits).to(tl.uint8))


@triton.jit
def _decode_scales(BYTE, E8M0, E4M3):
    byte = tl.load(BYTE + tl.arange(0, 256))
    tl.store(E8M0 + tl.arange(0, 256), scales.e8m0_value(byte))
    tl.store(E4M3 + tl.arange(0, 256), scales.e4m3_value(byte))


@triton.jit
def _decode_fp8(WORDS, SCALES, LARGEST, OUT, LOST, rows: tl.constexpr, groups: tl.constexpr):
    row = tl.arange(0, rows)
    words = tl.load(WORDS + tl.reshape(tl.arange(0, rows * groups * 4), (rows, groups * 4)))
    scale = tl.load(SCALES + tl.reshape(tl.arange(0, rows * groups), (rows, groups))).to(tl.int32)
    made, lost = fp8.decode(words, scale, tl.load(LARGEST + row))
    tl.store(OUT + tl.reshape(tl.arange(0, rows * groups * 8), (rows, groups * 8)), made)
    tl.store(LOST + row, lost)


@triton.jit
def _rotated_rows(X, WORDS, OUT, rows: tl.constexpr):
    at = tl.reshape(tl.arange(0, rows * 32), (rows, 32))
    kept = product.kept_columns(tl.load(X + at), tl.load(WORDS + tl.arange(0, rows)).to(tl.uint32, bitcast=True))
    tl.store(OUT + at, product.rotated_rows(kept.to(tl.bfloat16)))


@triton.jit
def _unswizzle(X, OUT, rows: tl.constexpr, groups: tl.constexpr):
    at = tl.arange(0, rows * groups)
    x = tl.reshape(tl.load(X + at), (1, rows // 128, groups // 4, 2, 256))
    tl.store(OUT + at, tl.reshape(scales.unswizzle(x, rows, groups), (rows * groups,)))


@triton.jit
def _hadamard(X, OUT, n: tl.constexpr, size: tl.constexpr):
    at = tl.arange(0, n)
    tl.store(OUT + at, tl.reshape(rotation.hadamard(tl.reshape(tl.load(X + at), (n // size, size))), (n,)))


@triton.jit
def _kept_and_rotated_back(X, WORDS, KEPT, ROTATED, groups: tl.constexpr):
    at = tl.arange(0, groups * 32)
    x = tl.trans(tl.reshape(tl.load(X + at), (groups, 32)))
    kept = rounding.kept(x, tl.load(WORDS + tl.arange(0, groups)).to(tl.uint32, bitcast=True))
    tl.store(KEPT + at, tl.reshape(tl.trans(kept), (groups * 32,)))
    tl.store(ROTATED + at, tl.reshape(tl.trans(rotation.rotated_back(kept, 0.5, True)), (groups * 32,)))


@triton.jit
def _mean_and_largest(X, MEAN, LARGEST, groups: tl.constexpr):
    x = tl.trans(tl.reshape(tl.load(X + tl.arange(0, groups * 32)), (groups, 32)))
    tl.store(MEAN + tl.arange(0, groups), rotation.mean(x))
    tl.store(LARGEST + tl.arange(0, groups), rotation.largest(x, True))


@triton.jit
def _noise(
    SEED, OUT, rows: tl.constexpr, columns: tl.constexpr, first: tl.constexpr, stream: tl.constexpr, bits: tl.constexpr
):
    group = tl.arange(0, rows * columns // 32)
    row = group // (columns // 32)
    column = first + group % (columns // 32) * 32
    words = random.noise_words(tl.load(SEED), stream, row, column, bits, bits)
    at = tl.arange(0, rows * columns * bits // 32)
    tl.store(OUT + at, tl.reshape(tl.trans(words), (rows * columns * bits // 32,)).to(tl.int64))


@triton.jit
def _scale_noise(SEED, OUT, rows: tl.constexpr, groups: tl.constexpr, stream: tl.constexpr):
    at = tl.arange(0, rows * groups)
    tl.store(OUT + at, random.scale_noise(tl.load(SEED), stream, at // groups, at % groups).to(tl.int64))


@triton.jit
def _pairwise(X, OUT, groups: tl.constexpr, size: tl.constexpr):
    x = tl.trans(tl.reshape(tl.load(X + tl.arange(0, groups * size)), (groups, size)))
    tl.store(OUT + tl.arange(0, groups), rotation.pairwise_sum(x))


@triton.jit
def _signs(X, SEED, OUT, stream: tl.constexpr, size: tl.constexpr):
    at = tl.arange(0, size)
    bits = tl.reshape(random.sign_bits(tl.load(SEED), stream, size), (size,))
    tl.store(OUT + at, (tl.load(X + at).to(tl.uint32, bitcast=True) ^ bits).to(tl.float32, bitcast=True))


@triton.jit
def _flipped(X, SEED, OUT, stream: tl.constexpr, n: tl.constexpr):
    x = tl.trans(tl.reshape(tl.load(X + tl.arange(0, n)), (n // 32, 32)))
    x = random.flipped(x, tl.load(SEED), stream).to(tl.float32)
    tl.store(OUT + tl.arange(0, n), tl.reshape(tl.trans(x), (n,)))


@triton.jit
def _nvfp4(CODES, SCALES, OUT, rows: tl.constexpr, groups: tl.constexpr):
    row = tl.arange(0, rows)[:, None]
    codes = tl.load(CODES + row * (groups * 8) + tl.arange(0, groups * 8)[None, :])
    scale = tl.load(SCALES + row * groups + tl.arange(0, groups)[None, :])
    at = row * (groups * 16) + tl.arange(0, groups * 16)[None, :]
    tl.store(OUT + at, blocks.decoded(codes, scale, "nvfp4"))


def run(name: str, inputs: list, outputs: list, constants: dict) -> list:
    """Run a kernel of this file on one program. outputs: (shape, dtype) of each; returns them filled."""
    made = [torch.zeros(shape, dtype=dtype) for shape, dtype in outputs]
    with np.errstate(all="ignore"):
        globals()[name][(1,)](*(t.clone() for t in inputs), *made, **constants)
    return made


def run_all(calls: dict) -> dict:
    """`run` for each named call; starting an interpreter takes longer than all of them."""
    return {key: run(*call) for key, call in calls.items()}
