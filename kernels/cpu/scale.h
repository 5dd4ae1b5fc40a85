// Rotates a tile and finds the scale of each of its rows, by the two rules of kernels/numerics/reference.py.
#pragma once

#include "rotate.h"

constexpr int32_t kInfinity = 0x7f800000, kScaleNan = 255;

// Scales are rounded to powers of two by adding a carry to the bits of what they are computed from: it reaches the
// exponent from some mantissa on.
constexpr int32_t scale_carry(int32_t least_mantissa) { return (1 << 23) - least_mantissa; }
constexpr int32_t kRootOfTwo = 0x3504F3;  // from it on, the next power of two is the nearest in the logarithm
constexpr int32_t kEvenE2m1 = 0x600000, kEvenE4m3 = 0x780000;  // 1.75, 1.9375: their mantissa, rounded, carries
constexpr int32_t kAboveSix = 0x400001, kAbove448 = 0x600001;  // 6 is 1.5 * 2^2, 448 is 1.75 * 2^8

constexpr int32_t kSmallestByte = 64;  // the least scale is 2^-63

// The bytes of scales of `magnitude * 2^exponent`, given by its bits, over 2^binades; 255 where it is not finite.
QUARTET_INLINE i32 scale_bytes(i32 magnitude, int32_t carry, int32_t binades, i32 exponent) {
    i32 byte = (i32)(((u32)magnitude + (uint32_t)carry) >> 23) - binades + exponent;
    byte = smaller(larger(byte, splat(kSmallestByte)), splat(kScaleNan));
    return magnitude >= kInfinity ? splat(kScaleNan) : byte;
}

struct Scales {
    i32 byte;      // E8M0
    i32 exponent;  // of the multiplier that brings rotated values to the grid of E2M1
    i32 valid;     // all ones unless the scale is NaN
    i32 kept;      // all ones unless codes are 0
};

// QuEST: the exponent of `clip * std + 1e-8`, with both means taken by pairwise halves: 32 values to 16 to 8 to ...
template <class Source>
QUARTET_INLINE Scales rotate_with_quest_scales(const Source& source, const Rotation& rotation, int32_t carry,
                                               Tile& tile) {
    constexpr float kClip = (float)(2.92247856 / 6.0);  // QUEST_GAUSSIAN_CLIP / E2M1_MAX of quantizer.py
    begin_rotation(source, rotation, tile);
    f32 sum[8], squares[8];
    for (int first = 0; first < 8; ++first) {
        f32 v[4];
        finish_rotation<true>(tile, rotation, first, v);
        sum[first] = (v[0] + v[2]) + (v[1] + v[3]);
        squares[first] = (v[0] * v[0] + v[2] * v[2]) + (v[1] * v[1] + v[3] * v[3]);
    }
    for (int half = 4; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) {
            sum[i] = sum[i] + sum[i + half];
            squares[i] = squares[i] + squares[i + half];
        }
    f32 mean = sum[0] * (1.0f / kGroup);
    f32 variance = squares[0] * (1.0f / kGroup) - mean * mean;
    f32 scale = square_root(variance < 0.0f ? f32{} : variance) * kClip + 1e-8f;
    i32 byte = scale_bytes((i32)scale & 0x7fffffff, carry, 0, i32{});
    i32 valid = byte < kScaleNan;
    return {byte, 127 - byte, valid, valid};
}

// Rotates without the factor of the rotation. The scale is absmax / 4, rounded to a power of two, where absmax is the
// largest magnitude times `root` and 2^exponent; for groups of zeros codes are 0. As integers, NaN is above infinity.
template <class Source>
QUARTET_INLINE Scales rotate_with_absmax_scales(const Source& source, const Rotation& rotation, float root, i32 exponent,
                                                Tile& tile) {
    begin_rotation(source, rotation, tile);
    i32 largest = {};
    for (int first = 0; first < 8; ++first) {
        f32 v[4];
        finish_rotation<false>(tile, rotation, first, v);
        for (int i = 0; i < 4; ++i) largest = larger(largest, (i32)v[i] & 0x7fffffff);
    }
    i32 byte = scale_bytes((i32)((f32)largest * root) & 0x7fffffff, 0, 2, exponent);
    i32 valid = byte < kScaleNan;
    return {byte, 127 + exponent - byte, valid, valid & (largest != 0)};
}
