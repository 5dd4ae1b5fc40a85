"""A second, independent statement of the numerics (docs/numerics.md) for the tests, one element at a time: elements,
random bits, rotation. `exact_scales.py` has the groups, `exact_operand.py` whole operands.

The three share no code and no method with the reference: rounding is exact rational arithmetic on the values of
a format, the random bits are Python integers, exponents come from `math.frexp`, and the float32 arithmetic is numpy
scalars, one operation each.
"""

import bisect
import functools
import math
from fractions import Fraction

import numpy as np

F = np.float32
GRID = (Fraction(0), Fraction(1, 2), Fraction(1), Fraction(3, 2), Fraction(2), Fraction(3), Fraction(4), Fraction(6))
QUEST = F(2.92247856 / 6.0)


def _e4m3(code: int) -> Fraction:
    """Four bits of exponent with bias 7, three of mantissa; exponent 0 is subnormal; 0x7F is NaN, there is no infinity."""
    exponent, mantissa = code >> 3, code & 7
    if exponent:
        return (1 + Fraction(mantissa, 8)) * Fraction(2) ** (exponent - 7)
    return Fraction(mantissa, 8) * Fraction(2) ** -6


E4M3 = tuple(_e4m3(code) for code in range(127))
"""The values of codes 0 to 126."""


def nearest(magnitude: Fraction, values=GRID) -> int:
    """The code of the nearest value, the last one if beyond; of two equally near ones the even code."""
    below, above = _around(magnitude, values)
    middle = (values[below] + values[above]) / 2
    if magnitude == middle:
        return below if below % 2 == 0 else above
    return below if magnitude < middle else above


def stochastic(magnitude: Fraction, bits: int, width: int, values=GRID) -> int:
    """The code below, or the one above iff `fraction + (bits + 1/2) / 2^width >= 1`."""
    below, above = _around(magnitude, values)
    if above == below:
        return below
    fraction = (magnitude - values[below]) / (values[above] - values[below])
    return below + (fraction + Fraction(2 * bits + 1, 2 ** (width + 1)) >= 1)


def _around(magnitude: Fraction, values) -> tuple:
    """The codes of the last value that is not above, and of the next one; twice the last one if there is none."""
    below = bisect.bisect_right(values, magnitude) - 1
    return below, min(below + 1, len(values) - 1)


def e2m1(value, bits=None, width=8) -> int:
    """The 4-bit code of a float32; nearest, or stochastic with `width` bits."""
    magnitude = abs(Fraction(float(value)))
    return (nearest(magnitude) if bits is None else stochastic(magnitude, bits, width)) + 8 * bool(np.signbit(value))


def e2m1_value(code: int):
    """float32 of a 4-bit code."""
    return F(-float(GRID[code - 8])) if code > 7 else F(float(GRID[code]))


def philox(counter, key, rounds=7):
    """Philox4x32 on Python integers."""
    (a, b, c, d), (k, m) = counter, key
    for _ in range(rounds):
        left, right = a * 0xD2511F53, c * 0xCD9E8D57
        a, b, c, d = (right >> 32) ^ b ^ k, right % 2**32, (left >> 32) ^ d ^ m, left % 2**32
        k, m = (k + 0x9E3779B9) % 2**32, (m + 0xBB67AE85) % 2**32
    return a, b, c, d


@functools.lru_cache(maxsize=4096)
def _words(seed: int, stream: int, row: int, block: int) -> tuple:
    high = (row >> 32) % 2**16 + ((block >> 32) % 2**16 << 16)
    return philox((block % 2**32, row % 2**32, high, stream), (seed % 2**32, seed >> 32))


def noise(seed: int, stream: int, row: int, column: int, width: int) -> int:
    """The 8 or 16 random bits of one element. In wgrad dY^T has those of dY in dgrad, transposed in each square of 64."""
    if stream == 4:
        (row_square, row), (column_square, column) = divmod(row, 64), divmod(column, 64)
        stream, row, column = 2, 64 * column_square + row, 64 * row_square + column
    return _drawn(seed, stream, row, column, width)


def scale_noise(seed: int, stream: int, row: int, group: int) -> int:
    """The 16 random bits of the scale of one group."""
    return _drawn(seed, stream, row, group, 16)


def _drawn(seed: int, stream: int, row: int, column: int, width: int) -> int:
    """Of the 128 random bits of a block, the lowest are the first column's."""
    block, place = divmod(column, 128 // width)
    words = _words(seed % 2**64, stream, row, block)
    return sum(word << 32 * i for i, word in enumerate(words)) >> width * place & (2**width - 1)


def signs(seed: int, gemm: int, size: int = 32) -> list:
    """The signs of the rotation that both operands of a GEMM share."""
    seed %= 2**64
    words = philox((0, 0, 0, 16 + gemm), (seed % 2**32, seed >> 32))
    return [F(-1.0) if words[i // 32] >> i % 32 & 1 else F(1.0) for i in range(size)]


def rotate(values: list) -> list:
    """`values @ H`: butterflies, then one multiply."""
    return [v * F(1 / math.sqrt(len(values))) for v in butterflies(values)]


def butterflies(values: list) -> list:
    """Sums and differences of `i` and `i + stride`."""
    values, size, stride = list(values), len(values), 1
    while stride < size:
        values = [
            values[i] + values[i ^ stride] if not i & stride else values[i ^ stride] - values[i] for i in range(size)
        ]
        stride *= 2
    return values


def floor_log2(value) -> int:
    """Of a positive number, exactly."""
    return math.frexp(float(value))[1] - 1


def add(values: list):
    """The float32 sum, by halves: first element `i` with element `i + half`."""
    while len(values) > 1:
        half = len(values) // 2
        values = [values[i] + values[i + half] for i in range(half)]
    return values[0]


def quest_scale(rotated: list):
    """The scale before it is rounded to a power of two, float32."""
    share = F(1 / len(rotated))
    mean = add(rotated) * share
    variance = add([v * v for v in rotated]) * share - mean * mean
    return np.sqrt(variance if not variance < 0 else F(0)) * QUEST + F(1e-8)
