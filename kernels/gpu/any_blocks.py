"""Blocks of every quantizer: `kernels/numerics/reference.py`, `scales_e8m0.py` and `scales_e4m3.py` for tiles, bit for bit.

`blocks.py` has the same for MXFP4 in groups of 32 rounded down, tuned. Here a tile is `[block, blocks]`, its groups
`[group, groups]`, as `reductions.py` says. Names of arguments are the fields of a `Quantizer`, in its words.
"""

import triton
import triton.language as tl

from .random import noise_words, scale_noise, sign_bits, xor
from .reductions import each_group, most_in_square, pairwise_sum, sum_in_square, to_blocks, to_groups
from .rotation import butterflies, root, uncontracted
from .rounding import TO_HALVES, nearest_magnitude, pack_bits, pack_nearest, pack_stochastic, pack_stochastic_halves
from .scales import (
    SMALLEST_BYTE,
    e4m3_code,
    e4m3_encode,
    e4m3_stochastic,
    e4m3_value,
    magnitude_bits,
    power_of_two,
    quest_scale,
    squared,
)

NOT_FINITE = tl.constexpr(0x7F800000)
"""The magnitude bits of infinity; those of a NaN are larger."""


@triton.jit
def rotated_sums(
    x,
    sign_seed,
    stream: tl.constexpr,
    group: tl.constexpr,
    rotation: tl.constexpr,
    random_signs: tl.constexpr,
    flushes: tl.constexpr,
):
    """float32[group, groups] of blocks `x: float32[block, blocks]`, rotated without the factor 1 / sqrt(rotation).
    flushes: what is below 2^-100, or 2^-99 with a rotation of 128, counts as +0."""
    block: tl.constexpr = x.shape[0]
    blocks: tl.constexpr = x.shape[1]
    least: tl.constexpr = (28 if rotation > 64 else 27) << 23  # 2^-99, 2^-100
    if random_signs:
        part = tl.reshape(x, (block // rotation, rotation, blocks))
        signs = tl.broadcast_to(sign_bits(sign_seed, stream, rotation)[None, :, :], part.shape)
        x = tl.reshape(xor(part, signs), (block, blocks))
    if flushes:
        x = tl.where(magnitude_bits(x) >= least, x, 0.0)
    if rotation > 0:
        x = to_blocks(butterflies(to_groups(x, rotation)), blocks)
    return to_groups(x, group)


@triton.jit
def rotated(sums, rotation: tl.constexpr):
    """`rotated_sums` with the factor."""
    if rotation == 0:
        return sums
    else:
        return uncontracted(sums, root(rotation), False)


@triton.jit
def largest_bits(groups, group_rows: tl.constexpr):
    """int32[groups]: the bits of the largest magnitude of each group or square; `NOT_FINITE` and above if there is an
    infinity or a NaN."""
    return most_in_square(tl.max(magnitude_bits(groups), axis=0), group_rows)


@triton.jit
def _require_rounding(rounding: tl.constexpr):
    tl.static_assert(rounding == "nearest" or rounding == "stochastic" or rounding == "eden", "no such rounding")


@triton.jit
def _require_scale_rounding(name: tl.constexpr):
    tl.static_assert(
        name == "down" or name == "nearest" or name == "up" or name == "error" or name == "even",
        "no such rounding of scales",
    )


@triton.jit
def _signed(magnitude, like):
    """float32 `magnitude` with the sign of `like`."""
    sign = like.to(tl.int32, bitcast=True) & -0x80000000
    return (magnitude.to(tl.int32, bitcast=True) | sign).to(tl.float32, bitcast=True)


@triton.jit
def _byte(magnitude, scale: tl.constexpr, e4m3: tl.constexpr, scale_rounding: tl.constexpr):
    """int32[groups]: E8M0 bytes, at least `SMALLEST_BYTE`, of the bits of a magnitude; 255 where it is not finite."""
    tl.static_assert(scale == "absmax" or scale == "quest", "no E8M0 scale by this rule")
    _require_scale_rounding(scale_rounding)
    if scale == "quest":
        below: tl.constexpr = 0
        full: tl.constexpr = 0
    else:
        below: tl.constexpr = 8 if e4m3 else 2
        full: tl.constexpr = 0x600000 if e4m3 else 0x400000
    field = magnitude >> 23
    byte = field - below
    if scale_rounding == "nearest":
        byte += ((magnitude & 0x7FFFFF) >= 0x3504F3).to(tl.int32)
    if scale_rounding == "up":
        byte += ((magnitude & 0x7FFFFF) > full).to(tl.int32)
    if scale_rounding == "even":
        even: tl.constexpr = 0x780000 if e4m3 else 0x600000
        byte += ((magnitude & 0x7FFFFF) >= even).to(tl.int32)
    return tl.where(field >= 255, 255, tl.minimum(tl.maximum(byte, SMALLEST_BYTE), 255))


@triton.jit
def _scaled(sums, factor, byte):
    """`sums * factor` over the scale; a float32 could not hold the two factors' product for the largest scales."""
    return sums * factor * power_of_two(254 - byte)[None, :]


@triton.jit
def _one_above_is_better(scaled, byte):
    """int32[groups]: 1 where twice the scale has the smaller squared error."""
    magnitude = tl.abs(scaled)
    error = pairwise_sum(squared(nearest_magnitude(magnitude) - magnitude))
    above = pairwise_sum(squared(2 * nearest_magnitude(magnitude * 0.5) - magnitude))
    return ((above < error) & (byte < 255)).to(tl.int32)


@triton.jit
def _eden_factor(scaled, kept, of_block: tl.constexpr):
    """float32[groups]: `<y, y> / <y, q>` of the block that a group lies in, 1 where `<y, q>` is 0.

    scaled: float32[group, groups], y. kept: float32[groups], 1, or 0 where the codes are 0. of_block: groups a block.
    """
    blocks: tl.constexpr = scaled.shape[1] // of_block
    y = to_blocks(tl.abs(scaled), blocks)
    q = to_blocks(nearest_magnitude(tl.abs(scaled)) * kept[None, :], blocks)
    above, below = pairwise_sum(squared(y)), pairwise_sum(tl.fma(y, q, tl.zeros_like(y)))
    factor = tl.where(below == 0, 1.0, tl.div_rn(above, tl.where(below == 0, 1.0, below)))
    return each_group(factor, of_block)


@triton.jit
def quantize_e8m0(
    sums,
    row,
    column,
    seed,
    stream: tl.constexpr,
    rotation: tl.constexpr,
    of_block: tl.constexpr,
    group_rows: tl.constexpr,
    e4m3: tl.constexpr,
    scale: tl.constexpr,
    scale_rounding: tl.constexpr,
    shrink: tl.constexpr,
    rounding: tl.constexpr,
    noise_bits: tl.constexpr,
    masked: tl.constexpr,
    native: tl.constexpr,
):
    """Blocks with powers of two as scales: codes uint8[bytes, groups], E8M0 bytes uint8[groups], mask
    uint8[group / 8, groups].

    sums: of `rotated_sums`. row, column: int[groups], the place of each group's first element in the operand.
    of_block: groups a block of the rotation. e4m3: elements are E4M3, a byte each; else E2M1, two a byte.
    """
    _require_rounding(rounding)
    group: tl.constexpr = sums.shape[0]
    if scale == "quest":
        sums = rotated(sums, rotation)
        magnitude = magnitude_bits(quest_scale(sums))
        factor = root(0, shrink)
        nonzero = magnitude >= 0
    else:
        most = largest_bits(sums, group_rows)
        magnitude = magnitude_bits(most.to(tl.float32, bitcast=True) * root(rotation))
        factor = root(rotation, shrink)
        nonzero = most != 0
    byte = _byte(magnitude, scale, e4m3, scale_rounding)
    if scale_rounding == "error":  # only with a shrink of 1
        byte += _one_above_is_better(_scaled(sums, factor, tl.minimum(byte, 254)), byte)
    valid = byte < 255
    scaled = _scaled(sums, factor, tl.where(valid, byte, 0))
    if rounding == "eden":  # what overflowed has no part in its block's factor
        scaled = tl.where(valid[None, :], scaled, 0.0)
    kept = valid & nonzero
    mask = tl.zeros((group // 8, sums.shape[1]), tl.int32)
    if e4m3:
        codes = e4m3_code(tl.where(kept[None, :], scaled, 0.0))
        if masked:
            mask = tl.full(mask.shape, 255, tl.int32)
    else:
        if masked:
            mask = pack_bits(tl.abs(scaled) < 6.0)
        if rounding == "stochastic":
            codes = _stochastic(scaled, kept, seed, stream, row, column, noise_bits)
        else:
            codes = pack_nearest(scaled, kept, native)
    if rounding == "eden":
        of_factor = magnitude_bits(_eden_factor(scaled, kept.to(tl.float32), of_block))
        up = (((of_factor & 0x7FFFFF) >> 7) + scale_noise(seed, stream, row, column // group).to(tl.int32)) >> 16
        corrected = tl.minimum(tl.maximum(byte + (of_factor >> 23) - 127 + up, SMALLEST_BYTE), 254)
        byte = tl.where(valid, corrected, byte)
    return codes, byte.to(tl.uint8), tl.where(valid[None, :], mask, 0).to(tl.uint8)


@triton.jit
def _stochastic(scaled, kept, seed, stream: tl.constexpr, row, column, noise_bits: tl.constexpr):
    """Packed codes of `scaled: float32[group, groups]`, stochastically rounded; 0 where not `kept: int1[groups]`."""
    words = noise_words(seed, stream, row, column, scaled.shape[0] * noise_bits // 32, noise_bits)
    within = tl.minimum(tl.maximum(scaled, -6.0), 6.0)
    if noise_bits == 8:
        return pack_stochastic_halves(within * TO_HALVES, kept, words)
    else:
        return pack_stochastic(within, kept, words)


@triton.jit
def _divided(x, by):
    """float32 `x / by` of `x: [group, groups]` and `by: [groups]`, correctly rounded."""
    return tl.div_rn(x, tl.broadcast_to(by[None, :], x.shape))


@triton.jit
def _group_scale(wanted):
    """int32[groups]: E4M3 bytes to nearest, 1 for 0."""
    byte = e4m3_encode(wanted).to(tl.int32)
    return tl.where(byte == 0, 0x38, byte)


@triton.jit
def _squared_error(groups, scaled, unit, power, group_rows: tl.constexpr):
    """float32[groups]: of E2M1 to nearest at this unit, over the group or square; of the values times a power of two."""
    wide = tl.broadcast_to((unit * power)[None, :], groups.shape)
    made = tl.fma(_signed(nearest_magnitude(tl.abs(scaled)), scaled), wide, tl.zeros_like(wide))
    return sum_in_square(pairwise_sum(squared(made - groups * power[None, :])), group_rows)


@triton.jit
def quantize_e4m3(
    groups,
    tensor_scale,
    row,
    column,
    seed,
    stream: tl.constexpr,
    of_block: tl.constexpr,
    group_rows: tl.constexpr,
    top: tl.constexpr,
    scale: tl.constexpr,
    rounding: tl.constexpr,
    noise_bits: tl.constexpr,
    masked: tl.constexpr,
    native: tl.constexpr,
):
    """NVFP4 blocks: codes uint8[8, groups], E4M3 bytes uint8[groups], mask uint8[2, groups].

    groups: float32[16, groups] of `rotated`; tensor_scale: float32 scalar; top: 6 / headroom. The rest is as in
    `quantize_e8m0`.
    """
    tl.static_assert(scale == "absmax" or scale == "four-over-six", "no E4M3 scale by this rule")
    _require_rounding(rounding)
    group: tl.constexpr = groups.shape[0]
    count: tl.constexpr = groups.shape[1]
    largest = largest_bits(groups, group_rows)
    valid = largest < NOT_FINITE
    groups = tl.where(valid[None, :], groups, 0.0)
    of_tensor = tl.zeros((count,), tl.float32) + tensor_scale
    wanted = tl.where(valid, largest, 0).to(tl.float32, bitcast=True)
    wanted = tl.div_rn(tl.div_rn(wanted, tl.full((count,), top, tl.float32)), of_tensor)
    byte = _group_scale(wanted)
    unit = e4m3_value(byte) * of_tensor
    scaled = _divided(groups, unit)
    if scale == "four-over-six":
        byte_of_4 = _group_scale(wanted * 1.5)
        unit_of_4 = e4m3_value(byte_of_4) * of_tensor
        scaled_to_4 = _divided(groups, unit_of_4)
        power = power_of_two(254 - (magnitude_bits(of_tensor) >> 23))  # so that no error over- or underflows
        error_of_4 = _squared_error(groups, scaled_to_4, unit_of_4, power, group_rows)
        better = error_of_4 < _squared_error(groups, scaled, unit, power, group_rows)
        byte = tl.where(better, byte_of_4, byte)
        scaled = tl.where(better[None, :], scaled_to_4, scaled)
    if rounding == "stochastic":
        codes = _stochastic(scaled, valid, seed, stream, row, column, noise_bits)
    else:
        codes = pack_nearest(scaled, valid, native)
    if rounding == "eden":
        corrected = e4m3_value(byte) * _eden_factor(scaled, tl.where(valid, 1.0, 0.0), of_block)
        byte = e4m3_stochastic(corrected, scale_noise(seed, stream, row, column // group))
    mask = tl.zeros((group // 8, count), tl.int32)
    if masked:
        mask = tl.broadcast_to(tl.where(valid, 255, 0)[None, :], mask.shape)
    return codes, tl.where(valid, byte, 0x7F).to(tl.uint8), mask.to(tl.uint8)


@triton.jit
def decoded(
    code,
    odd,
    scale,
    tensor_scale,
    e4m3: tl.constexpr,
    two_level: tl.constexpr,
    shrink: tl.constexpr,
):
    """float32 values of codes and scales of one shape. code: uint8, an E4M3 element (`e4m3`) or two of E2M1, the high one
    where `odd`; scale: uint8, E4M3 (`two_level`, with a float32 scalar `tensor_scale`) or E8M0."""
    if e4m3:
        x = e4m3_value(code)
    else:
        nibble = (code.to(tl.int32) >> (odd * 4)) & 15
        x = ((nibble << 22) | (nibble << 28)) & -0x7E400000
        x = x.to(tl.float32, bitcast=True) * 8.507059173023462e37  # 2^126: see rounding.values
    if shrink != 1.0:
        x = tl.div_rn(x, tl.full(x.shape, shrink, tl.float32))
    if two_level:
        return x * (e4m3_value(scale) * tensor_scale)
    else:
        field = scale.to(tl.int32)
        power = tl.where(field == 255, 0x7FC00000, tl.maximum(field, 1) << 23).to(tl.float32, bitcast=True)
        return x * power * tl.where(field == 0, 0.5, 1.0)
