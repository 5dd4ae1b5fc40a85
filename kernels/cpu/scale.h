// The scale of each row of a tile, by the two rules of kernels/reference.py. Both finish the rotation on the way.
#pragma once

#include "rotate.h"

constexpr int32_t kInfinity = 0x7f800000, kScaleNan = 255;
constexpr float kQuestClip = (float)(2.92247856 / 6.0);  // QUEST_GAUSSIAN_CLIP / E2M1_MAX
constexpr float kQuestFloor = 1e-8f;
constexpr int kLift = 64;                                 // groups whose largest is below 2^-64 are lifted by 2^64
constexpr int32_t kSurelyUnlifted = (127 - 61) << 23;     // |rotated| of a group below 2^-64 is below sqrt(32) 2^-64

struct Scales {
    i32 byte;      // E8M0
    i32 exponent;  // of the multiplier that brings rotated values to the grid of E2M1
    i32 valid;     // all ones unless the scale is NaN
};

// `exponent`: E8M0 byte, or 255 where statistics are not finite (which they are not if any input is NaN or infinite,
// since every rotated value then is). `nonzero`: whether any rotated value is not 0; in groups of zeros they are +0, as
// inputs that count as 0 are, so their codes need no rule.
QUARTET_INLINE Scales scales_of(i32 exponent, i32 nonzero, i32 lift) {
    exponent = exponent & nonzero;
    return {exponent, 127 - exponent - lift, exponent < kScaleNan};
}

// 2^(floor(log2 absmax) - 2) for groups that are multiplied by 2^lift. `largest`: bits of the largest |rotated|.
QUARTET_INLINE Scales absmax_scales(i32 largest, i32 lift) {
    i32 field = largest >> 23;
    return scales_of(field == kScaleNan ? field : larger(field - 2 - lift, i32{}), largest != 0, lift);
}

// Bits of the largest |rotated|; of integers, so that NaN is above infinity.
QUARTET_INLINE i32 finish_rotation_and_find_largest(Tile& tile, bool on) {
    i32 largest = {};
    for (int first = 0; first < 8; ++first) {
        f32 v[4];
        finish_rotation(tile, on, first, v);
        for (int i = 0; i < 4; ++i) largest = larger(largest, (i32)v[i] & 0x7fffffff);
    }
    return largest;
}

// QuEST: the exponent of `clip * std + 1e-8`, with both means taken by pairwise halves: 32 values to 16 to 8 to ...
QUARTET_INLINE Scales finish_rotation_and_find_quest_scales(Tile& tile, bool on) {
    f32 sum[8], squares[8];
    i32 nonzero = {};
    for (int first = 0; first < 8; ++first) {
        f32 v[4];
        finish_rotation(tile, on, first, v);
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
    f32 scale = square_root(variance < 0.0f ? f32{} : variance) * kQuestClip + kQuestFloor;
    return scales_of((i32)scale >> 23 & 0xff, (nonzero & 0x7fffffff) != 0, i32{});
}
