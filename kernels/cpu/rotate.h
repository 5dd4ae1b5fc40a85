// Reads a tile and rotates it: signs, then butterflies at strides 1, 2, 4, 8, 16 in the order of
// kernels/numerics/reference.py, and for QuEST one multiply by 1/sqrt(32). In two steps, on 8 and on 4 vectors at a time,
// since all 32 don't fit the registers.
#pragma once

#include "tile.h"

// 1/sqrt(size), or 1 without a rotation.
constexpr double root_of(int64_t size) {
    return size == 0    ? 1
           : size == 16 ? 0.25
           : size == 32 ? 0.17677669529663687
           : size == 64 ? 0.125
                        : 0.08838834764831845;
}

struct Rotation {
    bool on;
    int32_t sign[kGroup];  // 0, or the sign bit
};

template <int count, int stride>
QUARTET_INLINE void butterflies(f32 v[count]) {
    for (int low = 0; low < count; ++low) {
        if (low & stride) continue;
        f32 sum = v[low] + v[low + stride];
        v[low + stride] = v[low] - v[low + stride];
        v[low] = sum;
    }
}

// Signs, and strides 1, 2 and 4.
template <class Source>
QUARTET_INLINE void begin_rotation(const Source& source, const Rotation& rotation, Tile& tile) {
    for (int first = 0; first < kGroup; first += 8) {
        f32 v[8];
        source.four(first, v);
        source.four(first + 4, v + 4);
        for (int i = 0; i < 8; ++i) v[i] = (f32)((i32)v[i] ^ rotation.sign[first + i]);
        if (rotation.on) {
            if constexpr (Source::kPositiveZeros)  // in one of each pair: then no sum of it is -0, and none of those sums
                for (int i = 0; i < 8; i += 2) v[i] += 0.0f;
            butterflies<8, 1>(v);
            butterflies<8, 2>(v);
            butterflies<8, 4>(v);
        }
        for (int i = 0; i < 8; ++i) tile.column[first + i] = v[i];
    }
}

// Strides 8 and 16 on columns `first`, `first + 8`, `first + 16` and `first + 24`, which it also returns; then, with
// `scaled`, the multiply.
template <bool scaled>
QUARTET_INLINE void finish_rotation(Tile& tile, const Rotation& rotation, int first, f32 v[4]) {
    for (int i = 0; i < 4; ++i) v[i] = tile.column[first + 8 * i];
    if (!rotation.on) return;
    butterflies<4, 1>(v);
    butterflies<4, 2>(v);
    for (int i = 0; i < 4; ++i) tile.column[first + 8 * i] = v[i] = scaled ? v[i] * (float)root_of(kGroup) : v[i];
}
