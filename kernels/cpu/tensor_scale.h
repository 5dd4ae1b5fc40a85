// Groups of a panel with an E4M3 scale relative to a float32 scale of the tensor (NVFP4), as kernels/numerics/scales_e4m3.py.
#pragma once

#include "scale.h"
#include "destination.h"

// The bits of the largest magnitude of each row of one group, 0 where the group is not `valid`.
QUARTET_INLINE void largest_of_valid(const Destination& to, Panel& panel, int first, i32* largest, i32* valid) {
    for (int t = 0; t < panel.tiles; ++t) largest[t] = largest_bits(panel.tile(t) + first, to.group);
    if (to.square) agree_on_largest(largest, panel.tiles);
    for (int t = 0; t < panel.tiles; ++t) {
        valid[t] = largest[t] < kInfinity;
        largest[t] &= valid[t];
    }
}

inline float tensor_scale(const Destination& to, float of_all) {
    return of_all == 0 ? 1.0f : of_all / to.largest_scale / to.top;
}

// E4M3 to nearest, 1 for 0.
QUARTET_INLINE i32 group_scale(f32 wanted) {
    i32 code = e4m3_nearest(smaller(wanted, splat(kE4m3Max)));
    return code == 0 ? splat(kE4m3One) : code;
}

// Of the scales that bring the largest to 6 and to 4, the one with the smaller squared error; the first if equal.
// Errors are those of the tensor times the power of two that brings its scale to [1, 2), so none over- or underflows.
QUARTET_INLINE void four_over_six(const Destination& to, Panel& panel, int first, float of_tensor, const f32* wanted,
                                  i32* scale) {
    const f32 power = power_of_two(127 - ((i32)splat(of_tensor) >> 23));
    f32 errors[2][kMaxTiles];
    i32 scales[2][kMaxTiles];
    for (int choice = 0; choice < 2; ++choice) {
        for (int t = 0; t < panel.tiles; ++t) {
            const f32* column = panel.tile(t) + first;
            scales[choice][t] = group_scale(wanted[t] * (choice ? 1.5f : 1.0f));
            f32 unit = e4m3_magnitude(scales[choice][t]) * (of_tensor * power);
            errors[choice][t] = pairwise_sum(to.group, [&](int i) {
                f32 a = magnitude(column[i]) * power;
                return squared(e2m1_nearest_value(a / unit) * unit - a);
            });
        }
        if (to.square) agree_on_sum(errors[choice], panel.tiles);
    }
    for (int t = 0; t < panel.tiles; ++t) scale[t] = errors[1][t] < errors[0][t] ? scales[1][t] : scales[0][t];
}

// Chooses the scale of one group of each tile, whose columns begin at `first`, and scales them.
QUARTET_INLINE void scale_by_e4m3(const Destination& to, Panel& panel, int first, float of_tensor, i32* scale, i32* valid) {
    i32 largest[kMaxTiles];
    f32 wanted[kMaxTiles];
    largest_of_valid(to, panel, first, largest, valid);
    for (int t = 0; t < panel.tiles; ++t) {
        clear_invalid(panel.tile(t) + first, to.group, valid[t]);
        wanted[t] = (f32)largest[t] / to.top / of_tensor;
        scale[t] = group_scale(wanted[t]);
    }
    if (to.request.scale == Scale::kFourOverSix) four_over_six(to, panel, first, of_tensor, wanted, scale);
    for (int t = 0; t < panel.tiles; ++t) {
        f32* column = panel.tile(t) + first;
        f32 unit = e4m3_magnitude(scale[t]) * of_tensor;
        for (int c = 0; c < to.group; ++c) column[c] = column[c] / unit;
    }
}
