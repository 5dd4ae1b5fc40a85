"""Groups of a tile to codes, scales and mask, and back: `numerics/reference.py`'s `quantize` and `decode`, for tiles."""

import triton
import triton.language as tl

from .assembly import in_ptx
from .random import flipped, noise_words, signed
from .rotation import butterflies_of_pairs, largest, positive_sums_of_bfloat16, root, sums_of_bfloat16, uncontracted
from .rounding import (
    TO_HALVES,
    halves_of_codes,
    interleaved,
    neighbours,
    pack_below,
    pack_nearest,
    pack_stochastic,
    pack_stochastic_halves,
    values,
    values_over_2_126,
)
from .scales import (
    absmax_exponent,
    e4m3_value,
    e8m0_value,
    power_of_two,
    quest_exponent,
    times_power_of_two,
)

NAN_UNIT = tl.constexpr(1024)
"""The exponent of a unit that no scale can hold: the byte of what is in units of it is 255."""


LOWERED = tl.constexpr(1.52587890625e-05)
"""2^-16: see `quantize`."""
_ONE, _LOWERED_ONE = tl.constexpr(0x3F80), tl.constexpr(0x3780)
"""The bits of bfloat16 1 and 2^-16. (`tl.full` in bfloat16 would take six decimals: 1.5e-5.)"""


@triton.jit
def _sums_of_pairs(x, lowered: tl.constexpr, positive_zeros: tl.constexpr, native: tl.constexpr):
    """float32 `even + odd` and `even - odd` of neighbours; the rest as in `rotated_sums`."""
    even, odd = neighbours(x)
    if native and in_ptx() and x.dtype == tl.bfloat16:
        tl.static_assert(positive_zeros and not lowered)
        return positive_sums_of_bfloat16(even, odd)
    even, odd = even.to(tl.float32), odd.to(tl.float32)
    start: tl.constexpr = 0.0 if positive_zeros else -0.0
    if lowered:
        factor = tl.full(even.shape, LOWERED, tl.float32)
        even = tl.fma(even, factor, tl.full(even.shape, start, tl.float32))
        return tl.fma(odd, factor, even), tl.fma(odd, -factor, even)
    else:
        even += start
        return even + odd, even - odd


@triton.jit
def rotated_sums(
    x,
    sign_seed,
    stream: tl.constexpr,
    rotation: tl.constexpr,
    random_signs: tl.constexpr,
    lowered: tl.constexpr,
    positive_zeros: tl.constexpr,
    native: tl.constexpr,
    packed: tl.constexpr,
):
    """float32[32, groups] of `x: float[32, groups]`: the butterflies of `x` with its signs, if `lowered` times 2^-16;
    `x` itself without a rotation. positive_zeros: no sum is -0; else zeros keep their signs. The rest as in `quantize`."""
    tl.static_assert(rotation == 0 or rotation == 32)
    if native and in_ptx() and x.dtype == tl.bfloat16 and rotation > 0 and not positive_zeros:
        even, odd = neighbours(x)
        one: tl.constexpr = _LOWERED_ONE if lowered else _ONE
        factors = signed(sign_seed, stream, one) if random_signs else tl.full((32, 1), one, tl.uint16)
        return butterflies_of_pairs(*sums_of_bfloat16(even, odd, factors), packed)
    else:
        if random_signs:
            x = flipped(x, sign_seed, stream)
        if rotation > 0:
            return butterflies_of_pairs(*_sums_of_pairs(x, lowered, positive_zeros, native), packed)
        else:
            return interleaved(*neighbours(x.to(tl.float32)))


@triton.jit
def quantize(
    x,
    words,
    sign_seed,
    stream: tl.constexpr,
    quest: tl.constexpr,
    shrink: tl.constexpr,
    rotation: tl.constexpr,
    random_signs: tl.constexpr,
    noisy: tl.constexpr,
    noise_bits: tl.constexpr,
    masked: tl.constexpr,
    native: tl.constexpr,
    packed: tl.constexpr,
):
    """MXFP4 blocks of groups of 32: codes uint8[16, groups], E8M0 scales uint8[groups], mask uint8[4, groups].

    x:           float[32, groups], 0 where the operand ends.
    words:       of `noise`, for stochastic rounding.
    sign_seed:   an int64 scalar, for the signs of the GEMM of `stream`.
    quest:       the scale is a multiple of the standard deviation, else of the largest. The other arguments are the fields
                 of a `Quantizer`; `noisy` rounds stochastically.
    native:      the target has the instructions of sm_100 and later: that convert to E2M1, add bfloat16 to float32, compare
                 three.
    packed:      the target has instructions for two float32.

    Without `masked` the mask is zeros, which the compiler removes. A group with a NaN or infinity rotates to nothing
    finite, so its scale's byte is 255: that alone says that it is not valid.

    Noise of 8 bits wants its elements times 2^-14, which the last multiply does with the scale. For the largest scales that
    factor would be subnormal, so bfloat16 is rotated times 2^-16: it has no bit below 2^-133, so these sums lose none. Other
    types are multiplied again.
    """
    by_halves: tl.constexpr = noisy and noise_bits == 8
    lowered: tl.constexpr = by_halves and rotation > 0 and x.dtype == tl.bfloat16
    sums = rotated_sums(x, sign_seed, stream, rotation, random_signs, lowered, False, native, packed)
    folded: tl.constexpr = TO_HALVES if lowered else 1.0
    if quest:
        sums = uncontracted(sums, root(rotation), packed)
        byte = quest_exponent(sums, packed)
        factor = power_of_two(254 - tl.minimum(byte, 254))
        valid = byte < 255
        kept = valid
    else:
        most = largest(sums, native)
        exponent: tl.constexpr = 16 if lowered else 0
        # Without the factor 2^-16 more would overflow: if a sum does, one of the last stage does.
        limit: tl.constexpr = 5.192296858534828e33 if lowered else float("inf")
        valid = most < limit
        byte = absmax_exponent(most * root(rotation), exponent)
        factor = times_power_of_two(root(rotation, shrink * folded), 127 + exponent - byte)
        byte = tl.where(valid, byte, 255)
        kept = valid & (most != 0)
    scaled = uncontracted(sums, factor[None, :], packed)
    if by_halves and not lowered:
        scaled = scaled * TO_HALVES
    codes = _codes(scaled, kept, words, noisy, noise_bits, native)
    if masked:
        mask = pack_below(scaled, 6.0 * TO_HALVES if by_halves else 6.0, packed)
    else:
        mask = tl.zeros((4, x.shape[1]), tl.int32)
    return codes, byte.to(tl.uint8), tl.where(valid[None, :], mask, 0).to(tl.uint8)


@triton.jit
def noise(seed, stream: tl.constexpr, row, column, noisy: tl.constexpr, noise_bits: tl.constexpr):
    """The random words of groups of 32 at `row, column: int[groups]` of the operand of `stream`; 0 if none are drawn."""
    return noise_words(seed, stream, row, column, noise_bits, noise_bits) if noisy else 0


@triton.jit
def _codes(scaled, kept, words, noisy: tl.constexpr, noise_bits: tl.constexpr, native: tl.constexpr):
    """uint8[16, groups]: packed codes of `scaled: float32[32, groups]`, times 2^-14 if they get 8 bits of noise; 0 where not
    `kept: int1[groups]`."""
    if noisy:
        if noise_bits == 8:
            return pack_stochastic_halves(scaled, kept, words)
        else:
            return pack_stochastic(scaled, kept, words)
    else:
        return pack_nearest(scaled, kept, native)


@triton.jit
def quantize_again(
    sums,
    exponent,
    words,
    shrink: tl.constexpr,
    source_shrink: tl.constexpr,
    rotation: tl.constexpr,
    noisy: tl.constexpr,
    noise_bits: tl.constexpr,
    zero: tl.constexpr,
    native: tl.constexpr,
    packed: tl.constexpr,
):
    """Codes uint8[16, groups] and scales uint8[groups] of rotated `aligned` groups, `sums: float32[32, groups]` below 2^100.

    exponent: int32[groups], of the unit that a group is in units of; `NAN_UNIT` for NaN. source_shrink: what the elements
    are to be divided by. zero: 0, or `ZERO_IN_QUARTERS` of `aligned_halves`. The rest is as in `quantize`.
    """
    folded: tl.constexpr = TO_HALVES if noisy and noise_bits == 8 else 1.0
    most = largest(sums, native)
    magnitude = tl.fma(most, root(rotation, 1.0 / source_shrink), tl.full(most.shape, zero, tl.float32))
    byte = tl.minimum(absmax_exponent(magnitude, exponent), 255)
    factor = times_power_of_two(root(rotation, shrink / source_shrink * folded), 127 + exponent - byte)
    kept = (byte < 255) & (most != 0)
    scaled = uncontracted(sums, factor[None, :], packed)
    return _codes(scaled, kept, words, noisy, noise_bits, native), byte.to(tl.uint8)


@triton.jit
def dequantize(codes, scales):
    """float32[rows, n] of codes uint8[rows, n / 2] and E8M0 scales uint8[rows, n / 32]."""
    rows: tl.constexpr = codes.shape[0]
    groups: tl.constexpr = scales.shape[1]
    x = tl.reshape(values(codes), (rows, groups, 32))
    return tl.reshape(x * e8m0_value(scales)[:, :, None], (rows, groups * 32))


@triton.jit
def aligned(codes, scales):
    """bfloat16[rows, n] of codes and scales, in units of the largest of the scales of 32 values of a column, and that
    scale's exponent, int32[n * rows / 32], in the order of `column_groups`; `NAN_UNIT` for NaN.

    A value whose scale is below 2^-15 of that is 0, with its sign. So the 32 are integers in units of 2^-16, below 2^24 in
    sum: no sum of them is rounded in float32, in whatever order.
    """
    rows: tl.constexpr = codes.shape[0]
    groups: tl.constexpr = scales.shape[1]
    parts: tl.constexpr = rows // 32
    scale = tl.reshape(scales.to(tl.int32), (parts, 32, groups))
    most = tl.max(scale, axis=1)
    below = tl.reshape(scale - most[:, None, :], (rows, groups))
    factor = tl.where(below < -15, 0, (253 + below) << 23).to(tl.float32, bitcast=True)
    x = tl.reshape(values_over_2_126(codes), (rows, groups, 32)) * factor[:, :, None]
    x = tl.reshape(x, (rows, groups * 32))
    exponent = tl.where(most == 255, NAN_UNIT, most - 127)
    of_column = tl.broadcast_to(tl.trans(exponent)[:, None, :], (groups, 32, parts))
    return x.to(tl.bfloat16), tl.reshape(of_column, (groups * 32 * parts,))


ZERO_IN_QUARTERS = tl.constexpr(2.350988701644575e-38)
"""2^-125: a magnitude of 0 has the exponent field 0 in any unit, so in units of a quarter it has to be 2. No other magnitude
changes when this is added."""


@triton.jit
def aligned_halves(words, scales):
    """As `aligned`, of a tile of 32 rows, for a product: float16[32, n] of `words: uint32[32, n / 8]` of eight codes each,
    and int32[n]. Their unit is a quarter of the largest scale, which makes the least value, 2^-14, a normal float16."""
    groups: tl.constexpr = scales.shape[1]
    scale = scales.to(tl.int32)
    most = tl.max(scale, axis=0)
    below = scale - most[None, :]
    field = tl.where(below < -15, 0, below + 17)
    field = tl.reshape(tl.broadcast_to(field[:, :, None], (32, groups, 4)), (32, groups * 4))
    exponent = tl.where(most == 255, NAN_UNIT, most - 129)
    of_column = tl.broadcast_to(exponent[:, None], (groups, 32))
    return halves_of_codes(words, field), tl.reshape(of_column, (groups * 32,))


@triton.jit
def decoded(codes, scales, format: tl.constexpr):
    """float32[rows, n] of codes and scales of a format, as `product.scaled_dot` takes them, without the tensor scale."""
    rows: tl.constexpr = codes.shape[0]
    groups: tl.constexpr = scales.shape[1]
    tl.static_assert(format == "mxfp4" or format == "nvfp4" or format == "mxfp8", "no decoding of this operand format")
    if format == "mxfp4":
        return dequantize(codes, scales)
    elif format == "nvfp4":
        x = tl.reshape(values(codes), (rows, groups, 16))
        return tl.reshape(x * e4m3_value(scales.to(tl.uint8, bitcast=True))[:, :, None], (rows, groups * 16))
    else:
        x = tl.reshape(e4m3_value(codes.to(tl.uint8, bitcast=True)), (rows, groups, 32))
        return tl.reshape(x * e8m0_value(scales)[:, :, None], (rows, groups * 32))


@triton.jit
def column_groups(x):
    """The columns of the tile `x: [rows, columns]` in groups of 32, column by column: [32, columns * rows / 32].

    The compiler moves a group into one thread where `quantize` splits it, once, in the narrow type.
    """
    rows: tl.constexpr = x.shape[0]
    columns: tl.constexpr = x.shape[1]
    groups: tl.constexpr = columns * rows // 32
    return tl.reshape(tl.permute(tl.reshape(x, (rows // 32, 32, columns)), (1, 2, 0)), (32, groups))


@triton.jit
def square_groups():
    """int32[128] twice: row and first column of each group of a tile of 64 x 64, in an order that suits its columns too.

    The two groups of a row come first: what they store lies together. Then come rows 8 apart: so `ldmatrix.trans`, which
    gives every fourth thread the next of 8 columns, moves the tile without a permutation in registers.
    """
    local = tl.arange(0, 128)
    return local // 32 * 16 + local // 2 % 2 * 8 + local // 4 % 8, local % 2 * 32


@triton.jit
def transposed_square(x):
    """The columns of a tile of 64 x 64 in groups, `[32, 128]`, of its rows `x: [32, 128]`, both in the order of
    `square_groups`. So groups that share their noise, in a square of `philox.NOISE_SQUARE`, are in one thread.

    The compiler moves a group into one thread where `quantize` splits it, once, in the narrow type.
    """
    tile = tl.permute(tl.reshape(tl.permute(x, (1, 0)), (4, 8, 2, 64)), (0, 2, 1, 3))
    return tl.reshape(tl.permute(tl.reshape(tile, (2, 32, 4, 2, 8)), (1, 2, 4, 3, 0)), (32, 128))


@triton.jit
def column_places(row0, column0, per_column, rows: tl.constexpr, columns: tl.constexpr):
    """Where the groups of `column_groups` lie in the transposed operand: its row, its first column, and the number of
    the group, for a tile whose corner is (row0, column0) and `per_column` groups a column."""
    local = tl.arange(0, columns * rows // 32)
    row = column0 + local // (rows // 32)
    first = row0 + local % (rows // 32) * 32
    return row, first, row * per_column + first // 32
