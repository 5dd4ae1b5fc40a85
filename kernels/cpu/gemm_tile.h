// One tile of the output: its sums in registers, and their way to memory.
#pragma once

#include "gemm_dot.h"
#include "gemm_layout.h"

#define UNROLLED _Pragma("GCC unroll 16") for

// `sums[kTileRows][kTileColumns]` of 2^e dot over all groups, e as in gemm_layout.h.
inline void tile_sums(const RowGroup* rows, const ColumnGroup* columns, int64_t groups, float* sums) {
    f32 total[kTileRows][kTileVectors] = {};
    for (int64_t g = 0; g < groups; ++g) {
        u32 dot[kTileRows][kTileVectors], exponent[kTileVectors], column[kTileVectors];
        UNROLLED (int v = 0; v < kTileVectors; ++v) exponent[v] = load<u32>(columns[g].exponent + v * kLanes);
        UNROLLED (int r = 0; r < kTileRows; ++r)
            UNROLLED (int v = 0; v < kTileVectors; ++v) dot[r][v] = dot_open(exponent[v] + rows[g].start[r]);
        UNROLLED (int k = 0; k < kSteps; ++k) {
            UNROLLED (int v = 0; v < kTileVectors; ++v) column[v] = load<u32>(columns[g].codes[k][v * kLanes]);
            UNROLLED (int r = 0; r < kTileRows; ++r) {
                const u32 row = u32{} + load<uint32_t>(rows[g].codes[r] + 4 * k);
                UNROLLED (int v = 0; v < kTileVectors; ++v) dot[r][v] = dot_step(dot[r][v], column[v], row);
            }
        }
        UNROLLED (int r = 0; r < kTileRows; ++r)
            UNROLLED (int v = 0; v < kTileVectors; ++v) {
                const u32 bits = dot_close(dot[r][v], exponent[v] + rows[g].start[r]);
                total[r][v] += (f32)bits - (f32)(exponent[v] + rows[g].unit[r]);
            }
    }
    UNROLLED (int r = 0; r < kTileRows; ++r)
        UNROLLED (int v = 0; v < kTileVectors; ++v) store(sums + r * kTileColumns + v * kLanes, total[r][v]);
}

// The element types of the output. Rounding is to nearest, ties to even.
struct Float32 {
    using Vector = f32;
    static QUARTET_INLINE Vector from(f32 x) { return x; }
};

struct BFloat16 {
    typedef uint16_t Vector __attribute__((vector_size(2 * kLanes)));
    static QUARTET_INLINE Vector from(f32 x) {
        const u32 bits = (u32)x, rounded = bits + 0x7FFF + ((bits >> 16) & 1);
        return __builtin_convertvector((x == x ? rounded : bits | 0x400000) >> 16, Vector);
    }
};

struct Float16 {
#if defined(__AVX512F__)
    using Vector = __m256i;
    static QUARTET_INLINE Vector from(f32 x) { return _mm512_maskz_cvtps_ph(-1, (__m512)x, _MM_FROUND_TO_NEAREST_INT); }
#else
    using Vector = __m128i;
    static QUARTET_INLINE Vector from(f32 x) { return _mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT); }
#endif
};

// Where a tile goes: `rows` x `columns` of it are inside of the output.
struct Place {
    char* out;
    int64_t stride;  // bytes from a row to the next
    int rows;
    int columns;
};

// `out[r, c] = sums[r, c] * scale * column_factors[c] * row_factors[r]`, one after the other.
template <class Type>
void store_tile(const float* sums, float scale, const float* row_factors, const float* column_factors, Place place) {
    constexpr int size = sizeof(typename Type::Vector) / kLanes;
    for (int r = 0; r < place.rows; ++r) {
        char* out = place.out + r * place.stride;
        for (int c = 0; c < kTileColumns; c += kLanes) {
            const f32 sum = load<f32>(sums + r * kTileColumns + c);
            const auto values = Type::from(sum * scale * load<f32>(column_factors + c) * row_factors[r]);
            if (c + kLanes <= place.columns)
                store(out + c * size, values);
            else if (c < place.columns)
                std::memcpy(out + c * size, &values, (place.columns - c) * size);
        }
    }
}
