// Rotates a tile and finds the scale of each of its rows, by the two rules of kernels/numerics/reference.py.
#pragma once

#include "rotate.h"

constexpr int32_t kInfinity = 0x7f800000, kScaleNan = 255;

// Scales are rounded to powers of two by adding a carry to the bits of what they are computed from: it reaches the
// exponent from some mantissa on.
constexpr int32_t scale_carry(int32_t least_mantissa) { return (1 << 23) - least_mantissa; }
constexpr int32_t kRootOfTwo = 0x3504F3;  // from it on, the next power of two is the nearest in the logarithm
constexpr int32_t kAboveSix = 0x400001, kAbove448 = 0x600001;  // 6 is 1.5 * 2^2, 448 is 1.75 * 2^8

// The bytes of scales of `statistic`, given by its bits, over 2^(binades + lift); 255 where it is not finite.
QUARTET_INLINE i32 scale_bytes(i32 statistic, int32_t carry, int32_t binades, i32 lift) {
    i32 byte = (i32)(((u32)statistic + (uint32_t)carry) >> 23) - binades - lift;
    return statistic >= kInfinity ? splat(kScaleNan) : larger(byte, i32{});
}

struct Scales {
    i32 byte;      // E8M0
    i32 exponent;  // of the multiplier that brings rotated values to the grid of E2M1
    i32 valid;     // all ones unless the scale is NaN
};

// `exponent`: E8M0 byte, or 255 where statistics are not finite (which they are not if any input is NaN or infinite,
// since every rotated value then is). `nonzero`: whether any rotated value is not 0. Groups of zeros need no rule for
// their codes: inputs that count as 0 become +0, so all that is rotated from them is +0.
QUARTET_INLINE Scales scales_of(i32 exponent, i32 nonzero, i32 lift) {
    exponent = exponent & nonzero;
    return {exponent, 127 - exponent - lift, exponent < kScaleNan};
}

// QuEST: the exponent of `clip * std + 1e-8`, with both means taken by pairwise halves: 32 values to 16 to 8 to ...
template <class Source>
QUARTET_INLINE Scales rotate_with_quest_scales(const Source& source, const Rotation& rotation, int32_t carry,
                                               Tile& tile) {
    constexpr float kClip = (float)(2.92247856 / 6.0);  // QUEST_GAUSSIAN_CLIP / E2M1_MAX of quantizer.py
    begin_rotation(source, rotation, tile);
    f32 sum[8], squares[8];
    i32 nonzero = {};
    for (int first = 0; first < 8; ++first) {
        f32 v[4];
        finish_rotation(tile, rotation, first, v);
        sum[first] = (v[0] + v[2]) + (v[1] + v[3]);
        squares[first] = (v[0] * v[0] + v[2] * v[2]) + (v[1] * v[1] + v[3] * v[3]);
        nonzero |= (i32)v[0] | (i32)v[1] | (i32)v[2] | (i32)v[3];
    }
    for (int half = 4; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) {
            sum[i] = sum[i] + sum[i + half];
            squares[i] = squares[i] + squares[i + half];
        }
    f32 mean = sum[0] * (1.0f / kGroup);
    f32 variance = squares[0] * (1.0f / kGroup) - mean * mean;
    f32 scale = square_root(variance < 0.0f ? f32{} : variance) * kClip + 1e-8f;
    i32 exponent = scale_bytes((i32)scale & 0x7fffffff, carry, 0, i32{});
    return scales_of(exponent, (nonzero & 0x7fffffff) != 0, i32{});
}

// Rotates, and returns the bits of the largest |rotated| of each row. As integers, NaN is above infinity.
template <class Source>
QUARTET_INLINE i32 rotate_and_find_largest(const Source& source, const Rotation& rotation, Tile& tile) {
    begin_rotation(source, rotation, tile);
    i32 largest = {};
    for (int first = 0; first < 8; ++first) {
        f32 v[4];
        finish_rotation(tile, rotation, first, v);
        for (int i = 0; i < 4; ++i) largest = larger(largest, (i32)v[i] & 0x7fffffff);
    }
    return largest;
}

// absmax / 4, rounded to a power of two, where the group was multiplied by 2^lift.
QUARTET_INLINE Scales absmax_scales(i32 largest, int32_t carry, i32 lift) {
    return scales_of(scale_bytes(largest, carry, 2, lift), largest != 0, lift);
}

// Multiplies the groups whose largest is below 2^-63 by 2^64; returns the exponents, 64 or 0.
QUARTET_INLINE i32 lift_tile(Tile& tile) {
    i32 largest = {};
    for (int column = 0; column < kGroup; ++column) largest = larger(largest, (i32)tile.column[column] & 0x7fffffff);
    i32 lift = (largest < (127 - 63) << 23) & 64;
    for (int column = 0; column < kGroup; ++column) {
        i32 normal = ((i32)tile.column[column] & kInfinity) != 0;
        tile.column[column] = (f32)((i32)tile.column[column] & normal) * power_of_two(lift);
    }
    return lift;
}

// Only tiles with a tiny group, or a group of zeros, are lifted. Rotated values tell which tiles may have one, and
// looking at these is free; at the inputs, it would be one instruction of 30 in every tile.
template <class Source>
QUARTET_INLINE Scales rotate_with_absmax_scales(const Source& source, const Rotation& rotation, int32_t carry,
                                                Tile& tile) {
    constexpr int32_t kSurelyNotTiny = (127 - 60) << 23;  // inputs below 2^-63 rotate to below sqrt(32) 2^-63
    i32 largest = rotate_and_find_largest(source, rotation, tile);
    if (!any(largest < kSurelyNotTiny)) return absmax_scales(largest, carry, i32{});

    Tile inputs;
    for (int column = 0; column < kGroup; column += 4) source.four(column, inputs.column + column);
    i32 lift = lift_tile(inputs);
    largest = rotate_and_find_largest(ColumnMajor{(const float*)&inputs, kLanes}, rotation, tile);
    return absmax_scales(largest, carry, lift);
}
