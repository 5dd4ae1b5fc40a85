// From MXFP4 and NVFP4 blocks to the layouts of gemm_layout.h.
#pragma once

#include <limits>

#include "e4m3.h"
#include "gemm_layout.h"

namespace gemm {

// codes: uint8[rows, 16 * groups]; scales: uint8[rows, groups], of NVFP4 [rows, 2 * groups].
struct Blocks {
    const uint8_t* codes;
    const uint8_t* scales;
    int64_t rows;
    int64_t groups;  // of 32
};

// The values of NVFP4's scale bytes, NaN among them.
struct E4m3Scales {
    float value[256];

    E4m3Scales() {
        for (int byte = 0; byte < 256; ++byte) value[byte] = e4m3_value(uint8_t(byte));
    }
};

// What an MXFP4 operand's scale bytes have in common.
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

struct ScaleRange {
    int low, high;  // of the bytes that are neither 0 nor NaN; 256 and 0 if there are none
    bool zeros, nan;
};

inline ScaleRange scale_range(const uint8_t* bytes, int64_t count) {
    uint8_t least = 255, most = 0, least_nonzero = 255, most_finite = 0;
    for (int64_t i = 0; i < count; ++i) {  // the last two are off by one, so that 0 and 255 wrap out of the way
        const uint8_t byte = bytes[i], below = byte - 1, above = byte + 1;
        least = std::min(least, byte);
        most = std::max(most, byte);
        least_nonzero = std::min(least_nonzero, below);
        most_finite = std::max(most_finite, above);
    }
    return {least_nonzero + 1, std::max(most_finite - 1, 0), least == 0, most == kNanScale};
}

inline Scales survey(const Blocks& x) {
    const int64_t count = x.rows * x.groups;
    const ScaleRange range = scale_range(x.scales, count);
    Scales scales;
    scales.high = range.high;
    scales.span = std::max(range.high - range.low, 0);
    scales.nan = range.nan;
    // Byte 0 is what groups of zeros have, which don't count. With any other codes it is 2^-127 in earnest.
    for (int64_t i = 0; range.zeros && scales.span < scales.high && i < count; ++i)
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

// One row's codes of a group, signed, to `out`, and the sums of `unsigned_values` of each eight of them.
QUARTET_INLINE void pack_row(const uint8_t* codes, int8_t* out, uint64_t sums[4]) {
    const __m128i packed = load<__m128i>(codes);
    const __m256i values = unsigned_values(_mm256_set_m128i(_mm_srli_epi16(packed, 4), packed));
    store(out, _mm256_sub_epi8(values, _mm256_set1_epi8(kOffset)));
    store(sums, _mm256_sad_epu8(values, _mm256_setzero_si256()));
}

// Row r's scales of a group, and what they and the sums of its codes make of `start`.
QUARTET_INLINE void pack_row_scales(const Scales& scales, const uint8_t* bytes, const uint64_t sums[4], int r,
                                    RowGroup& out) {
    const uint32_t sum = uint32_t(sums[0] + sums[1] + sums[2] + sums[3]) - kGroup * kOffset;
    out.unit[r] = kMagic + (kLift << kMantissaBits) + scales.exponent[bytes[0]];
    out.start[r] = out.unit[r] - kOffset * sum;
}

QUARTET_INLINE void pack_row_scales(const E4m3Scales& scales, const uint8_t* bytes, const uint64_t sums[4], int r,
                                    RowPair& out) {
    for (int i = 0; i < 2; ++i) {
        const uint32_t sum = uint32_t(sums[i] + sums[i + 2]) - kGroup / 2 * kOffset;
        out.scale[i][r] = scales.value[bytes[i]];
        out.start[i][r] = -kOffset * sum;
    }
}

// Rows `first` .. `first + kTileRows - 1`, as `out[groups]`.
template <class ScalesOf, class Rows>
void pack_rows(const Blocks& x, const ScalesOf& scales, int64_t first, Rows* out) {
    uint64_t sums[4];
    for (int r = 0; r < kTileRows; ++r) {
        const int64_t start = row_of(x, first, r) * x.groups;
        for (int64_t g = 0; g < x.groups; ++g) {
            pack_row(x.codes + (start + g) * kGroupBytes, out[g].codes[r], sums);
            pack_row_scales(scales, x.scales + (start + g) * Rows::kScales, sums, r, out[g]);
        }
    }
}

// The codes of a group of eight rows, as columns `c` .. `c + 7`: row i in the low half of a register, i + 4 in the high
// half, and a transpose of 4x4 words in each.
QUARTET_INLINE void pack_eight(const uint8_t* const codes[8], int64_t group, int c, uint8_t (*out)[kTileColumns][4]) {
    __m256i rows[4];
    for (int i = 0; i < 4; ++i)
        rows[i] = _mm256_set_m128i(load<__m128i>(codes[i + 4] + group * kGroupBytes),
                                   load<__m128i>(codes[i] + group * kGroupBytes));
    const __m256i low01 = _mm256_unpacklo_epi32(rows[0], rows[1]);
    const __m256i low23 = _mm256_unpacklo_epi32(rows[2], rows[3]);
    const __m256i high01 = _mm256_unpackhi_epi32(rows[0], rows[1]);
    const __m256i high23 = _mm256_unpackhi_epi32(rows[2], rows[3]);
    const __m256i words[4] = {_mm256_unpacklo_epi64(low01, low23), _mm256_unpackhi_epi64(low01, low23),
                              _mm256_unpacklo_epi64(high01, high23), _mm256_unpackhi_epi64(high01, high23)};
    for (int w = 0; w < 4; ++w) {
        store(out[w][c], unsigned_values(words[w]));
        store(out[w + 4][c], unsigned_values(_mm256_srli_epi16(words[w], 4)));
    }
}

QUARTET_INLINE void pack_column_scales(const Scales& scales, const uint8_t* bytes, int c, ColumnGroup& out) {
    out.exponent[c] = scales.exponent[bytes[0]];
}

QUARTET_INLINE void pack_column_scales(const E4m3Scales& scales, const uint8_t* bytes, int c, ColumnPair& out) {
    for (int i = 0; i < 2; ++i) out.scale[i][c] = scales.value[bytes[i]];
}

// Rows `first` .. `first + kTileColumns - 1` as the columns of `out[groups]`, eight at a time.
template <class ScalesOf, class Columns>
void pack_columns(const Blocks& x, const ScalesOf& scales, int64_t first, Columns* out) {
    for (int c = 0; c < kTileColumns; c += 8) {
        const uint8_t *codes[8], *bytes[8];
        for (int i = 0; i < 8; ++i) {
            const int64_t start = row_of(x, first, c + i) * x.groups;
            codes[i] = x.codes + start * kGroupBytes;
            bytes[i] = x.scales + start * Columns::kScales;
        }
        for (int64_t g = 0; g < x.groups; ++g) {
            pack_eight(codes, g, c, out[g].codes);
            for (int i = 0; i < 8; ++i) pack_column_scales(scales, bytes[i] + g * Columns::kScales, c + i, out[g]);
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

// NVFP4's NaN are among its scales.
inline void fill_factors(const Blocks&, const E4m3Scales&, int64_t, int64_t count, float value, float* factors) {
    std::fill_n(factors, count, value);
}

// Tiles `begin` .. `end - 1`, and what their outputs are multiplied by.
template <class ScalesOf, class Group>
void pack(const Blocks& x, const ScalesOf& scales, float value, int64_t begin, int64_t end, Group* out, float* factors) {
    for (int64_t tile = begin; tile < end; ++tile) {
        Group* to = out + (tile - begin) * x.groups;
        if constexpr (Group::kCount == kTileRows)
            pack_rows(x, scales, tile * Group::kCount, to);
        else
            pack_columns(x, scales, tile * Group::kCount, to);
    }
    fill_factors(x, scales, begin * Group::kCount, (end - begin) * Group::kCount, value, factors);
}

}  // namespace gemm
