// A tile: one group of 32 columns of kLanes rows of the logical operand. A vector holds one column, a lane is a row. So
// butterflies, sums and noise need no shuffles, and an operand and its transpose differ only in how they are
// read.
#pragma once

#include "simd.h"

constexpr int kGroup = 32;

constexpr int64_t groups_of(int64_t columns) { return (columns + kGroup - 1) / kGroup; }

struct Tile {
    f32 column[kGroup];
};

// Where the values come from: `four(column, values)` gives columns `column` to `column + 3` of the tile. Where they have
// `kPositiveZeros`, zeros that are rotated count as +0.

struct RowMajor {  // element (lane, column) is at values[lane * stride + column]
    static constexpr bool kPositiveZeros = false;
    const float* values;
    int64_t stride;

    QUARTET_INLINE void four(int column, f32 out[4]) const {
        for (int i = 0; i < 4; ++i) out[i] = load_quarters(values + i * stride + column, 4 * stride);
        transpose_4x4(out);
    }
};

struct ColumnMajor {  // element (lane, column) is at values[column * stride + lane]
    static constexpr bool kPositiveZeros = false;
    const float* values;
    int64_t stride;

    QUARTET_INLINE void four(int column, f32 out[4]) const {
        for (int i = 0; i < 4; ++i) out[i] = load<f32>(values + (column + i) * stride);
    }
};
