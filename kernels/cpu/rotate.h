// Reads a tile and rotates it: signs, then butterflies at strides 1, 2, 4, 8, 16 in the order of kernels/numerics/reference.py,
// then one multiply by 1/sqrt(32). In two steps, on 8 and on 4 vectors at a time, since all 32 don't fit the registers.
#pragma once

#include "tile.h"

constexpr int32_t kZeroBelow = (127 - 100) << 23;       // bits of 2^-100: smaller inputs count as 0
constexpr float kRotationScale = 0.17677669529663687f;  // 1/sqrt(32)

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
        for (int i = 0; i < 8; ++i) {
            i32 bits = (i32)v[i];
            v[i] = (f32)((bits & 0x7fffffff) >= kZeroBelow ? bits ^ rotation.sign[first + i] : i32{});
        }
        if (rotation.on) {
            butterflies<8, 1>(v);
            butterflies<8, 2>(v);
            butterflies<8, 4>(v);
        }
        for (int i = 0; i < 8; ++i) tile.column[first + i] = v[i];
    }
}

// Strides 8 and 16 on columns `first`, `first + 8`, `first + 16` and `first + 24`, which it also returns.
QUARTET_INLINE void finish_rotation(Tile& tile, const Rotation& rotation, int first, f32 v[4]) {
    for (int i = 0; i < 4; ++i) v[i] = tile.column[first + 8 * i];
    if (!rotation.on) return;
    butterflies<4, 1>(v);
    butterflies<4, 2>(v);
    for (int i = 0; i < 4; ++i) tile.column[first + 8 * i] = v[i] = v[i] * kRotationScale;
}
