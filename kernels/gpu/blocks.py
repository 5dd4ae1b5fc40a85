"""Groups of a tile to codes, scales and mask, and back: `numerics/reference.py`'s `quantize` and `decode`, for tiles."""

import triton
import triton.language as tl

from .random import noise, sign_bits
from .rotation import butterflies, largest, root, union
from .rounding import INTERPRETED, neighbours, pack_bits, pack_nearest, pack_stochastic, values
from .scales import absmax_exponent, e4m3_signed, e4m3_value, e8m0_value, magnitude_bits, power_of_two, quest_exponent


@triton.jit
def flushed_product(x, factor):
    """float32 `x * factor` in flush-to-zero mode, with +0 for every zero. Exact if `factor` is a power of two."""
    if INTERPRETED:
        y = x * factor
        zero = (tl.abs(x) < 1.1754943508222875e-38) | (tl.abs(y) < 1.1754943508222875e-38)
        return tl.where(zero, 0.0, y)
    else:
        return tl.inline_asm_elementwise(
            "fma.rn.ftz.f32 $0, $1, $2, 0f00000000;", "=f,f,f", args=[x, factor], dtype=tl.float32, is_pure=True, pack=1
        )


@triton.jit
def quantize(
    x,
    row,
    column,
    seed,
    sign_seed,
    stream: tl.constexpr,
    quest: tl.constexpr,
    shrink: tl.constexpr,
    rotation: tl.constexpr,
    random_signs: tl.constexpr,
    noisy: tl.constexpr,
    masked: tl.constexpr,
    native: tl.constexpr,
):
    """MXFP4 blocks of groups of 32: codes uint8[16, groups], E8M0 scales uint8[groups], mask uint8[4, groups].

    x:           float32[32, groups], zeros where the operand ends.
    row, column: int[groups], the place of each group's first element in the operand.
    seed, sign_seed: int64 scalars, for the noise and for the signs.
    quest:       the scale is a multiple of the standard deviation, else of the largest. The other arguments are the
                 fields of a `Quantizer`; `noisy` rounds stochastically.
    native:      the target has an instruction that converts to E2M1.

    Without `masked` the mask is zeros, which the compiler removes. A group with a NaN or infinity rotates to nothing
    finite, so its scale's exponent is 255: that alone says that it is not valid.
    """
    if quest:
        lift = tl.zeros((x.shape[1],), tl.int32)
    else:
        lift = tl.where((union(x.to(tl.int32, bitcast=True)) & 0x60000000) == 0, 64, 0)
    # Multiplied by 2^-26, or 2^64 where lifted, with flushing: what has to count as 0 becomes 0. The last multiply of the
    # rotation takes 2^26 back.
    factor = tl.where(lift == 0, 101 << 23, 191 << 23)[None, :]
    if random_signs:
        factor = tl.broadcast_to(factor, x.shape) ^ tl.broadcast_to(
            sign_bits(sign_seed, stream, 32).to(tl.int32, bitcast=True), x.shape
        )
    x = flushed_product(x, tl.broadcast_to(factor, x.shape).to(tl.float32, bitcast=True))
    back = tl.where(lift == 0, 67108864.0, 1.0)
    if rotation > 0:
        tl.static_assert(rotation == 32)
        x = butterflies(x)
        back = back * root(rotation)
    x = tl.fma(x, tl.broadcast_to(back[None, :], x.shape), tl.zeros_like(x))
    if quest:
        exponent = quest_exponent(x)
        exponent = tl.where((union(x.to(tl.int32, bitcast=True)) & 0x7FFFFFFF) == 0, 0, exponent)
    else:
        exponent = absmax_exponent(x, lift)
        if rotation > 0:  # without the factor 2^-26 a sum would overflow: one does in the last stage if any does
            overflows = magnitude_bits(largest(x)) >= 0x7E3504F3  # 2^128 / sqrt(32)
            exponent = tl.where(overflows & (lift == 0), 255, exponent)
    valid = exponent < 255

    scaled = x * (power_of_two(tl.where(valid, 254 - exponent - lift, 0)) * shrink)[None, :]
    if noisy:
        codes = pack_stochastic(scaled, valid, noise(seed, stream, row, column, 32))
    else:
        codes = pack_nearest(scaled, valid, native)
    if masked:
        mask = pack_bits(tl.abs(scaled) < 6.0)
    else:
        mask = tl.zeros((4, x.shape[1]), tl.int32)
    return codes, exponent.to(tl.uint8), tl.where(valid[None, :], mask, 0).to(tl.uint8)


@triton.jit
def dequantize(codes, scales, shrink: tl.constexpr):
    """float32[rows, n] of codes uint8[rows, n / 2] and E8M0 scales uint8[rows, n / 32], over the quantizer's shrink."""
    rows: tl.constexpr = codes.shape[0]
    groups: tl.constexpr = scales.shape[1]
    x = tl.reshape(values(codes), (rows, groups, 32))
    if shrink != 1.0:
        x = tl.div_rn(x, tl.full(x.shape, shrink, tl.float32))
    return tl.reshape(x * e8m0_value(scales)[:, :, None], (rows, groups * 32))


@triton.jit
def decoded(codes, scales, form: tl.constexpr):
    """float32[rows, n] of codes and scales of a format, as `product.scaled_dot` takes them, without the tensor scale."""
    rows: tl.constexpr = codes.shape[0]
    groups: tl.constexpr = scales.shape[1]
    tl.static_assert(form == "mxfp4" or form == "nvfp4" or form == "mxfp8", "no decoding of this operand format")
    if form == "mxfp4":
        return dequantize(codes, scales, 1.0)
    elif form == "nvfp4":
        x = tl.reshape(values(codes), (rows, groups, 16))
        return tl.reshape(x * e4m3_value(scales.to(tl.uint8, bitcast=True))[:, :, None], (rows, groups * 16))
    else:
        x = tl.reshape(e4m3_value(codes.to(tl.uint8, bitcast=True)), (rows, groups, 32))
        return tl.reshape(x * e8m0_value(scales)[:, :, None], (rows, groups * 32))


@triton.jit
def column_groups(x):
    """float32[32, columns * rows / 32]: the columns of the tile `x: [rows, columns]` in groups of 32, column by column.

    The groups come out as parts that are split before they are widened: the compiler moves a group into one thread
    there, once, in the narrow type, and not before each of the operations that follow.
    """
    rows: tl.constexpr = x.shape[0]
    columns: tl.constexpr = x.shape[1]
    groups: tl.constexpr = columns * rows // 32
    x = tl.reshape(tl.permute(tl.reshape(x, (rows // 32, 32, columns)), (1, 2, 0)), (32, groups))
    even, odd = neighbours(x)
    x = tl.join(even.to(tl.float32), odd.to(tl.float32))
    return tl.reshape(tl.permute(x, (0, 2, 1)), (32, groups))


@triton.jit
def column_places(row0, column0, per_column, rows: tl.constexpr, columns: tl.constexpr):
    """Where the groups of `column_groups` lie in the transposed operand: its row, its first column, and the number of
    the group, for a tile whose corner is (row0, column0) and `per_column` groups a column."""
    local = tl.arange(0, columns * rows // 32)
    row = column0 + local // (rows // 32)
    first = row0 + local % (rows // 32) * 32
    return row, first, row * per_column + first // 32


@triton.jit
def decode_fp8(codes, scales, largest):
    """E4M3 bytes, uint8[rows, n], of the values times 2^6 over the row's largest scale, and int32[rows]: whether E4M3
    can't hold one of them.

    codes: uint8[rows, n / 2]; scales: int32[rows, n / 32], E8M0 bytes; largest: int32[rows], below 255. A code times 2^-8
    to 2^6 is exact in E4M3, whose least is 2^-9. A NaN scale makes its group NaN, which E4M3 can hold.
    """
    rows: tl.constexpr = codes.shape[0]
    groups: tl.constexpr = scales.shape[1]
    x = tl.reshape(values(codes), (rows, groups, 32))
    shift = scales - largest[:, None] + 6
    nan = scales == 255
    small = (shift < -8) & (scales < 255)
    power = power_of_two(127 + tl.where(small | nan, 0, shift))
    power = tl.where(small, 0.0, tl.where(nan, float("nan"), power))
    lost = small[:, :, None] & (x != 0.0)
    decoded = e4m3_signed(tl.reshape(x * power[:, :, None], (rows, groups * 32)))
    return decoded, tl.max(tl.max(lost.to(tl.int32), axis=2), axis=1)
