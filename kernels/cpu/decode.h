// Reads codes and scales back to floats.
#pragma once

#include "tile.h"

// The values of E2M1 codes 0 to 7, and of 8 to 15.
constexpr float kE2M1[16] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6, -0.0f, -0.5f, -1, -1.5f, -2, -3, -4, -6};

// What each of the 16 codes stands for under one scale: `value / shrink * 2^(byte - 127)`.
struct Table {
    alignas(64) float value[16];
};

struct Grid {  // E2M1 over the shrink of the quantizer
    float value[16];

    explicit Grid(float shrink) {
        for (int code = 0; code < 16; ++code) value[code] = kE2M1[code] / shrink;
    }

    // E2M1 times 2^below, or 0 where that is below 2^-15. Any code under a NaN is NaN.
    QUARTET_INLINE static void aligned(int below, bool nan, Table& table) {
        uint32_t bits = nan ? 0x7fc00000 : below < -15 ? 0 : (uint32_t)(127 + below) << 23;
        const float power = load<float>(&bits);
        for (int code = 0; code < 16; ++code) table.value[code] = kE2M1[code] * power;
    }

    // 2^-127 is subnormal, so it goes in two steps, which flush-to-zero spares. Code 0 under a NaN is NaN.
    QUARTET_INLINE void scaled(uint8_t byte, Table& table) const {
        uint32_t bits = byte == 255 ? 0x7fc00000 : (uint32_t)(byte ? byte : 1) << 23;
        float scale = load<float>(&bits), half = byte ? 1.0f : 0.5f;
        for (int code = 0; code < 16; ++code) table.value[code] = value[code] * scale * half;
    }
};

// kLanes codes of one row.
QUARTET_INLINE f32 decode(const uint8_t* codes, const Table& table) {
#if defined(__AVX2__)
    __m128i pairs = _mm_setzero_si128();
    std::memcpy(&pairs, codes, kLanes / 2);
    __m128i nibbles = _mm_unpacklo_epi8(pairs, _mm_srli_epi64(pairs, 4));  // the high halves of bytes are ignored below
#if defined(__AVX512F__)
    return (f32)_mm512_permutexvar_ps(_mm512_cvtepu8_epi32(nibbles), (__m512)load<f32>(table.value));
#else
    __m256i code = _mm256_cvtepu8_epi32(nibbles);
    i32 value = (i32)_mm256_permutevar8x32_ps((__m256)load<f32>(table.value), code);  // by the low 3 bits
    return (f32)(value ^ ((i32)code << 28 & INT32_MIN));
#endif
#else
    f32 values;
    for (int lane = 0; lane < kLanes; ++lane) values[lane] = table.value[codes[lane / 2] >> lane % 2 * 4 & 15];
    return values;
#endif
}

// The transpose of 32 rows of codes, as columns of a tile.
template <bool positive_zeros>
struct Decoded {
    static constexpr bool kPositiveZeros = positive_zeros;
    const uint8_t* codes;
    int64_t stride;
    const Table* table;  // one a row

    QUARTET_INLINE void four(int column, f32 out[4]) const {
        for (int i = 0; i < 4; ++i) out[i] = decode(codes + (column + i) * stride, table[column + i]);
    }
};
