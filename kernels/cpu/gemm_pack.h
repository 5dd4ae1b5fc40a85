// From MXFP4 blocks to the layouts of gemm_layout.h.
#pragma once

#include <algorithm>
#include <limits>

#include "gemm_layout.h"

// codes: uint8[rows, 16 * groups]; scales: uint8[rows, groups].
struct Operand {
    const uint8_t* codes;
    const uint8_t* scales;
    int64_t rows;
    int64_t groups;
};

// What the scale bytes of a whole operand say.
struct Scales {
    int high = 0;             // the largest, NaN apart
    int span = 0;             // how far below it the others go
    bool nan = false;         // whether any is NaN
    uint32_t exponent[256];   // of each byte, relative to `high`, << 23; bytes out of range get one in range
};

inline bool is_zero(const uint8_t* group) {
    uint64_t words[2];
    std::memcpy(words, group, sizeof words);
    return ((words[0] | words[1]) & 0x7777777777777777) == 0;
}

inline Scales survey(const Operand& x) {
    const int64_t count = x.rows * x.groups;
    uint8_t low = 255, high = 0, least = 255, most = 0;
    for (int64_t i = 0; i < count; ++i) {
        const uint8_t byte = x.scales[i], less = byte - 1, more = byte + 1;  // wrapping, which takes 0 and NaN out
        low = std::min(low, less);
        high = std::max(high, more);
        least = std::min(least, byte);
        most = std::max(most, byte);
    }
    Scales result;
    result.high = std::max(high - 1, 0);
    result.span = std::max(result.high - (low + 1), 0);
    result.nan = most == kNanScale;
    // Groups of zeros have scale byte 0 and don't count. In any other group it is 2^-127 in earnest.
    if (least == 0)
        for (int64_t i = 0; i < count && result.span < result.high; ++i)
            if (x.scales[i] == 0 && !is_zero(x.codes + i * kGroupBytes)) result.span = result.high;
    for (int byte = 0; byte < 256; ++byte)
        result.exponent[byte] = uint32_t(std::clamp(byte - result.high, -result.span, 0)) << kMantissaBits;
    return result;
}

// `factors[i] = value` for the rows `first + i`, or NaN if the row has a NaN. Rows past the end repeat the last one, here
// and below; what they lead to is never stored.
inline void row_factors(const Operand& x, const Scales& scales, int64_t first, int count, float value, float* factors) {
    for (int i = 0; i < count; ++i) {
        const uint8_t* row = x.scales + std::min(first + i, x.rows - 1) * x.groups;
        const bool nan = scales.nan && std::memchr(row, kNanScale, x.groups);
        factors[i] = nan ? std::numeric_limits<float>::quiet_NaN() : value;
    }
}

// Twice the E2M1 values, plus `offset`, of 32 codes in the low nibbles of their bytes (the high ones are ignored).
QUARTET_INLINE __m256i twice_e2m1(__m256i codes, int offset) {
    const __m128i table = _mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12);
    const __m128i shifted = _mm_add_epi8(table, _mm_set1_epi8(offset));
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(shifted), _mm256_and_si256(codes, _mm256_set1_epi8(15)));
}

QUARTET_INLINE uint32_t sum_bytes(__m256i bytes) {
    const __m256i sums = _mm256_sad_epu8(bytes, _mm256_setzero_si256());
    const __m128i half = _mm_add_epi64(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
    return _mm_cvtsi128_si32(half) + _mm_extract_epi32(half, 2);
}

// Rows `first` .. `first + kTileRows - 1`, as `out[groups]`.
inline void pack_rows(const Operand& x, const Scales& scales, int64_t first, RowGroup* out) {
    for (int r = 0; r < kTileRows; ++r) {
        const int64_t row = std::min(first + r, x.rows - 1);
        for (int64_t g = 0; g < x.groups; ++g) {
            const int64_t group = row * x.groups + g;
            const __m128i packed = load<__m128i>(x.codes + group * kGroupBytes);
            const __m256i shifted = twice_e2m1(_mm256_set_m128i(_mm_srli_epi16(packed, 4), packed), kOffset);
            store(out[g].codes[r], _mm256_sub_epi8(shifted, _mm256_set1_epi8(kOffset)));
            const uint32_t sum = sum_bytes(shifted) - kGroup * kOffset;
            const uint32_t unit = kMagic + (kLift << kMantissaBits) + scales.exponent[x.scales[group]];
            out[g].unit[r] = unit;
            out[g].start[r] = unit - kOffset * sum;
        }
    }
}

// Rows `first` .. `first + kTileColumns - 1` as the columns of `out[groups]`, eight at a time: i in the low lane of a
// register, i + 4 in the high lane, and a transpose of 4x4 words in each.
inline void pack_columns(const Operand& x, const Scales& scales, int64_t first, ColumnGroup* out) {
    for (int c = 0; c < kTileColumns; c += 8) {
        const uint8_t *codes[8], *bytes[8];
        for (int i = 0; i < 8; ++i) {
            const int64_t row = std::min(first + c + i, x.rows - 1);
            codes[i] = x.codes + row * x.groups * kGroupBytes;
            bytes[i] = x.scales + row * x.groups;
        }
        for (int64_t g = 0; g < x.groups; ++g) {
            __m256i rows[4];
            for (int i = 0; i < 4; ++i)
                rows[i] = _mm256_set_m128i(load<__m128i>(codes[i + 4] + g * kGroupBytes),
                                           load<__m128i>(codes[i] + g * kGroupBytes));
            const __m256i low01 = _mm256_unpacklo_epi32(rows[0], rows[1]), high01 = _mm256_unpackhi_epi32(rows[0], rows[1]);
            const __m256i low23 = _mm256_unpacklo_epi32(rows[2], rows[3]), high23 = _mm256_unpackhi_epi32(rows[2], rows[3]);
            const __m256i words[4] = {_mm256_unpacklo_epi64(low01, low23), _mm256_unpackhi_epi64(low01, low23),
                                      _mm256_unpacklo_epi64(high01, high23), _mm256_unpackhi_epi64(high01, high23)};
            for (int w = 0; w < 4; ++w) {
                store(out[g].codes[w][c], twice_e2m1(words[w], kOffset));
                store(out[g].codes[w + 4][c], twice_e2m1(_mm256_srli_epi16(words[w], 4), kOffset));
            }
            for (int i = 0; i < 8; ++i) out[g].exponent[c + i] = scales.exponent[bytes[i][g]];
        }
    }
}
