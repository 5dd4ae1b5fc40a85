"""A second, independent statement of the numerics (docs/numerics.md) for the tests, one element at a time.

It shares no code and no method with `kernels/reference.py`: rounding is exact rational arithmetic, the random bits are
Python integers, exponents come from `math.frexp`, and the float32 arithmetic is numpy scalars, one operation each.
"""

import functools
import math
from fractions import Fraction

import numpy as np

F = np.float32
GRID = (Fraction(0), Fraction(1, 2), Fraction(1), Fraction(3, 2), Fraction(2), Fraction(3), Fraction(4), Fraction(6))
QUEST = F(2.92247856 / 6.0)


def nearest(magnitude: Fraction) -> int:
    """The code of the nearest grid point; of two equally near ones the even code."""
    return min(range(8), key=lambda code: (abs(GRID[code] - min(magnitude, GRID[7])), code % 2))


def stochastic(magnitude: Fraction, bits: int) -> int:
    """The code below, or the one above iff `bits + floor(fraction * 2^16) >= 2^16`."""
    magnitude = min(magnitude, GRID[7])
    below = max(code for code in range(8) if GRID[code] <= magnitude)
    if GRID[below] == magnitude:
        return below
    fraction = (magnitude - GRID[below]) / (GRID[below + 1] - GRID[below])
    return below + (bits + math.floor(fraction * 65536) >= 65536)


def philox(counter, key, rounds=7):
    """Philox4x32 on Python integers."""
    (a, b, c, d), (k, m) = counter, key
    for _ in range(rounds):
        left, right = a * 0xD2511F53, c * 0xCD9E8D57
        a, b, c, d = (right >> 32) ^ b ^ k, right % 2**32, (left >> 32) ^ d ^ m, left % 2**32
        k, m = (k + 0x9E3779B9) % 2**32, (m + 0xBB67AE85) % 2**32
    return a, b, c, d


def noise(seed: int, stream: int, row: int, column: int) -> int:
    """The 16 random bits of one element."""
    seed %= 2**64
    block = column // 8
    high = (row >> 32) % 2**16 + ((block >> 32) % 2**16 << 16)
    words = philox((block % 2**32, row % 2**32, high, stream), (seed % 2**32, seed >> 32))
    return words[column % 8 // 2] >> (16 * (column % 2)) & 0xFFFF


def signs(seed: int, gemm: int) -> list:
    """The 32 signs of the rotation that both operands of a GEMM share."""
    seed %= 2**64
    word = philox((0, 0, 0, 16 + gemm), (seed % 2**32, seed >> 32))[0]
    return [F(-1.0) if word >> i & 1 else F(1.0) for i in range(32)]


def rotate(group: list) -> list:
    """`group @ H`: butterflies between `i` and `i + stride`, then one multiply."""
    values = list(group)
    for stride in (1, 2, 4, 8, 16):
        values = [
            values[i] + values[i ^ stride] if not i & stride else values[i ^ stride] - values[i] for i in range(32)
        ]
    return [v * F(1 / math.sqrt(32)) for v in values]


def floor_log2(value) -> int:
    """Of a positive number, exactly."""
    return math.frexp(float(value))[1] - 1


def _mean(values: list):
    while len(values) > 1:
        half = len(values) // 2
        values = [values[i] + values[i + half] for i in range(half)]
    return values[0] / F(32)


def quest_scale(rotated: list):
    """The scale before it is rounded down to a power of two, float32."""
    mean = _mean(rotated)
    variance = _mean([v * v for v in rotated]) - mean * mean
    return np.sqrt(variance if not variance < 0 else F(0)) * QUEST + F(1e-8)


def quantize_group(values, scale="quest", shrink=1.0, sign=None, bits=None):
    """(E8M0 byte, 32 codes, 32 mask bits) of 32 float32 values. `sign`: 32 or None; `bits`: 32 or None (nearest)."""
    with np.errstate(all="ignore"):
        return _quantize_group([F(v) for v in values], scale, F(shrink), sign, bits)


def _quantize_group(x, scale, shrink, sign, bits):
    broken = 255, [0] * 32, [0] * 32
    if not all(math.isfinite(v) for v in x):
        return broken
    x = [v if abs(v) >= F(2.0**-126) else F(0) for v in x]
    lift = 64 if scale == "absmax" and max(abs(v) for v in x) < F(2.0**-63) else 0
    x = [v * F(2.0**lift) for v in x]
    x = [v if abs(v) >= F(2.0**-100) else F(0) for v in x]
    rotated = rotate([v * s if v else F(0) for v, s in zip(x, sign, strict=True)] if sign is not None else x)
    if not any(rotated):
        return 0, [0] * 32, [1] * 32
    statistic = quest_scale(rotated) if scale == "quest" else max(abs(v) for v in rotated)
    if not math.isfinite(statistic) or not all(math.isfinite(v) for v in rotated):
        return broken
    exponent = max(floor_log2(statistic) - (2 if scale == "absmax" else 0) - lift, -127)
    unit = Fraction(2) ** (exponent + lift)
    codes, keep = [], []
    for i, v in enumerate(rotated):
        magnitude = abs(Fraction(float(v * shrink))) / unit
        code = nearest(magnitude) if bits is None else stochastic(magnitude, bits[i])
        codes.append(code + (8 if np.signbit(v) else 0))
        keep.append(int(magnitude < 6))
    return exponent + 127, codes, keep


def quantize(matrix, scale="quest", shrink=1.0, sign=None, seed=None, stream=0):
    """Packed (codes, scales, mask) of a float32 array [rows, columns]; stochastic if there is a seed."""
    rows, columns = matrix.shape
    padded = -(-columns // 32) * 32
    codes, scales, masks = [], [], []
    for r in range(rows):
        row = list(matrix[r]) + [F(0)] * (padded - columns)
        for start in range(0, padded, 32):
            bits = None if seed is None else [noise(seed, stream, r, start + i) for i in range(32)]
            byte, group, keep = quantize_group(row[start : start + 32], scale, shrink, sign, bits)
            scales.append(byte)
            codes += [group[i] + 16 * group[i + 1] for i in range(0, 32, 2)]
            masks += [sum(keep[i + j] << j for j in range(8)) for i in range(0, 32, 8)]
    shape = functools.partial(np.reshape, order="C")
    return (
        shape(np.array(codes, np.uint8), (rows, padded // 2)),
        shape(np.array(scales, np.uint8), (rows, padded // 32)),
        shape(np.array(masks, np.uint8), (rows, padded // 8)),
    )


def decode(codes, scales):
    """float64 [rows, columns] of packed codes; exact."""
    values = np.array([float(g) for g in GRID] + [-float(g) for g in GRID])
    flat = np.stack([values[codes & 15], values[codes >> 4]], axis=-1).reshape(codes.shape[0], -1)
    powers = np.where(scales == 255, np.nan, 2.0 ** (scales.astype(np.float64) - 127))
    return flat * np.repeat(powers, 32, axis=1)
