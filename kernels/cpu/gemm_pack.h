// Packed MXFP4 rows to the layouts of gemm_layout.h, and the range of their scales.
#pragma once

#include <algorithm>
#include <limits>

#include "gemm_layout.h"

// A packed operand: codes uint8[rows, 16 groups] and scales uint8[rows, groups].
struct Operand {
    const uint8_t* codes;
    const uint8_t* scales;
    int64_t rows;
    int64_t groups;
};

// The smallest and the largest scale byte of an operand, leaving out NaN and groups of zeros.
struct Range {
    int low;
    int high;
};

inline bool is_zero(const uint8_t* group) {
    uint64_t low, high;
    std::memcpy(&low, group, 8);
    std::memcpy(&high, group + 8, 8);
    return ((low | high) & 0x7777777777777777) == 0;
}

inline Range scale_range(const Operand& x) {
    const int64_t count = x.rows * x.groups;
    uint8_t low = 255, high = 0, zeros = 0;
    for (int64_t i = 0; i < count; ++i) {
        const uint8_t byte = x.scales[i];
        low = std::min<uint8_t>(low, byte ? byte : 255);
        high = std::max<uint8_t>(high, byte == kNanScale ? 0 : byte);
        zeros |= byte == 0;
    }
    // A quantizer gives byte 0 to groups of zeros: they don't count. Other groups with it are 2^-127 in earnest.
    for (int64_t i = 0; zeros && low && i < count; ++i)
        if (x.scales[i] == 0 && !is_zero(x.codes + i * kGroupBytes)) low = 0;
    return {std::min(low, high), high};
}

// The exponent of a scale relative to the operand's largest. What NaN and zeros get doesn't matter, if it is in range.
QUARTET_INLINE int relative_exponent(uint8_t byte, Range range) {
    return std::clamp<int>(byte, range.low, range.high) - range.high;
}

QUARTET_INLINE __m256i both_lanes(__m128i x) { return _mm256_broadcastsi128_si256(x); }

// Twice the E2M1 values of codes 0 .. 15, plus `offset`.
QUARTET_INLINE __m256i twice_e2m1(int offset) {
    const __m128i table = _mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12);
    return both_lanes(_mm_add_epi8(table, _mm_set1_epi8(offset)));
}

QUARTET_INLINE __m256i look_up(__m256i table, __m256i nibbles) {
    return _mm256_shuffle_epi8(table, _mm256_and_si256(nibbles, _mm256_set1_epi8(15)));
}

// Rows `first` .. `first + kTileRows - 1` to `out[groups]`. Rows past the end repeat the last one. `factor[r]` becomes NaN
// where a row holds a NaN.
inline void pack_rows(const Operand& x, Range range, int64_t first, RowGroup* out, float* factor) {
    const __m256i table = twice_e2m1(0), ones = _mm256_set1_epi8(1);
    for (int r = 0; r < kTileRows; ++r) {
        const int64_t row = std::min(first + r, x.rows - 1);
        const uint8_t* codes = x.codes + row * x.groups * kGroupBytes;
        const uint8_t* scales = x.scales + row * x.groups;
        for (int64_t g = 0; g < x.groups; ++g) {
            const __m128i packed = load<__m128i>(codes + g * kGroupBytes);
            const __m256i values = look_up(table, _mm256_set_m128i(_mm_srli_epi16(packed, 4), packed));
            store(out[g].codes[r], values);
            const __m256i pairs = _mm256_maddubs_epi16(ones, values);
            const __m256i fours = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
            __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(fours), _mm256_extracti128_si256(fours, 1));
            sum = _mm_hadd_epi32(sum, sum);
            sum = _mm_hadd_epi32(sum, sum);
            const uint32_t unit = kMagic + (uint32_t(kLift + relative_exponent(scales[g], range)) << kMantissa);
            out[g].unit[r] = unit;
            out[g].start[r] = unit - kOffset * uint32_t(_mm_cvtsi128_si32(sum));
            if (scales[g] == kNanScale) factor[r] = std::numeric_limits<float>::quiet_NaN();
        }
    }
}

// Rows `first` .. `first + kTileColumns - 1` to the columns of `out[groups]`; for the rest as `pack_rows`.
inline void pack_columns(const Operand& x, Range range, int64_t first, ColumnGroup* out, float* factor) {
    const __m256i table = twice_e2m1(kOffset);
    // Eight at a time: row i in the low lane, row i + 4 in the high lane, and a 4x4 transpose of 32-bit words in each.
    for (int c = 0; c < kTileColumns; c += 8) {
        const uint8_t* codes[8];
        for (int i = 0; i < 8; ++i) {
            const int64_t row = std::min(first + c + i, x.rows - 1);
            codes[i] = x.codes + row * x.groups * kGroupBytes;
            const uint8_t* scales = x.scales + row * x.groups;
            for (int64_t g = 0; g < x.groups; ++g) {
                out[g].exponent[c + i] = uint32_t(relative_exponent(scales[g], range)) << kMantissa;
                if (scales[g] == kNanScale) factor[c + i] = std::numeric_limits<float>::quiet_NaN();
            }
        }
        for (int64_t g = 0; g < x.groups; ++g) {
            __m256i row[4];
            for (int i = 0; i < 4; ++i)
                row[i] = _mm256_set_m128i(load<__m128i>(codes[i + 4] + g * kGroupBytes),
                                          load<__m128i>(codes[i] + g * kGroupBytes));
            const __m256i low01 = _mm256_unpacklo_epi32(row[0], row[1]), high01 = _mm256_unpackhi_epi32(row[0], row[1]);
            const __m256i low23 = _mm256_unpacklo_epi32(row[2], row[3]), high23 = _mm256_unpackhi_epi32(row[2], row[3]);
            const __m256i words[4] = {
                _mm256_unpacklo_epi64(low01, low23), _mm256_unpackhi_epi64(low01, low23),
                _mm256_unpacklo_epi64(high01, high23), _mm256_unpackhi_epi64(high01, high23)};
            for (int w = 0; w < 4; ++w) {
                store(out[g].codes[w][c], look_up(table, words[w]));
                store(out[g].codes[w + 4][c], look_up(table, _mm256_srli_epi16(words[w], 4)));
            }
        }
    }
}
