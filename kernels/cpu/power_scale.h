// Groups of a panel with a power of two as their scale (E8M0), as kernels/numerics/scales_e8m0.py.
#pragma once

#include "scale.h"
#include "destination.h"

// The bytes of scales from bits of magnitudes; 255 where these are not finite.
QUARTET_INLINE i32 scale_bytes(const Destination& to, i32 magnitudes) {
    int32_t above = 0, even = 0, binades = 0, carry = 0;
    switch (to.request.elements) {
        case Elements::kE2m1: above = kAboveSix, even = kEvenE2m1, binades = 2; break;
        case Elements::kE4m3: above = kAbove448, even = kEvenE4m3, binades = 8; break;
    }
    if (to.request.scale == Scale::kQuest) above = 1, binades = 0;
    switch (to.request.scale_rounding) {
        case ScaleRounding::kNearest: carry = scale_carry(kRootOfTwo); break;
        case ScaleRounding::kUp: carry = scale_carry(above); break;
        case ScaleRounding::kEven: carry = scale_carry(even); break;
        case ScaleRounding::kDown:
        case ScaleRounding::kError: break;
    }
    return scale_bytes(magnitudes, carry, binades, i32{});
}

// What brings rotated values to the grid; where the scale is NaN, as for byte 0.
QUARTET_INLINE f32 multiplier(i32 byte) { return power_of_two(127 - (byte & (byte < kScaleNan))); }

// 1 where twice the scale has the smaller squared error, else 0; errors in units of the scale.
QUARTET_INLINE i32 one_above_is_better(const Destination& to, const f32* column, float root, i32 byte) {
    f32 unit = multiplier(byte);
    f32 error = pairwise_sum(to.group, [&](int i) {
        f32 a = magnitude(column[i] * root * unit);
        return squared(e2m1_nearest_value(a) - a);
    });
    f32 above = pairwise_sum(to.group, [&](int i) {
        f32 a = magnitude(column[i] * root * unit);
        return squared(2.0f * e2m1_nearest_value(a * 0.5f) - a);
    });
    return (above < error) & (byte < kScaleNan) & 1;
}

// Chooses the scale of one group of each tile, whose columns begin at `first`, and scales them.
QUARTET_INLINE void scale_by_power(const Destination& to, Panel& panel, int first, i32* byte, i32* valid) {
    const float root = to.absmax ? to.root : 1.0f, factor = to.absmax ? to.factor : 1.0f;
    i32 magnitudes[kMaxTiles];
    for (int t = 0; t < panel.tiles; ++t) {
        const f32* column = panel.tile(t) + first;
        magnitudes[t] = to.absmax ? largest_bits(column, to.group) : (i32)quest_scale(column, to.group) & 0x7fffffff;
    }
    if (to.square) agree_on_largest(magnitudes, panel.tiles);
    for (int t = 0; t < panel.tiles; ++t) {
        f32* column = panel.tile(t) + first;
        byte[t] = scale_bytes(to, (i32)((f32)magnitudes[t] * root) & 0x7fffffff);
        if (to.request.scale_rounding == ScaleRounding::kError)
            byte[t] += one_above_is_better(to, column, root, byte[t]);
        valid[t] = byte[t] < kScaleNan;
        clear_invalid(column, to.group, valid[t] & (magnitudes[t] != 0));  // zeros of either sign have code 0
        f32 unit = multiplier(byte[t]);
        for (int c = 0; c < to.group; ++c) column[c] = column[c] * factor * unit;
    }
}

// EDEN's correction: the scale times `factor`, to a power of two: up iff bits + floor(fraction * 2^16) >= 2^16.
QUARTET_INLINE i32 corrected_power(i32 byte, f32 factor, i32 bits) {
    i32 up = ((((i32)factor & 0x7fffff) >> 7) + bits) >> 16;
    i32 corrected = byte + ((i32)factor >> 23 & 0xff) - 127 + up;
    corrected = smaller(larger(corrected, splat(kSmallestByte)), splat(kScaleNan - 1));
    return byte < kScaleNan ? corrected : byte;
}
