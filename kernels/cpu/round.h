// Rounds scaled columns to codes, as kernels/numerics/codes.py does, and packs them: dwords of 8 codes of E2M1 or 4 of E4M3, the
// first lowest. See encode.h for the arithmetic of E2M1.
#pragma once

#include "e4m3.h"
#include "encode.h"

// The nearest values of E2M1 to magnitudes, saturated at 6: a step is half the power of two below, or 1/2 below 1.
QUARTET_INLINE f32 e2m1_nearest_value(f32 a) {
    constexpr int32_t kUnits = (22 << 23) + (1 << 22);  // from 2^e to 1.5 * 2^22 * 2^e, whose last place is 2^(e - 1)
    a = smaller(a, splat(6.0f));
    f32 magic = (f32)(((i32)larger(a, splat(1.0f)) & 0x7f800000) + kUnits);
    return smaller((a + magic) - magic, splat(6.0f));
}

QUARTET_INLINE u32 round_nearest_e2m1(const f32* scaled) {
    constexpr float kMagic = 12582912.0f;
    u32 dword = {};
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
        f32 a = magnitude(scaled[i]);
        f32 low = exact_product_plus(a, 2.0f, splat(kMagic));
        f32 middle = a + (kMagic + 2);
        f32 high = exact_product_plus(a, 0.5f, splat(kMagic + 4));
        f32 code = smaller(smaller(low, middle), smaller(splat(kMagic + 7), high));
        dword = append(dword, (u32)code << 28, scaled[i]);
    }
    return dword;
}

// The columns of one block of random words, as dwords.
template <int bits>
QUARTET_INLINE void round_stochastic_e2m1(const f32* scaled, const u32 words[4], u32* dword) {
#pragma GCC unroll 2
    for (int k = 0; k < 16 / bits; ++k) {
        const f32* column = scaled + 8 * k;
        u32 codes = {};
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) {
            f32 a = smaller(magnitude(column[i]), splat(6.0f)) * (float)(1 << kStochasticUnit);
            codes = append_stochastic(codes, a, column[i], noise_below_bit_24<bits>(words + k * bits / 4, i));
        }
        dword[k] = codes;
    }
}

QUARTET_INLINE u32 round_nearest_e4m3(const f32* scaled) {
    u32 dword = {};
    for (int i = 0; i < 4; ++i) {
        u32 code = (u32)e4m3_nearest(smaller(magnitude(scaled[i]), splat(kE4m3Max)));
        dword |= (code | ((u32)scaled[i] >> 24 & 0x80)) << 8 * i;
    }
    return dword;
}
