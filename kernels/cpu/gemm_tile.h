// One tile of the output: its sums in registers, and their way to memory.
#pragma once

#include "element.h"
#include "gemm_dot.h"
#include "gemm_layout.h"

#define UNROLLED _Pragma("GCC unroll 16") for

namespace gemm {

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

// `sums[kTileRows][kTileColumns]` of scale * dot over all pairs of NVFP4's groups.
inline void tile_sums(const RowPair* rows, const ColumnPair* columns, int64_t pairs, float* sums) {
    f32 total[kTileRows][kTileVectors] = {};
    for (int64_t g = 0; g < pairs; ++g)
        UNROLLED (int i = 0; i < 2; ++i) {
            u32 dot[kTileRows][kTileVectors], column[kTileVectors];
            UNROLLED (int r = 0; r < kTileRows; ++r)
                UNROLLED (int v = 0; v < kTileVectors; ++v) dot[r][v] = dot_open(u32{} + rows[g].start[i][r]);
            UNROLLED (int k = 2 * i; k < kSteps; k += k % 2 ? 3 : 1) {
                UNROLLED (int v = 0; v < kTileVectors; ++v) column[v] = load<u32>(columns[g].codes[k][v * kLanes]);
                UNROLLED (int r = 0; r < kTileRows; ++r) {
                    const u32 row = u32{} + load<uint32_t>(rows[g].codes[r] + 4 * k);
                    UNROLLED (int v = 0; v < kTileVectors; ++v) dot[r][v] = dot_step(dot[r][v], column[v], row);
                }
            }
            UNROLLED (int v = 0; v < kTileVectors; ++v) {
                const f32 scale = load<f32>(columns[g].scale[i] + v * kLanes);
                UNROLLED (int r = 0; r < kTileRows; ++r) {
                    const i32 whole = (i32)dot_close(dot[r][v], u32{} + rows[g].start[i][r]);
                    total[r][v] += __builtin_convertvector(whole, f32) * (scale * rows[g].scale[i][r]);
                }
            }
        }
    UNROLLED (int r = 0; r < kTileRows; ++r)
        UNROLLED (int v = 0; v < kTileVectors; ++v) store(sums + r * kTileColumns + v * kLanes, total[r][v]);
}

// Where a tile goes: the part of it that is inside of the output.
template <class Element>
struct Place {
    Element* out;
    int64_t stride;
    int rows;
    int columns;
};

// Asks for the memory of a tile before its sums are computed: 386 instead of 352 Gop/s where the output is larger than
// L2 (512x1792x640, float32).
template <class Element>
QUARTET_INLINE void prefetch_tile(Place<Element> place) {
    constexpr int line = 64 / sizeof(Element);
    for (int r = 0; r < place.rows; ++r)
        for (int c = 0; c < place.columns; c += line) __builtin_prefetch(place.out + r * place.stride + c, 1);
}

// `out[r, c] = sums[r, c] * scale * column_factors[c] * row_factors[r]`, one after the other, to nearest. Rows of `sums`
// are `stride` apart.
template <int stride, class Element>
void store_tile(const float* sums, float scale, const float* row_factors, const float* column_factors,
                Place<Element> place) {
    for (int r = 0; r < place.rows; ++r)
        for (int c = 0; c < place.columns; c += kLanes) {
            Element* out = place.out + r * place.stride + c;
            const f32 sum = load<f32>(sums + r * stride + c);
            const f32 values = sum * scale * load<f32>(column_factors + c) * row_factors[r];
            if (c + kLanes <= place.columns) {
                narrow(values, out);
            } else {
                Element edge[kLanes];
                narrow(values, edge);
                std::memcpy(out, edge, (place.columns - c) * sizeof(Element));
            }
        }
}

}  // namespace gemm
