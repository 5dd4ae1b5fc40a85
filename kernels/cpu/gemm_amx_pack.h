// From MXFP4 and NVFP4 blocks to the tiles of AMX, which are 16 rows of 64 bytes (gemm_amx_tile.h).
//
// A row of a tile holds 64 int8 or 32 bf16 along k; of the right operand, a tile's rows are 16 quadruples of bytes or pairs
// of bf16, and its columns are the operand's rows: the transpose, in units of four bytes. So both sides are packed by the
// same code, and the right one is turned. Along k, both go over the low nibbles of a group, then over the high ones.
#pragma once

#include "decode.h"
#include "gemm_pack.h"

namespace gemm {

constexpr int kTileSide = 16;
constexpr int kPanelTiles = 2;
constexpr int kPanelRows = kTileSide * kPanelTiles;
constexpr int kIntegerGroups = 2;  // of a row of a tile of int8, where one of bf16 holds one

// Twice an E2M1 value is at most 12, so that three more binades fit int8, and products of that many of them int32.
constexpr int kIntegerSpan = 3;
constexpr int64_t kMostIntegers = (int64_t(1) << 31) / (96 * 96);

struct alignas(64) AmxTile {
    uint8_t row[kTileSide][64];
};

struct AmxStep {  // along k
    AmxTile tile[kPanelTiles];
};

// What decides whether the rows of a panel can be integers: that the scales of each row span kIntegerSpan binades or less.
struct PanelScales {
    bool integers;
    uint8_t least[kPanelRows];  // scale byte of each row; groups of zeros and NaN don't count
};

inline PanelScales survey_panel(const Blocks& x, const Scales&, int64_t panel) {
    PanelScales found{x.groups * kGroup <= kMostIntegers, {}};
    for (int i = 0; i < kPanelRows; ++i) {
        const int64_t first = row_of(x, panel * kPanelRows, i) * x.groups;
        const ScaleRange range = scale_range(x.scales + first, x.groups);
        found.least[i] = uint8_t(std::min(range.low, range.high));
        found.integers &= range.high - range.low <= kIntegerSpan;
        for (int64_t g = 0; range.zeros && g < x.groups; ++g)
            found.integers &= x.scales[first + g] != 0 || all_zero(x.codes + (first + g) * kGroupBytes);
    }
    return found;
}

// Scales of NVFP4 are no powers of two.
inline PanelScales survey_panel(const Blocks&, const E4m3Scales&, int64_t) { return {false, {}}; }

QUARTET_INLINE __m256i nibbles(const uint8_t* codes) {
    const __m128i packed = load<__m128i>(codes);
    return _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16(packed, 4), packed), _mm256_set1_epi8(15));
}

// Twice the values of a group, times 2^shift.
QUARTET_INLINE __m256i integer_values(const uint8_t* codes, int shift) {
    const __m128i twice = _mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12);
    const __m256i table = _mm256_cvtepi8_epi16(twice);
    const __m128i shifted = _mm256_cvtepi16_epi8(_mm256_sll_epi16(table, _mm_cvtsi32_si128(shift)));
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(shifted), nibbles(codes));
}

// The values of 32 codes, the first eight bytes of which look up the lower half of `table`, the others the upper one.
QUARTET_INLINE __m512i look_up(const uint8_t* codes, __m512i table) {
    const __m256i second = _mm256_setr_epi64x(0, 0x1010101010101010, 0, 0x1010101010101010);
    return _mm512_permutexvar_epi16(_mm512_cvtepu8_epi16(_mm256_or_si256(nibbles(codes), second)), table);
}

// The values of a group as bf16, times 2^(scale - largest scale + lift), which is in range (gemm_amx.h).
QUARTET_INLINE __m512i bf16_values(const uint8_t* codes, const Scales& scales, const uint8_t* bytes, int lift) {
    const __m256i ones = _mm256_setr_epi16(0, 0x3f00, 0x3f80, 0x3fc0, 0x4000, 0x4040, 0x4080, 0x40c0, int16_t(0x8000),
                                           int16_t(0xbf00), int16_t(0xbf80), int16_t(0xbfc0), int16_t(0xc000),
                                           int16_t(0xc040), int16_t(0xc080), int16_t(0xc0c0));
    const uint32_t exponent = (scales.exponent[bytes[0]] + (uint32_t(lift) << kMantissaBits)) >> 16;
    const __m512i table = _mm512_broadcast_i64x4(ones);
    return look_up(codes, _mm512_mask_add_epi16(table, 0xfefefefe, table, _mm512_set1_epi16(int16_t(exponent))));
}

// Of two groups of NVFP4: E2M1 has two bits of significand, E4M3 four, so their product's six fit the eight of bf16.
QUARTET_INLINE __m512i bf16_values(const uint8_t* codes, const E4m3Scales& scales, const uint8_t* bytes, int) {
    const __m512 grid = (__m512)load<f32>(kE2M1);
    __m256i half[2];
    for (int i = 0; i < 2; ++i) {
        const __m512i bits = _mm512_castps_si512(_mm512_mul_ps(grid, _mm512_set1_ps(scales.value[bytes[i]])));
        half[i] = _mm512_cvtepi32_epi16(_mm512_srli_epi32(bits, 16));
    }
    return look_up(codes, _mm512_inserti64x4(_mm512_castsi256_si512(half[0]), half[1], 1));
}

// Swaps dword j of row i with dword i of row j.
inline void turn(AmxTile& tile) {
    f32 out[kTileSide];
    const float* dwords = reinterpret_cast<const float*>(tile.row);
    for (int c = 0; c < kTileSide; c += 4) {
        for (int i = 0; i < 4; ++i) out[c + i] = load_quarters(dwords + i * kTileSide + c, 4 * kTileSide);
        transpose_4x4(out + c);
    }
    std::memcpy(tile.row, out, sizeof out);
}

// A panel as `out[ceil(groups / kIntegerGroups)]` of int8: twice the values over 2^(least scale of the row).
inline void pack_integers(const Blocks& x, const PanelScales& scales, int64_t panel, bool turned, AmxStep* out) {
    const int64_t steps = (x.groups + 1) / kIntegerGroups;
    for (int i = 0; i < kPanelRows; ++i) {
        const int64_t first = row_of(x, panel * kPanelRows, i) * x.groups;
        for (int64_t g = 0; g < kIntegerGroups * steps; ++g) {
            __m256i values = _mm256_setzero_si256();
            if (g < x.groups) {
                const int shift = std::clamp(x.scales[first + g] - scales.least[i], 0, kIntegerSpan);
                values = integer_values(x.codes + (first + g) * kGroupBytes, shift);
            }
            store(out[g / kIntegerGroups].tile[i / kTileSide].row[i % kTileSide] + g % kIntegerGroups * kGroup, values);
        }
    }
    for (int64_t s = 0; turned && s < steps; ++s)
        for (AmxTile& tile : out[s].tile) turn(tile);
}

// A panel as `out[groups]` of bf16.
template <class ScalesOf>
void pack_bf16(const Blocks& x, const ScalesOf& scales, int lift, int64_t panel, bool turned, AmxStep* out) {
    constexpr int count = std::is_same_v<ScalesOf, E4m3Scales> ? 2 : 1;
    for (int i = 0; i < kPanelRows; ++i) {
        const int64_t first = row_of(x, panel * kPanelRows, i) * x.groups;
        for (int64_t g = 0; g < x.groups; ++g)
            store(out[g].tile[i / kTileSide].row[i % kTileSide],
                  bf16_values(x.codes + (first + g) * kGroupBytes, scales, x.scales + (first + g) * count, lift));
    }
    for (int64_t g = 0; turned && g < x.groups; ++g)
        for (AmxTile& tile : out[g].tile) turn(tile);
}

}  // namespace gemm
