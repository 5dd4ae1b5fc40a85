// From MXFP4 blocks to the layouts of gemm_layout.h.
#pragma once

#include <limits>

#include "gemm_layout.h"

namespace gemm {

// codes: uint8[rows, 16 * groups]; scales: uint8[rows, groups].
struct Blocks {
    const uint8_t* codes;
    const uint8_t* scales;
    int64_t rows;
    int64_t groups;
};

// What an operand's scale bytes have in common.
struct Scales {
    int high;                // the largest, NaN apart
    int span;                // how far the others go below it
    bool nan;                // whether any is NaN
    uint32_t exponent[256];  // of each byte, relative to `high`, << 23; NaN and groups of zeros get any in range
};

inline bool all_zero(const uint8_t* group) {
    uint64_t words[2];
    std::memcpy(words, group, sizeof words);
    return ((words[0] | words[1]) & 0x7777777777777777) == 0;
}

inline Scales survey(const Blocks& x) {
    const int64_t count = x.rows * x.groups;
    uint8_t least = 255, most = 0, least_nonzero = 255, most_finite = 0;
    for (int64_t i = 0; i < count; ++i) {  // the last two are off by one, so that 0 and 255 wrap out of the way
        const uint8_t byte = x.scales[i], below = byte - 1, above = byte + 1;
        least = std::min(least, byte);
        most = std::max(most, byte);
        least_nonzero = std::min(least_nonzero, below);
        most_finite = std::max(most_finite, above);
    }
    Scales scales;
    scales.high = std::max(most_finite - 1, 0);
    scales.span = std::max(scales.high - (least_nonzero + 1), 0);
    scales.nan = most == kNanScale;
    // Byte 0 is what groups of zeros have, which don't count. With any other codes it is 2^-127 in earnest.
    for (int64_t i = 0; least == 0 && scales.span < scales.high && i < count; ++i)
        if (x.scales[i] == 0 && !all_zero(x.codes + i * kGroupBytes)) scales.span = scales.high;
    for (int byte = 0; byte < 256; ++byte)
        scales.exponent[byte] = uint32_t(std::clamp(byte - scales.high, -scales.span, 0)) << kMantissaBits;
    return scales;
}

// Row `first + i`, or the last one: a tile that hangs over the edge repeats it, and doesn't store what comes of that.
QUARTET_INLINE int64_t row_of(const Blocks& x, int64_t first, int64_t i) { return std::min(first + i, x.rows - 1); }

// Twice the E2M1 values, plus kOffset, of the low nibbles of 32 bytes.
QUARTET_INLINE __m256i unsigned_values(__m256i codes) {
    const __m128i twice = _mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12);
    const __m128i table = _mm_add_epi8(twice, _mm_set1_epi8(kOffset));
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), _mm256_and_si256(codes, _mm256_set1_epi8(15)));
}

QUARTET_INLINE uint32_t sum_bytes(__m256i bytes) {
    const __m256i sums = _mm256_sad_epu8(bytes, _mm256_setzero_si256());
    const __m128i half = _mm_add_epi64(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
    return _mm_cvtsi128_si32(half) + _mm_extract_epi32(half, 2);
}

// Rows `first` .. `first + kTileRows - 1`, as `out[groups]`.
inline void pack_tile(const Blocks& x, const Scales& scales, int64_t first, RowGroup* out) {
    for (int r = 0; r < kTileRows; ++r) {
        const int64_t start = row_of(x, first, r) * x.groups;
        for (int64_t g = 0; g < x.groups; ++g) {
            const __m128i packed = load<__m128i>(x.codes + (start + g) * kGroupBytes);
            const __m256i values = unsigned_values(_mm256_set_m128i(_mm_srli_epi16(packed, 4), packed));
            store(out[g].codes[r], _mm256_sub_epi8(values, _mm256_set1_epi8(kOffset)));
            const uint32_t sum = sum_bytes(values) - kGroup * kOffset;
            const uint32_t unit = kMagic + (kLift << kMantissaBits) + scales.exponent[x.scales[start + g]];
            out[g].unit[r] = unit;
            out[g].start[r] = unit - kOffset * sum;
        }
    }
}

// Rows `first` .. `first + kTileColumns - 1` as the columns of `out[groups]`, eight at a time: i in the low half of a
// register, i + 4 in the high half, and a transpose of 4x4 words in each.
inline void pack_tile(const Blocks& x, const Scales& scales, int64_t first, ColumnGroup* out) {
    for (int c = 0; c < kTileColumns; c += 8) {
        const uint8_t *codes[8], *bytes[8];
        for (int i = 0; i < 8; ++i) {
            const int64_t start = row_of(x, first, c + i) * x.groups;
            codes[i] = x.codes + start * kGroupBytes;
            bytes[i] = x.scales + start;
        }
        for (int64_t g = 0; g < x.groups; ++g) {
            __m256i rows[4];
            for (int i = 0; i < 4; ++i)
                rows[i] = _mm256_set_m128i(load<__m128i>(codes[i + 4] + g * kGroupBytes),
                                           load<__m128i>(codes[i] + g * kGroupBytes));
            const __m256i low01 = _mm256_unpacklo_epi32(rows[0], rows[1]);
            const __m256i low23 = _mm256_unpacklo_epi32(rows[2], rows[3]);
            const __m256i high01 = _mm256_unpackhi_epi32(rows[0], rows[1]);
            const __m256i high23 = _mm256_unpackhi_epi32(rows[2], rows[3]);
            const __m256i words[4] = {_mm256_unpacklo_epi64(low01, low23), _mm256_unpackhi_epi64(low01, low23),
                                      _mm256_unpacklo_epi64(high01, high23), _mm256_unpackhi_epi64(high01, high23)};
            for (int w = 0; w < 4; ++w) {
                store(out[g].codes[w][c], unsigned_values(words[w]));
                store(out[g].codes[w + 4][c], unsigned_values(_mm256_srli_epi16(words[w], 4)));
            }
            for (int i = 0; i < 8; ++i) out[g].exponent[c + i] = scales.exponent[bytes[i][g]];
        }
    }
}

// `factors[count] = value` for the rows from `first`, but NaN for those that have a NaN: it reaches all their outputs.
inline void fill_factors(const Blocks& x, const Scales& scales, int64_t first, int64_t count, float value,
                         float* factors) {
    for (int64_t i = 0; i < count; ++i) {
        const uint8_t* bytes = x.scales + row_of(x, first, i) * x.groups;
        const bool nan = scales.nan && std::memchr(bytes, kNanScale, x.groups);
        factors[i] = nan ? std::numeric_limits<float>::quiet_NaN() : value;
    }
}

// Tiles `begin` .. `end - 1`, and what their outputs are multiplied by.
template <class Group>
void pack(const Blocks& x, const Scales& scales, float value, int64_t begin, int64_t end, Group* out, float* factors) {
    for (int64_t tile = begin; tile < end; ++tile)
        pack_tile(x, scales, tile * Group::kCount, out + (tile - begin) * x.groups);
    fill_factors(x, scales, begin * Group::kCount, (end - begin) * Group::kCount, value, factors);
}

}  // namespace gemm
