// One tile of the output: the product of packed rows and columns, and its way to memory.
#pragma once

#include "gemm_dot.h"
#include "gemm_layout.h"

#define UNROLL _Pragma("GCC unroll 16")

// sum_g 2^e dot, in units of the operands' largest scales (gemm_layout.h), as `tile[kTileRows][kTileColumns]`.
inline void tile_product(const RowGroup* rows, const ColumnGroup* columns, int64_t groups, float* tile) {
    f32 total[kTileRows][kTileVectors] = {};
    for (int64_t g = 0; g < groups; ++g) {
        u32 sum[kTileRows][kTileVectors], exponent[kTileVectors];
        UNROLL for (int v = 0; v < kTileVectors; ++v) exponent[v] = load<u32>(columns[g].exponent + v * kLanes);
        UNROLL for (int r = 0; r < kTileRows; ++r)
            UNROLL for (int v = 0; v < kTileVectors; ++v) sum[r][v] = dot_open(exponent[v] + rows[g].start[r]);
        UNROLL for (int k = 0; k < kSteps; ++k) {
            u32 column[kTileVectors];
            UNROLL for (int v = 0; v < kTileVectors; ++v) column[v] = load<u32>(columns[g].codes[k][v * kLanes]);
            UNROLL for (int r = 0; r < kTileRows; ++r) {
                uint32_t row;
                std::memcpy(&row, rows[g].codes[r] + 4 * k, 4);
                UNROLL for (int v = 0; v < kTileVectors; ++v) sum[r][v] = dot_step(sum[r][v], column[v], u32{} + row);
            }
        }
        UNROLL for (int r = 0; r < kTileRows; ++r)
            UNROLL for (int v = 0; v < kTileVectors; ++v) {
                const f32 shifted = (f32)dot_close(sum[r][v], exponent[v] + rows[g].start[r]);
                total[r][v] += shifted - (f32)(exponent[v] + rows[g].unit[r]);
            }
    }
    UNROLL for (int r = 0; r < kTileRows; ++r)
        UNROLL for (int v = 0; v < kTileVectors; ++v) store(tile + r * kTileColumns + v * kLanes, total[r][v]);
}
