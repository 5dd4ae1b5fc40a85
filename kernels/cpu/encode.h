// Rounds a tile to E2M1 codes, as kernels/numerics/reference.py does, and packs them: dword k of a row has its columns 8k to
// 8k + 7, four bits each, the first lowest.
//
// A magnitude `a` is code min(2a, a + 2, a/2 + 4), if codes were real numbers. Rounding is monotonic and the offsets
// are even, so rounding each line and then taking the least is rounding to nearest with ties to even.
#pragma once

#include "philox.h"
#include "tile.h"

struct Codes {
    u32 dword[4];
};

// Appends one code at the top: bits 28 to 30 of `code`, the sign of `value`. After 8 of them the first is at the bottom.
QUARTET_INLINE u32 append(u32 dword, u32 code, f32 value) {
    u32 top = ((u32)value & 0x80000000) | (code & 0x7fffffff);
    return (dword >> 4) | (top & 0xf0000000);
}

// Nearest. With `masked`, bit c of keep says that |column c| is below 6.
template <bool masked>
QUARTET_INLINE Codes encode_nearest(const Tile& tile, f32 multiplier, u32& keep) {
    constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, which is left in the low bits
    Codes codes;
    for (int k = 0; k < 4; ++k) {
        u32 dword = {};
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) {
            f32 value = tile.column[8 * k + i] * multiplier;
            f32 a = magnitude(value);
            f32 low = exact_product_plus(a, 2.0f, splat(kMagic));
            f32 middle = a + (kMagic + 2);
            f32 high = exact_product_plus(a, 0.5f, splat(kMagic + 4));
            f32 code = smaller(smaller(low, middle), smaller(splat(kMagic + 7), high));
            dword = append(dword, (u32)code << 28, value);
            if (masked) keep |= (u32)(a < 6.0f) & (1u << (8 * k + i));
        }
        codes.dword[k] = dword;
    }
    return codes;
}

// Stochastic: up iff noise + fraction >= 1, where the noise is an odd number of halves of its unit. `a` is the magnitude of
// `value`, below 8, in units of 2^-kStochasticUnit; the code is found in units of 2^-24, and `noise` is in its place below
// bit 24. For magnitudes below 2 the code is linear, just the float as an integer. From 1 on it is logarithmic, as floats
// are themselves: the float's bits, shifted. Between 1 and 2 both hold, outside the less is right.
constexpr int kStochasticUnit = 25;

QUARTET_INLINE u32 append_stochastic(u32 dword, f32 a, f32 value, u32 noise) {
    constexpr float kOne = 1 << kStochasticUnit;
    constexpr int32_t kOneBits = (127 + kStochasticUnit) << 23;
    i32 linear = __builtin_convertvector(a, i32);
    i32 logarithmic = ((i32)larger(a, splat(kOne)) - (kOneBits - (2 << 22))) << 2;
    u32 code = (u32)smaller(linear, logarithmic) + noise;
    return append(dword, code << 4, value);
}

// `words_of_block` gives the random words of each 128 / bits columns.
template <int bits, class Words>
QUARTET_INLINE Codes encode_stochastic(const Tile& tile, f32 multiplier, const Words& words_of_block) {
    constexpr int columns = 128 / bits;
    Codes codes;
    for (int block = 0; block < kGroup / columns; ++block) {
        u32 words[4];
        words_of_block(block, words);
#pragma GCC unroll 2
        for (int k = 0; k < columns / 8; ++k) {
            const f32* column = tile.column + columns * block + 8 * k;
            u32 dword = {};
#pragma GCC unroll 8
            for (int i = 0; i < 8; ++i) {
                f32 value = column[i] * multiplier;
                u32 noise = noise_below_bit_24<bits>(words + k * bits / 4, i);
                dword = append_stochastic(dword, magnitude(value), value, noise);
            }
            codes.dword[block * columns / 8 + k] = dword;
        }
    }
    return codes;
}
