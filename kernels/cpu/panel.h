// A panel, and what its scales are computed from. It is one tile, or the tiles of a row of square blocks, whose rows
// agree on their scale.
#pragma once

#include "hadamard.h"
#include "read_tile.h"
#include "round.h"

constexpr int kMaxSquare = 32;
constexpr int kMaxTiles = kMaxSquare / kLanes;

struct Panel {
    int tiles, width;                                                               // width: columns of a tile
    f32 columns[kMaxTiles * kMaxSquare > kMaxBlock ? kMaxTiles * kMaxSquare : kMaxBlock];  // tile after tile

    QUARTET_INLINE f32* tile(int t) { return columns + t * width; }
};

// The sum of `term(0)` to `term(size - 1)` by pairwise halves: v[i] + v[i + size / 2], and again.
template <class Term>
QUARTET_INLINE f32 pairwise_sum(int size, const Term& term) {
    f32 sum[kMaxBlock / 2];
    int half = size / 2;
    for (int i = 0; i < half; ++i) sum[i] = term(i) + term(i + half);
    while ((half /= 2) > 0)
        for (int i = 0; i < half; ++i) sum[i] = sum[i] + sum[i + half];
    return sum[0];
}

// The bits of the largest magnitude of each row. As integers, NaN is above infinity.
QUARTET_INLINE i32 largest_bits(const f32* column, int count) {
    i32 largest = {};
    for (int c = 0; c < count; ++c) largest = larger(largest, (i32)column[c] & 0x7fffffff);
    return largest;
}

// Zeros in the rows that are not valid: their codes are 0, and they have no part in their block's EDEN.
QUARTET_INLINE void clear_invalid(f32* column, int count, i32 valid) {
    if (!any(~valid)) return;
    for (int c = 0; c < count; ++c) column[c] = (f32)((i32)column[c] & valid);
}

// Gives every row the largest of all rows.
QUARTET_INLINE void agree_on_largest(i32* of_tile, int tiles) {
    i32 largest = of_tile[0];
    for (int t = 1; t < tiles; ++t) largest = larger(largest, of_tile[t]);
    int32_t most = largest[0];
    for (int lane = 1; lane < kLanes; ++lane) most = std::max(most, ((const int32_t*)&largest)[lane]);
    for (int t = 0; t < tiles; ++t) of_tile[t] = splat(most);
}

// Gives every row the sum over all rows, by pairwise halves.
QUARTET_INLINE void agree_on_sum(f32* of_tile, int tiles) {
    float sum[kMaxSquare];
    std::memcpy(sum, of_tile, tiles * sizeof(f32));
    for (int half = tiles * kLanes / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) sum[i] = sum[i] + sum[i + half];
    for (int t = 0; t < tiles; ++t) of_tile[t] = splat(sum[0]);
}

// QuEST's `c * std + 1e-8` of each row, `c` = clipping point / 6.
QUARTET_INLINE f32 quest_scale(const f32* column, int count) {
    constexpr float kClip = (float)(2.92247856 / 6.0);  // QUEST_GAUSSIAN_CLIP / E2M1_MAX of quantizer.py
    f32 mean = pairwise_sum(count, [&](int i) { return column[i]; }) * (1.0f / count);
    f32 variance = pairwise_sum(count, [&](int i) { return column[i] * column[i]; }) * (1.0f / count) - mean * mean;
    return square_root(variance < 0.0f ? f32{} : variance) * kClip + 1e-8f;
}

QUARTET_INLINE f32 squared(f32 a) { return a * a; }

// EDEN's `<y, y> / <y, q>` of each row, where q is y rounded; 1 where <y, q> is 0.
QUARTET_INLINE f32 eden_factor(const f32* y, int width) {
    f32 above = pairwise_sum(width, [&](int i) { return y[i] * y[i]; });
    f32 below = pairwise_sum(width, [&](int i) {
        f32 a = magnitude(y[i]);
        return a * e2m1_nearest_value(a);
    });
    i32 none = below == 0.0f;
    return none ? splat(1.0f) : above / (none ? splat(1.0f) : below);
}
