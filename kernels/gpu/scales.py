"""Group scales: their exponents from a group, and their values from E8M0 and E4M3 bytes."""

import triton
import triton.language as tl

from .rotation import mean, means

SMALLEST_BYTE = tl.constexpr(64)
"""The least E8M0 byte that a quantizer makes."""


@triton.jit
def magnitude_bits(x):
    """int32: the bits of |x|; ordered as |x| is, with NaN above infinity."""
    return x.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def squared(x):
    """`x * x`, which no compiler contracts with what follows."""
    return tl.fma(x, x, tl.zeros_like(x))


@triton.jit
def _quest_scale(average, of_squares):
    variance = of_squares - squared(average)
    deviation = tl.sqrt_rn(tl.where(variance < 0, 0.0, variance))
    clip = tl.full(average.shape, 2.92247856 / 6.0, tl.float32)
    return tl.fma(deviation, clip, tl.zeros_like(average)) + 1e-8


@triton.jit
def quest_scale(groups):
    """float32[groups]: QuEST's `c * std + 1e-8` of `groups: float32[size, groups]`."""
    return _quest_scale(mean(groups), mean(squared(groups)))


@triton.jit
def quest_exponent(rotated, packed: tl.constexpr):
    """int32[groups]: exponent field of QuEST's scale of `rotated: float32[32, groups]`; 255 where the sums overflow or are
    NaN. packed: the target has instructions for two float32."""
    return magnitude_bits(_quest_scale(*means(rotated, packed))) >> 23


@triton.jit
def absmax_exponent(largest, exponent):
    """int32[groups]: E8M0 byte of 2^(floor(log2 largest) - 2 + exponent), at least 64, for finite `largest: float32[groups]`
    that aren't negative."""
    field = largest.to(tl.int32, bitcast=True) >> 23
    return tl.maximum(field - 2 + exponent, SMALLEST_BYTE)


@triton.jit
def power_of_two(field):
    """float32 2^(field - 127) for fields 0 to 254; 2^-127 is subnormal."""
    return tl.where(field == 0, 1 << 22, field << 23).to(tl.float32, bitcast=True)


@triton.jit
def times_power_of_two(x, exponent):
    """float32 `x * 2^exponent`, for normal numbers and normal results, in integers."""
    return (x.to(tl.int32, bitcast=True) + (exponent << 23)).to(tl.float32, bitcast=True)


@triton.jit
def e8m0_value(byte):
    """float32 of E8M0 bytes; byte 255 is NaN."""
    field = byte.to(tl.int32)
    return tl.where(field == 255, 0x7FC00000, tl.where(field == 0, 1 << 22, field << 23)).to(tl.float32, bitcast=True)


@triton.jit
def e4m3_encode(x):
    """uint8: E4M3 bytes of float32 `x >= 0`, to nearest, ties to even, saturated at 448; NaN gives 0x7F."""
    raw = magnitude_bits(tl.minimum(x, 448.0))
    binade = tl.maximum(raw & 0x7F800000, 121 << 23)
    magic = (binade + ((20 << 23) | 0x400000)).to(tl.float32, bitcast=True)
    steps = (raw.to(tl.float32, bitcast=True) + magic).to(tl.int32, bitcast=True) & 0x3FFFFF
    byte = steps + (((binade >> 23) - 121) << 3)
    return tl.where(x == x, byte, 0x7F).to(tl.uint8)


@triton.jit
def e4m3_value(byte):
    """float32 of E4M3 bytes; 0x7F and 0xFF are NaN."""
    field = byte.to(tl.int32)
    magnitude = field & 0x7F
    normal = ((magnitude << 20) + (120 << 23)).to(tl.float32, bitcast=True)
    value = tl.where(magnitude < 8, magnitude.to(tl.float32) * 0.001953125, normal)
    value = tl.where(magnitude == 0x7F, float("nan"), value)
    return tl.where(field > 127, -value, value)


@triton.jit
def e4m3_code(x):
    """uint8: E4M3 bytes of float32 `x`, to nearest, ties to even, saturated at 448, with the sign of `x`. No NaN."""
    sign = (x.to(tl.int32, bitcast=True) >> 24) & 0x80
    return e4m3_encode(tl.abs(x)) | sign.to(tl.uint8)


@triton.jit
def e4m3_stochastic(x, bits):
    """int32: E4M3 bytes of float32 `x >= 0`, saturated at 448, up iff `bits + floor(fraction * 2^16) >= 2^16`. bits: uint32
    below 2^16."""
    normal = (magnitude_bits(tl.minimum(x, 448.0)) >> 4) - (120 << 19)  # the code, and 16 bits of the fraction
    small = (tl.minimum(x, 0.015625) * 33554432.0).to(tl.int32)  # below 2^-6 in steps of 2^-9
    fixed = tl.where(x < 0.015625, small, normal)
    return tl.minimum((fixed + bits.to(tl.int32)) >> 16, 0x7E)


@triton.jit
def swizzled_place(row, group, groups):
    """Where the scale of (row, group) lies among scales in blocks of 128 rows by 4 groups (see `unswizzle`), `groups` a
    row, a multiple of 4. By shifts and masks: for signed integers `/` and `%` would be more instructions."""
    block = (row >> 7) * (groups // 4) + (group >> 2)
    return (block << 9) | ((row & 31) << 4) | ((row >> 3) & 12) | (group & 3)


@triton.jit
def unswizzle(swizzled, rows: tl.constexpr, groups: tl.constexpr):
    """uint8[rows, groups] of scales in blocks of 128 rows by 4 groups, `[1, rows / 128, groups / 4, 2, 256]`.

    In a block the scale of (row, group) has the place `row % 32 * 16 + row // 32 * 4 + group`: the layout that the
    copy into tensor memory takes (PTX ISA, tcgen05.cp and the scale-factor layouts of tcgen05.mma).
    """
    swizzled = tl.reshape(swizzled, (rows // 128, groups // 4, 32, 4, 4))
    return tl.reshape(tl.permute(swizzled, (0, 3, 2, 1, 4)), (rows, groups))
