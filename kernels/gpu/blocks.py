"""Groups of a tile to codes, scales and mask, and back: `kernels/reference.py`'s `quantize` and `decode`, for tiles."""

import triton
import triton.language as tl

from .random import flip_signs, noise
from .rotation import hadamard, union
from .rounding import pack_bits, pack_nearest, pack_stochastic, values
from .scales import absmax_exponent, e4m3_value, e8m0_value, power_of_two, quest_exponent


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
    """MXFP4 blocks of groups of 32: codes uint8[groups, 16], E8M0 scales uint8[groups], mask uint8[groups, 4].

    x:           float32[groups, 32], zeros where the operand ends.
    row, column: int[groups], the place of each group's first element in the operand.
    seed, sign_seed: int64 scalars, for the noise and for the signs.
    quest:       the scale is a multiple of the standard deviation, else of the largest. The other arguments are the
                 fields of a `Quantizer`; `noisy` rounds stochastically.
    native:      the target has an instruction that converts to E2M1.

    Without `masked` the mask is zeros, which the compiler removes. A group with a NaN or infinity rotates to nothing
    finite, so its scale's exponent is 255: that alone says that it is not valid.
    """
    if quest:
        lift = tl.zeros((x.shape[0],), tl.int32)
    else:
        lift = tl.where((union(x.to(tl.int32, bitcast=True)) & 0x60000000) == 0, 64, 0)
        x = x * ((lift + 127) << 23).to(tl.float32, bitcast=True)[:, None]
    zero_below = tl.where(lift == 0, 7.888609052210118e-31, 2.168404344971009e-19)  # 2^-100, and 2^-126 lifted
    x = tl.where(tl.abs(x) < zero_below[:, None], 0.0, x)
    if rotation > 0:
        tl.static_assert(rotation == 32)
        if random_signs:
            x = flip_signs(x, sign_seed, stream, rotation)
        x = hadamard(x)
    if quest:
        exponent = quest_exponent(x)
        exponent = tl.where((union(x.to(tl.int32, bitcast=True)) & 0x7FFFFFFF) == 0, 0, exponent)
    else:
        exponent = absmax_exponent(x, lift)
    valid = exponent < 255

    if shrink != 1.0:
        x = tl.fma(x, tl.full(x.shape, shrink, tl.float32), tl.zeros_like(x))
    scaled = x * power_of_two(tl.where(valid, 254 - exponent - lift, 0))[:, None]
    if noisy:
        codes = pack_stochastic(scaled, noise(seed, stream, row, column, 32))
    else:
        codes = pack_nearest(scaled, native)
    if masked:
        mask = pack_bits(tl.abs(scaled) < 6.0)
    else:
        mask = tl.zeros((x.shape[0], 4), tl.int32)
    codes = tl.where(valid[:, None], codes, 0).to(tl.uint8)
    return codes, exponent.to(tl.uint8), tl.where(valid[:, None], mask, 0).to(tl.uint8)


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
def dequantize_nvfp4(codes, scales):
    """float32[rows, n] of codes uint8[rows, n / 2] and E4M3 scales uint8[rows, n / 16], without the tensor scale."""
    rows: tl.constexpr = codes.shape[0]
    groups: tl.constexpr = scales.shape[1]
    x = tl.reshape(values(codes), (rows, groups, 16))
    return tl.reshape(x * e4m3_value(scales)[:, :, None], (rows, groups * 16))


@triton.jit
def column_groups(x):
    """[columns * rows / 32, 32]: the columns of the tile `x: [rows, columns]` in groups of 32, column by column."""
    rows: tl.constexpr = x.shape[0]
    columns: tl.constexpr = x.shape[1]
    return tl.reshape(tl.permute(tl.reshape(x, (rows // 32, 32, columns)), (2, 0, 1)), (columns * rows // 32, 32))


@triton.jit
def column_places(row0, column0, per_column, rows: tl.constexpr, columns: tl.constexpr):
    """Where the groups of `column_groups` lie in the transposed operand: its row, its first column, and the number of
    the group, for a tile whose corner is (row0, column0) and `per_column` groups a column."""
    local = tl.arange(0, columns * rows // 32)
    row = column0 + local // (rows // 32)
    first = row0 + local % (rows // 32) * 32
    return row, first, row * per_column + first // 32
