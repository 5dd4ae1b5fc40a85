// The Hadamard rotation of a tile of 16 to 128 columns: butterflies at strides 1, 2, 4, ... in the order of
// kernels/numerics/reference.py, then one multiply, by 1/sqrt(size) or by 1. Up to four strides at a time, as many as fit
// the registers.
#pragma once

#include "rotate.h"

// Butterflies at `stride`, 2 `stride`, ... below `radix * stride`; if these are the last of `size`, times `scale`.
template <int size, int radix, int stride>
QUARTET_INLINE void butterflies_from(f32* column, float scale) {
    constexpr bool last = radix * stride == size;
    for (int base = 0; base < size; base += radix * stride)
        for (int first = base; first < base + stride; ++first) {
            f32 v[radix];
#pragma GCC unroll 16
            for (int i = 0; i < radix; ++i) v[i] = column[first + i * stride];
            butterflies<radix, 1>(v);
            butterflies<radix, 2>(v);
            butterflies<radix, 4>(v);
            if constexpr (radix > 8) butterflies<radix, 8>(v);
#pragma GCC unroll 16
            for (int i = 0; i < radix; ++i) column[first + i * stride] = last ? v[i] * scale : v[i];
        }
}

// Rotates `width` columns in blocks of `size`, times `scale`.
template <int size>
inline void rotate_blocks(f32* column, int width, float scale) {
    for (int block = 0; block < width; block += size) {
        f32* v = column + block;
        if constexpr (size == 16) butterflies_from<16, 16, 1>(v, scale);
        if constexpr (size == 32) {
            for (int i = 0; i < 32; i += 4) butterflies<4, 1>(v + i), butterflies<4, 2>(v + i);
            butterflies_from<32, 8, 4>(v, scale);
        }
        if constexpr (size == 64) butterflies_from<64, 8, 1>(v, scale), butterflies_from<64, 8, 8>(v, scale);
        if constexpr (size == 128) butterflies_from<128, 16, 1>(v, scale), butterflies_from<128, 8, 16>(v, scale);
    }
}

inline void rotate_tile(f32* column, int width, int rotation, float scale) {
    switch (rotation) {
        case 16: return rotate_blocks<16>(column, width, scale);
        case 32: return rotate_blocks<32>(column, width, scale);
        case 64: return rotate_blocks<64>(column, width, scale);
        case 128: return rotate_blocks<128>(column, width, scale);
    }
}
